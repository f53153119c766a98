"""Imported elementwise ATen operators against eager torch: values, type promotion, scalars of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_runs import built, on_simulator
from torch_oracle import check, rand

UNARY = [
    "abs",
    "asinh",
    "atan",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "expm1",
    "floor",
    "neg",
    "relu",
    "round",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "square",
    "tanh",
    "trunc",
    "frac",
    "exp2",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "tan",
]
POSITIVE = ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acosh"]
INSIDE = ["acos", "asin", "atanh"]


def test_unary() -> None:
    x = rand(3, 7, scale=2.0)
    check({n: getattr(torch, n) for n in UNARY}, x)
    check({n: getattr(torch, n) for n in POSITIVE}, x.abs() + 1.01)
    check({n: getattr(torch, n) for n in INSIDE}, x.clamp(-0.9, 0.9))


def test_unary_of_integers_gives_floats() -> None:
    x = torch.arange(1, 9, dtype=torch.int32)
    names = ["sin", "sqrt", "exp", "abs", "floor", "neg", "sigmoid", "sign"]
    check({n: getattr(torch, n) for n in names}, x)


def test_special_values() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-30, 3.0])
    functions = {
        "nan": torch.isnan,
        "inf": torch.isinf,
        "posinf": torch.isposinf,
        "neginf": torch.isneginf,
        "finite": torch.isfinite,
        "num": torch.nan_to_num,
        "num2": lambda x: torch.nan_to_num(x, 1.0, 2.0, -2.0),
        "relu": torch.relu,
        "clamp": lambda x: x.clamp(-1, 1),
        "bool": lambda x: x.bool(),
    }
    check(functions, x)
    check({"log1p": torch.log1p, "expm1": torch.expm1}, torch.tensor([1e-8, -1e-8, 0.0, 30.0, float("inf")]), rtol=1e-6)


def test_binary_and_broadcasting() -> None:
    functions = {
        "add": torch.add,
        "alpha": lambda x, y: torch.add(x, y, alpha=3),
        "sub": lambda x, y: torch.sub(x, y, alpha=0.5),
        "rsub": lambda x, y: torch.rsub(x, y),
        "mul": torch.mul,
        "div": torch.div,
        "max": torch.maximum,
        "min": torch.minimum,
        "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
        "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        "rem": torch.remainder,
        "fmod": torch.fmod,
        "pow": lambda x, y: torch.pow(x.abs() + 0.1, y),
        "where": lambda x, y: torch.where(x > y, x, y),
        "lerp": lambda x, y: torch.lerp(x, y, 0.3),
        "addcmul": lambda x, y: torch.addcmul(x, y, y, value=0.5),
        "addcdiv": lambda x, y: torch.addcdiv(x, y, y * y + 1, value=2),
        "masked": lambda x, y: x.masked_fill(y > 0, -1.0),
        "clampt": lambda x, y: torch.clamp(x, y, y + 1),
    }
    check(functions, rand(3, 4, 5), rand(4, 1, seed=1))


def test_scalars() -> None:
    functions = {
        "add": lambda x: x + 2,
        "rsub": lambda x: 1 - x,
        "mul": lambda x: x * 0.1,
        "div": lambda x: x / 3,
        "rdiv": lambda x: 1 / (x + 10),
        "pow2": lambda x: x**2,
        "pow": lambda x: (x.abs() + 0.1) ** 1.5,
        "rpow": lambda x: 2**x,
        "rem": lambda x: x % 0.7,
        "floordiv": lambda x: x // 0.3,
        "gt": lambda x: x > 0.5,
        "eq": lambda x: x == 1,
        "ne": lambda x: x != 1,
        "le": lambda x: x <= 0,
        "clamp": lambda x: x.clamp(min=0.2),
        "clampmax": lambda x: x.clamp(max=0.2),
        "where": lambda x: torch.where(x > 0, x, 0.5),
        "where2": lambda x: torch.where(x > 0, 1.0, 0.0),
    }
    check(functions, rand(4, 6))
    check(functions, rand(4, 6, dtype=torch.float64))


def test_integer_arithmetic() -> None:
    functions = {
        "add": torch.add,
        "div": torch.div,
        "floor": lambda x, y: x // y,
        "rem": torch.remainder,
        "fmod": torch.fmod,
        "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        "scaled": lambda x, y: x * 1.5 + y,
        "and": torch.bitwise_and,
        "or": torch.bitwise_or,
        "xor": torch.bitwise_xor,
        "not": lambda x, y: ~x,
        "lt": lambda x, y: x < y,
        "pow": lambda x, y: x**2,
        "clamp": lambda x, y: x.clamp(-2, 3),
        "mixed": lambda x, y: x + y.to(torch.int16),
    }
    x = rand(5, 6, dtype=torch.int64)
    y = rand(5, 6, dtype=torch.int64, seed=3)
    check(functions, x, torch.where(y == 0, 4, y))


def test_logic_of_bools() -> None:
    functions = {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a, b: ~a,
        "land": torch.logical_and,
        "lor": torch.logical_or,
        "lxor": torch.logical_xor,
        "eq": torch.eq,
        "add": torch.add,
        "mul": torch.mul,
        "cast": lambda a, b: a.float() + b.int(),
        "lt": lambda a, b: a < b,
        "scalar": lambda a, b: a & True,
    }
    check(functions, rand(4, 5) > 0, rand(5, seed=2) > 0)


def test_promotion_between_tensors() -> None:
    functions = {
        "half": lambda h, f, i, z: h * f,
        "int": lambda h, f, i, z: i + h,
        "zero": lambda h, f, i, z: h + z,
        "cmp": lambda h, f, i, z: h < f,
        "cmpi": lambda h, f, i, z: i > h,
        "where": lambda h, f, i, z: torch.where(i > 0, h, f),
        "stack": lambda h, f, i, z: torch.stack([h, h * 2]),
        "cat": lambda h, f, i, z: torch.cat([h, f]),
        "cmps": lambda h, f, i, z: i > 1.5,
    }
    check(functions, rand(6, dtype=torch.float16), rand(6), rand(6, dtype=torch.int32), torch.tensor(0.3), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scalars_are_not_rounded_first(dtype: torch.dtype) -> None:
    # 0.1 is not representable; torch computes in f32 with the unrounded number and rounds once
    functions = {"mul": lambda x: x * 0.1, "chain": lambda x: (x * 0.1) * 0.7}
    check(functions, rand(64, dtype=dtype, scale=10), rtol=0, atol=0)


def test_activations() -> None:
    functions = {
        "gelu": F.gelu,
        "tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "mish": F.mish,
        "selu": F.selu,
        "celu": lambda x: F.celu(x, 1.7),
        "elu": lambda x: F.elu(x, 0.8),
        "leaky": lambda x: F.leaky_relu(x, 0.2),
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
        "relu6": F.relu6,
        "softplus": F.softplus,
        "beta": lambda x: F.softplus(x, 2.5, 3.0),
        "logsigmoid": F.logsigmoid,
        "softshrink": lambda x: F.softshrink(x, 0.3),
        "hardshrink": lambda x: F.hardshrink(x, 0.3),
        "tanhshrink": F.tanhshrink,
        "softsign": F.softsign,
        "glu": lambda x: F.glu(x, 1),
        "threshold": lambda x: F.threshold(x, 0.1, 20.0),
        "logit": lambda x: torch.logit(torch.sigmoid(x), 1e-3),
    }
    check(functions, rand(3, 8, scale=3.0))


def test_prelu_slope_for_each_channel() -> None:
    check({"one": lambda x, w: F.prelu(x, w[:1]), "each": F.prelu}, rand(2, 3, 4), rand(3).abs())


def test_casts_and_copies() -> None:
    functions = {
        "half": lambda x: x.half(),
        "bf16": lambda x: x.bfloat16().float(),
        "int": lambda x: x.int(),
        "long": lambda x: x.long(),
        "bool": lambda x: x.bool(),
        "double": lambda x: x.double(),
        "clone": lambda x: x.clone(),
        "detach": lambda x: x.detach(),
        "contiguous": lambda x: x.t().contiguous(),
        "as": lambda x: x.type_as(torch.ones(1, dtype=torch.float16)),
        "drop": lambda x: F.dropout(x, 0.5, training=False),
    }
    check(functions, rand(4, 5, scale=4.0))


def test_inputs_that_are_outputs() -> None:
    x = rand(3)
    graph = check({"same": lambda x: x, "again": lambda x: x, "one": lambda x: x + 1}, x)
    assert len({v.name for v in graph.outputs}) == 3


def test_labels_and_origins() -> None:
    graph = check({"doubled": lambda x: x * 2}, rand(3))
    assert graph.labels() == ("doubled",)
    assert "torch_oracle.py:" in graph.nodes[0].origin[0]
    assert np.asarray(next(iter(graph.weights.values())).data) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_powers_are_exact(dtype: torch.dtype) -> None:
    """Beyond what f64 holds, round and round the type's range, and of negative exponents."""
    low = 0 if dtype is torch.uint8 else -10
    base = torch.arange(low, 11).to(dtype)[:, None]
    exponents = torch.tensor([0, 1, 5, 20, 33, 63, 64] + ([-9, -2, -1] if low else [])).to(dtype)
    graph = check({"pow": torch.pow}, base, exponents)
    (got,) = on_simulator(built(graph), {v.name: t.numpy() for v, t in zip(graph.inputs, (base, exponents))}).values()
    np.testing.assert_array_equal(got, torch.pow(base, exponents).numpy())
