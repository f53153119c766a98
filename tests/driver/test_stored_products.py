"""Products of packed weights by every engine, on the checked simulator, beside numpy in f64."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcweld.compiler.dtypes import FLOATS8, INTS4, PLANES, DType, integer_range
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.build import build_graph
from arcweld.passes import storage
from arcweld.runtime.engine import Engine
from arcweld.runtime.kernels import choose_variant
from arcweld.runtime.sim.device import SimDevice

STORED = (*INTS4, DType.I8, DType.U8, *FLOATS8, DType.F4E2M1)
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}  # the activations are rounded to the type


@pytest.fixture(autouse=True)
def _always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it pays is not what these tests ask."""
    monkeypatch.setattr(storage, "SLACK", float("inf"))
    monkeypatch.setattr(storage, "SMALL", 0)


def product(
    dtype: DType, m: int | str, n: int, k: int, block: int, zero: bool, along_k: bool, seed: int = 0, x: str = "f32"
) -> tuple[Graph, np.ndarray]:
    """``x @ w`` with w stored as [n, k] or [k, n], and the dequantised w [k, n] in f64. ``x``: the input's type."""
    rng = np.random.default_rng(seed)
    shape, axis = ((n, k), 1) if along_k else ((k, n), 0)
    patterns = rng.integers(0, 1 << dtype.bits, shape).astype(np.uint8).view(dtype.numpy)
    q = patterns.astype(np.float64)
    if not np.isfinite(q).all():  # the patterns of NaN and infinity
        patterns = np.where(np.isfinite(q), patterns, np.zeros((), dtype.numpy))
        q = patterns.astype(np.float64)
    groups = [-(-d // block) if i == axis and block else d if i != axis else 1 for i, d in enumerate(shape)]
    scales = rng.uniform(0.01, 0.02, groups).astype(np.float32) / max(1.0, float(np.abs(q).max()) / 8)
    scales = scales if block else scales.reshape(-1)
    zeros = None
    if zero and dtype.is_int:
        low, high = integer_range(dtype)
        zeros = rng.integers(low, high + 1, scales.shape).astype(dtype.compute.numpy).astype(dtype.numpy)
    listed = ", ".join(map(str, scales.shape))
    graph = parse_graph(f"""graph 'product'
{"" if isinstance(m, int) else f"symbol {m}(lo=1, hi=4096)"}
input %x: {x}[{m}, {k}]
weight %w: {dtype.value}[{shape[0]}, {shape[1]}] source='w'
weight %s: f32[{listed}] source='s'
{f"weight %z: {dtype.value}[{listed}] source='z'" if zeros is not None else ""}
%d = DequantizeLinear(%w, %s{", %z" if zeros is not None else ""}, axis={axis if block else 1 - axis}, block={block})
{"%t = Transpose(%d, perm=(1, 0))" if along_k else ""}
%f = Cast(%x, to=dtype(f32))
%y = MatMul(%f, %{"t" if along_k else "d"})
output %y
""")
    arrays = {"w": patterns, "s": scales, "z": zeros}
    graph = graph.replace(weights={name: Weight(arrays[name], name) for name in graph.weights})

    def spread(a: np.ndarray) -> np.ndarray:
        if not block:
            return np.expand_dims(a.astype(np.float64), axis)
        return np.take(np.repeat(a.astype(np.float64), block, axis), np.arange(shape[axis]), axis)

    dense = (q - (0.0 if zeros is None else spread(zeros))) * spread(scales)
    return graph, dense.T if along_k else dense


def check(graph: Graph, dense: np.ndarray, precision: str, arch: str = "sm_80") -> None:
    build = build_graph(graph, Options(arch=(arch,), precision=precision), compile_kernels=False)
    stored = graph.weights["w"].data
    assert any(w.dtype in (np.uint8, stored.dtype) and w.nbytes < 2 * stored.size for w in build.data.weights.values())
    (m, k), rng = graph.inputs[0].shape, np.random.default_rng(1)
    x = rng.standard_normal((m, k)).astype(np.float32)
    found = Engine(build.data, SimDevice(arch=arch, checked=True)).run({"x": x})["y"]
    want = x.astype(np.float64) @ dense
    scale = np.sqrt((x.astype(np.float64) ** 2) @ (dense**2)).max()
    np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE[precision] * scale * 4)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(STORED), st.sampled_from([1, 2, 5, 8, 9, 16, 17]), st.integers(1, 70), st.integers(1, 260),
    st.sampled_from([0, 32, 64, 128]), st.booleans(), st.booleans(), st.sampled_from(list(TOLERANCE)),
)  # fmt: skip
def test_any_shape(
    dtype: DType, m: int, n: int, k: int, block: int, zero: bool, along_k: bool, precision: str
) -> None:
    check(*product(dtype, m, n, k, block, zero, along_k), precision)


