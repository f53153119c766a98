"""The operator of a whole encoder layer against eager: its norms, activations and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_oracle import check, rand

WIDTH, HEADS = 16, 4


SHAPES = ((3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,))
ATTENTION = [rand(*s, seed=k, scale=0.3) for k, s in enumerate(SHAPES)]
NORMS = [rand(WIDTH, seed=10 + k) for k in range(4)]
FEED = [rand(*s, seed=20 + k, scale=0.3) for k, s in enumerate(((24, WIDTH), (24,), (WIDTH, 24), (WIDTH,)))]


def layer(x: torch.Tensor, mask: Any = None, kind: int | None = None, *, gelu: bool, first: bool) -> torch.Tensor:
    return torch._transformer_encoder_layer_fwd(
        x, WIDTH, HEADS, *ATTENTION, gelu, first, 1e-5, *NORMS, *FEED, mask, kind
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_layer(gelu: bool, first: bool) -> None:
    check({"plain": lambda x: layer(x, gelu=gelu, first=first)}, rand(2, 5, WIDTH), atol=1e-4)


def test_masks() -> None:
    keys = torch.tensor([[False, False, True, False, True], [False] * 5])
    scores = torch.ones(5, 5, dtype=torch.bool).triu(1)
    functions = {
        "keys": lambda x, k, s: layer(x, k, 1, gelu=True, first=False),
        "scores": lambda x, k, s: layer(x, s, 0, gelu=True, first=False),
    }
    check(functions, rand(2, 5, WIDTH), keys, scores, atol=1e-4)
