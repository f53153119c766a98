"""Shared test set-up: a deterministic hypothesis profile, and PyTorch's compiler without what earlier tests left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "arcweld", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "arcweld"))


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """``torch.compile`` begins anew, with an empty report and without gradients."""
    import torch

    from arcweld.torch.report import clear_report

    torch._dynamo.reset()
    clear_report()
    with torch.no_grad():
        yield
    torch._dynamo.reset()
