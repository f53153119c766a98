"""Every scalar operation in every type, printed, compiled and run on the checked simulator, against numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from harness import assert_compiles, run_kernel

from arcweld.codegen.kernel import Buffer, Kernel, Store, axis
from arcweld.codegen.printing.scalar import literal
from arcweld.codegen.templates.pointwise.pointwise import PointwiseTactic, render_pointwise
from arcweld.compiler import expr
from arcweld.compiler.dtypes import DEVICE_TYPES, DType
from arcweld.compiler.expr import Expr

FLOATS = (DType.F32, DType.F64, DType.F16, DType.BF16)
SIGNED = (DType.I8, DType.I16, DType.I32, DType.I64)
UNSIGNED = (DType.U8, DType.U16, DType.U32, DType.U64)
INTS = (*SIGNED, *UNSIGNED)
# what the oracle may differ by: both sides compute in the type, with other libraries
ROUNDING = {DType.F32: 4e-6, DType.F64: 1e-13, DType.F16: 1e-3, DType.BF16: 8e-3}


def kernel_of(results: Sequence[Expr], inputs: Sequence[DType], outputs: Sequence[DType], n: int) -> Kernel:
    """One pointwise kernel that stores every result; input k is ``in{k}``, all of ``n`` elements."""
    i = axis("i", n)
    buffers = [Buffer(f"in{k}", t, (n,)) for k, t in enumerate(inputs)]
    buffers += [Buffer(f"out{k}", t, (n,), True) for k, t in enumerate(outputs)]
    stores = tuple(Store(f"out{k}", (i.index,), e) for k, e in enumerate(results))
    return Kernel("pointwise", "scalars", {"out": (i,)}, {}, stores, tuple(buffers))


def operands(dtypes: Sequence[DType], n: int) -> list[Expr]:
    i = axis("i", n)
    return [expr.load(f"in{k}", t, (i.index,)) for k, t in enumerate(dtypes)]


def run(results: Sequence[Expr], inputs: Sequence[np.ndarray], dtypes: Sequence[DType]) -> list[np.ndarray]:
    """The results as arrays of their own types, by one kernel; lanes are vectors where the types allow it."""
    outputs = [e.dtype for e in results]
    kernel = kernel_of(results, dtypes, outputs, inputs[0].size)
    source = render_pointwise(kernel, PointwiseTactic(), "sm_80")
    got = run_kernel(source, kernel, {f"in{k}": a for k, a in enumerate(inputs)})
    return [got[f"out{k}"] for k in range(len(results))]


def float_values(dtype: DType) -> np.ndarray:
    """The corners of a type and ordinary numbers, a multiple of 8 of them."""
    top = 6e4 if dtype is DType.F16 else 3e38
    low = 6e-8 if dtype is DType.F16 else 1e-38
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, 3.5, -2.5, np.inf, -np.inf, np.nan, top, -top, low, -low]
    ordinary = np.random.default_rng(0).uniform(-4, 4, 48)
    return np.concatenate([special, ordinary]).astype(dtype.numpy)


def int_values(dtype: DType) -> np.ndarray:
    info = np.iinfo(dtype.numpy)
    special = [0, 1, 2, 3, 5, 7, info.min, info.max, info.max - 1, info.min + 1]
    ordinary = np.random.default_rng(0).integers(max(info.min, -50), 50, 22)
    return np.array([*special, *(int(v) for v in ordinary)], dtype.numpy)


def pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every value against every other."""
    a, b = np.meshgrid(values, values)
    return a.ravel().copy(), b.ravel().copy()


def assert_floats(got: np.ndarray, want: np.ndarray, dtype: DType, name: str) -> None:
    """NaN where NaN is expected, infinities equal, the rest within rounding."""
    g, w = got.astype(np.float64), want.astype(np.float64)
    limit = float(np.finfo(np.float32 if dtype is not DType.F64 else np.float64).max)
    w = np.where(np.abs(w) > limit, np.copysign(np.inf, w), w)
    tiny = 1.2e-38 if dtype is not DType.F64 else 2.3e-308
    np.testing.assert_array_equal(np.isnan(g), np.isnan(w), err_msg=name)
    np.testing.assert_array_equal(np.isinf(g), np.isinf(w), err_msg=name)
    finite = np.isfinite(w)
    np.testing.assert_allclose(g[finite], w[finite], rtol=ROUNDING[dtype], atol=tiny, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- floats

WIDE = {  # numpy in f64, independent of the interpreter's table
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "tanh": np.tanh, "sin": np.sin,
    "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh,
    "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "recip": np.reciprocal,
    "log1p": np.log1p, "expm1": np.expm1, "erf": np.vectorize(math.erf), "neg": np.negative, "abs": np.abs,
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "sign": np.sign,
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda t: t.value)
def test_unary_floats(dtype: DType) -> None:
    names = (*expr.UNARY_FLOAT, *expr.UNARY_ANY)
    assert set(names) == set(WIDE), "an operation without an oracle"
    x = float_values(dtype)
    (load,) = operands([dtype], x.size)
    got = run([expr.unary(op, load) for op in names], [x], [dtype])
    with np.errstate(all="ignore"):
        for op, g in zip(names, got):
            assert_floats(g, np.asarray(WIDE[op](x.astype(np.float64)), np.float64), dtype, op)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda t: t.value)
