"""Verification: the metric, what is checked and what is left out, kernels run alone, and errors that must not pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arcweld.compiler import region
from arcweld.compiler.errors import AccuracyError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import Build, build_graph
from arcweld.driver.draws import Sample
from arcweld.driver.evidence import VerifyOptions, verify_build
from arcweld.driver.kernel_checks import MAX_ROUNDING, KernelCheck
from arcweld.driver.metrics import relative_error, rounded_up
from arcweld.driver.samples import sample_inputs
from arcweld.driver.single_launch import single_launch
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

FULL = VerifyOptions("full")


def build_of(text: str, archs: tuple[str, ...] = ("sm_80",)) -> Build:
    graph = parse_graph("graph 'g'\n" + text)
    rng = np.random.default_rng(0)
    weights = {
        n: replace(w, data=rng.uniform(-1, 1, w.data.shape).astype(w.data.dtype)) if w.data.dtype.kind == "f" else w
        for n, w in graph.weights.items()
    }
    return build_graph(graph.replace(weights=weights), Options(arch=archs), compile_kernels=False)


def verified(build: Build, sizes: dict[str, int] | None = None, plan: VerifyOptions = FULL, arch: str = "sm_80") -> Any:
    engine = Engine(build.data, SimDevice(arch=arch))
    feeds = sample_inputs(build.imported, sizes or {})
    return verify_build(build, engine, Sample(feeds, sizes or {}), plan, "fp32")


# --------------------------------------------------------------------------------------------------------- the metric


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_error_is_a_ratio_of_norms(dtype: type) -> None:
    want = np.array([3.0, 4.0], dtype)
    assert relative_error(want, want) == 0
    assert relative_error(np.array([3.0, 4.5], dtype), want) == pytest.approx(0.1)
    assert relative_error(np.array([0.25, 0], dtype), np.zeros(2, dtype)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("error", "stored"),
    [(0.0, 0.0), (1.83e-7, 2e-7), (1e-3, 1e-3), (9.2e-4, 1e-3), (2.0000001e-5, 3e-5), (float("inf"), float("inf"))],
)
def test_evidence_has_errors_of_one_digit(error: float, stored: float) -> None:
    """The digits behind depend on the order in which the host's BLAS adds up, and so on its number of cores."""
    assert rounded_up(error) == stored


def test_integers_count_differences() -> None:
    assert relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert relative_error(np.array([True, False]), np.array([False, True])) == 1.0
    assert relative_error(np.zeros(0, np.int32), np.zeros(0, np.int32)) == 0
    assert relative_error(np.zeros(0, np.float32), np.zeros(0, np.float32)) == 0


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], 0.0), ([np.inf, 1.0], [np.inf, 1.0], 0.0), ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([0.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf), ([9.0, 1.0], [np.inf, 1.0], np.inf),
    ],
)  # fmt: skip
def test_nan_and_infinity_must_agree_in_place(got: list[float], want: list[float], error: float) -> None:
    assert relative_error(np.array(got, np.float32), np.array(want, np.float32)) == error


def test_large_and_small_values_do_not_overflow_the_metric() -> None:
    big = np.full(4, 3e38, np.float32)
    assert relative_error(big * np.float32(0.5), big) == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------------------- what is checked

TWO = """symbol n(lo=1)
input %x: f32[n, 8]
weight %w: f32[8, 8] source='w'
%a: f32[n, 8] = MatMul(%x, %w) @ 'a'
%s: f32[n, 8] = LogSoftmax(%a, axis=1) @ 's'
%b: f32[n, 8] = MatMul(%s, %w) @ 'b'
output %b
"""


def test_equal_kernels_are_checked_once() -> None:
    build = build_of(TWO)
    found = verified(build, {"n": 5})
    assert len(build.planned) == 3
    assert [k["status"] for k in found["kernels"]] == ["verified", "verified"]
    assert {k["kernel"] for k in found["kernels"]} == set(build.data.sources)
    assert found["shapes"] == {"x": [5, 8]}


def test_nothing_is_checked_when_asked_so() -> None:
    found = verified(build_of(TWO), {"n": 2}, VerifyOptions("off"))
    assert found["kernels"] == found["outputs"] == []
    with pytest.raises(UsageError, match="unknown verification level"):
        VerifyOptions("some")


