"""Evaluates a graph with the registry's numpy references, for tests, verification and constant folding.

It also makes the graphs and random inputs of the registry's test cases, so that all tests of an operator run the same.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from arcweld.compiler.dims import evaluate
from arcweld.compiler.dims.binding import DimFunction, solve
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import EnvironmentError_, InputError, ModelError, VerifyError
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.mapped import give_back
from arcweld.compiler.ops.host_strings import is_strings
from arcweld.compiler.ops.registry import Case, OpDef, check_attrs, concrete, opdef

# a node, its operands, the symbols' values -> its results
Evaluate = Callable[[Node, list[np.ndarray | None], Mapping[str, int]], tuple[np.ndarray, ...]]


def run_reference(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    *,
    keep: set[str] | None = None,
    bind: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Evaluates ``graph``; returns its outputs by value name, and the values named in ``keep`` as well.

    ``feeds`` maps input names to arrays of the declared dtypes. Symbols get their values from the arrays' shapes and
    from ``bind``. Intermediate results are freed after their last use.

    Raises InputError for inputs that do not match the graph, ModelError for values that an operator does not take,
    VerifyError where a result has another type than the graph declares.
    """
    wanted = graph.output_names() | (keep or set())
    values: dict[str, np.ndarray] = {}
    for _, live in stream_reference(graph, feeds, hold=dict.fromkeys(wanted, len(graph.nodes)), bind=bind):
        values = live
    missing = wanted - set(values) - set(graph.weights)
    if missing:
        raise ModelError(f"the graph does not compute {', '.join(sorted(missing))}")
    return {name: values[name] if name in values else graph.weights[name].data for name in sorted(wanted)}