def test_float_tests(dtype: DType) -> None:
    x = float_values(dtype)
    (load,) = operands([dtype], x.size)
    nan, inf = run([expr.unary("isnan", load), expr.unary("isinf", load)], [x], [dtype])
    np.testing.assert_array_equal(nan, np.isnan(x))
    np.testing.assert_array_equal(inf, np.isinf(x))


def _floor_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(b) & np.isfinite(a), np.where((a < 0) == (b < 0), a, np.where(a == 0, a, b)), np.mod(a, b))


BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "min": np.minimum,
    "max": np.maximum, "atan2": np.arctan2, "fmod": np.fmod, "mod": _floor_mod,
}  # fmt: skip
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda t: t.value)
def test_binary_floats(dtype: DType) -> None:
    assert set(BINARY) == set(expr.BINARY)
    assert set(COMPARE) == set(expr.COMPARE)
    a, b = pairs(float_values(dtype)[:32])
    x, y = operands([dtype, dtype], a.size)
    got = run([expr.binary(op, x, y) for op in (*BINARY, *COMPARE)], [a, b], [dtype, dtype])
    with np.errstate(all="ignore"):
        for op, g in zip(BINARY, got):
            wide = BINARY[op](a.astype(np.float64), b.astype(np.float64))
            if op == "mod":  # a quotient near an integer may fall to either side: compare where it is not
                keep = np.isclose(g.astype(np.float64), wide, rtol=1e-4, atol=1e-30, equal_nan=True)
                assert keep.mean() > 0.9
                continue
            assert_floats(g, wide, dtype, op)
        for op, g in zip(COMPARE, got[len(BINARY) :]):
            np.testing.assert_array_equal(g, COMPARE[op](a, b), err_msg=op)


def test_modulo_of_ordinary_floats() -> None:
    a, b = pairs(np.array([-7.5, -7, -0.5, 0.5, 3, 7, 7.5, 8], np.float32))
    x, y = operands([DType.F32, DType.F32], a.size)
    mod, fmod = run([expr.binary("mod", x, y), expr.binary("fmod", x, y)], [a, b], [DType.F32, DType.F32])
    np.testing.assert_allclose(mod, np.mod(a, b), rtol=1e-6)
    np.testing.assert_allclose(fmod, np.fmod(a, b), rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- integers


def _trunc_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """C's quotient in Python's integers; by zero 0; wrapped to the type."""
    whole = [0 if y == 0 else abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b)]
    return _wrap(whole, a.dtype)


def _wrap(values: Sequence[int], dtype: np.dtype) -> np.ndarray:
    bits = 8 * dtype.itemsize
    low = int(np.iinfo(dtype).min)
    return np.array([(v - low) % (1 << bits) + low for v in values], object).astype(dtype)


def _int_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _wrap([0 if y == 0 else int(x) % int(y) for x, y in zip(a, b)], a.dtype)


def _int_fmod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _wrap([0 if y == 0 else _rem(int(x), int(y)) for x, y in zip(a, b)], a.dtype)


def _rem(x: int, y: int) -> int:
    r = abs(x) % abs(y)
    return -r if x < 0 else r


INT_BINARY = {
    "div": _trunc_div, "mod": _int_mod, "fmod": _int_fmod, "min": np.minimum, "max": np.maximum,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "gcd": np.gcd,
}  # fmt: skip


