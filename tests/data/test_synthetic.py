"""The ray tracer against closed forms, declared symmetries against renders, the planted population against decoders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from migvis.data.synthetic import renderer
from migvis.data.synthetic.objects import CATEGORIES, OBJECTS_PER_CATEGORY, object_models
from migvis.data.synthetic.population import simulate_responses, stimulus_features
from migvis.data.synthetic.renderer import render
from migvis.data.synthetic.stimuli import VARIATION_LEVELS, synthetic_stimuli
from migvis.errors import InputError
from migvis.rotations import rotation_matrix

UPRIGHT = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]])


def test_rotations_are_proper_and_follow_the_stated_order() -> None:
    angles = torch.tensor([[30.0, -20.0, 70.0], [90.0, 0.0, 0.0]])
    matrices = rotation_matrix(angles)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(2), atol=1e-6)
    assert torch.allclose(matrices[1] @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    first = rotation_matrix(torch.tensor([[30.0, 0.0, 0.0]]))
    then = rotation_matrix(torch.tensor([[0.0, -20.0, 0.0]]))
    last = rotation_matrix(torch.tensor([[0.0, 0.0, 70.0]]))
    assert torch.allclose(matrices[0], (last @ then @ first)[0], atol=1e-6)


def test_an_ellipsoid_covers_its_projected_ellipse_and_is_lit_by_the_cosine() -> None:
    """Rays through one ellipsoid against the quadratic solved point by point."""
    center, half = torch.tensor([[9.0, 9.0, 9.0], [0.1, 0.05, -0.1]]), torch.tensor([[0.1, 0.1, 0.1], [0.5, 0.3, 0.2]])
    frame = rotation_matrix(torch.tensor([[0.0, 0.0, 0.0], [20.0, 35.0, -15.0]]))
    generator = torch.Generator().manual_seed(0)
    y, z = (torch.rand(2, 400, generator=generator) * 1.4 - 0.7).unbind(0)
    light = torch.tensor([0.0, 0.6, 0.8])
    depth, cosine = renderer._ellipsoid_hits(center, half, frame, torch.ones(400, dtype=torch.int64), y, z, light)
    for ray in range(40):
        walk = torch.linspace(-0.8, 0.8, 4001)
        points = torch.stack([walk, y[ray].expand(4001), z[ray].expand(4001)], dim=1) - center[1]
        within = (((points @ frame[1]) / half[1]) ** 2).sum(1) <= 1
        nearest = float(walk[within].max()) if bool(within.any()) else -math.inf
        assert depth[ray].item() == pytest.approx(nearest, abs=2e-3)
    inside = depth > -math.inf
    point = torch.stack([depth[inside], y[inside], z[inside]], dim=1) - center[1]
    normal = (point @ frame[1]) / half[1] ** 2 @ frame[1].T
    expected = (normal / normal.norm(dim=1, keepdim=True)) @ light
    assert torch.allclose(cosine[inside], expected, atol=1e-4)


def test_a_box_seen_from_the_front_is_a_rectangle_at_its_front_face() -> None:
    center, half, frame = torch.zeros(1, 3), torch.tensor([[0.3, 0.2, 0.1]]), torch.eye(3)[None]
    y, z = torch.tensor([0.0, 0.19, 0.21, 0.0]), torch.tensor([0.0, 0.09, 0.0, 0.11])
    part = torch.zeros(4, dtype=torch.int64)
    depth, cosine = renderer._box_hits(center, half, frame, part, y, z, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(depth[:2], torch.tensor([0.3, 0.3]))
    assert torch.isinf(depth[2:]).all()
    assert torch.allclose(cosine[:2], torch.ones(2))


def test_of_several_primitives_the_nearest_is_seen_and_rays_left_out_would_have_missed() -> None:
    """Against every ray with every primitive, the nearest hit found by a loop."""
    object_id, pose = torch.tensor([3, 20, 37, 58]), torch.tensor([[35.0, -20.0, 50.0, 1.1, 0.1, -0.05]]).expand(4, 6)
    grid = (torch.arange(32) + 0.5) / 16 - 1
    traced = renderer._trace(object_id, pose, grid.expand(4, 32), -grid.expand(4, 32))
    light = torch.tensor(renderer._LIGHT) / torch.tensor(renderer._LIGHT).norm()
    z, y = (axis.flatten() for axis in torch.meshgrid(-grid, grid, indexing="ij"))
    for row in range(4):
        nearest, brightness = torch.full((32 * 32,), -math.inf), torch.zeros(32 * 32)
        for shape, hits in (("ellipsoid", renderer._ellipsoid_hits), ("box", renderer._box_hits)):
            table = renderer._primitive_tables()[shape]
            rotation = rotation_matrix(pose[row : row + 1, :3])
            center, half, frame, albedo = renderer._place(table, object_id[row : row + 1], rotation, pose[row : row + 1])
            for part in range(center.shape[1]):
                which = torch.full((32 * 32,), part)
                depth, cosine = hits(center[0], half[0], frame[0], which, y, z, light)
                shade = 0.16 + 0.84 * albedo[0, part] * (0.3 + 0.7 * cosine.clamp(min=0))
                brightness = torch.where(depth > nearest, shade, brightness)
                nearest = torch.maximum(nearest, depth)
        assert 50 < (nearest > -math.inf).sum() < 900
        torch.testing.assert_close(traced[row].flatten(), brightness, rtol=1e-5, atol=1e-5)


def test_position_scale_and_window_mean_what_they_say() -> None:
    ids = torch.tensor([32])
    centred = render(ids, UPRIGHT, 64)
    moved = render(ids, torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.25, 0.5]]), 64)
    assert torch.allclose(moved[..., :48, 8:], centred[..., 16:, :56], atol=1e-5)  # 8 px right, 16 px up
    window = render(ids, UPRIGHT, 32, supersample=2, window=torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.allclose(window, render(ids, UPRIGHT, 32), atol=1e-6)
    half = render(ids, torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.0, 0.0]]), 64)
    assert torch.allclose(half[..., 16:48, 16:48], render(ids, UPRIGHT, 32, supersample=2), atol=1e-4)


@pytest.mark.parametrize("object_id", range(64))
def test_declared_symmetries_are_those_of_the_renders(object_id: int) -> None:
    """A declared turn leaves the picture as it is; an object that declares none changes under a quarter and a half turn."""
    model = object_models()[object_id]
    tilt = torch.tensor([[0.0, 25.0, 10.0, 1.0, 0.0, 0.0]])
    plain = render(torch.tensor([object_id]), tilt, 64)

    def turned(angle: float) -> torch.Tensor:
        return render(torch.tensor([object_id]), tilt + torch.tensor([[angle, 0, 0, 0, 0, 0]]), 64)

    tolerance = 1e-3
    changes = {angle: float((turned(angle) - plain).abs().mean()) for angle in (37.0, 90.0, 180.0)}
    same = {angle: change < tolerance for angle, change in changes.items()}
    expected = {
        "none": {37.0: False, 90.0: False, 180.0: False},
        "half_turn": {37.0: False, 90.0: False, 180.0: True},
        "quarter_turn": {37.0: False, 90.0: True, 180.0: True},
        "continuous": {37.0: True, 90.0: True, 180.0: True},
    }[model.symmetry]
    for angle, symmetric in expected.items():
        if symmetric:
            assert same[angle], (model.symmetry, changes)
        else:
            assert changes[angle] > tolerance, (model.symmetry, changes)


def test_stimuli_have_the_levels_they_claim_and_are_deterministic() -> None:
    stimuli = synthetic_stimuli(320, 32, seed=3, variations=(3, 6))
    assert stimuli.category_names == CATEGORIES
    assert (stimuli.category_id == stimuli.object_id // OBJECTS_PER_CATEGORY).all()
    for level, (angle, scale, position) in VARIATION_LEVELS.items():
        pose = stimuli.pose[stimuli.variation == level]
        assert len(pose)
        assert np.abs(pose[:, :3]).max() <= angle
        assert np.abs(np.log(pose[:, 3])).max() <= math.log(scale) + 1e-6
        assert np.abs(pose[:, 4:]).max() <= position + 1e-6
        if angle:
            assert np.abs(pose[:, :3]).max() > 0.8 * angle
    again = synthetic_stimuli(320, 32, seed=3, variations=(3, 6))
    assert (again.image == stimuli.image).all()
    assert (synthetic_stimuli(320, 32, seed=4, variations=(3, 6)).image != stimuli.image).any()
    assert (stimuli.image.reshape(320, -1).max(1) > 60).all()
    with pytest.raises(InputError, match=r"data.stimulus_count: at least 192"):
        synthetic_stimuli(100, 32, seed=0)


def test_the_population_has_the_planted_signal_to_noise() -> None:
    stimuli = synthetic_stimuli(640, 32, seed=0)
    features = stimulus_features(stimuli.category_id, stimuli.object_id, stimuli.pose.astype(float), 0)
    clean = simulate_responses(features, 40, 1, 1e12, seed=5)
    noisy = simulate_responses(features, 40, 4, 0.5, seed=5)
    assert np.allclose((clean - clean.mean(0)).std(0), 1, atol=1e-3)
    noise = (noisy - clean).std(0)
    assert np.allclose(noise, math.sqrt(1 / (0.5 * 4)), rtol=0.15)
    mixed = np.abs(np.linalg.lstsq(features, clean - clean.mean(0), rcond=None)[0])
    assert (mixed[:3].max(0) > 0.02).mean() > 0.9  # pose
    assert (mixed[6:11].max(0) > 0.02).mean() > 0.9  # category


def test_fewer_objects_are_the_first_of_every_category() -> None:
    stimuli = synthetic_stimuli(96, 32, seed=0, objects_per_category=2)
    assert stimuli.object_id is not None
    assert stimuli.category_id is not None
    assert sorted(set(stimuli.object_id.tolist())) == [8 * category + member for category in range(8) for member in range(2)]
    assert (stimuli.category_id == stimuli.object_id // OBJECTS_PER_CATEGORY).all()
    assert np.bincount(stimuli.category_id).tolist() == [12] * 8
