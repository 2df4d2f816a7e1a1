"""The stages of the method: what each reads and how it is built. The graph is drawn in the README.

Every function here returns a Stage whose key holds only what determines its content; the data set's path, the number of
threads and of workers are given to `build` and are in no key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from migvis.config import Configuration, VAEConfig
from migvis.vae import standard
from migvis.vae_fit import shared_by
from tune import builders, dimension_gallery, fits, gallery
from tune.methods import EDIT_FIELDS, EDIT_SOURCES, method_stage
from tune.stage_graph import Stage, Together

_DATA = ("migvis.data.dataset", "tune.stage_data")
_DENOISER = ("migvis.diffusion",)
_SCORES = ("migvis.metrics.edit_scores", "migvis.data.synthetic")
_EDITS = ("tune.editors", "migvis.synthesis")
"""Modules by which a stage's source is known; what they import is found (tune.sources)."""
EXPECTED_SECONDS = {
    "denoiser": 100.0,
    "pool": 7.0,
    "instruments": 8.0,
    "trajectory": 11.0,
    "vae": 2.0,
    "standard_vae": 1.0,
    "representation": 1.0,
    "critic": 5.0,
    "latent_encoder": 5.0,
    "latent_regression": 2.0,
    "conditional_denoiser": 30.0,
    "image_decoder": 8.0,
    "synthesis": 5.0,
    "evaluation": 1.0,
    "gallery": 9.0,
    "dimension_gallery": 6.0,
}
"""Seconds of each kind on 2 CPU cores at the quick preset, until a store has observed its own."""


