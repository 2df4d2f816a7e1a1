"""Typed, validated, frozen configuration: one class per stage, and the presets "quick" and "paper".

Defaults are the papers' figures, and `Configuration()` is the preset "paper". Where the papers are silent or the method
gains plainly, it departs from them: inversion is corrected and stimuli are dequantised (SynthesisConfig), the critic's
embeddings drop out (CriticConfig).
A value is read in one place only: the class here. Unknown keys and values out of range are refused by
pydantic with the section and the field in the message.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

Method = Literal["information", "likelihood", "activation", "linear_activation", "classifier_free", "decoder"]

MAX_EDIT_STEP = 0.95
"""Largest edit step as a fraction of T: the last steps of the noise schedule have huge noise levels."""


class Section(BaseModel):
    """Base of every section: frozen, closed to unknown keys, and its numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which recordings and images; the fields after `subjects` describe the synthetic set only."""

    path: str | None = Field(None, description="HDF5 data set; none: the synthetic set is made once and reused")
    subjects: tuple[str, ...] = Field(("M1", "M2"), min_length=1, description="subjects whose populations are fitted")
    image_size: int = Field(128, ge=32, le=128, multiple_of=8, description="pixels per side of the synthetic images")
    stimulus_count: int = Field(3200, ge=128, description="synthetic stimuli")
    variations: tuple[Literal[3, 6], ...] = Field(
        (3,), min_length=1, description="HvM variation levels beside V0: (3,) as in the public recordings, (3, 6) for all"
    )
    objects_per_category: int = Field(8, ge=1, le=8, description="synthetic objects in each of the 8 categories")
    repetitions: Count = Field(28, description="synthetic trials averaged per stimulus")
    signal_to_noise: Positive = Field(0.7, description="synthetic single-trial signal variance over noise variance")
    split: tuple[float, float, float] = Field((0.70, 0.10, 0.20), description="train, validation, test fractions")
    seed: int = Field(0, ge=0, description="seed of the synthetic set and of its split")

    @model_validator(mode="after")
    def _fractions(self) -> DataConfig:
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: three positive fractions that sum to 1, got {self.split}")
        return self


class VAEConfig(Section):
    """Neural VAE (A Eq. 2). D = group_count * group_rank latent dimensions."""

    pc_weight: NonNegative = Field(5e-5, description="beta, the weight of the partial correlation in nats")
    group_count: int = Field(4, ge=2, le=4096, description="G, the number of latent groups")
    group_rank: int = Field(6, ge=1, le=64, description="D_g, latent dimensions per group")
    hidden_width: Count = 64
    kl_weight: NonNegative = Field(2e-3, description="weight of the KL term, a mean over batch and dimensions")
    supervision_weight: NonNegative = 0.2
    category_weight: NonNegative = Field(0.1, description="cross-entropy against pose MSE inside the supervision")
    pose_labels: Literal["rotation", "all"] = Field("rotation", description="3 rotation angles, or all 6 pose values")
    readout: Literal["linear", "diagonal"] = Field("linear", description="how group 1 reads out the pose")
    learning_rate: Positive = 1e-3
    batch_size: int = Field(128, ge=2)
    epochs: Count = 150

    @model_validator(mode="after")
    def _diagonal_needs_matching_rank(self) -> VAEConfig:
        labels = 3 if self.pose_labels == "rotation" else 6
        if self.readout == "diagonal" and self.group_rank != labels:
            raise ValueError(f"readout=diagonal needs group_rank equal to the {labels} pose labels, got {self.group_rank}")
        return self


class CriticConfig(Section):
    """Density-ratio critic (A Eq. 5): one shared image encoder, a head per latent group."""

    infonce_batch: int = Field(128, ge=2, description="B, one positive and B - 1 negatives per image")
    encoder: Literal["dino", "cnn"] = Field("dino", description="frozen DINO ViT-S/16, or a small CNN fitted with it")
    encoder_weights: str | None = Field(None, description="file with DINO weights; none: timm's hub or its local cache")
    training_images: Literal["pool", "clean"] = Field("pool", description="denoised pool and clean images, or clean only")
    pool_draws: Count = Field(4, description="denoised draws per training image in the pool")
    images_seen: Count = Field(300_000, description="images shown in all, whatever B is")
    minimum_steps: Count = 300
    learning_rate: Positive = 1e-3
    embedding_width: Count = Field(64, description="width of the space in which images and latents are compared")
    embedding_dropout: float = Field(0.5, ge=0, lt=1, description="share of the embedding left out of each training step")
    evaluation_candidates: int = Field(256, ge=2, description="candidates of the mutual-information bound, the same for all B")


class DenoiserConfig(Section):
    """U-Net of the diffusion model and its fit."""

    diffusion_steps: int = Field(150, ge=2, description="T")
    base_width: Count = 64
    width_multipliers: tuple[Count, ...] = Field((1, 2, 4, 8), min_length=1)
    blocks_per_level: Count = 1
    stem_patch: Literal[1, 2, 4] = Field(1, description="space-to-depth factor before the first convolution")
    training_steps: Count = 40_000
    conditional_steps: Count = Field(
        40_000, description="further steps, from the fitted weights, in which the denoiser of classifier_free learns the latents"
    )
    batch_size: Count = 64
    learning_rate: Positive = 2e-4
    ema_decay: float = Field(0.98, ge=0, lt=1)
    horizontal_flip: bool = True
    time_bias: float = Field(1.0, ge=1, le=4, description="k of t = ceil(T u^k), u uniform; 1: uniform t; above: more small t")
    attention_pixels: Count = Field(256, description="self-attention on levels of at most so many positions")
    memory_copies: int = Field(
        0,
        ge=0,
        le=64,
        description="copies, all but one warped, of each training picture and of its mirror image; 0: no memory",
    )
    memory_recall: float = Field(
        0.7, ge=0, le=1, description="share of training draws whose own picture stays in the memory; the rest stand for new ones"
    )
    memory_rank: Count = Field(128, description="principal components in which pictures are remembered")
    memory_bandwidth: Positive = Field(0.5, description="h, width of the gaps between remembered pictures")


class SynthesisConfig(Section):
    """DDIM editing (Algorithm 1) and the edits that are scored and shown."""

    edit_step: float = Field(0.9, gt=0, le=MAX_EDIT_STEP, description="t' as a fraction of T")
    guidance_scale: NonNegative = Field(5.0, description="gamma; not comparable across methods")
    method: Method = Field(
        "information",
        description="what makes an edit: mutual information, or a rival of it, for ablations (a study searches information "
        "only): the likelihood q(z | y) of a probabilistic image encoder; activation, its mean times the target, or "
        "linear_activation, that of a ridge regression (AP-LR); classifier_free guidance by a conditional denoiser (AP-CFG); or "
        "a decoder of latents to images (SLT), where gamma in 0 to 1 goes from the own group to the target's",
    )
    guidance: Literal["gradient", "memory"] = Field(
        "gradient",
        description="the objective's gradient at x0-hat (A Eq. 6), or its values at the pictures the denoiser remembers; "
        "classifier_free and decoder have no objective",
    )
    form: Literal["score", "algorithm1"] = Field("score", description="with the factor sqrt(1 - alpha_t), or as printed")
    jacobian: Literal["identity", "bounded", "unet"] = Field("identity", description="how the gradient passes x0-hat")
    inversion_corrections: int = Field(
        2, ge=0, le=20, description="fixed-point iterations of each inversion step; 0 in the paper"
    )
    dequantisation: float = Field(
        0.25, ge=0, le=2, description="noise added to a stimulus before its inversion, in units of the noise level of t = 1"
    )
    keep_weight: NonNegative = Field(
        0.0, description="w, weight of what the other groups say of the stimulus itself, beside the target's 1; 0 in the papers"
    )
    bank_size: int = Field(256, ge=1, description="K, training latents in the denominator of the guidance")
    trial_pairs: Count = Field(16, description="validation pairs per group that score a trial")
    final_pairs: Count = Field(32, description="test pairs per group that score the selected configuration")
    sweep_scales: tuple[NonNegative, ...] = Field((2.0, 5.0, 10.0), description="guidance scales shown in the final stage")
    shifts: tuple[Positive, ...] = Field((1.0, 2.0), description="shift sizes shown, in sd of the posterior means")


class Configuration(Section):
    """Everything that one configuration of the method reads."""

    data: DataConfig = DataConfig()
    vae: VAEConfig = VAEConfig()
    critic: CriticConfig = CriticConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    synthesis: SynthesisConfig = SynthesisConfig()

    @model_validator(mode="after")
    def _guidance_needs_a_memory(self) -> Configuration:
        if self.synthesis.guidance == "memory" and not self.denoiser.memory_copies:
            raise ValueError("synthesis.guidance=memory needs denoiser.memory_copies of at least 1, got 0")
        return self

    @model_validator(mode="after")
    def _a_decoder_interpolates(self) -> Configuration:
        largest = max(self.synthesis.guidance_scale, *self.synthesis.sweep_scales, 0.0)
        if self.synthesis.method == "decoder" and largest > 1:
            raise ValueError(
                "synthesis.method=decoder goes from the own group (0) to the target's (1): "
                f"guidance_scale and sweep_scales of at most 1, got {largest:g}"
            )
        return self


PRESETS: dict[str, Configuration] = {
    "paper": Configuration(),
    "quick": Configuration(
        data=DataConfig(subjects=("M1",), image_size=32, stimulus_count=3072, objects_per_category=2, split=(0.60, 0.25, 0.15)),
        vae=VAEConfig(group_rank=3, epochs=55),
        critic=CriticConfig(
            infonce_batch=64,
            encoder="cnn",
            training_images="clean",
            images_seen=32_000,
            minimum_steps=200,
            learning_rate=4e-3,
            embedding_dropout=0.1,
        ),
        denoiser=DenoiserConfig(
            base_width=32,
            width_multipliers=(1, 2, 4),
            stem_patch=2,
            training_steps=1100,
            conditional_steps=300,
            batch_size=32,
            learning_rate=1.5e-3,
            ema_decay=0.998,
            time_bias=2.0,
            attention_pixels=16,
            memory_copies=8,
        ),
        synthesis=SynthesisConfig(
            edit_step=0.6, guidance_scale=20.0, guidance="memory", keep_weight=0.05, sweep_scales=(5.0, 20.0, 80.0)
        ),
    ),
}
