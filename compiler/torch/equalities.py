"""Equalities between torch's symbols that torch has not found, learnt from what the model's operators demand.

torch.export relates sizes only where its own operators compare them. Attention takes keys and values of ``past_k + 1``
and ``past_v + 1`` rows without a comparison; here they have to be equal, and so ``past_v`` is ``past_k``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from arcweld.compiler.dims import Dim, Sym, free_symbols, var
from arcweld.compiler.errors import ModelError


class Offset(NamedTuple):
    """What a symbol of torch is: the symbol ``base`` plus ``by``, or ``by`` alone where ``base`` is empty."""

    base: str
    by: int


def learn(pairs: Iterable[tuple[Dim, Dim]], names: Mapping[Sym, str]) -> dict[str, Offset]:
    """What the dimensions that have to be equal, by pairs, tell about torch's symbols.

    ``names`` gives torch's name of each symbol, in the order of the inputs; the later symbol of a pair is expressed by
    the earlier one. Pairs that are not a symbol plus a number each tell nothing.
    """
    order = list(names)
    found: dict[str, Offset] = {}
    for a, b in pairs:
        difference = a - b
        symbols = sorted((s for s in free_symbols(difference) if s in names), key=order.index)
        if not 1 <= len(symbols) <= 2 or names[symbols[-1]] in found:
            continue
        last, base = symbols[-1], symbols[0] if len(symbols) == 2 else None
        for sign in (1, -1):
            by = sign * difference - var(last) + (0 if base is None else var(base))
            if isinstance(by, int):  # sign * difference = last - base + by, which is 0
                found[names[last]] = Offset("" if base is None else names[base], -by)
    return found


def narrowed(
    ranges: Mapping[str, tuple[int, int | None]], same: Mapping[str, Offset]
) -> dict[str, tuple[int, int | None]]:
    """The symbols' ranges, in which a base has only values that its dependants may have too.

    Raises ModelError where there are none.
    """
    out = dict(ranges)
    for name, offset in _dependants_first(same):
        if not offset.base or name not in out:
            continue
        low, high = out[name]
        base_low, base_high = out.get(offset.base, (0, None))
        highs = [h for h in (base_high, None if high is None else high - offset.by) if h is not None]
        found = out[offset.base] = (max(base_low, low - offset.by), min(highs, default=None))
        if found[1] is not None and found[0] > found[1]:
            raise ModelError(f"the size {name} has to be {offset.base} + {offset.by}, and their ranges exclude that")
    return out


def _dependants_first(same: Mapping[str, Offset]) -> Sequence[tuple[str, Offset]]:
    """The symbols in an order in which each comes before its base."""

    def depth(name: str) -> int:
        steps = 0
        while name in same:
            name, steps = same[name].base, steps + 1
        return steps

    return sorted(same.items(), key=lambda item: -depth(item[0]))
