"""Deduces upper bounds of dimensions from what the model must satisfy to run at all.

A table of 512 positions sliced to the sequence length, then added to the tokens, works only for lengths up to 512:
where two dimensions have to agree and one is ``min(512, s)`` of the other, ``s`` is at most 512.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.compiler import dims, registry
from arcweld.compiler.dims import Call, Dim, IntExpr, Sym


class Refine(Exception):
    """The import has to start again with the dimension ``symbol`` at most ``high``."""

    def __init__(self, symbol: str, high: int) -> None:
        super().__init__(f"{symbol} <= {high}")
        self.symbol = symbol
        self.high = high


def require_agreement(a: Dim, b: Dim) -> None:
    """Raises Refine when the model's validity bounds a symbol: ``a`` and ``b`` must be equal, or one of them 1."""
    for capped, other in ((a, b), (b, a)):
        if not isinstance(capped, IntExpr) or len(capped.terms) != 1:
            continue
        ((factors, coefficient),) = capped.terms
        if coefficient != 1 or len(factors) != 1 or factors[0][1] != 1:
            continue
        atom = factors[0][0]
        if isinstance(atom, Call) and atom.fn == "min":
            for limit, inner in ((atom.a, atom.b), (atom.b, atom.a)):
                # min(limit, inner) == inner means inner <= limit; so does either being 1, with a limit above 1
                if isinstance(limit, int) and limit > 1 and inner == other:
                    _bound(inner, limit)


def _bound(inner: Dim, limit: int) -> None:
    """Raises Refine for the symbol of ``inner``, which is ``k * symbol + offset`` and at most ``limit``."""
    if not isinstance(inner, IntExpr):
        return
    symbols = [a for a in dims.atoms(inner) if isinstance(a, Sym)]
    if len(symbols) != 1 or len(dims.atoms(inner)) != 1:
        return
    factor = dims.coefficient(inner, symbols[0])
    offset = dims.substitute(inner, {symbols[0]: 0})
    if isinstance(factor, int) and isinstance(offset, int) and factor > 0 and limit > offset:
        raise Refine(symbols[0].name, (limit - offset) // factor)


def pairs(op: str, shapes: Sequence[Sequence[Dim] | None], attrs: Mapping[str, Any]) -> list[tuple[Dim, Dim]]:
    """The dimensions of an operator's operands that have to agree (be equal, or one of them 1)."""
    given = [s for s in shapes if s is not None]
    if op == "Concat":
        axis = attrs["axis"]
        return [(x, y) for s in given[1:] for i, (x, y) in enumerate(zip(given[0], s)) if i != axis]
    if op == "MatMul" and all(len(s) >= 2 for s in given):
        return [(given[0][-1], given[1][-2]), *_aligned([s[:-2] for s in given])]
    return _aligned(given) if registry.opdef(op).kind is registry.Kind.POINTWISE else []


def _aligned(shapes: Sequence[Sequence[Dim]]) -> list[tuple[Dim, Dim]]:
    return [
        pair
        for i, a in enumerate(shapes)
        for b in shapes[i + 1 :]
        for pair in zip(reversed(a), reversed(b))
        if pair[0] != pair[1] and 1 not in pair
    ]


def suggest_multiple(found: Sequence[tuple[Dim, Dim]]) -> str | None:
    """A hint when the dimensions would agree if some symbol were a multiple of a power of two."""
    for a, b in found:
        symbols = dims.free_symbols(a) | dims.free_symbols(b)
        for k in (2, 4, 8, 16, 32, 64):
            table: dict[dims.Atom, Dim] = {s: dims.symbol(s.name, 1) * k for s in symbols}
            if dims.substitute(a, table) == dims.substitute(b, table):
                names = " and ".join(sorted(s.name for s in symbols))
                multiple = f'write the dimension {names} as "{k}*n" in --shapes (or inputs= in Python)'
                return f"they agree for multiples of {k}: {multiple}"
    return None
