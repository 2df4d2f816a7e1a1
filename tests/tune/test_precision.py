"""What a stage computes in, by what the machine has."""

from __future__ import annotations

import pytest
import torch

from tune import fits
from tune.fits import denoiser_precision, precision


@pytest.mark.parametrize(
    ("device", "capabilities", "denoiser", "others"),
    [
        ("cpu", {}, "fp32", "fp32"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "fp32", "fp32"),
        ("cpu", {"avx512_bf16": True}, "bf16", "fp32"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, "bf16", "fp32"),
        ("cuda", {}, "bf16", "bf16"),
    ],
)
def test_bfloat16_is_for_machines_that_have_it(
    device: str, capabilities: dict[str, bool], denoiser: str, others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "device", lambda: device)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert (denoiser_precision(), precision()) == (denoiser, others)
