"""Siblings: small pointwise kernels over equally many elements become one, which stores several results.

    cos = Cos(a), sin = Sin(a)      one kernel of two results, where each alone would hardly take longer than its launch

Requires: regions with what is written in place. Ensures: the same results, by fewer regions.
"""

from __future__ import annotations

from arcweld.compiler.ir import Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import FusedGraph, Region, index_cost
from arcweld.passes.fusion import MAX_INDEXED, MAX_NODES, MAX_OPERANDS
from arcweld.passes.in_place import reads_own_elements
from arcweld.passes.joining import Joiner
from arcweld.passes.places import MAX_CODE, code_of

MOST_KERNELS = 256  # of one shape: more are one operator's thousand parts, and not worth the time
MOST_ELEMENTS = 4096  # of a result: above it the kernel's own time is worth more than a launch


def siblings(fused: FusedGraph) -> FusedGraph:
    """The regions, with small pointwise ones joined; in no particular order."""
    small: dict[tuple[object, ...], list[int]] = {}
    for i, r in enumerate(fused.regions):
        if r.template == "pointwise" and all(_is_small(o) for o in r.outputs):
            small.setdefault(r.outputs[0].shape, []).append(i)
    groups = [g for g in small.values() if 2 <= len(g) <= MOST_KERNELS]
    if not groups:
        return fused
    joiner = Joiner(fused)
    for group in groups:
        _join(joiner, group)
    return joiner.result()


def _is_small(v: Value) -> bool:
    count = v.type.numel
    return isinstance(count, int) and count <= MOST_ELEMENTS and not v.dtype.is_packed


def _join(joiner: Joiner, group: list[int]) -> None:
    """Joins each region of the group to the first one before it with which it can be one kernel."""
    kept: list[int] = []
    for k in group:
        for i in kept:
            if joiner.detour(i, k) or joiner.detour(k, i) or _conflict(joiner.regions[i], joiner.regions[k]):
                continue
            joined = joiner.joined(i, k)
            if _fits(joiner, joined) and not _repeats(joiner.regions[i], joiner.regions[k]):
                joiner.replace(i, k, joined)
                joiner.remove(k)
                break
        else:
            kept.append(k)


def _conflict(a: Region, b: Region) -> bool:
    """True if one of them writes over what the other one reads at other elements."""
    return any(
        not reads_own_elements(y, state)
        for x, y in ((a, b), (b, a)) for state in x.in_place.values() if state in {v.name for v in y.inputs}
    )  # fmt: skip


def _repeats(a: Region, b: Region) -> bool:
    """True if one of them reads results of the other at other elements: then it would compute them again for itself."""
    shape = a.outputs[0].shape
    for x, y in ((a, b), (b, a)):
        passed = {o.name for o in x.outputs} & {v.name for v in y.inputs}
        if passed and any(opdef(n.op).kind is not Kind.POINTWISE or n.output.shape != shape for n in y.nodes):
            return True
    return False


def _fits(joiner: Joiner, r: Region) -> bool:
    code, indexed = sum(code_of(n) for n in r.nodes), sum(index_cost(n) for n in r.nodes)
    bounded = len(r.nodes) <= MAX_NODES and code <= MAX_CODE and indexed <= MAX_INDEXED
    return bounded and joiner.operands(r) <= MAX_OPERANDS
