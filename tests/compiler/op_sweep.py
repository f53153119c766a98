"""The operator sweep's parameters and comparisons, shared by the tests of references, lowerings and type rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, load
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.ops.registry import Case, OpDef, all_ops
from arcweld.compiler.reference import all_cases, case_graph

HALF = {DType.F16: 2e-3, DType.BF16: 1.6e-2}  # two units in the last place of a number near 1


@dataclass(frozen=True)
class Sweep:
    """One run of the sweep."""

    op: OpDef
    case: Case
    dtype: DType
    label: str

    def build(self) -> tuple[Graph, dict[str, np.ndarray]]:
        return case_graph(self.op, self.case, self.dtype)


def sweeps(**fields: bool) -> list[Sweep]:
    """Every case and element type of the operators that have all the named fields (lower=True, row=True, ...)."""
    return [
        Sweep(op, case, dtype, f"{op.name}-{k}-{dtype.value}")
        for op in all_ops()
        if all((getattr(op, f) is not None) == wanted for f, wanted in fields.items())
        for k, (case, dtype) in enumerate(all_cases(op))
    ]


def label(s: Sweep) -> str:
    return s.label


def assert_close(got: np.ndarray, want: np.ndarray, dtype: DType, tolerance: float = 1e-5) -> None:
    """Equal types and shapes; equal integers; floats within the tolerance of the computing type."""
    assert from_numpy(got.dtype) is from_numpy(want.dtype)
    assert got.shape == want.shape
    if not from_numpy(got.dtype).is_float:
        np.testing.assert_array_equal(got, want)
        return
    rtol = max(tolerance, HALF.get(from_numpy(got.dtype), 0.0), HALF.get(dtype, 0.0))
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol)


class Loads:
    """A Reader over named buffers: what a kernel with nothing fused does."""

    mask = None

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        assert len(coords) == value.type.rank
        return load(value.name, value.dtype, coords, mask)


def grid(shape: Sequence[Dim], sizes: Sequence[int]) -> tuple[tuple[Dim, ...], dict[str, np.ndarray]]:
    """Loop indices over ``shape`` and, by name, their values at every point of a grid of ``sizes``."""
    coords: list[Dim] = []
    values: dict[str, np.ndarray] = {}
    for k, (d, n) in enumerate(zip(shape, sizes)):
        coords.append(0 if d == 1 else symbol(f"i{k}", 0, d - 1))
        values[f"i{k}"] = np.arange(n).reshape([n if k == j else 1 for j in range(len(sizes))])
    return tuple(coords), values


def symbolic(sweep: Sweep) -> Iterator[tuple[Node, Graph, dict[str, np.ndarray], int]]:
    """The case with one dimension symbolic: (symbolic node, concrete graph, feeds, the value that S stands for).

    Every occurrence of one extent in the operands' shapes and in the dimension attributes becomes ``S``; forms that the
    type rule refuses (the extent also occurs in a kernel shape, say) are left out.
    """
    graph, feeds = sweep.build()
    (node,) = graph.nodes
    for extent in sorted({d for v in graph.inputs for d in v.shape if isinstance(d, int) and d > 1}):
        table = {extent: symbol("S", 1)}
        inputs = [None if v is None else Value(v.name, _swap_type(v.type, table)) for v in node.inputs]
        attrs = {k: _swap_attr(sweep.op.attrs[k].kind, a, table) for k, a in node.attrs.items()}
        try:
            types = sweep.op.infer([None if v is None else v.type for v in inputs], attrs)
        except ModelError:
            continue
        outputs = tuple(Value(o.name, t) for o, t in zip(node.outputs, types))
        yield Node(node.op, tuple(inputs), outputs, attrs, node.origin), graph, feeds, extent


def _swap_type(t: TensorType, table: Mapping[Any, Dim]) -> TensorType:
    return t.with_shape([table.get(d, d) for d in t.shape])


def _swap_attr(kind: str, a: Any, table: Mapping[Any, Dim]) -> Any:
    if kind == "dims":
        return tuple(table.get(d, d) for d in a)
    return table.get(a, a) if kind == "dim" else a