def stream_reference(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    *,
    hold: Mapping[str, int],
    bind: Mapping[str, int] | None = None,
    evaluate: Evaluate | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Evaluates ``graph`` node by node; yields (index of the node just evaluated, live values), first (-1, inputs).

    A value is live until its last reader, and at least until after the node with the index that ``hold`` gives for it.
    The pages of a mapped weight go back after its last reader. The same dictionary is yielded every time.
    ``evaluate`` takes the place of ``evaluate_node``. Raises as ``run_reference``.
    """
    evaluate = evaluate or evaluate_node
    env = bind_symbols(graph.inputs, feeds, bind)
    values: dict[str, np.ndarray] = {v.name: np.asarray(feeds[v.name]) for v in graph.inputs}
    last_use = {v.name: i for i, node in enumerate(graph.nodes) for v in node.operands()}
    until = {**last_use, **{name: max(position, last_use.get(name, -1)) for name, position in hold.items()}}
    freed: dict[int, list[str]] = {}
    for name, position in until.items():
        freed.setdefault(position, []).append(name)
    yield -1, values
    for i, node in enumerate(graph.nodes):
        arrays = [None if v is None else _operand(graph, values, v) for v in node.inputs]
        for out, array in zip(node.outputs, evaluate(node, arrays, env)):
            values[out.name] = array
        yield i, values
        dead = [*freed.get(i, ()), *(o.name for o in node.outputs if until.get(o.name, -1) <= i)]
        for name in dead:
            if name in graph.weights:
                give_back(graph.weights[name].data)
            values.pop(name, None)


def _operand(graph: Graph, values: Mapping[str, np.ndarray], value: Value) -> np.ndarray:
    if value.name in values:
        return values[value.name]
    if value.name not in graph.weights:
        raise ModelError(f"%{value.name} is read before it is computed")
    return graph.weights[value.name].data


@cache
def _machine_memory() -> int:
    """The bytes of memory that the machine has, as far as the system says."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize


def evaluate_node(node: Node, arrays: list[np.ndarray | None], env: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    """The outputs of one node, for values ``env`` of the symbols.

    Raises ModelError for values that the operator does not take, EnvironmentError_ where memory does not hold what it
    needs, VerifyError where a result has another type than the node declares.
    """
    shapes = [tuple(evaluate(d, env) for d in o.shape) for o in node.outputs]
    if all(0 in shape for shape in shapes):
        return tuple(np.empty(shape, o.dtype.numpy) for o, shape in zip(node.outputs, shapes))
    room = sum(o.dtype.nbytes(math.prod(shape)) for o, shape in zip(node.outputs, shapes))
    try:
        if room > _machine_memory():  # the system would grant it, and kill the process that uses it
            raise MemoryError
        with np.errstate(all="ignore"):  # NaN and infinity are results like any other
            outs = opdef(node.op).reference(arrays, concrete(node.attrs, env))
    except (ValueError, IndexError, OverflowError) as error:
        raise ModelError(f"{node.op} failed: {error}", node=node.name) from error
    except MemoryError:
        what = f"there is not enough memory to compute {node.op} in numpy, which gives {_described(node, shapes)}"
        hint = "give smaller sizes, or build without verification"
        raise EnvironmentError_(what, node=node.name, hint=hint) from None
    if len(outs) < len(node.outputs):
        raise VerifyError(
            f"the reference of {node.op} gives {len(outs)} of {len(node.outputs)} outputs", node=node.name
        )
    for out, array, shape in zip(node.outputs, outs, shapes):
        if from_numpy(array.dtype) is not out.dtype or array.shape != shape:
            got = f"{from_numpy(array.dtype).value}{list(array.shape)}"
            raise VerifyError(f"{node.op} gives {got}, its type says {out.type} = {list(shape)}", node=node.name)
    return outs


def _described(node: Node, shapes: Sequence[tuple[int, ...]]) -> str:
    """The types and bytes of the outputs, for ``shapes``."""
    return ", ".join(
        f"{o.dtype.value}{list(s)} ({o.dtype.nbytes(math.prod(s))} bytes)" for o, s in zip(node.outputs, shapes)
    )


# ------------------------------------------------------------------------------------------------ symbol binding


def bind_symbols(
    inputs: tuple[Value, ...], feeds: Mapping[str, np.ndarray], bind: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The values of the symbols by name: those in ``bind``, and those that the shapes of the arrays determine.

    Raises InputError for a missing input, and for a wrong dtype, rank or size.
    """
    env = dict(bind or {})
    equations: list[tuple[Value, int, DimFunction, int]] = []
    for v in inputs:
        array = _checked(v, feeds)
        equations += [(v, k, DimFunction(d), n) for k, (d, n) in enumerate(zip(v.shape, array.shape))]
    solve([(f, n) for _, _, f, n in equations], env)
    for v, k, f, n in equations:
        if f.names <= env.keys() and f(env) != n:
            raise InputError(f"axis {k} of input {v.name} is {n}, expected {f.dim} = {f(env)}")
    return env


def _checked(v: Value, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    if v.name not in feeds:
        raise InputError(f"input {v.name} is missing")
    array = np.asarray(feeds[v.name])
    fits = is_strings(array.astype(object)) if v.dtype.is_string else from_numpy(array.dtype) is v.dtype
    if not fits or array.ndim != len(v.shape):
        raise InputError(f"input {v.name} is {array.dtype}{list(array.shape)}, expected {v.type}")
    return array


# ---------------------------------------------------------------------------------------------------- test cases


def case_dtypes(case: Case) -> tuple[DType, ...]:
    """The element types for which a case runs, in which its random operands are drawn."""
    return tuple(DType(d) for d in case.dtypes) or (DType.F32,)


def case_inputs(case: Case, dtype: DType, seed: int = 0) -> list[np.ndarray | None]:
    """The operands of a case: given arrays as they are, shapes filled at random in ``dtype``, None for absent ones."""
    rng = np.random.default_rng(seed)
    return [None if s is None else s if isinstance(s, np.ndarray) else _draw(rng, s, case, dtype) for s in case.shapes]


def _draw(rng: np.random.Generator, shape: tuple[int, ...], case: Case, dtype: DType) -> np.ndarray:
    if dtype is DType.BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.is_int:
        low = max(int(case.low), 0) if not dtype.is_signed else int(case.low)
        return np.asarray(rng.integers(low, int(case.high) + 1, shape)).astype(dtype.numpy)
    return np.asarray(rng.uniform(case.low, case.high, shape)).astype(dtype.numpy)


def case_graph(op: OpDef, case: Case, dtype: DType, seed: int = 0) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of one node for a case, every operand an input, and the arrays to feed it."""
    arrays = case_inputs(case, dtype, seed)
    types = [None if a is None else TensorType(from_numpy(a.dtype), tuple(a.shape)) for a in arrays]
    operands = [None if t is None else Value(f"x{k}", t) for k, t in enumerate(types)]
    attrs = check_attrs(op, case.attrs, op.name)
    outs = tuple(Value(f"y{k}" if k else "y", t) for k, t in enumerate(op.infer(types, attrs)))
    node = Node(op.name, tuple(operands), outs, attrs, (op.name,))
    inputs = tuple(v for v in operands if v is not None)
    feeds = {v.name: a for v, a in zip(operands, arrays) if v is not None and a is not None}
    return Graph(op.name, inputs, outs, (node,)), feeds


def all_cases(op: OpDef) -> Iterator[tuple[Case, DType]]:
    """Every (case, element type) of an operator's sweep."""
    return ((case, dtype) for case in op.cases for dtype in case_dtypes(case))
