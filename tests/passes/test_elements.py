"""Formulas of elements, against the values that the references compute."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pass_tools import build
from stack import shallow_stack

from arcweld.compiler.dims import Dim, evaluate
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Value
from arcweld.compiler.reference import run_reference
from arcweld.passes.common import Tracker
from arcweld.passes.elements import ALWAYS, NEVER, ClosedForm, Elements

N = build("input %x: i64[n]\noutput %x").inputs[0].shape[0]


def tracked(graph: Graph) -> Tracker:
    rw = Tracker(graph)
    for node in graph.nodes:
        rw.release(node)
        rw.keep(node)
    return rw


def formula_of(text: str, name: str = "y") -> ClosedForm | None:
    graph = build(text)
    (value,) = [v for v in graph.values() if v.name == name]
    return Elements(tracked(graph)).closed_form(value)


def values_of(formula: ClosedForm, shape: tuple[int, ...], bound: dict[str, int]) -> np.ndarray:
    """The formula at every coordinate."""
    out = np.zeros(shape, np.bool_ if isinstance(formula, frozenset) else np.int64)
    for at in np.ndindex(*shape):
        env = {**bound, **{f"axis{k}": c for k, c in enumerate(at)}}
        if isinstance(formula, frozenset):
            out[at] = all(evaluate(e, env) >= 0 for e in formula)
        else:
            out[at] = evaluate(formula, env)
    return out


PACKED = """
    input %x: i64[b, n]
    %rows = Range(start=0, step=1, length=n, dtype=dtype(i64))
    %r = Reshape(%rows, shape=(1, n))
    %e = Expand(%r, shape=(b, n))
    weight %one: i64[] data=1
    %first = Slice(%e, starts=(0, 0), sizes=(b, 1), steps=(1, 1))
    %before = Sub(%first, %one)
    %all = Concat(%before, %e, axis=1)
    %left = Slice(%all, starts=(0, 0), sizes=(b, n), steps=(1, 1))
    %right = Slice(%all, starts=(0, 1), sizes=(b, n), steps=(1, 1))
    %step = Sub(%right, %left)
    %new = Equal(%step, %one)
    %jump = Not(%new)
    %number = Cast(%jump, to=dtype(i64))
    %total = ReduceSum(%number, axes=(1,), keepdims=1)