def test_kernels_for_other_architectures_are_left_out_with_the_reason() -> None:
    text = TWO.replace("f32", "f16").replace("8", "128").replace("n(lo=1)", "n(lo=256, hi=512)")
    build = build_of(text, ("sm_80", "sm_90a"))
    special = {s.entry for p in build.planned for s in p.sources if s.arch == "sm_90a"}
    assert special
    found = verified(build, {"n": 256}, VerifyOptions("quick", 60.0))
    left_out = {k["kernel"]: k for k in found["kernels"] if k["status"] == "skipped"}
    assert set(left_out) == special
    assert all(k["reason"] == "it is for sm_90a, the device is sm_80" for k in left_out.values())


def test_what_is_beyond_the_budget_is_named() -> None:
    found = verified(build_of(TWO), {"n": 5}, VerifyOptions("quick", 0.0))
    assert all(k["status"] == "skipped" and "beyond the budget of 0 s" in k["reason"] for k in found["kernels"])
    assert all(o["status"] == "skipped" for o in found["outputs"])


def test_a_product_that_fits_the_budget_is_compared() -> None:
    """Its 0.27e9 operations take about 0.03 s in order and 0.1 s under an adverse schedule."""
    build = build_of(TWO.replace("n(lo=1)", "n(lo=1, hi=512)").replace("8", "512"))
    (product,) = {p.sources[0].entry for p in build.planned} - {build.planned[1].sources[0].entry}
    found = verified(build, {"n": 512}, VerifyOptions("quick", 0.6))
    assert {k["kernel"]: k["status"] for k in found["kernels"]}[product] == "verified"
    assert [o["status"] for o in found["outputs"]] == ["verified"]


def test_nan_in_the_reference_is_reported() -> None:
    build = build_of("input %x: f32[8]\n%y: f32[8] = Log(%x) @ 'y'\noutput %y\n")
    engine = Engine(build.data, SimDevice())
    feeds = {"x": np.linspace(-1, 1, 8).astype(np.float32)}
    with pytest.warns(RuntimeWarning, match="NaN or infinite in 0.5"):
        found = verify_build(build, engine, Sample(feeds, {}), FULL, "fp32")
    assert found["outputs"][0]["nonfinite"] == 0.5


# ----------------------------------------------------------------------------------------------------- kernels alone


def test_one_launch_becomes_an_engine_of_fixed_shapes() -> None:
    build = build_of(TWO)
    planned = build.planned[2]
    single = single_launch(build.data, [planned.name], planned.sources[0].entry, {"n": 3})
    assert single.program.symbols == ()
    assert [t.shape for t in single.program.inputs] == [("3", "8")]
    assert [w.name for w in single.program.weights] == ["w"]
    assert len(single.program.launches) == 1
    s = np.random.default_rng(0).uniform(-1, 1, (3, 8)).astype(np.float32)
    got = Engine(single, SimDevice(checked=True)).run({single.program.inputs[0].name: s})
    np.testing.assert_allclose(got["b"], s @ build.data.weights["w"], rtol=1e-5, atol=1e-6)


SCATTER = """input %x: f32[6, 4]
input %i: i64[3, 1]
input %u: f32[3, 4]
%r: f32[6, 4] = Relu(%x) @ 'r'
%s: f32[6, 4] = ScatterND(%r, %i, %u, reduction='none', padding=0, strict=0) @ 's'
output %s
"""


def test_a_scatter_in_place_is_run_with_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "MAX_SEARCH", 0)
    build = build_of(SCATTER)
    assert [len(p.before) for p in build.planned] == [1]
    assert len(build.data.program.launches) == 2
    found = verified(build)
    assert [k["status"] for k in found["kernels"]] == ["verified"]
    *before, last = KernelCheck(build.planned[0], build.planned[0].sources[0]).launches()
    single = single_launch(build.data, [*(p.name for p in before), last.name], last.sources[0].entry, {})
    assert len(single.program.launches) == 2


# -------------------------------------------------------------------------------------------- errors that must not pass


def damaged(build: Build, old: str, new: str) -> Build:
    """The build with a piece of every kernel's text exchanged."""
    sources = {k: v.replace(old, new) for k, v in build.data.sources.items()}
    assert sources != build.data.sources
    return replace(build, data=replace(build.data, sources=sources))


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("input %x: f32[64]\n%y: f32[64] = Sigmoid(%x) @ 'y'\noutput %y\n", "expf(", "cosf("),
        ("input %x: i32[64]\n%y: i32[64] = Neg(%x) @ 'y'\noutput %y\n", "= -", "= 1-"),
        ("input %x: f16[64]\n%y: f16[64] = Add(%x, %x) @ 'y'\noutput %y\n", " + t1", " + 1.02f * t1"),
    ],
)
def test_damaged_kernels_are_found(text: str, old: str, new: str) -> None:
    build = build_of(text)
    verified(build)
    with pytest.raises(AccuracyError, match="computes y with relative error"):
        verified(damaged(build, old, new))


