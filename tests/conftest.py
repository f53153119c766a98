"""Shared test set-up: a deterministic hypothesis profile, and PyTorch's compiler without what earlier tests left."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Workers share the cores already: threads of numpy and PyTorch, which spin without work, take them from others.
# Set before either is imported; the processes that tests start inherit it.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "arcweld", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "arcweld"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: workers take whole files, and wait at the end for the one that has the last."""
    slow = {i.path for i in items if i.get_closest_marker("slow") or i.get_closest_marker("models")}
    items.sort(key=lambda i: i.path not in slow)


def pytest_collection_finish() -> None:
    """What collecting has made (tests, the modules they import) stays: Python need not look for garbage there.

    A process that has collected all tests takes half a second for each full search otherwise.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def untimed_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo times no guards: it empties the CPU's caches before, for a line in a log, which takes 30 ms a graph."""
    import torch._dynamo.guards

    monkeypatch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0, raising=False)


@pytest.fixture
def fresh_dynamo(untimed_guards: None) -> Iterator[None]:
    """``torch.compile`` begins anew, with an empty report and without gradients."""
    import torch

    from arcweld.torch.report import clear_report

    torch._dynamo.reset()
    clear_report()
    with torch.no_grad():
        yield
    torch._dynamo.reset()
