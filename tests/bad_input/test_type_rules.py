"""What a type rule accepts stays inside its arrays, whatever attributes and shapes a stored graph gives it.

Every read and write of a lowered kernel is evaluated in numpy, which refuses coordinates out of range. Axes of no
elements have tests of their own.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.lowering.lower import lower_all
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ArcweldError, ModelError
from arcweld.compiler.expr import walk
from arcweld.compiler.interpret import interpret
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.ops.registry import Case, OpDef, all_ops, check_attrs, infer_types, must_decompose
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.compiler.verifier import verify
from arcweld.driver.build import materialise_outputs
from arcweld.passes.fusion import fuse

TRIES = 6  # of each case; the search that found the defects below made 150
MOST = 300_000  # points of a kernel


def operands(case: Case) -> list[Value | None]:
    found: list[Value | None] = []
    for k, shape in enumerate(case.shapes):
        if shape is None:
            found.append(None)
        elif isinstance(shape, tuple):
            found.append(Value(f"x{k}", TensorType(DType((case.dtypes or ("f32",))[0]), shape)))
        else:
            array = np.asarray(shape)
            found.append(Value(f"x{k}", TensorType(from_numpy(array.dtype), array.shape)))
    return found


def other(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind, and often one that makes no sense."""
    if isinstance(value, bool) or value is None or isinstance(value, str | DType):
        return value
    if isinstance(value, int):
        return rng.choice([value - 1, value + 1, -value, -1, 0, 1, 2, value * 2, -5, 100, 2**31, -(2**31)])
    if isinstance(value, float):
        return rng.choice([-value, 0.0, value * 1e6, math.nan, math.inf])
    if isinstance(value, tuple) and value:
        k = rng.randrange(len(value))
        return rng.choice([value[:-1], (*value, value[-1]), (*value[:k], other(value[k], rng), *value[k + 1 :])])
    return value


def changed(op: OpDef, case: Case, rng: random.Random) -> Graph:
    """One node with one or two things changed. Raises ArcweldError where that is refused."""
    attrs, inputs = check_attrs(op, dict(case.attrs), op.name), operands(case)
    for _ in range(rng.randrange(1, 3)):
        if attrs and rng.random() < 0.6:
            name = rng.choice(list(attrs))
            attrs[name] = other(attrs[name], rng)
        elif inputs and (v := inputs[k := rng.randrange(len(inputs))]) is not None:
            shape = tuple(min(max(d, 1), 64) for d in other(v.shape, rng))
            inputs[k] = Value(v.name, TensorType(v.dtype, shape))
    types = infer_types(op.name, [None if v is None else v.type for v in inputs], attrs)
    outputs = tuple(Value(f"y{k}", t) for k, t in enumerate(types))
    node = Node(op.name, tuple(inputs), outputs, attrs)
    graph = parse_graph(print_graph(Graph("g", tuple(v for v in inputs if v is not None), outputs, (node,))))
    verify(graph)
    return graph


def check_kernel(kernel: Kernel, rng: np.random.Generator) -> None:
    """Evaluates every load and every place of a store. Raises IndexError for one outside its buffer."""
    axes = [a for group in kernel.axes.values() for a in group]
    extents = [a.extent for a in axes]
    points = math.prod(e for e in extents if isinstance(e, int))
    elements = [math.prod(b.shape) for b in kernel.buffers]  # type: ignore[arg-type]
    if not 0 < points < MOST or max(elements) > 10 * MOST:
        return
    at = {a.sym.name: np.arange(e).reshape([-1 if k == i else 1 for i in range(len(axes))])
          for k, (a, e) in enumerate(zip(axes, extents))}  # fmt: skip
    buffers = {b.name: contents(b.dtype, b.shape, rng) for b in kernel.buffers}
    masks = [s.mask for s in kernel.stores if s.mask is not None]
    printed = [*kernel.loads.values(), *(s.value for s in kernel.stores), *masks]
    # a template's variable has the value that no element was found by
    variables = {e.attr: np.asarray(-1 if e.dtype in (DType.I64, DType.I32) else 1, e.dtype.numpy)
                 for e in walk(printed) if e.op == "var"}  # fmt: skip
    memo: dict[Any, Any] = {}
    for e in printed:
        interpret(e, buffers, at, variables, memo)
    for s in kernel.stores:
        mask = True if s.mask is None else memo[s.mask]
        for c, extent in zip(s.coords, kernel.buffer(s.buffer).shape, strict=True):
            for dyn in dims.dynamic_atoms(c):
                interpret(dyn.payload, buffers, at, variables, memo)
            found = interpret_dim(c, at, memo)
            if np.any(((found < 0) | (found >= extent)) & mask):
                raise IndexError(f"a store at {c} along an axis of {extent}")


def interpret_dim(d: Any, at: dict[str, np.ndarray], memo: dict[Any, Any]) -> np.ndarray:
    env: dict[str, Any] = {**at, **{dyn.name: memo[dyn.payload] for dyn in dims.dynamic_atoms(d)}}
    calls = {"floordiv": np.floor_divide, "mod": np.mod, "max": np.maximum, "min": np.minimum}
    return np.asarray(d if isinstance(d, int) else dims.evaluate_with(d, env, calls))


def contents(dtype: DType, shape: Any, rng: np.random.Generator) -> np.ndarray:
    """Any values: integers may be indices, and may be far out of range."""
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_packed:
        return rng.integers(0, 1 << dtype.bits, shape, dtype=np.uint8).view(dtype.numpy)
    most = np.iinfo(dtype.numpy)
    wide = rng.integers(most.min, most.max, shape, dtype=dtype.numpy, endpoint=True)
    return np.where(rng.random(shape) < 0.5, wide, rng.integers(0, 10, shape).astype(dtype.numpy))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", [op for op in all_ops() if op.cases], ids=lambda op: op.name)
def test_no_access_is_out_of_range(op: OpDef) -> None:
    rng, numbers = random.Random(op.name), np.random.default_rng(0)
    for case in op.cases:
        for _ in range(TRIES):
            try:
                graph = changed(op, case, rng)
                if any(must_decompose(n) for n in graph.nodes) or any(0 in v.shape for v in graph.values()):
                    continue
                fused = fuse(materialise_outputs(graph))
            except ArcweldError:
                continue
            for region in fused.regions:
                for bound in lower_all(region, fused.graph):
                    check_kernel(bound.kernel, numbers)


DEFECTS = {
    "more columns than there are": "%y: f32[2, 3] = GatherElements(%x, %i, axis=0)",
    "axes from the end": "%y: f32[2, 3, 4] = GatherND(%x, %i, batch_dims=-1)",
    "a negative scale": "%y: f32[8, 4] = Resize(%x, sizes=(8, 4), scales=(1.0, -2.0), mode='nearest')",
    "no scale": "%y: f32[8, 4] = Resize(%x, sizes=(8, 4), scales=(0.0, 2.0), mode='nearest')",
    "an infinite scale": "%y: f32[8, 4] = Resize(%x, sizes=(8, 4), scales=(float(inf), 2.0), mode='nearest')",
    "updates beside the data": "%y: f32[8, 2] = ScatterElements(%x, %i, %u, axis=0)",
}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_was_accepted_once_is_refused(name: str) -> None:
    operator = DEFECTS[name].partition(" = ")[2]  # without the type, so that the rule infers it
    text = f"graph 'g'\ninput %x: f32[8, 2]\ninput %i: i64[2, 3]\ninput %u: f32[2, 3]\n%y = {operator}\noutput %y\n"
    with pytest.raises(ModelError):
        parse_graph(text)
