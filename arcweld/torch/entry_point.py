"""The entry point by which ``torch.compile(model, backend="arcweld")`` finds the backend without an import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arcweld.torch import recurrent  # noqa: F401  (before Dynamo traces a model)


def arcweld(module: Any, example_inputs: Any, **keywords: Any) -> Callable[..., Any]:
    """See ``arcweld.torch.backend.arcweld``, which is imported at the first call only."""
    from arcweld.torch.backend import arcweld as backend

    return backend(module, example_inputs, **keywords)
