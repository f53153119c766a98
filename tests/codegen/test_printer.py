"""Printing: vectors, masks, gathers, tails, run-time stores and 64-bit indices, run on the checked simulator."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from graph_runs import built
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_numpy import run_numpy

from arcweld.codegen.kernel import Axis, Buffer, Kernel, KernelSource, Store, axis
from arcweld.codegen.printing.hooks import Hooks, plain_load, vector_width
from arcweld.codegen.printing.params import Params
from arcweld.codegen.printing.printer import Block, wide_index
from arcweld.codegen.printing.uniform import two_sides
from arcweld.codegen.templates.pointwise.pointwise import PointwiseTactic, render_pointwise
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim, Sym, symbol, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import DeviceError
from arcweld.compiler.expr import Expr, binary, cast, const, dynamic_index, index, where
from arcweld.compiler.text import parse_graph
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan

F32, F16, I64 = DType.F32, DType.F16, DType.I64
TYPES = (DType.F32, DType.F16, DType.F64, DType.I8, DType.I64, DType.BOOL)
Arrays = Mapping[str, np.ndarray]


def kernel_of(axes: tuple[Axis, ...], stores: tuple[Store, ...], *buffers: Buffer) -> Kernel:
    return Kernel("pointwise", "printed", {"out": axes}, {}, stores, buffers)


def render(kernel: Kernel, width: int = 0) -> KernelSource:
    return render_pointwise(kernel, PointwiseTactic(width=width, threads=32), "sm_80")


def check(kernel: Kernel, inputs: Arrays, env: Mapping[str, int] | None = None, width: int = 0) -> KernelSource:
    """The kernel on the simulator gives what its expressions mean by numpy."""
    env = dict(env or {})
    want = {k: np.array(v) for k, v in inputs.items()}
    for b in kernel.buffers:
        if b.written:
            want[b.name] = np.full([dims.evaluate(d, env) for d in b.shape], -1, b.dtype.numpy)
    run_numpy(kernel, want, env)
    source = render(kernel, width)
    got = run_kernel(source, kernel, inputs, env)
    for b in kernel.buffers:
        if b.written:
            a, w = got[b.name].astype(np.float64), want[b.name].astype(np.float64)
            np.testing.assert_allclose(a, w, rtol=2e-3 if b.dtype.is_half else 1e-6)
    return source


def values(shape: tuple[int, ...], dtype: DType, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    return (rng.integers(-9, 9, shape) if dtype.is_int else rng.uniform(-2, 2, shape)).astype(dtype.numpy)


# ------------------------------------------------------------------------------------------------------------ vectors


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("n", [1, 7, 24, 40])
@pytest.mark.parametrize("dtype", [F32, F16, DType.I8], ids=lambda t: t.value)
def test_any_width_and_extent(width: int, n: int, dtype: DType) -> None:
    """Widths that divide the extent move vectors; for others each lane is checked against the end."""
    i = axis("i", n)
    x, b = expr.load("in0", dtype, (i.index,)), expr.load("in1", dtype, (0,))
    kernel = kernel_of(
        (i,), (Store("out0", (i.index,), x + b),),
        Buffer("in0", dtype, (n,)), Buffer("in1", dtype, (1,)), Buffer("out0", dtype, (n,), True),
    )  # fmt: skip
    source = check(kernel, {"in0": values((n,), dtype), "in1": values((1,), dtype, 1)}, width=width)
    whole = width > 1 and n % width == 0 and width & (width - 1) == 0
    if whole:
        assert f"store_vec<{width}>" in source.source
    if width > 1 and n % width:
        assert "store_vec" not in source.source


@pytest.mark.parametrize(("dtype", "width"), [(F32, 4), (F16, 8), (DType.F64, 2), (DType.I8, 8), (DType.BOOL, 8)])
def test_the_widest_useful_vector(dtype: DType, width: int) -> None:
    i = axis("i", 64)
    x = expr.load("in0", dtype, (i.index,))
    stores = (Store("out0", (i.index,), x),)
    buffers = Buffer("in0", dtype, (64,)), Buffer("out0", dtype, (64,), True)
    assert vector_width(kernel_of((i,), stores, *buffers), 64, [x], stores, i.sym) == width


def test_no_vectors_where_nothing_is_contiguous() -> None:
    i = axis("i", 16)
    x = expr.load("in0", F32, (i.index, 0))
    stores = (Store("out0", (i.index, 0), x),)
    kernel = kernel_of((i,), stores, Buffer("in0", F32, (16, 3)), Buffer("out0", F32, (16, 5), True))
    assert vector_width(kernel, 16, [x], stores, i.sym) == 1


def test_misaligned_rows_are_read_lane_by_lane() -> None:
    """Rows of 6 floats are contiguous along a row, but not aligned to 16 bytes: only pairs are."""
    i, j = axis("i", 5), axis("j", 4)
    x = expr.load("in0", F32, (i.index, j.index + 1))
    kernel = kernel_of(
        (i, j), (Store("out0", (i.index, j.index), x),), Buffer("in0", F32, (5, 6)), Buffer("out0", F32, (5, 4), True)
    )
    source = check(kernel, {"in0": values((5, 6), F32)})
    assert "load_vec" not in source.source
    assert "store_vec<4>" in source.source


def test_symbolic_extents_need_a_known_multiple() -> None:
    for multiple, width in ((1, 1), (4, 4), (6, 2)):
        n = symbol("n", multiple, None, multiple)
        i = axis("i", n)
        x = expr.load("in0", F32, (i.index,))
        kernel = kernel_of(
            (i,), (Store("out0", (i.index,), -x),), Buffer("in0", F32, (n,)), Buffer("out0", F32, (n,), True)
        )
        source = check(kernel, {"in0": values((24,), F32)}, {"n": 24})
        assert (f"store_vec<{width}>" in source.source) == (width > 1)


@given(
    shape=st.tuples(*[st.sampled_from([1, 2, 3, 4, 6, 8])] * 3), order=st.permutations([0, 1, 2]),
    broadcast=st.integers(0, 7), dtype=st.sampled_from(TYPES), width=st.sampled_from([0, 1, 2, 4, 8]),
)  # fmt: skip
@settings(max_examples=30)
def test_any_index_map(shape: tuple[int, ...], order: list[int], broadcast: int, dtype: DType, width: int) -> None:
    """A permuted operand and a broadcast one, in any type, at any width that is asked for."""
    axes = tuple(axis(f"i{k}", n) for k, n in enumerate(shape))
    at = tuple(a.index for a in axes)
    small = tuple(1 if broadcast >> k & 1 else n for k, n in enumerate(shape))
    x = expr.load("in0", dtype, [at[k] for k in order])
    y = expr.load("in1", dtype, [0 if n == 1 else c for n, c in zip(small, at)])
    both = binary("xor", x, y) if dtype is DType.BOOL else x + y
    kernel = kernel_of(
        axes, (Store("out0", at, both),), Buffer("in0", dtype, tuple(shape[k] for k in order)),
        Buffer("in1", dtype, small), Buffer("out0", dtype, shape, True),
    )  # fmt: skip
    first = values(tuple(shape[k] for k in order), dtype)
    check(kernel, {"in0": first, "in1": values(small, dtype, 1)}, width=width)


# --------------------------------------------------------------------------------------------- masks, gathers, stores


@pytest.mark.parametrize("width", [1, 4])
def test_masked_loads_are_not_read(width: int) -> None:
    """The checked simulator would report the reads outside the buffer."""
    i = axis("i", 32)
    inside = binary("lt", index(i.index), const(20, I64))
    x = expr.load("in0", F32, (i.index,), inside)
    kernel = kernel_of(
        (i,), (Store("out0", (i.index,), x),), Buffer("in0", F32, (20,)), Buffer("out0", F32, (32,), True)
    )
    check(kernel, {"in0": values((20,), F32)}, width=width)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.value)
def test_a_mask_for_all_lanes_keeps_the_vector(dtype: DType) -> None:
    i, j = axis("i", 3), axis("j", 8)
    inside = binary("lt", index(i.index), const(2, I64))
    x = expr.load("in0", dtype, (i.index, j.index), inside)
    kernel = kernel_of(
        (i, j),
        (Store("out0", (i.index, j.index), x),),
        Buffer("in0", dtype, (2, 8)),
        Buffer("out0", dtype, (3, 8), True),
    )
    assert "load_vec" in check(kernel, {"in0": values((2, 8), dtype)}).source


@pytest.mark.parametrize("along", ["row", "element"])
def test_gathers(along: str) -> None:
    """Rows picked by an index stay vectors; elements picked by an index are read one by one."""
    i, j = axis("i", 5), axis("j", 8)
    where_ = (i.index,) if along == "row" else (j.index,)
    picked = dynamic_index(expr.load("in1", I64, where_), 6 if along == "row" else 8)
    coords = (picked, j.index) if along == "row" else (i.index, picked)
    x = expr.load("in0", F32, coords)
    shape = (6, 8) if along == "row" else (5, 8)
    count = 5 if along == "row" else 8
    kernel = kernel_of(
        (i, j), (Store("out0", (i.index, j.index), x),), Buffer("in0", F32, shape), Buffer("in1", I64, (count,)),
        Buffer("out0", F32, (5, 8), True),
    )  # fmt: skip
    at = np.array([0, 5, -1, 2, -6] if along == "row" else [7, 0, -8, 3, 2, -1, 6, 1])
    source = check(kernel, {"in0": values(shape, F32), "in1": at})
    assert ("load_vec<4>(p.in0" in source.source) == (along == "row")


def test_indices_out_of_range_are_clamped() -> None:
    i = axis("i", 4)
    picked = dynamic_index(expr.load("in1", I64, (i.index,)), 3)
    x = expr.load("in0", F32, (picked,))
    kernel = kernel_of(
        (i,), (Store("out0", (i.index,), x),), Buffer("in0", F32, (3,)), Buffer("in1", I64, (4,)),
        Buffer("out0", F32, (4,), True),
    )  # fmt: skip
    data = np.array([1, 2, 3], np.float32)
    got = run_kernel(render(kernel), kernel, {"in0": data, "in1": np.array([99, -99, 2, 0])})["out0"]
    np.testing.assert_array_equal(got, [3, 1, 3, 1])


@pytest.mark.parametrize("strict", [False, True])
def test_indices_out_of_range_are_errors_where_they_count(strict: bool) -> None:
    """They count from the end below 0. Where the mask is false they may be anything."""
    i = axis("i", 4)
    given, there = expr.load("in1", I64, (i.index,)), expr.load("in2", DType.BOOL, (i.index,))
    picked = dynamic_index(expr.wrapped_index(given, 3, there, strict), 3)
    x = expr.load("in0", F32, (picked,), there)
    kernel = kernel_of(
        (i,), (Store("out0", (i.index,), x),), Buffer("in0", F32, (3,)), Buffer("in1", I64, (4,)),
        Buffer("in2", DType.BOOL, (4,)), Buffer("out0", F32, (4,), True),
    )  # fmt: skip
    feeds = {"in0": np.array([1, 2, 3], np.float32), "in1": np.array([-1, 3, 0, -3])}
    mask = np.array([True, False, True, True])
    got = run_kernel(render(kernel), kernel, {**feeds, "in2": mask})["out0"]
    np.testing.assert_array_equal(got, [3, 0, 1, 1])
    with pytest.raises(DeviceError, match="index 3 is out of range for an axis of 3 elements"):
        run_kernel(render(kernel), kernel, {**feeds, "in2": np.ones(4, np.bool_)})


@pytest.mark.parametrize("reduction", ["none", "add", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, DType.I32, I64], ids=lambda t: t.value)
def test_stores_at_run_time_places(reduction: str, dtype: DType) -> None:
    """Masked, combined by atomics; rows of a plain store stay vectors."""
    i, j = axis("i", 3), axis("j", 4)
    place = expr.load("in1", I64, (i.index,))
    mask = binary("lt", place, const(5, I64))
    value = expr.load("in0", dtype, (i.index, j.index))
    store = Store("out0", (dynamic_index(place, 5), j.index), value, mask, reduction)
    kernel = kernel_of(
        (i, j), (store,), Buffer("in0", dtype, (3, 4)), Buffer("in1", I64, (3,)), Buffer("out0", dtype, (5, 4), True)
    )
    kernel = Kernel("scatter", kernel.stem, kernel.axes, {}, kernel.stores, kernel.buffers)
    at = np.array([4, 9, 0] if reduction == "none" else [4, 9, 4])
    source = render(kernel)
    assert ("store_vec" in source.source) == (reduction == "none")
    x = values((3, 4), dtype)
    start = np.ones((5, 4), dtype.numpy)
    got = run_over(source, kernel, {"in0": x, "in1": at}, start)
    want = start.copy()
    rule: Any = {"add": np.add, "max": np.maximum, "min": np.minimum}.get(reduction)
    for row in (0, 2):
        want[at[row]] = x[row] if rule is None else rule(want[at[row]], x[row])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def run_over(source: KernelSource, kernel: Kernel, inputs: Arrays, start: np.ndarray) -> np.ndarray:
    """The output of a kernel that writes into what is there: the harness uploads every array that it is given."""
    return run_kernel(source, kernel, {**inputs, "out0": start})["out0"]


def test_two_results_share_what_they_have_in_common() -> None:
    i = axis("i", 16)
    x = expr.load("in0", F32, (i.index,))
    e = expr.unary("exp", x)
    kernel = kernel_of(
        (i,), (Store("out0", (i.index,), e + 1.0), Store("out1", (i.index,), e * x)), Buffer("in0", F32, (16,)),
        Buffer("out0", F32, (16,), True), Buffer("out1", F16, (16,), True),
    )  # fmt: skip
    source = check(kernel, {"in0": values((16,), F32)})
    assert source.source.count("expf(") == 1
    assert source.source.count("load_vec") == 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_indices_below_zero_divide_downwards(sign: int) -> None:
    """Quotients of indices that may be negative round towards minus infinity, others use plain division."""
    i, n = axis("i", 12), symbol("n", 1, 20)
    q, r = dims.floordiv(i.index + sign * n, 4), dims.mod(i.index * 5 + sign * n, 7)
    kernel = kernel_of((i,), (Store("out0", (i.index,), index(q * 10 + r)),), Buffer("out0", I64, (12,), True))
    for value in (1, 8, 19):
        source = check(kernel, {}, {"n": value})
    assert ("floor_div<" in source.source) == (sign < 0)
    assert ("floor_mod<" in source.source) == (sign < 0)


def test_extremes_of_indices() -> None:
    i, n = axis("i", 12), symbol("n", 1, 20)
    e = index(dims.maximum(i.index - 4, 0) * 100 + dims.minimum(i.index, n))
    kernel = kernel_of((i,), (Store("out0", (i.index,), e),), Buffer("out0", I64, (12,), True))
    for value in (1, 7, 20):
        check(kernel, {}, {"n": value})


# --------------------------------------------------------------------------------------------------- 64-bit indices


def wide_kernel(n: Dim, row: Dim) -> Kernel:
    i, j = axis("i", n), axis("j", row)
    x = expr.load("in0", DType.I8, (i.index, row - 1 - j.index))
    stores = (Store("out0", (i.index, j.index), x),)
    return kernel_of((i, j), stores, Buffer("in0", DType.I8, (n, row)), Buffer("out0", DType.I8, (n, row), True))


def test_large_buffers_are_indexed_with_64_bits() -> None:
    assert not wide_index(wide_kernel(1 << 15, 1 << 15))
    wide = wide_kernel(1 << 16, 1 << 16)
    assert wide_index(wide)
    source = render(wide)
    assert "void compute(const Params& p, long long i)" in source.source
    assert "const long long first = ((long long)blockIdx.x" in source.source
    assert_compiles(source, ("sm_80",))


def test_products_of_dimensions_are_widened_before_they_overflow() -> None:
    n, row = symbol("n", 1, 1 << 16), symbol("row", 1, 1 << 16)
    kernel = wide_kernel(n, row)
    assert wide_index(kernel)
    source = render(kernel).source
    products = [line for line in source.splitlines() if "p.row" in line and "count" not in line]
    assert products
    assert all("(long long)p.row" in line for line in products)
    got = run_kernel(render(kernel), kernel, {"in0": values((3, 5), DType.I8)}, {"n": 3, "row": 5})["out0"]
    np.testing.assert_array_equal(got, values((3, 5), DType.I8)[:, ::-1])


def test_unbounded_dimensions_are_checked_at_launch() -> None:
    """Their kernels count in 32 bits: tensors beyond that are refused before anything runs."""
    from arcweld.compiler.errors import InputError

    text = "graph 'g'\nsymbol n(lo=1{hi})\ninput %x: i8[n, 1024]\n%y: i8[n, 1024] = Neg(%x) @ 'y'\noutput %y\n"
    for hi, fits in (("", False), (", hi=4194304", True)):
        plan = ExecutionPlan(built(parse_graph(text.format(hi=hi))).data.program, "sm_80")
        compute_sizes(plan, {"n": (1 << 21) - 1})
        if fits:
            compute_sizes(plan, {"n": 1 << 21})
        else:
            with pytest.raises(InputError, match="32-bit"):
                compute_sizes(plan, {"n": 1 << 21})


# ------------------------------------------------------------------------------------------------- the pieces alone


def plain_kernel(e: Expr) -> Kernel:
    return kernel_of((), (), Buffer("in0", F32, (6, 8)), Buffer("in1", I64, (6,)))


def test_plain_loads() -> None:
    i, j = symbol("i", 0, 5), symbol("j", 0, 7)
    symbols = (Sym("i", 0, 5), Sym("j", 0, 7))
    found = plain_load(plain_kernel(i), expr.load("in0", F32, (i, 7 - j)), symbols)  # type: ignore[arg-type]
    assert found is not None
    assert (found.offset, dict(found.strides)) == (7, {symbols[0]: 8, symbols[1]: -1})
    mask = binary("lt", index(i), const(2, I64))
    picked = dynamic_index(expr.load("in1", I64, (i,)), 6)
    for other in (
        expr.load("in0", F32, (i, j), mask), expr.load("in0", F32, (i, j)) + 1.0, expr.load("in0", F32, (picked, j)),
        expr.load("in0", F32, (i, dims.mod(i + j, 3))),
    ):  # fmt: skip
        assert plain_load(plain_kernel(other), other, symbols) is None


def test_parameters_are_collected_in_order() -> None:
    kernel = wide_kernel(symbol("n", 1), 8)
    params = Params(kernel)
    assert params.scalar("count", 7) == "7"
    assert params.scalar("count", symbol("n", 1) * 8) == "p.count"
    assert params.symbol(Sym("n", 1)) == "p.n"
    with pytest.raises(ValueError, match="two different"):
        params.scalar("count", symbol("n", 1) * 9)
    assert params.struct() == "struct Params {\n  const i8* in0;\n  i8* out0;\n  int count;\n  int n;\n};"
    assert [p.name for p in params.members()] == ["in0", "out0", "count", "n"]


def test_dimensions_inside_templates() -> None:
    hooks = Hooks(wide_kernel(symbol("n", 1), 8))
    assert hooks.dim(symbol("n", 1) * 2 + 1) == "(p.n * 2 + 1)"
    assert hooks.dim(12) == "12"
    with pytest.raises(ValueError, match="scalar parameter"):
        hooks.dim(dims.floordiv(symbol("n", 1), 3))


def test_powers_of_the_lane_axis_are_printed_whole() -> None:
    i = axis("i", 64)
    squares = cast(index(i.index * i.index * 3 + i.index), F32)
    kernel = kernel_of((i,), (Store("out0", (i.index,), squares),), Buffer("out0", F32, (64,), True))
    check(kernel, {}, width=4)
    check(kernel, {}, width=1)


def test_lane_variables() -> None:
    """A template's per-lane array is indexed by the lane; a scalar is shared."""
    i = axis("i", 8)
    kernel = kernel_of((i,), (), Buffer("out0", F32, (8,), True))
    hooks = Hooks(kernel)
    value = where(
        binary("gt", expr.variable("acc", F32), expr.variable("s", F32)), expr.variable("acc", F32), const(0, F32)
    )
    text = hooks.store(
        "store_out", (Store("out0", (i.index,), value),), [("i", i.sym)], lane=i.sym, width=4,
        variables={"acc": ("acc", F32, True), "s": ("s", F32, False)},
    )  # fmt: skip
    assert "void store_out(const Params& p, int i, const f32 (&acc)[4], f32 s)" in text
    assert "acc[lane] > s" in text
    assert "store_vec<4>(p.out0 + i, " in text


