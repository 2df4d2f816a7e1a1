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
_CHUNK_RAYS = 16384
"""Rays traced at once: their intersections with all primitives fit into a core's cache."""
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
    center: Tensor, half_size: Tensor, frame: Tensor, y: Tensor, z: Tensor, light: Tensor
) -> tuple[Tensor, Tensor]:
    """Depth (−inf where missed) and cosine to the light, each [n, P, rays]: a quadratic in the depth x."""
    form = (frame / half_size[:, :, None, :] ** 2) @ frame.transpose(2, 3)
    dy, dz = y - center[..., 1:2], z - center[..., 2:3]
    a = form[..., 0, 0, None]
    b = form[..., 0, 1, None] * dy + form[..., 0, 2, None] * dz
    q = form[..., 1, 1, None] * dy * dy + 2 * form[..., 1, 2, None] * dy * dz + form[..., 2, 2, None] * dz * dz
    discriminant = b * b - a * (q - 1)
    hit = discriminant > 0
    dx = (discriminant.clamp(min=0).sqrt() - b) / a
    normal = [form[..., i, 0, None] * dx + form[..., i, 1, None] * dy + form[..., i, 2, None] * dz for i in range(3)]
    length = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).sqrt().clamp(min=1e-9)
    cosine = (normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]) / length
    return torch.where(hit, dx + center[..., 0:1], float("-inf")), cosine


def _box_hits(center: Tensor, half_size: Tensor, frame: Tensor, y: Tensor, z: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """As for ellipsoids, by the slab method: the ray leaves each slab towards the viewer; the first exit is seen."""
    dy, dz = y - center[..., 1:2], z - center[..., 2:3]
    enter = exit_ = cosine = None
    for axis in range(3):
        direction = frame[..., 0, axis, None]
        direction = torch.where(direction.abs() < 1e-6, 1e-6, direction)
        origin = frame[..., 1, axis, None] * dy + frame[..., 2, axis, None] * dz
        half = half_size[..., axis, None]
        near, far = (-half * direction.sign() - origin) / direction, (half * direction.sign() - origin) / direction
        facing = direction.sign() * (frame[..., axis] @ light)[..., None]
        if enter is None or exit_ is None or cosine is None:
            enter, exit_, cosine = near, far, facing.expand_as(far)
        else:
            enter = torch.maximum(enter, near)
            cosine = torch.where(far < exit_, facing, cosine)
            exit_ = torch.minimum(exit_, far)
    assert enter is not None
    assert exit_ is not None
    assert cosine is not None
    return torch.where(exit_ > enter, exit_ + center[..., 0:1], float("-inf")), cosine


def _trace(object_id: Tensor, pose: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Brightness [n, rays] in [0, 1] of rays at (y, z) [n or 1, 1, rays]; 0 is the background."""
    tables = _primitive_tables()
    light = torch.tensor(_LIGHT) / torch.tensor(_LIGHT).norm()
    rotation = rotation_matrix(pose[:, :3])
    depth, shade = [], []
    for shape, hits in (("ellipsoid", _ellipsoid_hits), ("box", _box_hits)):
        center, half_size, frame, albedo = _place(tables[shape], object_id, rotation, pose)
        present = (center[..., 1].abs() < 50).any(dim=0)
        if not present.any():
            continue
        x, cosine = hits(center[:, present], half_size[:, present], frame[:, present], y, z, light)
        lambert = albedo[:, present, None] * (_AMBIENT + (1 - _AMBIENT) * cosine.clamp(min=0))
        depth.append(x)
        shade.append(_FLOOR + (1 - _FLOOR) * lambert)
    nearest, index = torch.cat(depth, dim=1).max(dim=1)
    brightness = torch.cat(shade, dim=1).gather(1, index[:, None])[:, 0]
    return torch.where(nearest > float("-inf"), brightness, 0.0)


def render(object_id: Tensor, pose: Tensor, size: int, supersample: int = 2, window: Tensor | None = None) -> Tensor:
    """Images float32 [n, 1, size, size] in [−1, 1] of objects [n] (int64) at poses [n, 6].

    Each pixel is the mean of supersample² rays, so silhouettes are anti-aliased. `window` [n, 3] = (y, z, half size)
    renders that square of the image plane instead of all of it, (0, 0, 1).
    """
    rays = size * supersample
    grid = (torch.arange(rays, dtype=torch.float32) + 0.5) / rays * 2 - 1
    z, y = (axis.reshape(1, 1, -1) for axis in torch.meshgrid(-grid, grid, indexing="ij"))
    pose = pose.to(torch.float32)
    order = torch.argsort(object_id, stable=True)  # neighbours in a chunk share their absent primitives
    images = torch.empty(len(pose), size, size)
    for rows in order.split(max(1, _CHUNK_RAYS // (rays * rays))):
        if window is None:
            brightness = _trace(object_id[rows], pose[rows], y, z)
        else:
            center_y, center_z, half = (column[:, None, None] for column in window[rows].unbind(1))
            brightness = _trace(object_id[rows], pose[rows], center_y + half * y, center_z + half * z)
        if supersample > 1:
            brightness = brightness.view(-1, size, supersample, size, supersample).mean(dim=(2, 4))
        images[rows] = brightness.view(-1, size, size)
    return images[:, None] * 2 - 1
