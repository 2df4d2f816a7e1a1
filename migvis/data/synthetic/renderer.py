"""A small vectorised ray tracer: orthographic, Lambert-shaded ellipsoids and boxes on a black background.

Image coordinates: y right and z up in [−1, 1], x towards the viewer. A pose is (rxy, rxz, ryz, s, ty, tz):
degrees of rotation in the xy (yaw), xz (pitch) and yz (roll in the image plane) planes, applied in that
order, a scale, and a position in half image widths. A point p of the object frame is seen at 1.5·s·R·p + (0, ty, tz).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from migvis.data.synthetic.objects import object_models
from migvis.rotations import rotation_matrix

_LIGHT = (0.62, -0.47, 0.63)
_AMBIENT = 0.30
_FLOOR = 0.16
"""Least brightness of an object's surface, so that no part of it vanishes into the background."""
_CHUNK_RAYS = 65536
"""Rays traced at once: more would not fit into a core's cache, fewer cost more calls than they compute."""
_MARGIN = 1e-3
"""How far around a primitive rays are asked, in half image widths, against rounding."""
_ZOOM = 1.5
"""Half image widths per unit of the object frame at scale 1: an object of radius 0.5 spans three quarters of the image."""


@lru_cache(maxsize=1)
def _primitive_tables() -> dict[str, dict[str, Tensor]]:
    """Primitives of all objects, padded per shape: center [O, P, 3], half_size [O, P, 3], tilt, albedo [O, P]."""
    tables = {}
    for shape in ("ellipsoid", "box"):
        lists = [[p for p in model.primitives if p.shape == shape] for model in object_models()]
        most = max(len(parts) for parts in lists)
        center = torch.full((len(lists), most, 3), 1e3)  # an absent primitive lies far outside the image
        half_size = torch.full((len(lists), most, 3), 1e-2)
        tilt, albedo = torch.zeros(len(lists), most), torch.zeros(len(lists), most)
        for row, parts in enumerate(lists):
            for column, part in enumerate(parts):
                center[row, column] = torch.tensor(part.center)
                half_size[row, column] = torch.tensor(part.half_size)
                tilt[row, column], albedo[row, column] = part.tilt, part.albedo
        angles = torch.stack([torch.zeros_like(tilt), tilt, torch.zeros_like(tilt)], dim=-1)
        frame = rotation_matrix(angles.reshape(-1, 3)).reshape(len(lists), most, 3, 3)
        tables[shape] = {"center": center, "half_size": half_size, "frame": frame, "albedo": albedo}
    return tables


def _place(table: dict[str, Tensor], object_id: Tensor, rotation: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale = _ZOOM * pose[:, 3, None, None]
    shift = torch.cat([torch.zeros_like(pose[:, :1]), pose[:, 4:6]], dim=1)
    center = scale * (table["center"][object_id] @ rotation.transpose(1, 2)) + shift[:, None, :]
    frame = rotation[:, None] @ table["frame"][object_id]
    return center, scale * table["half_size"][object_id], frame, table["albedo"][object_id]


def _ellipsoid_hits(
    center: Tensor, half_size: Tensor, frame: Tensor, part: Tensor, y: Tensor, z: Tensor, light: Tensor
) -> tuple[Tensor, Tensor]:
    """Depth (−inf where missed) and cosine to the light, each [rays], of rays at (y, z) with ellipsoid part [rays] of P.

    A quadratic in the depth x.
    """
    form = (frame / half_size[:, None, :] ** 2) @ frame.mT
    entries = torch.stack([form[:, 0, 0], form[:, 0, 1], form[:, 0, 2], form[:, 1, 1], form[:, 1, 2], form[:, 2, 2]])
    xx, xy, xz, yy, yz, zz = entries.index_select(1, part)
    center_x, center_y, center_z = center.T.index_select(1, part)
    dy, dz = y - center_y, z - center_z
    b = xy * dy + xz * dz
    q = yy * dy * dy + 2 * yz * dy * dz + zz * dz * dz
    discriminant = b * b - xx * (q - 1)
    dx = (discriminant.clamp(min=0).sqrt() - b) / xx
    normal = [xx * dx + xy * dy + xz * dz, xy * dx + yy * dy + yz * dz, xz * dx + yz * dy + zz * dz]
    length = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).sqrt().clamp(min=1e-9)
    cosine = (normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]) / length
    return torch.where(discriminant > 0, dx + center_x, -torch.inf), cosine