def test_a_block_defines_each_value_once() -> None:
    i = axis("i", 8)
    kernel = kernel_of((i,), (), Buffer("in0", F32, (8,)))
    block = Block(Params(kernel), {i.sym: "i"})
    x = expr.load("in0", F32, (i.index,))
    first = block.value(x + x)
    assert block.value(x + x) == first
    assert block.finish() == ["  const f32 t0 = p.in0[i];", "  const f32 t1 = t0 + t0;"]
    assert block.finish() == []


@pytest.mark.parametrize("op", ["lt", "le", "gt", "ge"])
@pytest.mark.parametrize("bound", [3, 4, 7, 8, 9])
def test_tests_that_agree_for_all_lanes_keep_vectors(op: str, bound: int) -> None:
    """``4*q + lane < 8`` is ``q < 2``: both halves of a rotated row are read as vectors."""
    i, j = axis("i", 3), axis("j", 16)
    inside = binary(op, index(j.index), const(bound, I64))
    x = expr.load("in0", F32, (i.index, dims.mod(j.index + 8, 16)), inside)
    kernel = kernel_of(
        (i, j), (Store("out0", (i.index, j.index), where(inside, -x, const(9, F32))),),
        Buffer("in0", F32, (3, 16)), Buffer("out0", F32, (3, 16), True),
    )  # fmt: skip
    source = check(kernel, {"in0": values((3, 16), F32)}, width=4).source
    first = bound + (op in ("le", "gt"))  # where the test changes its result
    assert ("load_vec" in source) == (first % 4 == 0)


