"""Image encoders of the critic: images [n,1,H,W] in [−1, 1] -> embeddings [n, width].

`SmallCNN` is fitted with the critic. `dino` is DINO ViT-S/16 (Caron et al. 2021), CLS token, 384-d, frozen;
the papers say ViT-B/16 but give 384 dimensions, which is ViT-S.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

from migvis.config import CriticConfig
from migvis.pretrained import PretrainedEncoder, load_backbone

DINO = "vit_small_patch16_224.dino"
DINO_WIDTH = 384
CHANNELS = (16, 32, 64)
GRID = 4


class SmallCNN(nn.Module):
    """Three strided convolutions; the embedding keeps a 4 × 4 map, so that position and pose survive.

    The first convolution's patch grows with the image, so that its map has about 16 × 16 places at any size.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        stride = max(2, image_size // 16)
        first, second, third = CHANNELS
        self.first = nn.Conv2d(1, first, 2 * stride, stride=stride, padding=stride // 2)
        self.second = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.third = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.width = third * GRID**2
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(self, images: Tensor) -> Tensor:
        features = silu(self.third(silu(self.second(silu(self.first(images))))))
        if features.shape[-2:] != (GRID, GRID):
            features = adaptive_avg_pool2d(features, GRID)
        return features.flatten(1)


Encoder = SmallCNN | PretrainedEncoder


def build_encoder(config: CriticConfig, image_size: int) -> Encoder:
    """The encoder that `config.encoder` names; its attribute `width` is the embedding's size.

    Raises InputError if DINO's weights are in neither `config.encoder_weights` nor timm's hub or cache.
    """
    if config.encoder == "cnn":
        return SmallCNN(image_size)
    return PretrainedEncoder(load_backbone(DINO, config.encoder_weights, "critic.encoder_weights"), DINO_WIDTH)


def is_frozen(encoder: Encoder) -> bool:
    """Whether no weight of the encoder is fitted, so that embeddings can be computed once."""
    return not any(weight.requires_grad for weight in encoder.parameters())