@pytest.mark.parametrize("dtype", INTS, ids=lambda t: t.value)
def test_binary_integers(dtype: DType) -> None:
    """The least number, division by zero and by -1 included; sums and products where signed types do not overflow."""
    a, b = pairs(int_values(dtype))
    x, y = operands([dtype, dtype], a.size)
    got = run([expr.binary(op, x, y) for op in (*INT_BINARY, *COMPARE)], [a, b], [dtype, dtype])
    for op, g in zip((*INT_BINARY, *COMPARE), got):
        want = (INT_BINARY.get(op) or COMPARE[op])(a, b)
        np.testing.assert_array_equal(g, want, err_msg=op)
    small = a.dtype.itemsize <= 2 or not dtype.is_signed
    keep = np.ones(a.size, bool) if small else (np.abs(a.astype(np.float64)) < 60) & (np.abs(b.astype(np.float64)) < 60)
    a, b = a[keep], b[keep]
    x, y = operands([dtype, dtype], a.size)
    got = run([expr.binary(op, x, y) for op in ("add", "sub", "mul")], [a, b], [dtype, dtype])
    with np.errstate(all="ignore"):
        for fn, g in zip((np.add, np.subtract, np.multiply), got):
            np.testing.assert_array_equal(g, fn(a, b), err_msg=fn.__name__)


@pytest.mark.parametrize("divisor", [3, -4, 1, -1, 0])
@pytest.mark.parametrize("dtype", [DType.I32, DType.I8], ids=lambda t: t.value)
def test_division_by_constants(dtype: DType, divisor: int) -> None:
    a = int_values(dtype)
    (x,) = operands([dtype], a.size)
    d = expr.const(divisor, dtype)
    got = run([expr.binary(op, x, d) for op in ("div", "mod", "fmod")], [a], [dtype])
    b = np.full_like(a, divisor)
    for g, oracle in zip(got, (_trunc_div, _int_mod, _int_fmod)):
        np.testing.assert_array_equal(g, oracle(a, b))


@pytest.mark.parametrize("dtype", INTS, ids=lambda t: t.value)
def test_unary_integers(dtype: DType) -> None:
    a = int_values(dtype)
    if dtype in (DType.I32, DType.I64):
        a[a == np.iinfo(dtype.numpy).min] = -9  # negating the least number overflows
    (x,) = operands([dtype], a.size)
    names = {"neg": np.negative, "abs": np.abs, "sign": np.sign}
    results = [*(expr.unary(op, x) for op in names), expr.bitwise_not(x)]
    with np.errstate(all="ignore"):
        for g, fn in zip(run(results, [a], [dtype]), (*names.values(), np.invert)):
            np.testing.assert_array_equal(g, fn(a), err_msg=fn.__name__)


@pytest.mark.parametrize("dtype", UNSIGNED, ids=lambda t: t.value)
def test_shifts(dtype: DType) -> None:
    a, b = pairs(int_values(dtype))
    b = b % np.array(8 * dtype.size, dtype.numpy)
    x, y = operands([dtype, dtype], a.size)
    left, right = run([expr.binary("shl", x, y), expr.binary("shr", x, y)], [a, b], [dtype, dtype])
    np.testing.assert_array_equal(left, np.left_shift(a, b))
    np.testing.assert_array_equal(right, np.right_shift(a, b))


@pytest.mark.parametrize("dtype", [DType.I32, DType.I64, DType.U8], ids=lambda t: t.value)
def test_integer_powers(dtype: DType) -> None:
    low = 0 if not dtype.is_signed else -3
    a, b = pairs(np.arange(low, 5).astype(dtype.numpy))
    x, y = operands([dtype, dtype], a.size)
    (got,) = run([expr.binary("pow", x, y)], [a, b], [dtype, dtype])
    # a negative exponent gives what truncating the fraction gives; 0 to a negative power is undefined
    keep = (a != 0) | (b >= 0)
    want = _wrap([int(float(p) ** float(q)) if p or q >= 0 else 0 for p, q in zip(a, b)], a.dtype)
    np.testing.assert_array_equal(got[keep], want[keep])


def test_logic() -> None:
    a, b = pairs(np.array([False, True]))
    x, y = operands([DType.BOOL, DType.BOOL], a.size)
    results = [expr.binary(op, x, y) for op in expr.LOGIC]
    results += [expr.logical_not(x), expr.where(x, y, expr.logical_not(y))]
    results += [expr.binary("max", x, y), expr.binary("min", x, y)]
    wants = [a & b, a | b, a ^ b, ~a, np.where(a, b, ~b), a | b, a & b]
    for g, want in zip(run(results, [a, b], [DType.BOOL, DType.BOOL]), wants, strict=True):
        np.testing.assert_array_equal(g, want)


# -------------------------------------------------------------------------------------------------------------- casts