@given(
    st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), st.integers(-9, 9), st.integers(-6, 6), st.integers(-6, 6)
)
def test_comparisons_are_printed_without_minus_signs(op: str, constant: int, first: int, second: int) -> None:
    difference = var(Sym("i")) * first + var(Sym("j")) * second + constant
    left, symbol_, right = two_sides(difference, op)
    assert "-" not in f"{left}{right}"
    assert isinstance(right, int) or not isinstance(left, int)
    compare = {
        "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
        "!=": operator.ne,
    }  # fmt: skip
    for i, j in itertools.product(range(4), range(4)):
        env = {"i": i, "j": j}
        found = compare[symbol_](dims.evaluate(left, env), dims.evaluate(right, env))
        assert found == getattr(operator, op)(first * i + second * j + constant, 0)


@given(
    st.sampled_from(["lt", "le", "gt", "ge"]), st.integers(-9, 20), st.sampled_from([1, 2, 3, 4, -1, -4]),
    st.sampled_from([2, 3, 4, 8]),
)  # fmt: skip
@settings(max_examples=40)
def test_tests_of_indices_at_any_width(op: str, bound: int, factor: int, width: int) -> None:
    i, n = axis("i", 24), symbol("n", 1, 20)
    test = binary(op, index(i.index * factor + n), const(bound, I64))
    kernel = kernel_of((i,), (Store("out0", (i.index,), test),), Buffer("out0", DType.BOOL, (24,), True))
    for value in (1, 4, 20):
        check(kernel, {}, {"n": value}, width=width)
