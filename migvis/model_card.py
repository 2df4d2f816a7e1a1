"""The model card of a bundle: what it is, where it comes from, how good it is, how to load it, what it cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from migvis.config import Configuration


def model_card(
    configuration: Configuration,
    units: Mapping[str, int],
    image_size: int,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    pictures: Sequence[str],
) -> str:
    """Markdown text. units: recorded units by subject; pictures: names of those in grids/."""
    vae, critic, synthesis = configuration.vae, configuration.critic, configuration.synthesis
    subjects = ", ".join(f"{name} ({count} units)" for name, count in units.items())
    first = next(iter(units))
    subject = "" if len(units) == 1 else f', subject="{first}"'
    source = provenance.get("data_source")
    kind = {
        "synthetic": "**Synthetic**: a simulated population that saw ray-traced objects. It says nothing about a brain.",
        "majajhong2015": "Recorded: Majaj & Hong 2015, macaque visual cortex.",
    }.get(str(source), f"{source or 'not stated'}.")
    dino = (
        "\nThe critic reads images through DINO ViT-S/16, whose frozen weights are not in the bundle: they come from timm's hub\n"
        'or cache, or from a file, `migvis.load(folder, encoder_weights="FILE")`.\n'
        if critic.encoder == "dino"
        else ""
    )
    return f"""# MIG-Vis bundle

What does each group of latent dimensions of a population in visual cortex encode? This folder holds one fitted answer: a
neural VAE per subject (responses to {vae.group_count} latent groups of {vae.group_rank} dimensions), a critic per subject (how
well a latent group goes with an image), and one denoiser that edits images, guided by the critic.

- subjects: {subjects}
- images: {image_size} × {image_size} px, grey, in [−1, 1]
- latents: D = {vae.group_count * vae.group_rank}. Group 1 reads out pose and group 2 category where the data have these labels;
  the other groups are unsupervised.
- β (`pc_weight`) {vae.pc_weight:g}, InfoNCE batch {critic.infonce_batch}

## Data

{kind}

{_table(provenance)}
## How to load it

```python
import migvis

bundle = migvis.load("PATH/OF/THIS/FOLDER")
latents = bundle.encode(responses{subject})                      # raw responses [n, N] -> posterior means [n, D]
# towards target [n, {vae.group_rank}], another stimulus' group 2
edits = bundle.edit(images, group=2, target=target, latents=latents{subject})
# the stimuli's own group 1, 2 sd on
edits = bundle.edit(images, group=1, shift=2.0, latents=latents{subject})
```
{dino}
## Metrics

Higher is better except for errors. A figure that an instrument reads off edited images (selectivity, realism) is worth no
more than the instrument's own accuracy on held-out stimuli, which stands among them.

{_table(metrics)}
## What γ and t′ mean

Images are inverted to step t′ of the diffusion (`edit_step`, here {synthesis.edit_step:g} of T =
{configuration.denoiser.diffusion_steps}) and sampled back under guidance of strength γ (`guidance_scale`, here
{synthesis.guidance_scale:g}, {_guidance(configuration)}). A larger t′ lets more of the image
change; a small one keeps it as it is whatever γ. γ has no unit: it compares within this bundle only, not across image sizes,
forms or critics, and a strong γ makes pictures that please the critic and no person. Look at the pictures{_grids(pictures)}.

## Limits

- Edits show what the critic has learned about a latent group. Where it has learned little, they show the denoiser's habits.
- The models know the images that they were fitted to: objects on a plain ground, and no others.
- Latents of another subject, or of responses normalised in another way, mean nothing to these models.
{_remembered(configuration)}"""


def _guidance(configuration: Configuration) -> str:
    synthesis = configuration.synthesis
    if synthesis.guidance == "memory":
        return "by the critic's values at the remembered pictures"
    return f"by the critic's gradient, form `{synthesis.form}`, jacobian `{synthesis.jacobian}`"


def _remembered(configuration: Configuration) -> str:
    if not configuration.denoiser.memory_copies:
        return ""
    return (
        "- The denoiser remembers its training pictures, and denoiser.safetensors holds them (`memory.pictures`): share the\n"
        "  bundle only with those who may have them. Edits are made of what it remembers.\n"
    )


def _grids(pictures: Sequence[str]) -> str:
    return f" in grids/ ({', '.join(pictures)})" if pictures else ""


def _table(values: Mapping[str, Any]) -> str:
    """A Markdown table of names and values, nested ones by dotted names; a line where there is nothing."""
    rows = list(_flat(values))
    if not rows:
        return "None recorded.\n"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in rows)]) + "\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return flat


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").split())
