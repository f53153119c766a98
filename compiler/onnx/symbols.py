"""Gives the open dimensions of a model's inputs their symbols, from dim_params, the user's shapes and ranges.

Equal dim_params become the same symbol; each anonymous dimension becomes one of its own. A dim_param that is a formula
of others, such as ``past_sequence_length + 1``, is what it says.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import onnx

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.errors import ModelError, UsageError
from arcweld.compiler.onnx.deduce import Bounds

Range: TypeAlias = "tuple[int, int | None, int]"
Shapes: TypeAlias = "Mapping[str, Sequence[int | str | Dim | None]]"

_RESERVED = {"floordiv", "mod", "max", "min"}
MAX_DIM = 2**48


def identifier(text: str) -> str:
    """``text`` as a legal symbol name: letters, digits and underscores, not a keyword."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", text) or "d"
    if name[0].isdigit():
        name = "d" + name
    return name + "_" if keyword.iskeyword(name) or name in _RESERVED else name


class DimTable:
    """The symbols of one model.

    ``ranges`` maps a dim_param (or its identifier) to ``(lo, hi, multiple_of)``. ``bounds`` holds the requirements of
    the model's nodes, by symbol. A dimension that is a multiple of k > 1 is written ``k * NAME_byk``: every expression
    made from it then shows that it can be divided by k.
    """

    def __init__(
        self, ranges: Mapping[str, Range], params: Collection[str] = (), bounds: Mapping[str, Bounds] | None = None
    ) -> None:
        self._ranges = dict(ranges)
        self._bounds = dict(bounds or {})
        self._params = frozenset(params)
        self._used_ranges: set[str] = set()
        self._dims: dict[str, Dim] = {}
        self._names: set[str] = set()

    def bind(self, param: str, value: Dim) -> None:
        """Gives the dim_param ``param`` a value. Raises UsageError where it has another one."""
        old = self._dims.setdefault(param, value)
        if old != value:
            hint = f"a multiple of it needs a name that the model does not use, such as {param}_n"
            again = isinstance(value, IntExpr) and any(old == dims.var(s) for s in dims.free_symbols(value))
            raise UsageError(f"dimension {param!r} is given as {old} and as {value}", hint=hint if again else None)

    def named(self, param: str) -> Dim:
        """The dimension of the dim_param ``param``."""
        if param not in self._dims:
            formula = self._formula(param)
            self._dims[param] = self._symbol(param) if formula is None else formula
        return self._dims[param]

    def _formula(self, param: str) -> Dim | None:
        """The value of a dim_param that is a formula of other ones; None for a mere name."""
        if param.isidentifier() or {param, identifier(param)} & set(self._ranges):
            return None
        try:
            value = dims.parse(param)
        except ModelError:  # a name may have any characters
            return None
        names = dims.free_symbols(value)
        if not names or any(s.name not in self._params for s in names):
            return None
        return dims.substitute(value, {s: self.named(s.name) for s in names})

    def _symbol(self, param: str) -> Dim:
        base = name = identifier(param)
        n = 2
        while name in self._names:
            name, n = f"{base}_{n}", n + 1
        self._names.add(name)
        key = next((k for k in (param, base) if k in self._ranges), None)
        lo, hi, step = 1, None, 1
        if key is not None:
            self._used_ranges.add(key)
            lo, hi, step = self._ranges[key]
        if lo < 0 or step < 1 or (hi is not None and hi < max(lo, step)):
            raise UsageError(f"the range {lo}..{hi} (multiple of {step}) of dimension {param!r} is empty")
        if step == 1:
            return self.bounded(name, lo, hi)
        return self._multiple(name, step, lo, hi)

    def bounded(self, name: str, lo: int, hi: int | None) -> Dim:
        """The symbol ``name`` with the given range, narrowed to what the model requires; an int if one value is left.

        Raises UsageError where the two disagree. A ``lo`` of 1 is the default, which the model may raise.
        """
        low, high, multiple = self._bounds.get(name, Bounds())
        if high is not None and (lo > high or (hi is not None and hi > high)):
            raise UsageError(f"dimension {name!r} ranges over {lo}..{hi or ''}, but the model works only up to {high}")
        if (1 < lo < low) or (hi is not None and hi < low):
            raise UsageError(f"dimension {name!r} ranges over {lo}..{hi or ''}, but the model works only from {low}")
        if low == high:
            return low
        least, most = max(lo, low), hi if high is None else high
        return dims.symbol(name, least, most) if multiple == 1 else self._multiple(name, multiple, least, most)

    def _multiple(self, name: str, step: int, lo: int, hi: int | None) -> Dim:
        """``step`` times a symbol, whose values are the multiples of ``step`` from ``lo`` to ``hi``."""
        return step * self.bounded(f"{name}_by{step}", -(-lo // step), None if hi is None else hi // step)

    def text(self, text: str) -> Dim:
        """A dimension from the user's text: a dim_param, a new name, or an expression such as ``32*h``."""
        if text in self._dims or text in self._params or text.isidentifier():
            return self.named(text)
        value = dims.parse(text)
        return dims.substitute(value, {s: self.named(s.name) for s in dims.free_symbols(value)})

    def check_ranges(self) -> None:
        """Raises UsageError for a range whose dimension the model does not have."""
        unknown = sorted(set(self._ranges) - self._used_ranges)
        if unknown:
            names = ", ".join(sorted(k for k, v in self._dims.items() if not isinstance(v, int)))
            raise UsageError(f"no dimension is called {unknown[0]!r}", hint=f"open dimensions: {names or 'none'}")


def declared_dims(info: onnx.ValueInfoProto) -> tuple[int | str | None, ...] | None:
    """The shape that the file declares: ints, dim_params, None for anonymous ones; None if it declares no shape."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    out: list[int | str | None] = []
    for d in tensor.shape.dim:
        if d.HasField("dim_value") and d.dim_value >= 0:
            if d.dim_value > MAX_DIM:
                raise ModelError(f"input {info.name!r} declares a dimension of {d.dim_value}")
            out.append(int(d.dim_value))
        else:
            out.append(d.dim_param if d.dim_param not in ("", "?", "None") else None)
    return tuple(out)


def input_shape(
    table: DimTable,
    name: str,
    declared: tuple[int | str | None, ...],
    override: Sequence[int | str | Dim | None] | None,
) -> tuple[Dim, ...]:
    """The shape of one input: the user's ``override``, in which None keeps the dimension that the file declares.

    Raises UsageError where the two contradict each other.
    """
    if override is not None and len(override) != len(declared):
        raise UsageError(
            f"input {name!r} has rank {len(declared)}, the shape given for it has {len(override)} dimensions"
        )
    shape: list[Dim] = []
    for i, dim in enumerate(declared):
        given = None if override is None else override[i]
        if given is not None:
            shape.append(_overridden(table, name, dim, given))
        elif isinstance(dim, int):
            shape.append(dim)
        else:
            shape.append(table.named(dim if dim is not None else f"{identifier(name)}_d{i}"))
    return tuple(shape)


def bind_overrides(table: DimTable, name: str, declared: Sequence[int | str | None], given: Sequence[Any]) -> None:
    """Binds the dim_params of one input to the dimensions given for them, where no formula is among the two."""
    for dim, value in zip(declared, given):
        formula = isinstance(value, str) and not value.isidentifier()
        if isinstance(dim, str) and dim.isidentifier() and value is not None and not formula:
            _overridden(table, name, dim, value)


def _overridden(table: DimTable, name: str, dim: int | str | None, given: int | str | Dim) -> Dim:
    if isinstance(given, str):
        value = table.text(given)
    else:
        highs = {s: s.hi if isinstance(s.hi, int) else None for s in dims.free_symbols(given)}
        value = dims.substitute(given, {s: table.bounded(s.name, s.lo, hi) for s, hi in highs.items()})
    if isinstance(value, int) and not 0 <= value <= MAX_DIM:
        raise UsageError(f"a dimension of input {name!r} cannot be {value}")
    if isinstance(dim, int) and dim != value:
        raise UsageError(f"input {name!r} has a fixed dimension of {dim}, the shape given for it says {value}")
    if isinstance(dim, str):
        table.bind(dim, value)
    return value
