"""The render-fit oracle: what object an edit shows and how it is turned, judged by rendering it.

An edit is cut to its object, compared with a bank of renders, and the best candidates are fitted through the
renderer (Levenberg–Marquardt on finite differences, all edits and candidates in one batch). The residual
‖edit − fit‖/‖edit‖, both lightly blurred, says whether it is an object at all; the fitted parameters say which one and
how turned. No classifier is asked, so an edit that only fools a classifier does not pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from migvis.data.synthetic.objects import OBJECTS_PER_CATEGORY, object_models
from migvis.data.synthetic.renderer import render
from migvis.threads import one_thread

CROP = 16
FOREGROUND = 0.1
"""Brightness (0…1) from which a pixel belongs to the object; the dimmest surface is 0.16."""
GAIN = (0.85, 1.18)
"""Limits of the brightness gain that a fit may apply."""
_STEP = torch.tensor([7.0, 7.0, 7.0, 0.06, 0.04, 0.04])
"""Finite-difference steps of the pose: degrees, log scale, half image widths."""
_LIMIT = torch.tensor([25.0, 25.0, 25.0, 0.15, 0.12, 0.12])
"""Largest change of the pose in one iteration."""


@dataclass(frozen=True)
class RenderFit:
    """Fits of n images: object_id, category_id [n], pose [n, 6], residuals [n] (inf where nothing is shown).

    residual is taken after a 3×3 binomial filter, which tells objects from blends and blurs best, since rays that flip
    at an edge do not count; pixel_residual is of the pixels as they are, in which noise cannot hide.
    """

    object_id: Tensor
    category_id: Tensor
    pose: Tensor
    residual: Tensor
    pixel_residual: Tensor


@dataclass(frozen=True)
class RenderBank:
    """Renders of all objects at random rotations: normalised crops [M, CROP²], object_id [M], angles [M, 3], extent [M, 3]."""

    crops: Tensor
    object_id: Tensor
    angles: Tensor
    extent: Tensor


def brightness(images: Tensor) -> Tensor:
    """Images [n, 1, H, W] in [−1, 1] as brightness [n, H, W] in [0, 1], where 0 is the background."""
    return (images[:, 0].clamp(-1, 1) + 1) / 2


def object_extent(light: Tensor) -> Tensor:
    """Centre (y, z) and half size of the square around the foreground, [n, 3], in half image widths.

    Foreground rows and columns are weighed by 2 % tails of the foreground's brightness, so that a stray bright pixel
    does not stretch the box.
    """
    size = light.shape[-1]
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    weight = torch.where(light > FOREGROUND, light, 0.0)
    edges = []
    for axis in (1, 2):  # columns give y, rows give −z
        mass = weight.sum(dim=axis)
        cumulative = mass.cumsum(1) / mass.sum(1, keepdim=True).clamp(min=1e-6)
        low = (cumulative < 0.02).sum(1).clamp(max=size - 1)
        high = (cumulative < 0.98).sum(1).clamp(max=size - 1)
        edges.append((grid[low] - 1 / size, grid[high] + 1 / size))
    (left, right), (top, bottom) = edges
    half = torch.maximum(right - left, bottom - top) / 2
    return torch.stack([(left + right) / 2, -(top + bottom) / 2, 1.1 * half.clamp(min=2 / size)], dim=1)


def sample_window(light: Tensor, extent: Tensor) -> Tensor:
    """Brightness [n, CROP²] on a grid over each object's square."""
    theta = torch.zeros(len(light), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = extent[:, 2]
    theta[:, 0, 2], theta[:, 1, 2] = extent[:, 0], -extent[:, 1]
    grid = functional.affine_grid(theta, [len(light), 1, CROP, CROP], align_corners=False)
    return functional.grid_sample(light[:, None], grid, align_corners=False, padding_mode="zeros").flatten(1)


def _unit(crops: Tensor) -> Tensor:
    """Crops with mean 0 and norm 1, so that their products are correlations."""
    crops = crops - crops.mean(1, keepdim=True)
    return crops / crops.norm(dim=1, keepdim=True).clamp(min=1e-6)


def build_bank(rotations: int = 192, largest_angle: float = 90.0, seed: int = 0) -> RenderBank:
    """A bank of 64 · `rotations` renders at angles uniform in ±largest_angle (degrees), seeded."""
    generator = torch.Generator().manual_seed(seed)
    object_id = torch.arange(len(object_models())).repeat_interleave(rotations)
    angles = (torch.rand(len(object_id), 3, generator=generator) * 2 - 1) * largest_angle
    angles[::rotations] = 0
    pose = torch.cat([angles, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(angles), 3)], dim=1)
    extent = object_extent(brightness(render(object_id, pose, 2 * CROP, supersample=1)))
    crops = _unit(brightness(render(object_id, pose, CROP, supersample=1, window=extent)).flatten(1))
    return RenderBank(crops, object_id, angles, extent)


