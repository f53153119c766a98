"""Memory order of tensors: the permutation of its axes that makes a dense tensor contiguous.

Engines take and return contiguous tensors. A channels-last or transposed tensor is passed as a permuted view, so that
nothing is copied and PyTorch gets the strides that it expects.
"""

from __future__ import annotations

import torch

from arcweld.compiler.dims import Dim, Sym, evaluate, free_symbols
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.types import Sizes

_PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179)


def dense_order(tensor: torch.Tensor, sizes: Sizes) -> tuple[int, ...] | None:
    """The memory order of a dense tensor that is not contiguous; None for every other tensor."""
    order = memory_order(tensor, sizes)
    return None if order is None or order == tuple(range(len(order))) else order


def memory_order(tensor: torch.Tensor, sizes: Sizes) -> tuple[int, ...] | None:
    """The axes from outermost to innermost in memory; None for a tensor with gaps or overlaps.

    For symbolic sizes the order is guessed from distinct sample sizes, and then proved on the expressions.
    """
    if tensor.layout is not torch.strided:
        return None
    try:
        shape = [sizes.dim(d) for d in tensor.shape]
        strides = [sizes.dim(s) for s in tensor.stride()]
    except UnsupportedError:
        return None
    env = _sample([*shape, *strides])
    extents = [evaluate(d, env) for d in shape]
    order = sorted(range(len(shape)), key=lambda k: (-evaluate(strides[k], env), -extents[k], k))
    # the stride of an axis of extent 1 is meaningless: keep the axis beside its neighbour
    if 1 in extents:
        order = _with_unit_axes(order, extents)
    expected: Dim = 1
    for k in reversed(order):
        if extents[k] != 1 and strides[k] != expected:
            return None
        expected = expected * shape[k]
    return tuple(order)


def _with_unit_axes(order: list[int], extents: list[int]) -> list[int]:
    """The same order with each axis of extent 1 moved right behind the axis that precedes it in the shape."""
    placed = [k for k in order if extents[k] != 1]
    for k, n in enumerate(extents):
        if n == 1:
            placed.insert(placed.index(k - 1) + 1 if k else 0, k)
    return placed


def _sample(values: list[Dim]) -> dict[str, int]:
    symbols: set[Sym] = set()
    for v in values:
        symbols |= free_symbols(v)
    return {s.name: _PRIMES[k % len(_PRIMES)] for k, s in enumerate(sorted(symbols, key=lambda s: s.name))}
