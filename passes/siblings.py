"""Siblings: small pointwise kernels over equally many elements become one, which stores several results.

    cos = Cos(a), sin = Sin(a)      one kernel of two results, where each alone would hardly take longer than its launch

Requires: regions with what is written in place. Ensures: the same results, by fewer regions.
"""

from __future__ import annotations

from arcweld.compiler.ir import Value
from arcweld.compiler.region import FusedGraph, Region
from arcweld.passes.joining import Joiner
from arcweld.passes.places import MAX_CODE, code_of

MOST_ELEMENTS = 4096  # of a result: above it the kernel's own time is worth more than a launch
MAX_OPERANDS = 12  # tensors, weights aside, that one kernel reads


def siblings(fused: FusedGraph) -> FusedGraph:
    """The regions, with small pointwise ones joined; in no particular order."""
    small: dict[tuple[object, ...], list[int]] = {}
    for i, r in enumerate(fused.regions):
        if r.template == "pointwise" and all(_is_small(o) for o in r.outputs):
            small.setdefault(r.outputs[0].shape, []).append(i)
    if all(len(group) < 2 for group in small.values()):
        return fused
    joiner = Joiner(fused)
    for group in small.values():
        _join(joiner, group)
    return joiner.result()


def _is_small(v: Value) -> bool:
    count = v.type.numel
    return isinstance(count, int) and count <= MOST_ELEMENTS


def _join(joiner: Joiner, group: list[int]) -> None:
    """Joins each region of the group to the first one before it that it can be one kernel with."""
    kept: list[int] = []
    for k in group:
        for i in kept:
            if joiner.detour(i, k) or joiner.detour(k, i) or joiner.conflict(joiner.regions[i], joiner.regions[k]):
                continue
            joined = joiner.joined(i, k)
            if _fits(joiner, joined):
                joiner.replace(i, k, joined)
                joiner.remove(k)
                break
        else:
            kept.append(k)


def _fits(joiner: Joiner, r: Region) -> bool:
    return sum(code_of(n) for n in r.nodes) <= MAX_CODE and joiner.operands(r) <= MAX_OPERANDS
