"""Converts torch's types into the IR's: element types, symbolic sizes (sympy expressions), tensors as arrays.

A size that depends on tensor data (an unbacked symbol) is refused with UnsupportedError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Sym, free_symbols
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.torch.equalities import Offset, narrowed

_DTYPES: dict[torch.dtype, DType] = {
    torch.float64: DType.F64,
    torch.float32: DType.F32,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.int64: DType.I64,
    torch.int32: DType.I32,
    torch.int16: DType.I16,
    torch.int8: DType.I8,
    torch.uint64: DType.U64,
    torch.uint32: DType.U32,
    torch.uint16: DType.U16,
    torch.uint8: DType.U8,
    torch.bool: DType.BOOL,
    torch.float8_e4m3fn: DType.F8E4M3FN,
    torch.float8_e4m3fnuz: DType.F8E4M3FNUZ,
    torch.float8_e5m2: DType.F8E5M2,
    torch.float8_e5m2fnuz: DType.F8E5M2FNUZ,
}
if hasattr(torch, "float8_e8m0fnu"):  # since 2.7
    _DTYPES[torch.float8_e8m0fnu] = DType.F8E8M0
_TORCH = {v: k for k, v in _DTYPES.items()}

UNBOUNDED = 1 << 40  # torch writes "no upper bound" as a huge int or as infinity


def from_torch(dtype: torch.dtype) -> DType:
    """The DType of a torch dtype. Raises UnsupportedError for complex and quantized types."""
    found = _DTYPES.get(dtype)
    if found is None:
        raise UnsupportedError(f"element type {dtype} is not supported")
    return found


def part_type(dtype: torch.dtype) -> DType:
    """The DType of a torch dtype; of a complex one that of its parts. Raises UnsupportedError as ``from_torch`` does.

    Parts of 16 bits are refused: few of torch's own operators take them.
    """
    if dtype is torch.complex32:
        raise UnsupportedError(f"element type {dtype} is not supported; torch.complex64 is")
    return from_torch(dtype.to_real() if dtype.is_complex else dtype)


def real_view(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor with its parts as a last axis of 2, in the same memory unless it is conjugated; others as is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def to_torch(dtype: DType) -> torch.dtype:
    """The torch dtype with the same bits."""
    return _TORCH[dtype]


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a numpy array that shares its memory (one copy if the tensor is not in host memory).

    Strides are kept, so a transposed parameter stays a view. A complex tensor has an axis more, its parts. Raises
    UnsupportedError for sparse tensors.
    """
    if tensor.layout is not torch.strided:
        raise UnsupportedError(f"a tensor of layout {tensor.layout} cannot be a weight")
    host = real_view(tensor.detach().cpu()).resolve_neg()
    dtype = from_torch(host.dtype)
    if dtype is DType.BF16 or dtype.is_storage:  # numpy gets them as integers of equal width
        bits: np.ndarray = host.view(torch.int16 if dtype is DType.BF16 else torch.uint8).numpy()
        return bits.view(dtype.numpy)
    array: np.ndarray = host.numpy()
    return array


