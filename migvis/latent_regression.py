"""Ridge regression of the latents on frozen features of images: the linear rival AP-LR (as in BrainDiVE, Luo et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from migvis.config import CriticConfig
from migvis.encoders import Encoder, build_encoder
from migvis.errors import InputError
from migvis.image_heads import latent_statistics

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-2, 6, 17))
"""Ridge penalties, of which each latent dimension takes the best in cross-validation over pictures."""


class LatentRegression(nn.Module):
    """ẑ(y) = W·f(y) + b of standardised latents, (z − latent_mean)/latent_scale, for all groups: [n, G, D_g].

    f is a frozen encoder (`critic.encoder` dino), or the pixels themselves (cnn: no encoder is frozen). weight [D, F], bias
    [D], latent_mean and latent_scale [G, D_g].
    """

    weight: Tensor
    bias: Tensor
    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(
        self, config: CriticConfig, weight: Tensor, bias: Tensor, latent_mean: Tensor, latent_scale: Tensor,
        encoder: Encoder | None = None, image_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.image_size = config, image_size
        self.encoder: nn.Module = nn.Flatten()
        if config.encoder == "dino":
            self.encoder = build_encoder(config, image_size) if encoder is None else encoder
        named = {"weight": weight, "bias": bias, "latent_mean": latent_mean, "latent_scale": latent_scale}
        for name, tensor in named.items():
            self.register_buffer(name, tensor.clone())

    def means(self, images: Tensor) -> Tensor:
        """ẑ [n, G, D_g], standardised, of images [n, 1, H, W] in [−1, 1]."""
        return (self.encoder(images) @ self.weight.T + self.bias).unflatten(1, self.latent_mean.shape)


def fit_latent_regression(
    clean: Tensor,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    config: CriticConfig,
    group_count: int,
    *,
    embeddings: Tensor | None = None,
    encoder: Encoder | None = None,
) -> LatentRegression:
    """Regresses the posterior means [n, D] of the training stimuli on the features of the pictures that they show.

    clean [P, 1, H, W], log_var [n, D], picture_row [n] as in migvis.critic.fit_critic; embeddings [P, E]: the clean pictures'
    by a frozen encoder, which `critic.encoder` dino needs. A penalty per dimension, by cross-validation that leaves out one
    picture with all stimuli that show it. Raises InputError if they are missing.
    """
    from sklearn.linear_model import RidgeCV

    if config.encoder == "dino" and embeddings is None:
        raise InputError("critic.encoder=dino: the regression needs the pictures' embeddings, and none are given")
    features = clean.flatten(1) if embeddings is None else embeddings
    centre, spread = latent_statistics(mean, log_var)
    standardised = ((mean - centre) / spread).double()
    # Their means, weighted by their number, have the same regression, and leaving out one leaves out the picture.
    shown, place, count = picture_row.unique(return_inverse=True, return_counts=True)
    of_pictures = torch.zeros(len(shown), mean.shape[1], dtype=torch.float64).index_add_(0, place, standardised) / count[:, None]
    model = RidgeCV(alphas=PENALTIES, alpha_per_target=True)
    model.fit(features[shown].double().numpy(), of_pictures.numpy(), sample_weight=count.double().numpy())
    weight, bias = (torch.tensor(part, dtype=torch.float32) for part in (model.coef_, model.intercept_))
    shape = (group_count, mean.shape[1] // group_count)
    return LatentRegression(config, weight, bias, centre.view(shape), spread.view(shape), encoder, clean.shape[-1])


def latent_regression_state(model: LatentRegression) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and a description for JSON."""
    tensors = {name: getattr(model, name) for name in ("weight", "bias", "latent_mean", "latent_scale")}
    return tensors, {"config": model.config.model_dump(mode="json"), "image_size": model.image_size}


def load_latent_regression(
    tensors: dict[str, Tensor], description: dict[str, Any], encoder: Encoder | None = None
) -> LatentRegression:
    """The model that latent_regression_state described."""
    config = CriticConfig(**description["config"])
    return LatentRegression(config, **tensors, encoder=encoder, image_size=description["image_size"])
