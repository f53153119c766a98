"""Makes the OpDef of a pointwise operator from a name, an expression and a numpy function.

``pointwise.py`` has the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.expr import Expr
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, Lower, OpDef, Reader, Reference, register
from arcweld.compiler.ops.shapes import FLOATS, broadcast, check_dtype, present, read, same_dtype

Attrs = Mapping[str, Any]
Formula = Callable[..., Expr]  # (attrs, *operands) -> the output element
Numpy = Callable[..., np.ndarray]  # (attrs, *arrays) -> the output array, f16 and bf16 operands as f32
Result = Callable[[Sequence[TensorType], Attrs], DType]
Check = Callable[[Sequence[TensorType], Attrs], None]  # raises ModelError for operands that do not fit together


def first(types: Sequence[TensorType], attrs: Attrs) -> DType:
    """The result's element type is that of the first operand."""
    return types[0].dtype


def boolean(types: Sequence[TensorType], attrs: Attrs) -> DType:
    """The result's element type is bool."""
    return DType.BOOL


def second(types: Sequence[TensorType], attrs: Attrs) -> DType:
    """The result's element type is that of the second operand."""
    return types[1].dtype


def pointwise(
    name: str,
    inputs: str,
    formula: Formula,
    numpy: Numpy,
    *,
    attrs: Mapping[str, Attr] | None = None,
    dtypes: Sequence[DType] = FLOATS,
    result: Result = first,
    check: Check | None = None,
    cases: Sequence[Case] = (),
    test: Sequence[str] = ("f32", "f16"),
    low: float = -2.0,
    high: float = 2.0,
    cost: int = 1,
    tolerance: float = 1e-5,
    lower: Lower | None = None,
    doc: str = "",
) -> OpDef:
    """Registers a pointwise operator.

    ``inputs`` lists the operands (``"x"``, ``"a b"``, ``"x*"``), which broadcast. They share one of ``dtypes``, unless
    ``check`` tests their types instead. ``test``, ``low`` and ``high`` are the element types and the range of the
    default test case; ``cases`` are further ones. ``lower`` replaces the lowering by ``formula``.
    """
    names = tuple(inputs.split())
    variadic = names[-1].endswith("*")
    count = None if variadic else len(names)
    shapes: tuple[Any, ...] = ((3, 5),) if len(names) == 1 and not variadic else ((2, 3, 5), (3, 1), (5,))[: count or 3]
    default = Case(shapes, dtypes=tuple(test), low=low, high=high)
    return register(
        OpDef(
            name=name,
            kind=Kind.POINTWISE,
            inputs=names,
            infer=_infer(name, count, dtypes, result, check),
            reference=_reference(result, numpy),
            lower=lower or _lower(formula),
            attrs=attrs or {},
            cases=(default, *cases) if check is None and test else tuple(cases),
            cost=cost,
            tolerance=tolerance,
            doc=doc,
        )
    )


def _infer(name: str, count: int | None, dtypes: Sequence[DType], result: Result, check: Check | None) -> Infer:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        given = present(name, types, count)
        if check is not None:
            check(given, attrs)
        else:
            same_dtype(name, given)
            for t in given:
                check_dtype(name, t, dtypes)
        return (TensorType(result(given, attrs), broadcast(name, [t.shape for t in given])),)

    return infer


def _reference(result: Result, fn: Numpy) -> Reference:
    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        given = [a for a in arrays if a is not None]
        types = [TensorType(from_numpy(a.dtype), tuple(a.shape)) for a in given]
        out = result(types, attrs).numpy
        with np.errstate(all="ignore"):
            value = np.asarray(fn(attrs, *[widen(a) for a in given]))
        return (value if value.dtype == out else value.astype(out),)

    return reference


def _lower(formula: Formula) -> Lower:
    def lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
        return formula(node.attrs, *[read(reader, v, coords) for v in node.operands()])

    return lower


def widen(a: np.ndarray) -> np.ndarray:
    """``a`` in the type in which references compute: f32 for f16 and bf16, else its own."""
    compute = from_numpy(a.dtype).compute.numpy
    return a if a.dtype == compute else a.astype(compute)