@dataclass(frozen=True)
class Stages:
    """Makes the stages of one configuration over one data set. rendered: as in tune.context.DataSummary."""

    data_path: Path
    data_digest: str
    configuration: Configuration
    seed: int
    rendered: bool = True
    threads: int = 2
    workers: int = 1
    ray_train: bool = False

    def _stage(self, kind: str, config: dict[str, Any], build: Any, *, modules: tuple[str, ...], **options: Any) -> Stage:
        function = build.func if isinstance(build, partial) else build
        sources = (function.__module__, *_DATA, *modules)
        return Stage(kind, config, partial(build, self.data_path), modules=sources, **options)

    def workers_of(self, ray_train: bool = False) -> fits.Workers:
        """Several workers run through Ray Train; a fit of seconds by a single one need not wait for its start."""
        return fits.Workers(self.workers, self.threads, ray_train or self.workers > 1)

    def weights(self) -> str | None:
        """Digest of a frozen encoder's weights file; none where timm's own are used."""
        from tune.manifest import file_digest

        path = self.configuration.critic.encoder_weights
        return None if path is None else file_digest(Path(path))

    def encoder_fields(self) -> dict[str, Any]:
        """The image encoder and its weights."""
        return {"encoder": self.configuration.critic.encoder, "weights": self.weights()}

    def denoiser(self) -> Stage:
        """ε_θ, fitted once for all trials; through Ray Train where `ray_train` asks for it."""
        fields = self.configuration.denoiser.model_dump(mode="json", exclude={"conditional_steps"})
        config = {"data": self.data_digest, "denoiser": fields}
        build = partial(fits.build_denoiser, workers=self.workers_of(self.ray_train))
        return self._stage("denoiser", config, build, modules=_DENOISER, seed=self.seed, scope="study")

    def pool(self) -> Stage:
        """x̂₀ of noised training pictures, which critics are trained on."""
        config = {"draws": self.configuration.critic.pool_draws}
        inputs = {"denoiser": self.denoiser()}
        return self._stage("pool", config, builders.build_pool, inputs=inputs, modules=_DENOISER, seed=self.seed, scope="study")

    def embeddings(self) -> Stage | None:
        """Embeddings of clean and pool pictures by a frozen encoder; none for an encoder that is fitted."""
        critic = self.configuration.critic
        if critic.encoder == "cnn":
            return None
        config = {
            "data": self.data_digest,
            "critic": self.encoder_fields(),
            "clean": critic.training_images == "clean",
        }
        inputs = {} if critic.training_images == "clean" else {"pool": self.pool()}
        modules = ("migvis.critic",)
        build = partial(builders.build_embeddings, encoder_weights=critic.encoder_weights)
        return self._stage("embeddings", config, build, inputs=inputs, modules=modules, scope="study")

    def instruments(self) -> Stage:
        """The calibrated oracle of rendered stimuli, or probes, which are fitted on the pool, too."""
        inputs = {} if self.rendered else {"pool": self.pool()}
        config = {"data": self.data_digest}
        return self._stage(
            "instruments",
            config,
            builders.build_instruments,
            inputs=inputs,
            modules=_SCORES,
            seed=self.seed,
            scope="study",
        )

    def trajectory(self, split: str = "validation", count: int | None = None) -> Stage:
        """Inverted states of the sources of the evaluation pairs, at every t up to 0.95 T."""
        pairs = self.configuration.synthesis.trial_pairs if count is None else count
        synthesis = self.configuration.synthesis
        config = {
            "data": self.data_digest,
            "split": split,
            "pairs": pairs,
            "dequantisation": synthesis.dequantisation,
            "corrections": synthesis.inversion_corrections,
        }
        inputs = {"denoiser": self.denoiser()}
        scope: Any = "study" if split == "validation" else "trial"
        return self._stage(
            "trajectory",
            config,
            builders.build_trajectory,
            inputs=inputs,
            modules=(*_DENOISER, *_SCORES),
            seed=self.seed,
            label=split,
            scope=scope,
        )

    def study_stages(self) -> list[Stage]:
        """What is built before the first trial, so that no trial waits for a long fit; what may be refused comes first."""
        pool = [self.pool()] if self.configuration.critic.training_images == "pool" or not self.rendered else []
        embeddings = self.embeddings()
        first = [self.instruments()] if self.rendered else []
        last = [self.trajectory(), *([] if embeddings is None else [embeddings])]
        return [*first, self.denoiser(), *pool, *([] if first else [self.instruments()]), *last]

    def vae(self, subject: str, seed: int) -> Stage:
        """The neural VAE of one subject."""
        return self._vae("vae", self.configuration.vae.model_dump(mode="json"), subject, seed)

    def standard_vae(self, subject: str, seed: int) -> Stage:
        """The standard VAE of the same D, which does not depend on how D is split into groups."""
        plain = standard(self.configuration.vae).model_dump(mode="json")
        dimensions = plain["group_count"] * plain["group_rank"]
        unused = {"category_weight": 0.0, "pose_labels": "rotation", "readout": "linear"}
        return self._vae("standard_vae", {**plain, **unused, "group_count": dimensions, "group_rank": 1}, subject, seed)

    def _vae(self, kind: str, fields: dict[str, Any], subject: str, seed: int) -> Stage:
        config = {"data": self.data_digest, "subject": subject, "vae": fields}
        workers, together = self.workers_of(), None
        if not workers.ray_train:
            bucket = f"{self.data_digest} {subject} {shared_by(VAEConfig.model_validate(fields))}"
            together = Together(bucket, partial(fits.build_vaes, self.data_path))
        return self._stage(
            kind,
            config,
            partial(fits.build_vae, workers=workers),
            modules=("migvis.vae_fit",),
            seed=seed,
            label=f"{subject} seed {seed}",
            together=together,
        )

    def vaes(self, seeds: Iterable[int]) -> list[Stage]:
        """The neural and the standard VAEs of all configured subjects, which are fitted together where they can be."""
        fits_of = [(subject, seed) for subject in self.configuration.data.subjects for seed in seeds]
        return [make(subject, seed) for make in (self.vae, self.standard_vae) for subject, seed in fits_of]

    def representation(self, subject: str, seed: int, split: str = "validation") -> Stage:
        """R², RMSE, group_mig and MIG of the VAE and of the standard VAE on one split."""
        inputs = {"vae": self.vae(subject, seed), "standard_vae": self.standard_vae(subject, seed)}
        config = {"data": self.data_digest, "split": split, "subject": subject}
        return self._stage(
            "representation",
            config,
            builders.build_representation,
            inputs=inputs,
            modules=("migvis.metrics.representation",),
            seed=self.seed,
            label=f"{subject} {split}",
        )

    def shown(self, subject: str, seed: int) -> dict[str, Stage]:
        """What is fitted to images and latents reads: the VAE, and the pictures as they are to be shown."""
        inputs = {"vae": self.vae(subject, seed)}
        embeddings = self.embeddings()
        if embeddings is not None:
            inputs["embeddings"] = embeddings
        elif self.configuration.critic.training_images == "pool":
            inputs["pool"] = self.pool()
        return inputs

    def of_subject(self, kind: str, subject: str, seed: int, fields: dict[str, Any], build: Any, **options: Any) -> Stage:
        """A fit of one subject and seed."""
        config = {"data": self.data_digest, "subject": subject, **fields}
        return self._stage(kind, config, build, seed=seed, label=f"{subject} seed {seed}", **options)

    def critic(self, subject: str, seed: int) -> Stage:
        """The InfoNCE critic of all groups of one subject."""
        fields = self.configuration.critic.model_dump(mode="json", exclude={"encoder_weights", "pool_draws"})
        weights = self.configuration.critic.encoder_weights
        return self.of_subject(
            "critic",
            subject,
            seed,
            {"critic": fields, "weights": self.weights()},
            partial(fits.build_critic, encoder_weights=weights, workers=self.workers_of()),
            inputs=self.shown(subject, seed),
            modules=("migvis.critic",),
        )

    def synthesis(self, subject: str, seed: int, split: str = "validation", count: int | None = None) -> Stage:
        """The scored `target` edits of groups 1 and 2, some edits of the others, and some at γ = 0."""
        config = self.configuration.synthesis
        pairs = config.trial_pairs if count is None else count
        fields = {
            "data": self.data_digest,
            "subject": subject,
            "split": split,
            "pairs": pairs,
            "synthesis": config.model_dump(mode="json", include=EDIT_FIELDS[config.method]),
        }
        return self._stage(
            "synthesis",
            fields,
            builders.build_synthesis,
            inputs=self._edit_inputs(subject, seed, split, pairs),
            modules=(*_EDITS, *EDIT_SOURCES[config.method]),
            seed=self.seed,
            label=f"{subject} {split}",
        )

    def _edit_inputs(self, subject: str, seed: int, split: str, pairs: int) -> dict[str, Stage]:
        method = method_stage(self, subject, seed)
        return {
            "denoiser": self.denoiser(),
            "vae": self.vae(subject, seed),
            method.kind: method,
            "trajectory": self.trajectory(split, pairs),
        }

    def gallery(self, subject: str, seed: int) -> Stage:
        """Edits of a few test stimuli that are shown: `target` over a sweep of γ, and `shift` in both directions."""
        config = self.configuration.synthesis
        fields = {
            "data": self.data_digest,
            "subject": subject,
            "stimuli": gallery.SHOWN_STIMULI,
            "synthesis": config.model_dump(mode="json", include=EDIT_FIELDS[config.method] | {"sweep_scales", "shifts"}),
        }
        return self._stage(
            "gallery",
            fields,
            gallery.build_gallery,
            inputs=self._edit_inputs(subject, seed, "test", config.final_pairs),
            modules=("tune.builders", *_EDITS, *EDIT_SOURCES[config.method]),
            label=f"{subject} test",
        )

    def dimension_gallery(self, subject: str, seed: int, group: int) -> Stage:
        """Edits of the same stimuli along pairs of dimensions within one group, in both directions."""
        config = self.configuration.synthesis
        fields = {
            "data": self.data_digest,
            "subject": subject,
            "group": group,
            "stimuli": gallery.SHOWN_STIMULI,
            "synthesis": config.model_dump(mode="json", include=EDIT_FIELDS[config.method] | {"shifts"}),
        }
        return self._stage(
            "dimension_gallery",
            fields,
            dimension_gallery.build_dimension_gallery,
            inputs=self._edit_inputs(subject, seed, "test", config.final_pairs),
            modules=("tune.builders", *_EDITS, *EDIT_SOURCES[config.method]),
            label=f"{subject} group {group}",
        )

    def evaluation(self, subject: str, seed: int, split: str = "validation", count: int | None = None) -> Stage:
        """Selectivity and realism of the scored edits, as the instrument reads them."""
        inputs = {"synthesis": self.synthesis(subject, seed, split, count), "instruments": self.instruments()}
        config = {"data": self.data_digest}
        return self._stage(
            "evaluation",
            config,
            builders.build_evaluation,
            inputs=inputs,
            modules=_SCORES,
            label=f"{subject} {split}",
        )

    def trial_stages(self, seeds: range) -> list[Stage]:
        """What one trial needs in the end, for all configured subjects."""
        return self._scored(seeds, "validation", None)

    def final_stages(self, seeds: range) -> list[Stage]:
        """What the final stage needs in the end: scores on the test split, and the edits that are shown."""
        shown = [self.gallery(subject, seeds[0]) for subject in self.configuration.data.subjects]
        return [*self._scored(seeds, "test", self.configuration.synthesis.final_pairs), *shown]

    def _scored(self, seeds: range, split: str, count: int | None) -> list[Stage]:
        return [
            stage
            for subject in self.configuration.data.subjects
            for seed in seeds
            for stage in (self.representation(subject, seed, split), self.evaluation(subject, seed, split, count))
        ]
