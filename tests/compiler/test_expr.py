"""Expressions: hash-consing, simplification, rewriting, and the interpreter against plain numpy."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stack import shallow_stack

from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dyn, IntExpr, Sym, symbol, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import (
    Expr,
    binary,
    cast,
    const,
    dynamic_index,
    index,
    load,
    loads,
    logical_not,
    rebuild,
    substitute,
    substitute_dim,
    substitute_index,
    to_text,
    unary,
    variable,
    walk,
    where,
    wrapped_index,
)
from arcweld.compiler.interpret import NUMPY, interpret

F32, F64, I32, I64, BOOL = DType.F32, DType.F64, DType.I32, DType.I64, DType.BOOL
ROW, COL = symbol("i", 0, 3), symbol("j", 0, 4)
X = load("x", F32, (ROW, COL))
GRID = {"i": np.arange(4).reshape(4, 1), "j": np.arange(5).reshape(1, 5)}
DATA = np.random.default_rng(0).uniform(0.1, 0.9, (4, 5)).astype(np.float32)


def run(e: Expr, **buffers: np.ndarray) -> np.ndarray:
    return interpret(e, {"x": DATA, **buffers}, GRID)


# ------------------------------------------------------------------------------------------------------- construction


def test_equal_expressions_are_one_object() -> None:
    again = load("x", F32, (symbol("i", 0, 3), symbol("j", 0, 4)))
    assert again is X
    assert X + 1.0 is again + 1.0
    assert const(0.0, F32) is not const(-0.0, F32)
    assert const(float("nan"), F32) is const(float("nan"), F32)
    assert const(1, F32) is not const(1, F64)
    assert load("x", F32, (ROW, 0)) is not X


def test_half_precision_is_computed_in_f32() -> None:
    assert load("x", DType.F16, (ROW,)).dtype is F32
    assert const(1, DType.BF16).dtype is F32
    assert cast(X, DType.F16) is X


@pytest.mark.parametrize(
    "make",
    [
        lambda: binary("add", X, const(1, F64)),
        lambda: unary("exp", index(ROW)),
        lambda: where(binary("lt", X, X), X, const(1, I32)),
    ],
)
def test_types_must_agree(make: object) -> None:
    with pytest.raises(TypeError):
        make()  # type: ignore[operator]


def test_decided_conditions_disappear() -> None:
    yes, no, c = const(True, BOOL), const(False, BOOL), binary("lt", X, const(0, F32))
    assert where(yes, X, -X) is X
    assert where(no, X, -X) is -X
    assert where(c, X, X) is X
    assert binary("and", yes, c) is c
    assert binary("and", c, no) is no
    assert binary("and", c, c) is c
    assert logical_not(yes) is no
    # the inner choice is made already
    assert where(c, where(c, X, -X), X + 1.0) is where(c, X, X + 1.0)
    assert where(c, X + 1.0, where(c, X, -X)) is where(c, X + 1.0, -X)


def test_rounding_does_nothing_to_integers() -> None:
    assert unary("floor", index(ROW)) is index(ROW)
    assert unary("isnan", index(ROW)) is const(False, BOOL)
    assert index(3) is const(3, I64)


def test_constants_are_converted_where_they_fit() -> None:
    assert cast(const(2.7, F32), I32) is const(2, I32)
    assert cast(const(-2.7, F32), I32) is const(-2, I32)
    assert cast(const(3, I32), BOOL) is const(True, BOOL)
    for odd, target in ((float("nan"), I32), (1e12, I32), (float("inf"), I64)):
        assert cast(const(odd, F32), target).op == "cast"
    assert cast(const(300, I32), DType.U8).op == "cast"


def test_operators_take_numbers() -> None:
    for e, want in ((1.0 - X, 1 - DATA), (2.0 * X, 2 * DATA), (1.0 + X, 1 + DATA), (X / 2.0, DATA / 2), (-X, -DATA)):
        np.testing.assert_allclose(run(e), want, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------- interpreter


@given(st.lists(st.sampled_from(["exp", "tanh", "neg", "abs", "sqrt", "sin", "square", "half", "clip"]), max_size=6))
def test_chains_agree_with_numpy(ops: list[str]) -> None:
    e, want = X, DATA.astype(np.float64)
    for op in ops:
        if op == "square":
            e, want = e * e, want * want
        elif op == "half":
            e, want = e * 0.5, want * 0.5
        elif op == "clip":
            e, want = binary("min", binary("max", e, const(0, F32)), const(1, F32)), np.clip(want, 0, 1)
        elif op == "sqrt":
            e, want = unary("sqrt", unary("abs", e)), np.sqrt(np.abs(want))
        else:
            e, want = unary(op, e), {"neg": np.negative}.get(op, getattr(np, op, None))(want)  # type: ignore[misc]
    np.testing.assert_allclose(run(e), want, rtol=1e-4, atol=1e-6)


def test_index_arithmetic() -> None:
    flat = ROW * 5 + COL
    e = index(dims.floordiv(flat, 3) * 7 + dims.mod(flat, 4) + dims.maximum(ROW, COL))
    i, j = np.indices((4, 5))
    n = i * 5 + j
    np.testing.assert_array_equal(run(e), n // 3 * 7 + n % 4 + np.maximum(i, j))


def test_transposed_and_broadcast_loads() -> None:
    y = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.testing.assert_array_equal(run(load("y", F32, (COL, ROW)), y=y), y.T)
    np.testing.assert_array_equal(np.broadcast_to(run(load("y", F32, (0, ROW)), y=y), (4, 1)), y[0][:, None])


def test_masked_loads_give_zero_and_are_not_read() -> None:
    inside = binary("lt", index(ROW + COL), const(4, I64))
    e = load("y", F32, (ROW + COL,), inside)
    y = np.arange(1, 5, dtype=np.float32)
    n = np.add(*np.indices((4, 5)))
    np.testing.assert_array_equal(run(e, y=y), np.where(n < 4, n + 1, 0))


@pytest.mark.parametrize("at", [ROW - 1, ROW + 1])
def test_reads_out_of_range_are_errors(at: IntExpr) -> None:
    with pytest.raises(IndexError):
        run(load("y", F32, (at,)), y=np.zeros(4, np.float32))


def test_gathers_wrap_and_clamp() -> None:
    e = load("x", F32, (dynamic_index(wrapped_index(load("k", I64, (ROW,)), 4, None, False), 4), COL))
    found = run(e, k=np.array([2, -1, 9, -9]))
    np.testing.assert_array_equal(found, DATA[[2, 3, 3, 0]])


def test_narrow_integers_wrap() -> None:
    a = np.array([100, 100, -100, 1], np.int8)
    got = interpret(load("a", DType.I8, (ROW,)) + load("a", DType.I8, (ROW,)), {"a": a}, {"i": np.arange(4)})
    np.testing.assert_array_equal(got, a + a)


@pytest.mark.parametrize(("a", "b"), [(7, 2), (-7, 2), (7, -2), (-7, -2), (6, 3), (-6, 3)])
def test_integer_division_truncates(a: int, b: int) -> None:
    got = interpret(binary("div", variable("a", I32), variable("b", I32)), {}, {}, {"a": np.int32(a), "b": np.int32(b)})
    assert got == int(a / b)


def test_variables_come_from_the_template() -> None:
    acc = variable("acc", F32)
    np.testing.assert_allclose(interpret(acc * 2.0 + X, {"x": DATA}, GRID, {"acc": DATA}), DATA * 3, rtol=1e-6)


def test_casts() -> None:
    a = np.array([-1.5, 0.0, 2.9, -0.1], np.float32)
    e = load("a", F32, (ROW,))
    at = {"i": np.arange(4)}
    np.testing.assert_array_equal(interpret(cast(e, I32), {"a": a}, at), [-1, 0, 2, 0])
    np.testing.assert_array_equal(interpret(cast(e, BOOL), {"a": a}, at), [True, False, True, True])


def test_threads_that_make_the_same_expression_get_one_object() -> None:
    start = Barrier(8)

    def work(_: int) -> list[Expr]:
        start.wait()
        return [unary("neg", X) + float(i) for i in range(3000)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(before)
    assert all(len({id(e) for e in same}) == 1 for same in zip(*made, strict=True))


def test_an_expression_that_nobody_holds_is_freed() -> None:
    e = X + 12345.0
    held, name = weakref.ref(e), to_text(e)
    again = X + 12345.0
    assert again is e
    del e, again
    gc.collect()
    assert held() is None
    assert to_text(X + 12345.0) == name


def test_depth_is_not_bounded_by_the_stack() -> None:
    e = X
    with shallow_stack():
        for k in range(3000):
            e = unary("tanh", e) if k % 2 else e * 0.5
        (i,) = dims.free_symbols(ROW)
        moved = substitute_index(e, {i: ROW + 1})
        assert loads([moved])[0].attr[2] == (ROW + 1, COL)
        assert substitute_index(moved, {i: ROW - 1}) is e
        assert substitute(e, lambda x: X * 2.0 if x is X else None) is not e
        assert to_text(e).count("tanh(") == 1500
        value = run(e)
    assert np.all(np.abs(value) < 1)


def test_the_text_of_shared_operands_grows_with_the_expression_only() -> None:
    e = X
    for _ in range(200):
        e = unary("sin", e) * e
    text = to_text(e)
    assert len(text) < 20_000
    assert text.count("sin(") == 200
    assert to_text(unary("sin", X) * X) == "mul(sin(x[i, j]), x[i, j])"


# ---------------------------------------------------------------------------------------------------------- rewriting


def test_walk_meets_operands_first_and_indices_too() -> None:
    k = load("k", I64, (ROW,))
    e = load("x", F32, (dynamic_index(k, 4), COL), binary("lt", X, const(0, F32))) + X
    order = list(walk([e]))
    assert len(order) == len({id(x) for x in order})
    assert k in order
    for x in order:
        assert all(order.index(a) < order.index(x) for a in x.args)
    assert {x.attr[0] for x in loads([e])} == {"x", "k"}


def test_substitute_replaces_from_the_leaves() -> None:
    e = unary("exp", X) + X * X
    swapped = substitute(e, lambda x: variable("v", F32) if x is X else None)
    v = variable("v", F32)
    assert swapped is unary("exp", v) + v * v
    assert substitute(e, lambda _: None) is e
    assert rebuild(e, e.args) is e


@given(st.integers(-3, 3), st.integers(0, 3))
def test_substitution_is_reading_elsewhere(shift: int, scale: int) -> None:
    """Replacing a loop index gives what the expression is at the new one, inside masks and run-time indices too."""
    inside = binary("ge", index(ROW), const(0, I64))
    inside = binary("and", inside, binary("lt", index(ROW), const(4, I64)))
    picked = dynamic_index(load("k", I64, (ROW,), inside), 4)
    e = load("x", F32, (ROW, COL), inside) + load("x", F32, (picked, COL)) + cast(index(ROW * 3), F32)
    at = ROW * scale + shift
    k = np.array([3, 1, 0, 2])
    moved = np.broadcast_to(run(substitute_index(e, {atom(ROW): at}), k=k), (4, 5))
    for i in range(4):
        there = interpret(e, {"x": DATA, "k": k}, {"i": np.asarray(i * scale + shift), "j": GRID["j"]})
        np.testing.assert_array_equal(moved[i], there[0])


def atom(d: IntExpr) -> Sym:
    found = d.terms[0][0][0][0]
    assert isinstance(found, Sym)
    return found


def test_run_time_indices_are_renamed_with_what_they_compute() -> None:
    picked = dynamic_index(load("k", I64, (ROW,)), 4)
    same, other = substitute_dim(picked, {atom(COL): 0}), substitute_dim(picked, {atom(ROW): COL})
    assert same == picked
    assert other == dynamic_index(load("k", I64, (COL,)), 4)
    (dyn,) = dims.dynamic_atoms(other)
    assert isinstance(dyn, Dyn)
    assert other == var(dyn)


def test_text_names_everything() -> None:
    inside = binary("lt", index(ROW), const(2, I64))
    text = to_text(where(inside, load("x", F32, (ROW, COL), inside), const(0.5, F32)) + variable("acc", F32))
    assert text == "add(where(lt([i], 2), x[i, j if lt([i], 2)], 0.5), acc)"
    assert repr(cast(X, I32)) == "cast<i32>(x[i, j])"


def test_every_operation_has_a_meaning() -> None:
    named = {*expr.UNARY_FLOAT, *expr.UNARY_ANY, *expr.UNARY_TEST, *expr.BINARY, *expr.COMPARE, *expr.LOGIC, *expr.BITS}
    named |= set(expr.INDEX)
    assert named <= set(NUMPY)
