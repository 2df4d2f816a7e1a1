from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from migvis.errors import InputError
from migvis.metrics.features import RESNET, build_feature_encoder, image_features, kernel_distance, knn_precision, on_manifold


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((300, 8))


def test_precision_of_perfect_useless_and_mixed_images(reference):
    same = np.random.default_rng(1).standard_normal((200, 8))
    assert knn_precision(reference, reference) == 1.0
    assert knn_precision(reference, same) > 0.85
    assert knn_precision(reference, same + 10) == 0.0
    assert knn_precision(reference, np.concatenate([reference[:50], reference[:150] + 10])) == 0.25


def test_precision_against_a_naive_version(reference):
    reference, made = reference[:40], np.random.default_rng(2).standard_normal((30, 8)) * 1.2
    for k in (1, 5):
        expected = []
        for edit in made:
            inside = False
            for i in range(len(reference)):
                others = sorted(np.linalg.norm(reference[i] - reference[j]) for j in range(len(reference)) if j != i)
                inside = inside or np.linalg.norm(edit - reference[i]) <= others[k - 1]
                if inside:
                    break
            expected.append(inside)
        assert 0 < sum(expected) < 30
        assert on_manifold(reference, made, k).tolist() == expected


def test_one_repeated_picture_is_precise_but_far_in_kernel_distance(reference):
    collapsed = np.repeat(reference[:1], 100, axis=0)
    assert knn_precision(reference, collapsed) == 1.0
    assert kernel_distance(reference, collapsed) > 0.2


def test_kernel_distance_is_unbiased_and_against_a_naive_version():
    generator = np.random.default_rng(3)
    distances = [kernel_distance(generator.standard_normal((40, 8)), generator.standard_normal((30, 8))) for _ in range(60)]
    assert min(distances) < 0
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(60)
    x, y = generator.standard_normal((6, 4)), generator.standard_normal((5, 4)) + 1

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    expected = np.mean([k(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    expected += np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    expected -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_bad_arguments_are_refused(reference):
    for call, message in (
        (lambda: knn_precision(reference[:5], reference), "k: expected"),
        (lambda: knn_precision(reference, reference[:, :3]), "generated: expected 8 features"),
        (lambda: kernel_distance(reference[:1], reference), "at least 2"),
        (lambda: build_feature_encoder("absent.pth"), "realism feature_weights: no file"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_resnet_features_come_from_a_file(tmp_path: Path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(RESNET, pretrained=False).eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "resnet.safetensors")
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    features = image_features(build_feature_encoder(tmp_path / "resnet.safetensors"), images, batch=2)
    assert features.shape == (3, 512)
    assert np.ptp(features, axis=0).max() > 0
