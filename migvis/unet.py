"""The denoiser: a U-Net (Ronneberger et al. 2015) with a time embedding, that predicts the noise ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from migvis.config import DenoiserConfig
from migvis.errors import InputError
from migvis.memory import StimulusMemory

_SMALL_SIGMA, _LARGE_NEWS = 0.05, 4.0


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding [n, width] of diffusion times t [n] (Vaswani et al. 2017)."""
    half = width // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.to(torch.float32)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Convolution(nn.Conv2d):
    """nn.Conv2d; within `bfloat16_convolutions` its products are bfloat16's, its weights, input and output what they are."""

    in_bfloat16 = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_bfloat16:
            return super().forward(x)
        assert self.bias is not None
        return self._conv_forward(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group normalisation; the time embedding scales and shifts between them."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(channels_in), channels_in)
        self.conv_in = Convolution(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(time_width, 2 * channels_out)
        self.norm_out = nn.GroupNorm(_groups(channels_out), channels_out)
        self.conv_out = Convolution(channels_out, channels_out, 3, padding=1)
        self.skip = Convolution(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        _start_at_zero(self.conv_out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        hidden = functional.silu(torch.addcmul(shift, self.norm_out(hidden), 1 + scale))
        return self.skip(x) + self.conv_out(hidden)


class Attention(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        while channels % self.heads:
            self.heads -= 1
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = Convolution(channels, 3 * channels, 1)
        self.out = Convolution(channels, channels, 1)
        _start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, channels // self.heads, height * width).transpose(3, 4)
        mixed = functional.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.out(mixed.transpose(2, 3).reshape(n, channels, height, width))


class Block(nn.Module):
    """A residual block, followed by self-attention on coarse levels."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int, attention: bool = False) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels_in, channels_out, time_width)
        self.attention = Attention(channels_out) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        attended: Tensor = self.attention(self.residual(x, time))
        return attended


class UNet(nn.Module):
    """ε_θ(y_t, t): images [n, 1, H, W] and times [n] in 1…T to predicted noise [n, 1, H, W].

    `alphas` [T + 1] is the noise schedule, σ_t = √(1/α_t − 1). The raw network F works on images of unit variance, whatever
    the contrast of the stimuli: with their mean image μ and mean per-pixel variance v (`normalise_to`),

        x̂₀ = μ + v/(v + σ_t²)·(y_t/√α_t − μ) + σ_t·√(v/(v + σ_t²))·F((y_t/√α_t − μ)/√(v + σ_t²), t)

    and ε_θ = (y_t/√α_t − x̂₀)/σ_t (Karras et al. 2022). What is visible in y_t itself need not be learned. With a memory
    (`denoiser.memory_copies`) F also sees the mean m of the remembered pictures, and starts from a share of it, learned
    per t, in place of the linear estimate.
    """

    alphas: Tensor
    pixel_mean: Tensor
    pixel_variance: Tensor

    def __init__(self, config: DenoiserConfig, image_size: int, alphas: Tensor) -> None:
        super().__init__()
        levels = len(config.width_multipliers)
        if image_size % (config.stem_patch * 2 ** (levels - 1)):
            raise InputError(
                f"denoiser.width_multipliers: images of {image_size} px cannot be halved {levels - 1} times "
                f"after denoiser.stem_patch={config.stem_patch}"
            )
        self.config, self.image_size = config, image_size
        self.patch = config.stem_patch
        self.base_width = config.base_width
        self.register_buffer("alphas", alphas.clone(), persistent=False)
        self.register_buffer("pixel_mean", torch.zeros(1, image_size, image_size))
        self.register_buffer("pixel_variance", torch.ones(()))
        time_width = 4 * config.base_width
        widths = [config.base_width * multiplier for multiplier in config.width_multipliers]
        self.time_mlp = nn.Sequential(
            nn.Linear(config.base_width, time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU()
        )
        self.memory = None
        if config.memory_copies:
            self.memory = StimulusMemory(config.memory_copies, config.memory_rank, config.memory_bandwidth, image_size)
            self.trust = nn.Linear(time_width, 1)
            _start_at_zero(self.trust)
        seen = 1 if self.memory is None else 2
        self.stem = Convolution(seen * self.patch**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        width = widths[0]

        def block(channels_in: int, channels_out: int, level: int) -> nn.Module:
            positions = (image_size // config.stem_patch // 2**level) ** 2
            return Block(channels_in, channels_out, time_width, attention=positions <= config.attention_pixels)

        for level, level_width in enumerate(widths):
            blocks = [block(width if b == 0 else level_width, level_width, level) for b in range(config.blocks_per_level)]
            self.down.append(nn.ModuleList(blocks))
            last = level == levels - 1
            self.shrink.append(nn.Identity() if last else Convolution(level_width, level_width, 3, stride=2, padding=1))
            width = level_width
        self.middle = nn.ModuleList([Block(width, width, time_width, attention=True), Block(width, width, time_width)])
        for level, level_width in reversed(list(enumerate(widths))):
            blocks = [
                block((width if b == 0 else level_width) + level_width, level_width, level)
                for b in range(config.blocks_per_level)
            ]
            self.up.append(nn.ModuleList(blocks))
            self.grow.append(nn.Identity() if level == 0 else Convolution(level_width, widths[level - 1], 1))
            width = level_width if level == 0 else widths[level - 1]
        self.norm = nn.GroupNorm(_groups(width), width)
        self.head = Convolution(width, self.patch**2, 3, padding=1)
        _start_at_zero(self.head)
        self.to(memory_format=torch.channels_last)  # faster on a CPU and on a GPU

    def normalise_to(self, images: Tensor) -> None:
        """Takes μ and v from training images [n, 1, H, W] and their mirror images, and remembers them if it has a memory."""
        both = torch.cat([images, images.flip(-1)])
        self.pixel_mean.copy_(both.mean(dim=0))
        self.pixel_variance.copy_(both.var(dim=0).mean().clamp(min=1e-4))
        if self.memory is not None:
            self.memory.remember(images)

    def without(self, own: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """ε_θ for noised training images, whose own pictures own [n] (rows of `normalise_to`) are not remembered."""
        return lambda noisy, t: self(noisy, t, own)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√α_t and σ_t, each [n, 1, 1, 1]."""
        alpha = self.alphas[t][:, None, None, None]
        return alpha.sqrt(), (1 / alpha - 1).sqrt()

    def forward(self, noisy: Tensor, t: Tensor, own: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """ε_θ(y_t, t); own as in `without`. condition [n, 4·base_width] is added to the embedded time (migvis.conditional)."""
        root, sigma = self.scales(t)
        scaled, variance = noisy / root, self.pixel_variance
        centred = scaled - self.pixel_mean
        total = variance + sigma.square()
        time = self.time_mlp(time_embedding(t, self.base_width).to(noisy.dtype))
        if condition is not None:
            time = time + condition
        seen = centred / total.sqrt()
        if self.memory is None:
            raw = self.network(seen, time)
        else:
            recalled = self.memory(scaled, sigma.flatten(), own) - self.pixel_mean
            raw = self.network(torch.cat([seen, recalled / variance.sqrt()], dim=1), time)
            # How far the memory is from the linear estimate, in units of F; a small σ would blow it up.
            news = (recalled - variance / total * centred) * (total / variance).sqrt() / sigma.clamp(min=_SMALL_SIGMA)
            raw = raw + self.trust(time)[:, :, None, None] * news.clamp(-_LARGE_NEWS, _LARGE_NEWS)
        # (ȳ − x̂₀)/σ with the division by a small σ carried out on paper
        return sigma / total * centred - (variance / total).sqrt() * raw

    def network(self, seen: Tensor, time: Tensor) -> Tensor:
        """F: images of unit variance [n, 1 or 2, H, W] and embedded times to an output of unit variance [n, 1, H, W]."""
        x = self.stem(functional.pixel_unshuffle(seen, self.patch).contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for block in blocks.children():
                x = block(x, time)
                skips.append(x)
            x = shrink(x)
        x = self.middle[1](self.middle[0](x, time), time)
        for index, (blocks, grow) in enumerate(zip(self.up, self.grow, strict=True)):
            for block in blocks.children():
                x = block(torch.cat([x, skips.pop()], dim=1), time)
            x = grow(x)
            if index < len(self.up) - 1:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(x))), self.patch)


@contextmanager
def compiled(unet: UNet) -> Iterator[None]:
    """Within, `unet.network` is compiled by torch for the shapes that it meets.

    Its first step then takes a minute, and each later one less. Where it cannot be compiled, as without a C compiler, it is
    computed as ever, and torch warns.
    """
    import torch._dynamo  # takes seconds, which a fit that is not compiled should not pay

    with torch._dynamo.config.patch(suppress_errors=True):
        vars(unet)["network"] = torch.compile(unet.network, dynamic=False)  # hides the class's own
        try:
            yield
        finally:
            del vars(unet)["network"]


@contextmanager
def bfloat16_convolutions(unet: UNet) -> Iterator[None]:
    """Within, the convolutions of `unet` are computed in bfloat16, and nothing else is.

    For a CPU that multiplies in bfloat16: its convolutions take half the time then, but its attention and group normalisation,
    which autocast lowers too, take twice to six times as much, and the whole gains nothing.
    """
    convolutions = [module for module in unet.modules() if isinstance(module, Convolution)]
    for convolution in convolutions:
        convolution.in_bfloat16 = True
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.in_bfloat16 = False


def _start_at_zero(layer: nn.Module) -> None:
    """The last layer of a branch starts at zero, so that the branch first passes its input on."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)


def _groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
