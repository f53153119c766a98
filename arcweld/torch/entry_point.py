"""The entry point through which ``torch.compile(model, backend="arcweld")`` finds the backend by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def arcweld(module: Any, example_inputs: Any, **keywords: Any) -> Callable[..., Any]:
    """See ``arcweld.torch.backend.arcweld``; torch is imported only when it calls this."""
    from arcweld.torch.backend import arcweld as backend

    return backend(module, example_inputs, **keywords)
