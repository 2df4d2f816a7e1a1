"""What each method of making edits (synthesis.method) reads, and the fit that it edits with, as a stage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from migvis.config import Method
from tune import rival_fits
from tune.stage_graph import Stage

if TYPE_CHECKING:
    from tune.stages import Stages

_GUIDED = {"method", "edit_step", "guidance_scale", "guidance", "form", "jacobian", "keep_weight"}
EDIT_FIELDS: dict[Method, set[str]] = {
    "information": _GUIDED | {"bank_size"},
    "likelihood": _GUIDED,
    "activation": _GUIDED,
    "linear_activation": _GUIDED,
    "classifier_free": {"method", "edit_step", "guidance_scale"},
    "decoder": {"method", "guidance_scale"},
}
"""What an edit of each method reads of the synthesis section."""
EDIT_SOURCES: dict[Method, tuple[str, ...]] = {
    "information": ("migvis.keeping",),
    "likelihood": ("migvis.keeping", "migvis.criteria"),
    "activation": ("migvis.keeping", "migvis.criteria"),
    "linear_activation": ("migvis.keeping", "migvis.criteria", "migvis.latent_regression"),
    "classifier_free": ("migvis.conditional",),
    "decoder": ("migvis.image_decoder",),
}
_OF_THE_SCORES = {"embedding_width", "evaluation_candidates"}
"""What only the critic reads of its section."""


def latent_encoder(stages: Stages, subject: str, seed: int) -> Stage:
    """q(z | y), of the methods `likelihood` and `activation`: fitted as the critic is."""
    unread = {"encoder_weights", "pool_draws", *_OF_THE_SCORES}
    weights = stages.configuration.critic.encoder_weights
    return stages.of_subject(
        "latent_encoder",
        subject,
        seed,
        {
            "critic": stages.configuration.critic.model_dump(mode="json", exclude=unread),
            "weights": stages.weights(),
        },
        partial(rival_fits.build_latent_encoder, encoder_weights=weights, workers=stages.workers_of()),
        inputs=stages.shown(subject, seed),
        modules=("tune.fits", "migvis.latent_encoder"),
    )


def latent_regression(stages: Stages, subject: str, seed: int) -> Stage:
    """The ridge regression of the method `linear_activation`, on a frozen encoder's embeddings or on pixels."""
    embeddings = stages.embeddings()
    weights = stages.configuration.critic.encoder_weights
    return stages.of_subject(
        "latent_regression",
        subject,
        seed,
        stages.encoder_fields(),
        partial(rival_fits.build_latent_regression, encoder_weights=weights),
        inputs={"vae": stages.vae(subject, seed), **({} if embeddings is None else {"embeddings": embeddings})},
        modules=("tune.fits", "migvis.latent_regression"),
    )


def conditional_denoiser(stages: Stages, subject: str, seed: int) -> Stage:
    """The denoiser of the method `classifier_free`: the unconditional one, trained on with the latents."""
    return stages.of_subject(
        "conditional_denoiser",
        subject,
        seed,
        {"steps": stages.configuration.denoiser.conditional_steps},
        partial(rival_fits.build_conditional, workers=stages.workers_of()),
        inputs={"denoiser": stages.denoiser(), "vae": stages.vae(subject, seed)},
        modules=("tune.fits", "migvis.conditional"),
    )


def image_decoder(stages: Stages, subject: str, seed: int) -> Stage:
    """The decoder of the method `decoder`, from all latents to images."""
    read = {"infonce_batch", "images_seen", "minimum_steps", "learning_rate"}
    return stages.of_subject(
        "image_decoder",
        subject,
        seed,
        {"critic": stages.configuration.critic.model_dump(mode="json", include=read)},
        partial(rival_fits.build_image_decoder, workers=stages.workers_of()),
        inputs={"vae": stages.vae(subject, seed)},
        modules=("tune.fits", "migvis.image_decoder"),
    )


def method_stage(stages: Stages, subject: str, seed: int) -> Stage:
    """The fit that the configured method edits with."""
    rivals: dict[Method, Any] = {
        "likelihood": latent_encoder,
        "activation": latent_encoder,
        "linear_activation": latent_regression,
        "classifier_free": conditional_denoiser,
        "decoder": image_decoder,
    }
    method = stages.configuration.synthesis.method
    stage: Stage = stages.critic(subject, seed) if method == "information" else rivals[method](stages, subject, seed)
    return stage
