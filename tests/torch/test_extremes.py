"""Compiled ATen operators against eager torch at the edge of every element type: no wrong number anywhere.

Where eager itself is further from the exact result, or differs between a CPU and a GPU, the operator is listed with the
reason.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from extremes import BINARY, DTYPES, INTEGERS, REDUCTIONS, UNARY, Fn, agree, pairs, rows, values
from torch_oracle import Functions, run_graph

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.torch.importer import import_module
from arcweld.compiler.torch.types import as_array
from arcweld.driver import api

# operators that are not compared, and why
FMOD = "eager's loop over vectors gives NaN where the quotient is huge; the remainder is exact here"
SUMS = "eager sums in f64 or by Welford's method, which overflow later; here sums are f32 (f64 for f64)"
APART = {
    "fmod": FMOD, "remainder": FMOD, "mod 0.5": FMOD, "fmod 0.5": FMOD, "mod -0.1": FMOD, "fmod -0.1": FMOD,
    **dict.fromkeys(("mean", "std", "var", "var 0", "norm", "norm 1", "normalize", "layer_norm", "rms_norm"), SUMS),
    "prod": "eager multiplies 16-bit floats in their own type", "sum": SUMS, "sum of all": SUMS, "nansum": SUMS,
    "avg_pool": SUMS, "cumsum": SUMS, "cumprod": SUMS, "norm 3": SUMS,
    **dict.fromkeys(("mode", "mode index"), "eager sorts NaNs to where they happen to be"),
    "max_pool index": "of several NaNs eager takes the last one",
    "gelu": "eager's 1 + erf(x) cancels", "gelu tanh": "eager's 1 + tanh(x) cancels",
    "elu": "eager's expm1 is exact near 0, the registry's reference subtracts", "selu": "see elu", "celu": "see elu",
    "hardswish": "eager's product overflows before it is divided by 6", "hardsigmoid": "-3 is rounded differently",
    **dict.fromkeys(("logsumexp", "logcumsumexp"), "the logarithm cancels the maximum"),
    "log_softmax": "eager rounds to 16 bits in between",
    "hypot": "hypot(inf, nan) is NaN here", "pow 0.5": "eager's square root of -inf differs between f16 and f32",
    "add alpha": "eager fuses the product into the sum", "addcmul": "eager fuses the last product into the sum",
    "addcdiv": "eager fuses the last product into the sum", "clamp nan": "a bound that is NaN",
}  # fmt: skip

# those of 16-bit floats that are not compared
APART_HALF = {
    "trunc div": "eager rounds the quotient to 16 bits before it is truncated; a kernel keeps it in f32",
    "add -0.1": "eager rounds the number to the tensor's type on a CPU, not on a GPU",
    "rsub -0.1": "see add -0.1",
}
SIMULATED = [(kind, d) for d in DTYPES for kind in ("unary", "binary", "reductions")]

DIVISIONS = [
    *(f"{op} {k}" for op in ("floordiv", "rfloordiv", "trunc div") for k in (2, -3, 0.5, -0.1, 1)), "sign", "sgn",
    "clamp", "clamp crossed", "threshold", "mod 2", "mod -3", "fmod 2", "floordiv 0", "mod 0", "fmod 0",
]  # fmt: skip


def compiled(functions: Mapping[str, Fn], args: tuple[torch.Tensor, ...]) -> tuple[Graph, dict[str, Fn]]:
    """The graph of those functions that eager takes and Arcweld compiles, and these functions."""
    taken = _imported({name: fn for name, fn in functions.items() if _takes(fn, args)}, args)
    return import_module(Functions(taken).eval(), args), taken


def _imported(functions: dict[str, Fn], args: tuple[torch.Tensor, ...]) -> dict[str, Fn]:
    """Those functions that are not left to PyTorch, found by halves: an import costs more than what it imports."""
    try:
        import_module(Functions(functions).eval(), args)
    except UnsupportedError:
        names = list(functions)
        halves = (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else ()
        return {n: fn for half in halves for n, fn in _imported({n: functions[n] for n in half}, args).items()}
    return functions


def divisible(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of integers that eager divides: by 0 it raises, the least number by -1 ends its process."""
    a, b = a[b != 0], b[b != 0]
    if a.dtype in INTEGERS and a.dtype.is_signed:
        keep = ~((a == torch.iinfo(a.dtype).min) & (b == -1))
        a, b = a[keep], b[keep]
    return a, b


def _takes(fn: Fn, args: tuple[torch.Tensor, ...]) -> bool:
    """Whether eager has the operator for the type."""
    try:
        fn(*args)
    except (RuntimeError, TypeError, ZeroDivisionError):
        return False
    return True


def differences(
    got: Mapping[str, np.ndarray], functions: Mapping[str, Fn], args: tuple[torch.Tensor, ...]
) -> list[str]:
    found = [agree(label, got[label], as_array(fn(*args).contiguous())) for label, fn in functions.items()]
    return [line for line in found if line]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_divisions_and_bounds_at_extremes(dtype: torch.dtype) -> None:
    args = (values(dtype),)
    graph, taken = compiled({name: UNARY[name] for name in DIVISIONS if name in UNARY}, args)
    assert len(taken) > 10 or dtype is torch.bool
    assert differences(dict(zip(graph.labels(), run_graph(graph, args))), taken, args) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_floor_division_of_all_pairs(dtype: torch.dtype) -> None:
    a, b = pairs(dtype) if dtype.is_floating_point else divisible(*pairs(dtype))
    names = ("floor_divide", "floor div", "trunc div", "maximum", "minimum", "max")
    graph, taken = compiled({name: BINARY[name] for name in names}, (a, b))
    assert differences(dict(zip(graph.labels(), run_graph(graph, (a, b)))), taken, (a, b)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "dtype"), SIMULATED, ids=str)
def test_every_operator_on_the_simulator(kind: str, dtype: torch.dtype) -> None:
    table = {"unary": UNARY, "binary": BINARY, "reductions": REDUCTIONS}[kind]
    args = {"unary": (values(dtype),), "binary": pairs(dtype), "reductions": (rows(dtype),)}[kind]
    if kind == "binary" and not dtype.is_floating_point:
        args = divisible(*args)
    apart = APART | (APART_HALF if dtype in (torch.float16, torch.bfloat16) else {})
    graph, taken = compiled({name: fn for name, fn in table.items() if name not in apart}, args)
    engine = api.compile_graph(graph, device="sim", verify="off")
    results = engine(*args)
    got = {label: as_array(r.contiguous()) for label, r in zip(graph.labels(), results, strict=True)}
    assert differences(got, taken, args) == []


@pytest.mark.parametrize("op", ["floordiv 0", "mod 0", "fmod 0", "trunc div 0"])
def test_an_integer_division_by_the_number_0_is_left_to_pytorch(op: str) -> None:
    x = torch.arange(4, dtype=torch.int32)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        UNARY[op](x)
    with torch.no_grad():
        run = torch.compile(UNARY[op], backend="arcweld", options={"device": "sim", "min_block_size": 1})
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            run(x)