@pytest.mark.parametrize("source", [*FLOATS, *INTS, DType.BOOL], ids=lambda t: t.value)
def test_casts(source: DType) -> None:
    """Values that fit the target: what does not is undefined."""
    if source.is_float:
        a = np.array([0.0, -0.0, 1.0, 2.5, -2.5, 3.99, 100.25, -0.75], source.numpy)
    else:
        a = np.array([0, 1, 2, 3, 50, 100, 127, 1], np.int64).astype(source.numpy)
    (x,) = operands([source], a.size)
    targets = [*FLOATS[:2], *SIGNED, DType.BOOL] + ([] if source.is_float else list(UNSIGNED))
    for target, g in zip(targets, run([expr.cast(x, t) for t in targets], [a], [source])):
        np.testing.assert_array_equal(g, a.astype(np.float64 if source.is_half else a.dtype).astype(target.numpy))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=lambda t: t.value)
def test_stores_round_to_nearest_even(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    special = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-9, 65520, 1e9, np.inf, -np.inf, 1e-8]
    a = np.concatenate([special, rng.normal(size=56)]).astype(np.float32)
    (x,) = operands([DType.F32], a.size)
    kernel = kernel_of([x], [DType.F32], [dtype], a.size)
    got = run_kernel(render_pointwise(kernel, PointwiseTactic(), "sm_80"), kernel, {"in0": a})["out0"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.view(np.uint16), a.astype(dtype.numpy).view(np.uint16))


# ----------------------------------------------------------------------------------------------------------- literals

LITERALS = {
    DType.F32: [0.0, -0.0, 1.0, 0.1, -2.5e-30, 3.4e38, 1e-45, math.inf, -math.inf, math.nan, 16777217.0, 1e39],
    DType.F64: [0.0, 0.1, -1e300, 5e-324, math.inf, math.nan, 1 / 3],
    DType.I64: [0, -(1 << 63), (1 << 63) - 1, -5],
    DType.U64: [0, (1 << 64) - 1],
    DType.I32: [-(1 << 31), (1 << 31) - 1, -1],
    DType.U32: [(1 << 32) - 1],
    DType.I8: [-128, 127], DType.U8: [255], DType.I16: [-32768], DType.U16: [65535], DType.BOOL: [True, False],
}  # fmt: skip


@pytest.mark.parametrize("dtype", LITERALS, ids=lambda t: t.value)
def test_literals(dtype: DType) -> None:
    n = 8
    values = LITERALS[dtype]
    kernel = kernel_of([expr.const(v, dtype) for v in values], [], [dtype] * len(values), n)
    source = render_pointwise(kernel, PointwiseTactic(), "sm_80")
    got = run_kernel(source, kernel, {})
    with np.errstate(over="ignore"):
        for k, v in enumerate(values):
            want = np.full(n, np.array(v, np.float64 if dtype.is_float else None).astype(dtype.numpy))
            np.testing.assert_array_equal(got[f"out{k}"], want)
            if dtype.is_float:
                np.testing.assert_array_equal(np.signbit(got[f"out{k}"]), np.signbit(want))


def test_literal_text() -> None:
    assert literal(expr.const(1, DType.F32)) == "1.0f"
    assert literal(expr.const(0.1, DType.F32)) == "0.1f"
    assert literal(expr.const(1e-30, DType.F32)) == "1e-30f"
    assert literal(expr.const(0.5, DType.F64)) == "0.5"
    assert literal(expr.const(-3, DType.I64)) == "-3ll"
    assert literal(expr.const(3.4028234e38, DType.F32)) == "3.4028235e+38f"
    assert literal(expr.const(float.fromhex("0x1.ffffffp127"), DType.F32)) == "(f32)INFINITY"  # half a unit too much
    assert literal(expr.const(True, DType.BOOL)) == "true"


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.I32, DType.I8, DType.U64], ids=lambda t: t.value)
def test_nvrtc_takes_every_operation(dtype: DType) -> None:
    n = 8
    x, y = operands([dtype, dtype], n)
    unary = (*expr.UNARY_FLOAT, *expr.UNARY_ANY, *expr.UNARY_TEST) if dtype.is_float else ("neg", "abs", "sign")
    binary = [op for op in (*expr.BINARY, *expr.COMPARE) if dtype.is_float or op != "atan2"]
    results = [*(expr.unary(op, x) for op in unary), *(expr.binary(op, x, y) for op in binary)]
    if not dtype.is_float:
        results += [expr.binary(op, x, y) for op in expr.BITS]
    results += [expr.cast(x, t) for t in DEVICE_TYPES.values()]
    kernel = kernel_of(results, [dtype, dtype], [e.dtype for e in results], n)
    # some sixty results at once, most of them in f64: no kernel of a model is like that, and its registers may spill
    assert_compiles(render_pointwise(kernel, PointwiseTactic(), "sm_80"), ("sm_80",), spills=1 << 16)
