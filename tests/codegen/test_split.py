"""Expressions split by axes: parts that depend on what they should, are as large as can be, and recombine."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arcweld.codegen.kernel import axis
from arcweld.codegen.printing.split import Split, dependence, split_by_axes
from arcweld.compiler import expr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index, mentions, unary, variable, walk, where
from arcweld.compiler.interpret import interpret

F32, I64 = DType.F32, DType.I64
M, N = axis("m", 5), axis("n", 7)
ACC = variable("acc", F32)
RESIDUAL, BIAS = expr.load("residual", F32, (M.index, N.index)), expr.load("bias", F32, (N.index,))
SCALE, UNIFORM = expr.load("scale", F32, (M.index,)), expr.load("uniform", F32, ())
GATHERED = expr.load("bias", F32, (expr.dynamic_index(expr.load("chosen", I64, (M.index,)), 7),))
MASKED = expr.load("residual", F32, (M.index, N.index), binary("lt", index(N.index), const(4, I64)))
LEAVES = (ACC, RESIDUAL, BIAS, SCALE, UNIFORM, GATHERED, MASKED, const(1.5, F32), const(-2.0, F32))


def split(e: Expr) -> Split:
    return split_by_axes(e, rows=[M.sym], columns=[N.sym])


def evaluated(e: Expr, values: dict[str, np.ndarray]) -> np.ndarray:
    rng = np.random.default_rng(0)
    buffers = {
        "residual": rng.standard_normal((5, 7)).astype(np.float32), "bias": rng.standard_normal(7).astype(np.float32),
        "scale": rng.standard_normal(5).astype(np.float32), "uniform": np.array(0.75, np.float32),
        "chosen": np.array([3, 0, 6, 6, -2]),
    }  # fmt: skip
    sums = rng.standard_normal((5, 7)).astype(np.float32)
    indices = {"m": np.arange(5)[:, None], "n": np.arange(7)[None, :]}
    return interpret(e, buffers, indices, {"acc": sums, **values})


def random_expr(rng: random.Random, size: int) -> Expr:
    """A DAG of about ``size`` operations whose operands are any earlier ones."""
    made = list(LEAVES)
    for _ in range(size):
        a, b, c = (rng.choice(made) for _ in range(3))
        pick = rng.randrange(4)
        if pick == 0:
            made.append(unary(rng.choice(["neg", "abs", "tanh"]), a))
        elif pick == 1:
            made.append(where(binary("lt", a, b), b, c))
        else:
            made.append(binary(rng.choice(["add", "sub", "mul", "max"]), a, b))
    return made[-1]


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_the_parts_recombine_to_the_whole(seed: int, size: int) -> None:
    e = random_expr(random.Random(seed), size)
    found = split(e)
    values = {name: evaluated(part, {}) for name, part in {**found.columns, **found.rows}.items()}
    np.testing.assert_array_equal(evaluated(found.body, values), evaluated(e, {}))


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_the_parts_depend_on_one_axis_and_the_rest_on_both(seed: int, size: int) -> None:
    found = split(random_expr(random.Random(seed), size))
    for part in found.columns.values():
        assert not mentions(part, M.sym)
    for part in found.rows.values():
        assert mentions(part, M.sym)
        assert not mentions(part, N.sym)
    assert all(ACC not in set(walk([part])) for part in (*found.columns.values(), *found.rows.values()))
    # nothing that is left could have been a larger part: each operation needs the sums, or both axes
    kinds = {**dict.fromkeys(found.columns, N.sym), **dict.fromkeys(found.rows, M.sym), "acc": None}
    for e, depends in dependence([found.body]).items():
        if e.op not in ("var", "const") and not inside_an_index(e, found.body):
            axes = {kinds.get(s, s) if isinstance(s, str) else s for s in depends}
            assert None in axes or {M.sym, N.sym} <= axes


def inside_an_index(e: Expr, body: Expr) -> bool:
    """Run-time indices are not taken apart: a load is a part with its indices, or none of it is."""
    seen, todo = set[Expr](), [body]
    while todo:
        x = todo.pop()
        if x not in seen:
            seen.add(x)
            todo += x.args
    return e not in seen


def test_a_bias_a_scale_and_a_residual() -> None:
    x = unary("tanh", ACC * SCALE + (BIAS + BIAS * UNIFORM)) + RESIDUAL
    found = split(x)
    assert found.columns == {"column0": BIAS + BIAS * UNIFORM}
    assert found.rows == {"row0": SCALE}
    assert found.body == unary("tanh", ACC * variable("row0", F32) + variable("column0", F32)) + RESIDUAL


def test_equal_parts_share_a_variable() -> None:
    found = split((ACC + BIAS) * (RESIDUAL - BIAS))
    assert found.columns == {"column0": BIAS}


def test_a_load_at_an_index_that_a_row_chooses_belongs_to_the_row() -> None:
    found = split(ACC + GATHERED)
    assert found.rows == {"row0": GATHERED}
    assert found.body == ACC + variable("row0", F32)


def test_a_masks_part_is_split_off_the_load() -> None:
    found = split(ACC + MASKED)
    (name,) = found.columns
    assert found.columns[name] == binary("lt", index(N.index), const(4, I64))
    assert found.body == ACC + expr.load("residual", F32, (M.index, N.index), variable(name, DType.BOOL))


def test_an_expression_of_one_axis_is_one_part() -> None:
    assert split(BIAS * UNIFORM).body == variable("column0", F32)
    assert split(SCALE * UNIFORM).body == variable("row0", F32)
    assert split(const(2.0, F32)) == Split({}, {}, const(2.0, F32))
    assert split(ACC) == Split({}, {}, ACC)


def test_other_axes_stand_still() -> None:
    batch = axis("b", 3)
    x = ACC + expr.load("bias_of_batch", F32, (batch.index, N.index))
    assert list(split(x).columns) == ["column0"]