"""


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_of_equal_elements(exclusive: int, reverse: int) -> None:
    graph = build(f"""
        input %x: i64[n, 4]
        %three = ConstantOfShape(shape=(2, n), value=3, dtype=dtype(i64))
        %y = CumSum(%three, axis=1, exclusive={exclusive}, reverse={reverse})
        %of_rows = Range(start=0, step=1, length=n, dtype=dtype(i64))
        %z = CumSum(%of_rows, axis=0, exclusive={exclusive}, reverse={reverse})
        %w = CumSum(%x, axis=0, exclusive={exclusive}, reverse={reverse})
        output %y
        output %z
        output %w
    """)
    y, z, w = (Elements(tracked(graph)).closed_form(o) for o in graph.outputs)
    assert z is None
    assert w is None
    assert y is not None
    want = run_reference(graph, {"x": np.zeros((5, 4), np.int64)})["y"]
    np.testing.assert_array_equal(values_of(y, (2, 5), {"n": 5}), want)


def test_positions_that_begin_one_below_the_first_are_linear() -> None:
    text = PACKED + "output %total"
    assert formula_of(text, "new") == ALWAYS
    assert formula_of(text, "jump") == NEVER
    assert formula_of(text, "total") == 0
    left = formula_of(text, "left")
    assert left is not None
    got = values_of(left, (2, 5), {"b": 2, "n": 5})
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(5) - 1, (2, 5)))


def test_what_depends_on_data_has_no_formula() -> None:
    text = "input %x: i64[n]\nweight %one: i64[] data=1\n%y = Add(%x, %one)\noutput %y"
    assert formula_of(text) is None


@pytest.mark.parametrize(
    ("begin", "known"), [("-1", True), ("0", False), ("7", False)], ids=["continues", "repeats", "jumps"]
)
def test_concatenated_pieces_are_one_line_only_if_they_meet(begin: str, known: bool) -> None:
    text = f"""
        weight %first: i64[1] data=({begin},)
        %rest = Range(start=0, step=1, length=n, dtype=dtype(i64))
        %y = Concat(%first, %rest, axis=0)
        output %y
    """
    assert (formula_of(text) is not None) == known


def test_gathers_at_known_places() -> None:
    text = """
        input %q: f32[n]
        %rows = Range(start=0, step=1, length=n, dtype=dtype(i64))
        weight %three: i64[] data=3
        %x = Mul(%rows, %three)
        %i = Reshape(%rows, shape=(n, 1))
        %y = GatherND(%x, %i, batch_dims=0)
        output %y
    """
    got = formula_of(text)
    assert got is not None
    np.testing.assert_array_equal(values_of(got, (6,), {"n": 6}), 3 * np.arange(6))


def test_constants_with_a_rule() -> None:
    rng = np.random.default_rng(0)
    line = 4 + 3 * np.arange(5)[:, None] - 2 * np.arange(3)
    for array, known in (
        (line, True),
        (line + (rng.random((5, 3)) > 0.8), False),
        (np.full((5, 3), 7), True),
        (np.tril(np.ones((4, 4), np.bool_)), True),
        (np.triu(np.ones((4, 4), np.bool_)), False),
        (np.ones((2, 4, 4), np.bool_), True),
        (np.zeros((3,), np.float32), False),
    ):
        rw = tracked(build("input %x: f32[1]\n%y = Neg(%x)\noutput %y"))
        dtype = {"b": DType.BOOL, "f": DType.F32}.get(array.dtype.kind, DType.I64)
        value = rw.constant(array.astype(dtype.numpy), dtype, "c")
        got = Elements(rw).closed_form(value)
        assert (got is not None) == known, array
        if got is not None:
            np.testing.assert_array_equal(values_of(got, array.shape, {}), array)


# ------------------------------------------------------------------------------------------- random graphs


@given(st.integers(0, 10**9), st.integers(1, 5))
def test_random_graphs(seed: int, n: int) -> None:
    rng = random.Random(seed)
    rw = Tracker(build("input %x: i64[n]\noutput %x"))
    x = rw.graph.inputs[0]
    made = [x, rw.make("Range", [], (), "r", start=rng.randint(-2, 2), step=rng.choice((1, 1, 2, -1)), length=N)]
    for _ in range(rng.randint(3, 14)):
        made.append(_random_node(rw, rng, made))
    graph = rw.graph.replace(nodes=tuple(rw.nodes), outputs=tuple(v for v in made[1:]), weights=rw.weights)
    values = run_reference(graph, {"x": np.random.default_rng(seed % 100).integers(-3, 4, n)})
    elements = Elements(rw)
    for v in made[1:]:
        formula = elements.closed_form(v)
        if formula is not None:
            want = values[v.name]
            np.testing.assert_array_equal(values_of(formula, want.shape, {"n": n}), want, err_msg=v.name)


def _random_node(rw: Tracker, rng: random.Random, made: list[Value]) -> Value:
    """A node on values [n], [n, 1], [1, n] or [n, n] (integers or conditions)."""
    a = rng.choice(made)
    kinds = ("arithmetic", "arithmetic", "compare", "compare", "shape", "cut", "logic", "where", "sum", "cast")
    kind = rng.choice(kinds)
    number = [v for v in made if v.dtype is DType.I64]
    truth = [v for v in made if v.dtype is DType.BOOL]
    constant = rw.constant(np.asarray(rng.randint(-2, 3)), DType.I64, "k")
    if kind == "shape" or (kind in ("logic", "where") and not truth):
        shapes: dict[int, list[tuple[Dim, ...]]] = {1: [(N, 1), (1, N)], 2: [(N,)]}
        fitting = [s for s in shapes.get(a.type.rank, []) if a.type.numel == N]
        return rw.make("Reshape", [a], (), "s", shape=rng.choice(fitting)) if fitting else a
    if kind == "cut":
        line = rng.choice([v for v in number if v.shape == (N,)])
        piece = rw.make("Slice", [line], (), "c", starts=(0,), sizes=(1,), steps=(1,))
        piece = rw.make(rng.choice(("Sub", "Add")), [piece, rw.constant(np.asarray(1), DType.I64, "one")], (), "p")
        order = [piece, line] if rng.random() < 0.6 else [line, piece]
        joined = rw.make("Concat", order, (), "j", axis=0)
        return rw.make("Slice", [joined], (), "d", starts=(rng.randint(0, 1),), sizes=(N,), steps=(1,))
    if kind == "cast" and truth:
        return rw.make("Cast", [rng.choice(truth)], (), "t", to=DType.I64)
    if kind == "logic" and truth:
        if rng.random() < 0.4:
            return rw.make("Not", [rng.choice(truth)], (), "n")
        return rw.make(rng.choice(("And", "Or")), [rng.choice(truth), rng.choice(truth)], (), "l")
    b = rng.choice((*number, constant, constant))
    c = rng.choice(number)
    if kind == "where" and truth:
        return rw.make("Where", [rng.choice(truth), c, b], (), "w")
    if kind == "sum":
        axis = rng.randrange(c.type.rank)
        total = rw.make("ReduceSum", [c], (), "u", axes=(axis,), keepdims=1)
        return rw.make("Add", [total, rng.choice(number)], (), "v")
    if kind == "compare":
        op = rng.choice(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))
        return rw.make(op, [c, b], (), "b")
    return rw.make(rng.choice(("Add", "Sub", "Mul")), [c, b], (), "a")


def test_long_chains_of_positions() -> None:
    lines = [f"%p{i + 1}: i64[6] = Add(%p{i}, %one) @ 'p'" for i in range(600)]
    text = "weight %one: i64[1] data=(1,)\nweight %p0: i64[6] data=(0, 1, 2, 3, 4, 5)\n" + "\n".join(lines)
    graph = build(text + "\noutput %p600\n")
    with shallow_stack():
        formula = Elements(tracked(graph)).closed_form(graph.outputs[0])
    assert formula is not None
    np.testing.assert_array_equal(values_of(formula, (6,), {}), np.arange(6) + 600)
