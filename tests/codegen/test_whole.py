"""Statistics of one row by many blocks against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import numpy as np
import pytest
from harness import assert_compiles, run_kernel
from kernel_cases import assert_close, at, put, random
from mutate import survivors

from arcweld.codegen.kernel import Buffer, Kernel, KernelSource, Stage, axis
from arcweld.codegen.templates.reduce.whole import ONE_BLOCK, WholeTactic, render_whole, supports, tactics
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, variable

F32 = DType.F32
X, LEAST, MOST = (variable(name, F32) for name in ("x", "low", "top"))


def kernel_of(cols: Dim, stored: bool = True, value: Expr = X, rows: Dim = 1) -> Kernel:
    """The least and the largest of twice a row's elements, of which the former is subtracted from the latter.

    ``stored``: the elements are stored too. ``value``: of which the largest is found.
    """
    r, c = axis("r", rows), axis("c", cols)
    x, y = Buffer("in0", F32, (rows, cols)), Buffer("out0", DType.F16, (rows, cols), True)
    low, top = Buffer("out1", F32, (rows,), True), Buffer("out2", F32, (rows,), True)
    stores = (put(low, (r,), LEAST), put(top, (r,), MOST), *([put(y, (r, c), X)] if stored else []))
    stages = (Stage("low", "min", X), Stage("top", "max", value, MOST - LEAST))
    return Kernel(
        "rowwise", "whole", {"row": (r,), "col": (c,)}, {"x": at(x, (r, c)) * 2.0}, stores,
        (x, low, top, *([y] if stored else [])), {"stages": stages},
    )  # fmt: skip


def expected(x: np.ndarray, stored: bool) -> dict[str, np.ndarray]:
    x = x * 2
    return {"out1": x.min(-1), "out2": x.max(-1) - x.min(-1)} | ({"out0": x} if stored else {})


def compare(source: KernelSource, kernel: Kernel, cols: int, stored: bool, env: dict[str, int] | None = None) -> None:
    x = random(np.random.default_rng(cols), (1, cols), F32, 3.0)
    for seed in (0, 1, 2):
        got = run_kernel(source, kernel, {"in0": x}, env or {}, seed=seed)
        assert_close(kernel, got, expected(x, stored))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("cols", [8193, 20_000])
def test_every_tactic_agrees(cols: int, stored: bool) -> None:
    kernel = kernel_of(cols, stored)
    assert implementations(kernel, "sm_80")[0].name == "whole"
    for tactic in (*tactics(kernel, "sm_80"), WholeTactic(3, 64), WholeTactic(40, 64, 1)):
        compare(render_whole(kernel, tactic, "sm_80"), kernel, cols, stored)
        assert_compiles(render_whole(kernel, tactic, "sm_80"))


@pytest.mark.parametrize("cols", [1, 300, 10_001])
def test_an_open_size(cols: int) -> None:
    kernel = kernel_of(symbol("n", 1))
    source = render_whole(kernel, tactics(kernel, "sm_80")[0], "sm_80")
    assert source.tiled
    compare(source, kernel, cols, True, {"n": cols})


def test_nan_wins() -> None:
    kernel = kernel_of(9000, False)
    x = np.zeros((1, 9000), np.float32)
    x[0, 5000] = np.nan
    got = run_kernel(render_whole(kernel, tactics(kernel, "sm_80")[0], "sm_80"), kernel, {"in0": x}, {})
    assert np.isnan(got["out1"]).all()
    assert np.isnan(got["out2"]).all()


def test_the_barriers_are_needed() -> None:
    kernel, cols = kernel_of(9000), 9000
    source = render_whole(kernel, WholeTactic(3, 64), "sm_80")
    x = random(np.random.default_rng(1), (1, cols), F32, 3.0)
    want = run_kernel(source, kernel, {"in0": x}, {})

    def passes(text: str) -> bool:
        got = run_kernel(source, kernel, {"in0": x}, {}, text=text)
        return all(np.array_equal(got[k], want[k]) for k in want)

    assert [m.deleted for m in survivors(source.source, passes, "reduce.cuh")] == []


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (kernel_of(ONE_BLOCK), "one block"),
        (kernel_of(9000, rows=2), "several rows"),
        (kernel_of(9000, value=X - LEAST), "need statistics"),
    ],
)
def test_reasons_for_refusal(kernel: Kernel, reason: str) -> None:
    assert reason in (supports(kernel, "sm_80") or "")
    assert implementations(kernel, "sm_80")[0].name == "rowwise"