ROWS, BLOCKS = (1, 5, 16, 64, 512), (32, 64, 128, 0)
EVERY = [(t, b, m) for t in range(len(STORED)) for b in range(len(BLOCKS)) for m in range(len(ROWS))]
# all of them take ten minutes (``ARCWELD_EVERY=1``); each pair of a type, a group and a number of rows occurs here
CHOSEN = EVERY if os.environ.get("ARCWELD_EVERY") else [c for c in EVERY if sum(c) % len(BLOCKS) == 0]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "block", "m"), [(STORED[t], BLOCKS[b], ROWS[m]) for t, b, m in CHOSEN])
def test_every_type_and_group_by_every_engine(dtype: DType, block: int, m: int) -> None:
    """Ragged columns, and k in whole pieces and not; f32 by ordinary arithmetic, 16 bits on tensor cores."""
    for precision, k in (("fp32", 136), ("fp16", 256), ("bf16", 200)):
        check(*product(dtype, m, 70, k, block, zero=block != 64, along_k=True), precision)
    check(*product(dtype, m, 40, 256, block, zero=False, along_k=True), "fp16", "sm_90a")


def by_warpgroups(graph: Graph, precision: str) -> Engine:
    """An engine of sm_90a, whose products of many rows are all ``wgmma``, on weights that stay packed."""
    build = build_graph(graph, Options(arch=("sm_90a",), precision=precision), compile_kernels=False)
    launches = [x for x in build.data.program.all_launches() if x.template in ("contract", "chain")]
    chosen = [build.data.sources[choose_variant(x, "sm_90a").kernel] for x in launches]
    assert any("wgmma_rs" in s for s in chosen)
    assert all("wgmma_rs" in s or "multiply_piece" in s for s in chosen)  # the latter of few rows
    assert max(build.data.weights.values(), key=lambda w: w.nbytes).dtype.itemsize == 1
    return Engine(build.data, SimDevice(arch="sm_90a", checked=True))


def in_planes(high: DType, m: int, n: int, k: int, block: int) -> tuple[Graph, np.ndarray]:
    """``product`` of integers of 5 or 6 bits, less the half of their range."""
    graph, _ = product(DType.U4, m, n, k, block, False, True)
    rng, half = np.random.default_rng(9), 8 << high.bits
    above = rng.integers(0, 1 << high.bits, (n, k)).astype(high.numpy)
    graph = graph.replace(weights=graph.weights | {
        "h": Weight(above, "h"), "z": Weight(np.array(half, np.uint8), "z"),
    })  # fmt: skip
    w, s = (graph.weights[name].data for name in "ws")
    text = print_graph(graph).replace("(%w, %s", "(%w, %s, %z, _, %h")
    back = parse_graph(text).replace(weights=graph.weights)
    q = w.astype(np.float64) + 16 * above.astype(np.float64) - half
    return back, (q * np.repeat(s.astype(np.float64), block, 1)[:, :k]).T


@pytest.mark.parametrize("high", PLANES, ids=lambda d: d.value)
@pytest.mark.parametrize(("m", "k", "precision"), [
    (1, 136, "fp32"), (3, 256, "fp16"), (5, 160, "bf16"), (65, 96, "fp16"),
])  # fmt: skip
def test_integers_in_two_planes(high: DType, m: int, k: int, precision: str) -> None:
    for arch in ("sm_80", "sm_90a"):
        graph, dense = in_planes(high, m, 70, k, 32)
        build = build_graph(graph, Options(arch=(arch,), precision=precision), compile_kernels=False)
        assert any(f"Planes<u4, {high.value}>" in s for s in build.data.sources.values()) == (m in (3, 5))
        check(graph, dense, precision, arch)


MANY = (
    (DType.U4, 32, 64), (DType.I4, 128, 512), (DType.U4, 64, 73), (DType.U8, 64, 73), (DType.I8, 0, 130),
    (DType.F8E4M3FN, 32, 70), (DType.F4E2M1, 32, 65),
)  # fmt: skip


@pytest.mark.parametrize(("dtype", "block", "m"), MANY)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_many_rows_by_warpgroups(dtype: DType, block: int, m: int, precision: str) -> None:
    graph, dense = product(dtype, m, 70, 384, block, True, along_k=precision == "fp16", x=precision.replace("fp", "f"))
    x = np.random.default_rng(1).standard_normal((m, 384)).astype(graph.inputs[0].dtype.numpy)
    found = by_warpgroups(graph, precision).run({"x": x})["y"]
    scale = np.sqrt((x.astype(np.float64) ** 2) @ (dense**2)).max()
    np.testing.assert_allclose(found, x.astype(np.float64) @ dense, rtol=0, atol=TOLERANCE[precision] * scale * 4)


@pytest.mark.parametrize("along_k", [False, True])
def test_new_packed_weights_for_warpgroups(along_k: bool) -> None:
    """Also where they were transposed for the kernels, and for any number of rows in one engine."""
    make = lambda seed: product(DType.U4, "n", 96, 256, 32, True, along_k, seed, "f16")
    (graph, old), (other, new) = make(0), make(1)
    engine = by_warpgroups(graph, "fp16")
    for dense in (old, new):
        for m in (1, 17, 150):
            x = np.random.default_rng(m).standard_normal((m, 256)).astype(np.float16)
            want = x.astype(np.float64) @ dense
            np.testing.assert_allclose(engine.run({"x": x})["y"], want, rtol=0, atol=2e-3 * np.abs(want).max())
        engine.update_weights({name: w.data for name, w in other.weights.items()})
