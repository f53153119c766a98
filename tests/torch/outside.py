"""An operator that Arcweld will never have, for tests of what is left to PyTorch."""

from __future__ import annotations

import torch


@torch.library.custom_op("outside::ordered", mutates_args=())
def ordered(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """``torch.sort`` without the indices."""
    return torch.sort(x, dim)[0]


@ordered.register_fake
def _(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


NAME = "outside.ordered.default"
