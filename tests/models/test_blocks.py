"""The modelled suite's own modules, small, against PyTorch on the simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import arcweld
from arcweld.models import blocks
from arcweld.models.builders import Built


@pytest.mark.slow
@pytest.mark.parametrize(
    "built",
    [
        lambda: blocks.unet_block(batch=1, channels=32, size=6, heads=2, words=5, width=16),
        lambda: blocks.whisper_encoder(frames=40, layers=1, hidden=32, heads=2),
    ],
    ids=["unet block", "whisper encoder"],
)
def test_a_small_module_gives_what_pytorch_does(built: Callable[[], Built]) -> None:
    torch.manual_seed(0)
    made = built()
    engine = arcweld.compile(made.module, *made.args, device="sim")
    found = engine(*(a.numpy() for a in made.args))
    with torch.no_grad():
        expected = made.module(*made.args).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