def test_damage_to_the_copy_before_a_scatter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "MAX_SEARCH", 0)
    build = build_of(SCATTER)
    with pytest.raises(AccuracyError, match="computes s"):
        verified(damaged(build, "max_nan(", "min_nan("))


@pytest.mark.parametrize(("dtype", "limit"), [("f32", 1e-3), ("f16", 2e-2), ("bf16", 8e-2)])
def test_a_model_in_half_precision_is_judged_as_such(dtype: str, limit: float) -> None:
    """Its reference rounds after every step, the engine only what it stores."""
    text = f"""graph 'g'
    input %x: {dtype}[4, 64]
    %a = Mul(%x, %x)
    %b = Sin(%a)
    %c = Mul(%b, %x)
    output %c"""
    graph = parse_graph(text)
    build = build_graph(graph, Options(), compile_kernels=False)
    found = verify_build(build, Engine(build.data, SimDevice()), Sample(sample_inputs(graph, {}), {}), FULL, "fp32")
    (output,) = found["outputs"]
    assert output["tolerance"] == limit


def test_a_graph_that_changed_its_meaning_is_found() -> None:
    build = build_of("input %x: f32[64]\n%y: f32[64] = Sigmoid(%x) @ 'y'\noutput %y\n")
    other: Graph = parse_graph("graph 'g'\ninput %x: f32[64]\n%y: f32[64] = Tanh(%x) @ 'y'\noutput %y\n")
    with pytest.raises(AccuracyError, match="output y has relative error"):
        verified(replace(build, imported=other))


def test_the_relative_error_of_the_largest_and_the_least_numbers() -> None:
    """Their squares are infinite or 0, in f64 too."""
    a = np.random.default_rng(0).uniform(1, 2, 100)
    wrong = a.copy()
    wrong[0] *= 3
    want = np.linalg.norm(wrong - a) / np.linalg.norm(a)
    for scale in (1.0, 1e-300, 1e-200, 1e200, 1e307):
        assert relative_error(a * scale, a * scale) == 0
        np.testing.assert_allclose(relative_error(wrong * scale, a * scale), want, rtol=1e-9)
    assert relative_error(np.ones(3), np.zeros(3)) == pytest.approx(np.sqrt(3))
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.zeros(0), np.zeros(0)) == 0


STEPS = """input %x: f32[4, 32]
weight %one: f32[32] source='one'
weight %v: f32[32, 8] source='v'
weight %s: f32[] data=0.5
%h = Mul(%x, %one)
{quantised}
%y = MatMul(%{h}, %v)
output %y
"""
QUANTISED = "%q = QuantizeLinear(%h, %s, axis=0, dtype=dtype(i8))\n%d = DequantizeLinear(%q, %s, axis=0)"


@pytest.mark.parametrize(
    ("quantised", "factor", "said"),
    [(True, 1.05, ""), (True, 1.2, "2.00e-01 against the reference, above 1e-01"), (False, 1.05, "above 1e-03")],
)
def test_a_step_of_a_quantised_model_is_no_fault(
    quantised: bool, factor: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values half way between steps become either neighbour, by rounding: results may differ by that, up to a tenth."""
    graph = parse_graph("graph 'g'\n" + STEPS.format(quantised=QUANTISED if quantised else "", h="dh"[not quantised]))
    rng = np.random.default_rng(0)
    arrays = {"one": np.ones(32, np.float32), "v": rng.standard_normal((32, 8)).astype(np.float32)}
    weights = {n: replace(w, data=arrays.get(n, w.data)) for n, w in graph.weights.items()}
    build = build_graph(graph.replace(weights=weights), Options(arch=("sm_80",)), compile_kernels=False)
    feeds = {"x": (rng.integers(-6, 6, (4, 32)) + 0.5).astype(np.float32) / 2}
    run = Engine.run_tensors

    def moved(engine: Engine, given: Any) -> Any:
        found = run(engine, given)
        return {n: a * np.float32(factor) if len(engine.program.launches) > 1 else a for n, a in found.items()}

    monkeypatch.setattr(Engine, "run_tensors", moved)
    engine = Engine(build.data, SimDevice())
    assert len(engine.program.launches) > 1
    if not said:
        (row,) = verify_build(build, engine, Sample(feeds, {}), VerifyOptions("quick"), "fp32")["outputs"]
        assert row["tolerance"] == MAX_ROUNDING
        return
    with pytest.raises(AccuracyError, match=said):
        verify_build(build, engine, Sample(feeds, {}), VerifyOptions("quick"), "fp32")