class Sizes:
    """Converts torch's symbolic integers into dimensions; a torch symbol is the same ``Sym`` in a whole graph.

    ``names`` renames torch's symbols (``s77`` to ``batch``). ``ranges`` maps torch's names to (least, greatest or
    None), both inclusive. ``same`` says which symbols are others plus a number.
    """

    def __init__(
        self, ranges: Mapping[str, tuple[int, int | None]] | None = None, names: Mapping[str, str] | None = None,
        same: Mapping[str, Offset] | None = None,
    ) -> None:  # fmt: skip
        self._ranges = narrowed(ranges or {}, same or {})
        self._names = dict(names or {})
        self._same = dict(same or {})
        self._symbols: dict[str, Dim] = {}

    @property
    def torch_names(self) -> dict[Sym, str]:
        """Torch's name of each symbol, in the order of their first use."""
        return {s: name for name, d in self._symbols.items() for s in free_symbols(d) if name not in self._same}

    def dim(self, size: Any) -> Dim:
        """A size (int or SymInt) as a dimension. Raises UnsupportedError for what a dimension cannot express."""
        if isinstance(size, int):
            return int(size)
        expr = size.node.expr
        self._learn_ranges(size, expr)
        return self.from_expr(expr)

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """The type of a (fake) tensor; of a complex one that of either part."""
        return TensorType(part_type(tensor.dtype), tuple(self.dim(d) for d in tensor.shape))

    def _learn_ranges(self, size: Any, expr: Any) -> None:
        env = size.node.shape_env
        for s in getattr(expr, "free_symbols", ()):
            if s.name not in self._ranges and env is not None and s in env.var_to_range:
                self._ranges[s.name] = value_range(env.var_to_range[s])

    def from_expr(self, expr: Any) -> Dim:
        """A sympy expression as a dimension. Raises UnsupportedError as ``dim`` does."""
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            return self._symbol(str(expr.name))
        kind = type(expr).__name__
        if kind in _FOLDS:
            return self._fold(_FOLDS[kind], expr.args)
        if kind == "Mul":
            return self._product(expr)
        if kind == "Pow" and expr.args[1].is_Integer and int(expr.args[1]) > 0:
            base = self.from_expr(expr.args[0])
            return dims.product([base] * int(expr.args[1]))
        if kind == "ModularIndexing":
            base, divisor, modulus = (self.from_expr(a) for a in expr.args)
            return dims.mod(dims.floordiv(base, divisor), modulus)
        if kind in ("floor", "FloorToInt", "TruncToInt"):
            return self._quotient(expr.args[0], dims.floordiv)
        if kind in ("ceiling", "CeilToInt"):
            return self._quotient(expr.args[0], dims.ceildiv)
        raise UnsupportedError(f"the size {expr} is not an integer polynomial, quotient, remainder or extremum")

    def _fold(self, fn: Callable[[Dim, Dim], Dim], args: Any) -> Dim:
        first, *rest = (self.from_expr(a) for a in args)
        for r in rest:
            first = fn(first, r)
        return first

    def _product(self, expr: Any) -> Dim:
        numerator, denominator = expr.as_numer_denom()
        if denominator == 1:
            return self._fold(dims.mul, expr.args)
        top, bottom = self.from_expr(numerator), self.from_expr(denominator)
        return dims.floordiv(top, bottom)  # torch writes a rational factor only where the division is exact

    def _quotient(self, expr: Any, divide: Callable[[Dim, Dim], Dim]) -> Dim:
        if type(expr).__name__ == "IntTrueDiv":
            numerator, denominator = expr.args
        else:
            numerator, denominator = expr.as_numer_denom()
        return divide(self.from_expr(numerator), self.from_expr(denominator))

    def _symbol(self, name: str) -> Dim:
        if name.startswith(("u", "zuf")) and name.lstrip("uzf").isdigit():
            raise UnsupportedError(f"the size {name} depends on the data of a tensor")
        if name in self._same:
            base, by = self._same[name]
            self._symbols[name] = (self._symbol(base) if base else 0) + by
        elif name not in self._symbols:
            lo, hi = self._ranges.get(name, (0, None))
            self._symbols[name] = dims.symbol(self._names.get(name, name), lo, hi)
        return self._symbols[name]


_FOLDS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "Add": lambda a, b: a + b,
    "FloorDiv": dims.floordiv,
    "CleanDiv": dims.floordiv,
    "CeilDiv": dims.ceildiv,
    "Mod": dims.mod,
    "PythonMod": dims.mod,
    "Max": dims.maximum,
    "Min": dims.minimum,
}


def value_range(bounds: Any) -> tuple[int, int | None]:
    """Torch's value range as (least, greatest or None for unbounded)."""
    return _finite(bounds.lower) or 0, _finite(bounds.upper)


def _finite(x: Any) -> int | None:
    if not (isinstance(x, int) or getattr(x, "is_Integer", False)):
        return None
    return int(x) if abs(int(x)) < UNBOUNDED else None


def exactly(value: float, dtype: DType) -> bool:
    """True if a Python number is representable in ``dtype`` without rounding."""
    if not math.isfinite(value):
        return dtype.is_float
    with np.errstate(over="ignore"):
        return bool(np.asarray(value).astype(dtype.numpy).astype(np.float64) == value)
