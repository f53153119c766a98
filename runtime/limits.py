"""Indices out of range in inputs on the host: one error, before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcweld.compiler.errors import InputError
from arcweld.runtime.arrays import Taken
from arcweld.runtime.expressions import Expression
from arcweld.runtime.program import Program


@dataclass(frozen=True, slots=True)
class Bounds:
    """The elements that the input in ``slot`` may have: indices of an axis of ``extent`` elements, with an offset."""

    slot: int
    name: str
    extent: int
    lowest: int
    highest: int


def bounds_of(program: Program, env: Mapping[str, int]) -> tuple[Bounds, ...]:
    """The program's limits for the symbols' values, one for each input and extent."""
    slots = {t.name: k for k, t in enumerate(program.inputs)}
    found: dict[tuple[str, int], Bounds] = {}
    for limit in program.limits:
        extent, least, most = (Expression(text)(env) for text in (limit.extent, limit.least, limit.most))
        bounds = Bounds(slots[limit.input], limit.input, extent, -extent - least, extent - 1 - most)
        known = found.setdefault((limit.input, extent), bounds)
        lowest, highest = max(known.lowest, bounds.lowest), min(known.highest, bounds.highest)
        found[limit.input, extent] = Bounds(known.slot, known.name, extent, lowest, highest)
    return tuple(found.values())


def check_indices(bounds: Sequence[Bounds], inputs: Sequence[Taken]) -> None:
    """Raises InputError for an element outside its bounds. Arrays in a GPU's memory are not read."""
    for b in bounds:
        array = inputs[b.slot].readable
        if array is None or array.size == 0:
            continue
        low, high = int(array.min()), int(array.max())
        if low < b.lowest or high > b.highest:
            bad = low if low < b.lowest else high
            direct = (b.lowest, b.highest) == (-b.extent, b.extent - 1)
            what = f"the index {bad}, which" if direct else f"{bad}, with which an index"
            raise InputError(
                f"input {b.name!r} holds {what} is out of range for an axis of {b.extent} elements",
                hint=f"it takes {b.lowest} to {b.highest}; nothing was written",
            )
