"""Models of transformers through ``torch.compile`` on the simulator: eager's results, with nothing left to PyTorch.

What PyTorch keeps of a model is stated with it. All models run with ``ARCWELD_EVERY=1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from transformers_zoo import ZOO, run

from arcweld.driver.metrics import largest_error, relative_error

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUICK = ("bloom", "dinov2", "olmoe", "wav2vec2")
TOLERANCE = 1e-4  # of sums of some hundred products in f32, through a few layers whose activations are about 1


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    pytest.importorskip("transformers")
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.skipif(
        "ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it")) for n in ZOO],
)  # fmt: skip
def test_model(name: str) -> None:
    found = run(ZOO[name])
    assert found.left == ZOO[name].left
    assert [b.fallback for r in found.reports for b in r.blocks if b.fallback] == []
    assert sum(b.kernels or 0 for r in found.reports for b in r.blocks) > 0
    assert len(found.got) == len(found.want) > 0
    for got, want in zip(found.got, found.want):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert want.isfinite().all()
        assert want.float().std() > 1e-3
        assert relative_error(got.numpy(), want.numpy()) < TOLERANCE
        assert largest_error(got.numpy(), want.numpy()) < TOLERANCE


def test_most_models_are_whole() -> None:
    assert sum(not entry.left for entry in ZOO.values()) >= 30