def _candidates(light: Tensor, extent: Tensor, bank: RenderBank, count: int, per_object: int) -> tuple[Tensor, Tensor]:
    """Objects [n, count] and first poses [n, count, 6] of the best bank renders, at most `per_object` of one object."""
    similarity = _unit(sample_window(light, extent)) @ bank.crops.T
    objects = int(bank.object_id.max()) + 1
    best, where = similarity.view(len(light), objects, -1).topk(per_object, dim=2)
    _, index = best.flatten(1).topk(count, dim=1)
    rows = where.flatten(1).gather(1, index) + (index // per_object) * (similarity.shape[1] // objects)
    scale = extent[:, None, 2] / bank.extent[rows][..., 2]
    place = extent[:, None, :2] - scale[..., None] * bank.extent[rows][..., :2]
    pose = torch.cat([bank.angles[rows], scale[..., None].clamp(0.5, 2.0), place], dim=2)
    return bank.object_id[rows], pose


def _step_pose(pose: Tensor, change: Tensor) -> Tensor:
    moved = pose + change
    scale = (pose[..., 3] * change[..., 3].exp()).clamp(0.4, 2.5)
    return torch.cat([moved[..., :3], scale[..., None], moved[..., 4:].clamp(-1, 1)], dim=-1)


def _difference(target: Tensor, fitted: Tensor) -> Tensor:
    """target − gain · fitted [m, pixels], the gain by least squares within GAIN."""
    gain = (target * fitted).sum(1) / fitted.square().sum(1).clamp(min=1e-6)
    return target - gain.clamp(*GAIN)[:, None] * fitted


def _blur(light: Tensor) -> Tensor:
    """Brightness [m, size, size] after a 3×3 binomial filter, flattened: rays that flip at an edge give steps without it."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    padded = functional.pad(light[:, None], (1, 1, 1, 1))
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3)).flatten(1)


def _refine(
    target: Tensor, object_id: Tensor, pose: Tensor, supersample: int, iterations: int, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Levenberg–Marquardt fits of poses [m, 6] to targets [m, size²]; returns poses and squared residuals (blurred) [m]."""
    size = math.isqrt(target.shape[1])
    target = _blur(target.view(-1, size, size))

    def draw(ids: Tensor, poses: Tensor) -> Tensor:
        windows = None if window is None else window.repeat_interleave(len(ids) // len(window), 0)
        return _blur(brightness(render(ids, poses, size, supersample, windows)))

    count, parameters = len(pose), len(_STEP)
    damping = torch.full((count,), 0.01)
    fitted = draw(object_id, pose)
    residual = _difference(target, fitted)
    error = residual.square().sum(1)
    for _ in range(iterations):
        nudges = torch.diag(_STEP).expand(count, parameters, parameters)
        nudged = _step_pose(pose[:, None].expand(-1, parameters, -1), nudges)
        renders = draw(object_id.repeat_interleave(parameters), nudged.reshape(-1, 6)).view(count, parameters, -1)
        slope = renders - fitted[:, None]
        normal = slope @ slope.transpose(1, 2)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * diagonal + 1e-4 * diagonal.mean(1, keepdim=True) + 1e-9
        solution = torch.linalg.solve(normal + torch.diag_embed(ridge), (slope @ residual[..., None]))[..., 0]
        change = (solution * _STEP).clamp(-_LIMIT, _LIMIT)
        proposal = _step_pose(pose, change)
        drawn = draw(object_id, proposal)
        difference = _difference(target, drawn)
        lower = difference.square().sum(1) < error
        pose = torch.where(lower[:, None], proposal, pose)
        fitted = torch.where(lower[:, None], drawn, fitted)
        residual = torch.where(lower[:, None], difference, residual)
        error = residual.square().sum(1)
        damping = torch.where(lower, damping * 0.4, damping * 5).clamp(1e-4, 1e3)
    return pose, error


@torch.no_grad()
@one_thread()
def fit_renders(images: Tensor, bank: RenderBank, candidates: int = 12, finalists: int = 2) -> RenderFit:
    """Fits of images [n, 1, H, W] in [−1, 1]: `candidates` in the object's own window, the best `finalists` in full.

    An image without foreground (less than 1 % of its pixels) gets residual inf.
    """
    light = brightness(images)
    count = len(light)
    extent = object_extent(light)
    object_id, pose = _candidates(light, extent, bank, candidates, per_object=3)
    repeated = extent.repeat_interleave(candidates, 0)
    windowed = sample_window(light, extent).repeat_interleave(candidates, 0)
    pose, error = _refine(windowed, object_id.flatten(), pose.flatten(0, 1), 1, iterations=5, window=repeated)
    best = error.view(count, candidates).topk(finalists, dim=1, largest=False).indices
    picked = (best + torch.arange(count)[:, None] * candidates).flatten()
    object_id = object_id.flatten()[picked]
    pose, error = _refine(light.flatten(1).repeat_interleave(finalists, 0), object_id, pose[picked], 2, iterations=3)
    winner = error.view(count, finalists).argmin(1) + torch.arange(count) * finalists
    drawn = brightness(render(object_id[winner], pose[winner], light.shape[-1], 2)).flatten(1)
    difference = _difference(light.flatten(1), drawn).norm(dim=1)
    blurred = _blur(light).norm(dim=1)
    norm = light.flatten(1).norm(dim=1)
    shown = (light > FOREGROUND).flatten(1).float().mean(1) >= 0.01
    residual = torch.where(shown, error[winner].sqrt() / blurred.clamp(min=1e-6), float("inf"))
    pixel_residual = torch.where(shown, difference / norm.clamp(min=1e-6), float("inf"))
    chosen = object_id[winner]
    return RenderFit(chosen, chosen // OBJECTS_PER_CATEGORY, pose[winner], residual, pixel_residual)