def _box_hits(
    center: Tensor, half_size: Tensor, frame: Tensor, part: Tensor, y: Tensor, z: Tensor, light: Tensor
) -> tuple[Tensor, Tensor]:
    """As for ellipsoids, by the slab method: the ray leaves each slab towards the viewer; the first exit is seen."""
    center_x, center_y, center_z = center.T.index_select(1, part)
    dy, dz = y - center_y, z - center_z
    direction = torch.where(frame[:, 0].abs() < 1e-6, 1e-6, frame[:, 0])
    facings = direction.sign() * (frame.mT @ light)
    enter, exit_ = torch.full_like(y, -torch.inf), torch.full_like(y, torch.inf)
    cosine = torch.zeros_like(y)
    for axis in range(3):
        of_axis = [direction[:, axis], frame[:, 1, axis], frame[:, 2, axis], half_size[:, axis], facings[:, axis]]
        along, in_y, in_z, half, facing = torch.stack(of_axis).index_select(1, part)
        origin = in_y * dy + in_z * dz
        near, far = (-half * along.sign() - origin) / along, (half * along.sign() - origin) / along
        enter = torch.maximum(enter, near)
        cosine = torch.where(far < exit_, facing, cosine)
        exit_ = torch.minimum(exit_, far)
    return torch.where(exit_ > enter, exit_ + center_x, -torch.inf), cosine


def _trace(object_id: Tensor, pose: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Brightness [n, side, side] in [0, 1] of rays in columns y and rows z, each [n, side]; 0 is the background."""
    light = torch.tensor(_LIGHT) / torch.tensor(_LIGHT).norm()
    rotation = rotation_matrix(pose[:, :3])
    side = y.shape[1]
    ray_y, ray_z = y[:, None, :].expand(-1, side, -1).flatten(), z[:, :, None].expand(-1, -1, side).flatten()
    nearest, brightness = torch.full_like(ray_y, -torch.inf), torch.zeros_like(ray_y)
    found = []
    for shape, hits in (("ellipsoid", _ellipsoid_hits), ("box", _box_hits)):
        center, half_size, frame, albedo = _place(_primitive_tables()[shape], object_id, rotation, pose)
        # Most rays are far from a primitive and miss it: only those within a rectangle around it are traced.
        reach = (frame * half_size[:, :, None, :]).abs().sum(dim=3) + _MARGIN
        columns = (y[:, None] - center[..., 1:2]).abs() <= reach[..., 1:2]
        rows = (z[:, None] - center[..., 2:3]).abs() <= reach[..., 2:3]
        close = (rows[..., :, None] & columns[..., None, :]).flatten().nonzero()[:, 0]  # [n, P, side, side], flat
        part = close // side**2
        ray = close + (part // center.shape[1] - part) * side**2
        parts = (center.flatten(0, 1), half_size.flatten(0, 1), frame.flatten(0, 1))
        depth, cosine = hits(*parts, part, ray_y.index_select(0, ray), ray_z.index_select(0, ray), light)
        lambert = albedo.flatten().index_select(0, part) * (_AMBIENT + (1 - _AMBIENT) * cosine.clamp(min=0))
        nearest.scatter_reduce_(0, ray, depth, "amax")
        found.append((ray, depth, _FLOOR + (1 - _FLOOR) * lambert))
    for ray, depth, shade in found:
        seen = (depth > -torch.inf) & (depth == nearest.index_select(0, ray))
        brightness.scatter_reduce_(0, ray, torch.where(seen, shade, 0.0), "amax")
    return brightness.view(-1, side, side)


def render(object_id: Tensor, pose: Tensor, size: int, supersample: int = 2, window: Tensor | None = None) -> Tensor:
    """Images float32 [n, 1, size, size] in [−1, 1] of objects [n] (int64) at poses [n, 6].

    Each pixel is the mean of supersample² rays, so silhouettes are anti-aliased. `window` [n, 3] = (y, z, half size)
    renders that square of the image plane instead of all of it, (0, 0, 1).
    """
    side = size * supersample
    grid = (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 - 1
    window = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(pose), 3) if window is None else window
    pose = pose.to(torch.float32)
    images = torch.empty(len(pose), size, size)
    for rows in torch.arange(len(pose)).split(max(1, _CHUNK_RAYS // side**2)):
        center_y, center_z, half = (column[:, None] for column in window[rows].unbind(1))
        brightness = _trace(object_id[rows], pose[rows], center_y + half * grid, center_z - half * grid)
        images[rows] = brightness.unflatten(2, (size, supersample)).unflatten(1, (size, supersample)).mean(dim=(2, 4))
    return images[:, None] * 2 - 1
