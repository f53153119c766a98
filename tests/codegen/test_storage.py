"""Kernels that load and store the types that values are only stored in, on the checked simulator, beside ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from graph_runs import built, on_simulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

STORED = [d for d in DType if d.is_storage]
FLOATS = [d for d in STORED if d.is_float]


def cast(source: DType, target: DType, count: int) -> Graph:
    return parse_graph(f"""graph 'cast'
input %x: {source.value}[{count}]
%y = Cast(%x, to=dtype({target.value}))
output %y
""")


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    (found,) = on_simulator(built(graph), {"x": x}).values()
    return found


@pytest.mark.parametrize("dtype", STORED)
def test_every_pattern_is_loaded_as_it_is(dtype: DType) -> None:
    patterns = np.arange(1 << dtype.bits, dtype=np.uint8).view(dtype.numpy)
    x = np.tile(patterns, 3)[: 2 * patterns.size + 3]  # the last byte is not full
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(cast(dtype, DType.F32, x.size), x), x.astype(np.float32))


def boundaries(dtype: DType) -> np.ndarray:
    """All numbers of a type, those half way between neighbours and one f32 beside these, the largest and the least."""
    patterns = np.arange(1 << dtype.bits, dtype=np.uint8).view(dtype.numpy).astype(np.float32)
    finite = np.unique(patterns[np.isfinite(patterns)])
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    with np.errstate(over="ignore"):
        beyond = np.float32(finite[-1]) * np.float32([1.01, 1.0625, 1.07, 1.12, 1.2, 1.5, 2, 1e9])
    extremes = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 1e-40])
    found = np.concatenate([finite, middle, beyond, -beyond, extremes])
    sides = [np.nextafter(found, np.float32(side)) for side in (np.inf, -np.inf)]
    return np.concatenate([found, *sides]).astype(np.float32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_boundary_rounds_as_in_ml_dtypes(dtype: DType) -> None:
    x = boundaries(dtype)
    found = run(cast(DType.F32, dtype, x.size), x)
    assert from_numpy(found.dtype) is dtype
    with np.errstate(invalid="ignore", over="ignore"):
        want = x.astype(dtype.numpy)
    np.testing.assert_array_equal(found.astype(np.float32), want.astype(np.float32))
    zeros = want.astype(np.float32) == 0  # whose signs are equal too
    np.testing.assert_array_equal(found.view(np.uint8)[zeros], want.view(np.uint8)[zeros])


@pytest.mark.parametrize("dtype", [d for d in STORED if d.is_int])
def test_integers_keep_their_lowest_bits(dtype: DType) -> None:
    x = np.arange(-40, 41, dtype=np.int32)
    found, want = run(cast(DType.I32, dtype, x.size), x), x.astype(dtype.numpy)
    np.testing.assert_array_equal(found.astype(np.int8), want.astype(np.int8))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([d for d in STORED if d.is_packed]), st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.permutations(range(3)), st.integers(0, 99),
)  # fmt: skip
def test_movements_of_packed_values(dtype: DType, shape: list[int], order: list[int], seed: int) -> None:
    """Packed inputs through views, sums of neighbours and back: any shape, whole bytes or not."""
    perm = tuple(p for p in order if p < len(shape))
    graph = parse_graph(f"""graph 'moved'
input %x: {dtype.value}[{", ".join(map(str, shape))}]
weight %two: f32[] data=2.0
%t = Transpose(%x, perm={perm if len(perm) > 1 else f"({perm[0]},)"})
%f = Cast(%t, to=dtype(f32))
%g = Mul(%f, %two)
output %t
output %g
""")
    x = np.random.default_rng(seed).integers(0, 1 << dtype.bits, shape).astype(np.uint8).view(dtype.numpy)
    found = on_simulator(built(graph), {"x": x})
    want = np.ascontiguousarray(x.transpose(perm))
    np.testing.assert_array_equal(found["t"].view(np.uint8), want.view(np.uint8))
    np.testing.assert_array_equal(found["g"], want.astype(np.float32) * 2)


@pytest.mark.parametrize("dtype", STORED)
def test_loads_and_stores_compile(dtype: DType) -> None:
    graph = parse_graph(f"""graph 'both'
input %x: {dtype.value}[3, 40]
input %f: f32[3, 40]
%wide = Cast(%x, to=dtype(f32))
%sum = Add(%wide, %f)
%y = Cast(%sum, to=dtype({dtype.value}))
output %sum
output %y
""")
    build = build_graph(graph, Options(arch=("sm_80", "sm_90a")), cache=DiskCache())
    assert {arch for arch, _ in build.data.cubins} == {"sm_80", "sm_90a"}


def test_infinity_and_nan_are_what_the_type_has() -> None:
    x = np.float32([np.inf, -np.inf, np.nan])
    assert np.isinf(run(cast(DType.F32, DType.F8E5M2, 3), x).astype(np.float32)).tolist() == [True, True, False]
    assert np.isnan(run(cast(DType.F32, DType.F8E4M3FN, 3), x).astype(np.float32)).all()
    four = run(cast(DType.F32, DType.F4E2M1, 2), x[:2])
    assert four.tolist() == [float(ml_dtypes.finfo(four.dtype).max), -float(ml_dtypes.finfo(four.dtype).max)]
