"""The runtime on an NVIDIA GPU: the same engines as on the sim device, graphs, streams, PDL, TMA, torch and
CuPy.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from arcweld.codegen.nvrtc import compiler as nvrtc
from arcweld.codegen.nvrtc.compiler import compile_cubin, compile_ptx
from arcweld.compiler.errors import DeviceError, InputError
from arcweld.compiler.parameters import Pointer
from arcweld.runtime import devices, injected
from arcweld.runtime.device import KernelImage, LaunchSpec
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import SCHEMA, Program, Symbol, Tensor, Variant, WeightEntry

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from runtime_programs import ROW_SUM, SCALE_ADD, chain, chain_reference, scale_add, single, tiles, weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices.gpu_count() == 0, reason="needs an NVIDIA GPU")]

W = weights()["w"]


@pytest.fixture(scope="module")
def device() -> Any:
    return devices.open_device("cuda")


@pytest.fixture(scope="module")
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return module


@pytest.fixture(scope="module")
def cupy() -> Any:
    return pytest.importorskip("cupy")


def built(data: EngineData, arch: str) -> EngineData:
    """``data`` with cubins for ``arch``."""
    cubins = {(arch, n): compile_cubin(s, arch, name=n, strict=True).cubin for n, s in data.sources.items()}
    return replace(data, cubins=cubins, headers=dict(nvrtc.headers()))


@pytest.fixture(scope="module")
def engine(device: Any) -> Engine:
    return Engine(built(chain(), device.arch), device)


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


def check(engine: Engine, x: np.ndarray, given: Any = None, back: Any = np.asarray) -> None:
    y, total = engine(x if given is None else given)
    want, want_total = chain_reference(x, W)
    np.testing.assert_allclose(back(y), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back(total), want_total, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------------------------- numpy, graphs


@pytest.mark.parametrize("graphs", [False, True])
def test_any_sequence_of_shapes_matches_numpy(device: Any, graphs: bool) -> None:
    data = built(chain(), device.arch)
    data = replace(data, program=msgspec.structs.replace(data.program, symbols=(Symbol("n", 0, 4096),)))
    engine = Engine(data, device, graphs=graphs)
    for seed, n in enumerate([5, 5, 5, 0, 64, 64, 5, 64, 1, 0, 300, 5, 300, 300]):
        check(engine, rows(n, seed))


def test_graph_replays_equal_plain_launches_bit_for_bit(device: Any) -> None:
    data = built(chain(), device.arch)
    plain, graphed = Engine(data, device, graphs=False), Engine(data, device)
    for seed in range(4):
        x = rows(33, seed)
        np.testing.assert_array_equal(plain(x)[0], graphed(x)[0])


def test_results_are_never_overwritten(engine: Engine, cupy: Any) -> None:
    kept = []
    for seed in range(6):
        x = rows(16, seed)
        kept.append((engine(cupy.asarray(x))[0], chain_reference(x, W)[0]))
    for y, want in kept:
        np.testing.assert_allclose(y.get(), want, rtol=1e-5, atol=1e-5)


def test_many_shapes_with_graphs_do_not_leak(device: Any) -> None:
    engine = Engine(built(chain(), device.arch), device)
    for _ in range(2):
        for n in range(1, 90):
            engine(rows(n))
            engine(rows(n))
    (context,) = engine._local.contexts.values()
    assert sum(b.graphs for b in context._specialised.values()) <= 32
    assert len(context._specialised) <= 64


def test_threads(engine: Engine) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in [*range(1, 10), *range(1, 10), *range(1, 10)]:
                check(engine, rows(n, seed * 100 + n))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


# --------------------------------------------------------------------------------------------- torch and CuPy


def test_cupy_in_cupy_out(engine: Engine, cupy: Any) -> None:
    for seed in range(3):
        x = rows(9, seed)
        y, total = engine(cupy.asarray(x))
        assert isinstance(y, cupy.ndarray)
        assert isinstance(total, cupy.ndarray)
        np.testing.assert_allclose(y.get(), chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)
    check(engine, x, cupy.asfortranarray(cupy.asarray(x)), lambda a: a.get())
    wide = cupy.empty(9 * 8 + 1, "f")
    wide[1:] = cupy.asarray(x).reshape(-1)
    check(engine, x, wide[1:].reshape(9, 8), lambda a: a.get())  # 4-byte aligned only


def test_torch_in_torch_out(engine: Engine, torch: Any) -> None:
    x = rows(9)
    for given in (torch.from_numpy(x).cuda(), torch.from_numpy(x.T.copy()).cuda().T, torch.from_numpy(x)):
        y, _ = engine(given)
        assert isinstance(y, torch.Tensor)
        assert y.device.type == given.device.type
        np.testing.assert_allclose(y.cpu().numpy(), chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)


def test_torchs_current_stream_is_respected(engine: Engine, torch: Any) -> None:
    """A slow producer on a side stream: an engine on any other stream would read its input too early."""
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device="cuda")
    base = torch.from_numpy(rows(12)).cuda()
    engine(base)
    torch.cuda.synchronize()
    for seed in range(4):
        with torch.cuda.stream(stream):
            x = torch.full((12, 8), float("nan"), device="cuda")
            for _ in range(10):
                slow = slow @ slow * 1e-4
            x.copy_(base * (seed + 1))
            y, _ = engine(x)
            y = y + 0.0
        stream.synchronize()
        want = chain_reference(rows(12) * (seed + 1), W)[0]
        np.testing.assert_allclose(y.cpu().numpy(), want, rtol=1e-5, atol=1e-5)


def test_inside_torchs_graph_capture(engine: Engine, torch: Any) -> None:
    x = torch.from_numpy(rows(10)).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            engine(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        y, _ = engine(x)
    for seed in range(3):
        x.copy_(torch.from_numpy(rows(10, seed)))
        graph.replay()
        torch.cuda.synchronize()
        np.testing.assert_allclose(y.cpu().numpy(), chain_reference(rows(10, seed), W)[0], rtol=1e-5, atol=1e-5)


def test_a_recorded_graph_outlives_its_context(device: Any, torch: Any) -> None:
    """Calls on further streams make the engine forget the one that the caller recorded on, but not its memory."""
    engine = Engine(built(chain(), device.arch), device)
    x = torch.from_numpy(rows(300)).cuda()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        engine(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        y, _ = engine(x)
    others = [torch.cuda.Stream() for _ in range(6)]
    for seed in range(3):
        x.copy_(torch.from_numpy(rows(300, seed)))
        torch.cuda.synchronize()
        graph.replay()
        for stream in others:  # at the same time as the replay
            with torch.cuda.stream(stream):
                engine(torch.ones_like(x))
        torch.cuda.synchronize()
        np.testing.assert_allclose(y.cpu().numpy(), chain_reference(rows(300, seed), W)[0], rtol=1e-5, atol=1e-5)


def test_recorded_graphs_may_overlap(device: Any, torch: Any) -> None:
    """Two graphs, recorded on one stream, are replayed on two streams at once, with calls on a third."""
    engine = Engine(built(chain(), device.arch), device)
    side, streams = torch.cuda.Stream(), [torch.cuda.Stream() for _ in range(3)]
    inputs = [torch.from_numpy(rows(4000, seed)).cuda() for seed in (1, 2, 3)]
    with torch.cuda.stream(side):
        engine(inputs[0])
    torch.cuda.synchronize()
    recorded = []
    for x in inputs[:2]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            y, _ = engine(x)
        recorded.append((graph, y))
    for _ in range(50):
        for stream, (graph, _) in zip(streams, recorded):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(streams[2]):
            last, _ = engine(inputs[2])
    torch.cuda.synchronize()
    for seed, y in zip((1, 2, 3), [*(y for _, y in recorded), last]):
        np.testing.assert_allclose(y.cpu().numpy(), chain_reference(rows(4000, seed), W)[0], rtol=1e-5, atol=1e-5)


def test_torch_and_the_engine_share_the_memory(engine: Engine, torch: Any) -> None:
    """No hidden host copies: a call allocates its results and nothing that stays."""
    x = torch.from_numpy(rows(64)).cuda()
    for _ in range(3):
        engine(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        engine(x)
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_arrays_that_come_back_use_graphs_without_copies(engine: Engine, torch: Any) -> None:
    x = torch.from_numpy(rows(48)).cuda()
    for seed in range(20):
        x.copy_(torch.from_numpy(rows(48, seed)))
        y, total = engine(x)
        want, want_total = chain_reference(rows(48, seed), W)
        np.testing.assert_allclose(y.cpu().numpy(), want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(total.cpu().numpy(), want_total, rtol=1e-4, atol=1e-3)
    bound = [c._specialised[((48, 8),)] for c in engine._local.contexts.values() if ((48, 8),) in c._specialised]
    assert any(b.direct for b in bound)


def test_wrong_device_is_refused(torch: Any) -> None:
    sim = Engine(chain(), "sim")
    with pytest.raises(InputError, match="is on a GPU"):
        sim(torch.zeros((2, 8), device="cuda"))


def test_host_cost_of_a_call(engine: Engine, torch: Any) -> None:
    """The Python and driver time of one replayed call with device tensors."""
    x = torch.from_numpy(rows(32)).cuda()
    for _ in range(50):
        engine(x)
    torch.cuda.synchronize()
    best = 1.0
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(50):
            engine(x)
        best = min(best, (time.perf_counter() - begin) / 50)
        torch.cuda.synchronize()
    print(f"host cost of one call: {best * 1e6:.1f} us")
    assert best < 60e-6


# ------------------------------------------------------------------------------------------------ object code


def test_ptx_and_rebuild(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(chain(), headers=dict(nvrtc.headers()))
    ptx = {n: compile_ptx(s, "sm_80", name=n) for n, s in data.sources.items()}
    engine = Engine(replace(data, ptx=ptx), device)
    assert set(engine.kernel_origins.values()) == {"ptx"}
    check(engine, rows(7))

    def rebuild(name: str, source: str, headers: dict[str, str], arch: str) -> bytes:
        job = nvrtc.Job(source, arch, name, headers=tuple(sorted(headers.items())))
        return nvrtc.compile_job(job).cubin

    monkeypatch.setattr(injected, "rebuild", rebuild)
    other = "sm_80" if not device.arch.startswith("sm_8") else "sm_90"
    cubins = {(device.arch, n): compile_cubin(s, other, name=n).cubin for n, s in data.sources.items()}
    engine = Engine(replace(data, cubins=cubins), device)  # mislabelled: the driver refuses them
    assert set(engine.kernel_origins.values()) == {"rebuilt from source"}
    check(engine, rows(7))


def test_save_load_update(device: Any, tmp_path: Path) -> None:
    Engine(built(chain(), device.arch), device).save(tmp_path / "chain.engine")
    engine = load(tmp_path / "chain.engine", "cuda")
    x = rows(6)
    check(engine, x)
    check(engine, x)
    new = np.linspace(-1, 1, 8).astype(np.float32)
    engine.update_weights({"model.w": new})
    for _ in range(2):
        np.testing.assert_allclose(engine(x)[0], chain_reference(x, new)[0], rtol=1e-5, atol=1e-5)


def test_out_of_memory_is_a_device_error(device: Any) -> None:
    with pytest.raises(DeviceError, match="out of GPU memory"):
        device.allocate(1 << 45)


def test_bad_launches_are_device_errors(device: Any) -> None:
    arch = device.arch
    image = KernelImage("row_sum", "row_sum", ROW_SUM, compile_cubin(ROW_SUM, arch, name="row_sum").cubin, None)
    token = device.enter()
    try:
        with pytest.raises(DeviceError, match="does not load"):
            device.load_kernel(replace(image, entry="nothing"), 0)
        kernel = device.load_kernel(image, 0)
        spec = LaunchSpec("row_sum", kernel, (1, 1, 1), (1024, 1, 1), 300_000, 1, False, bytes(24), ())
        with pytest.raises(DeviceError, match="launching row_sum failed"):
            device.launch(device.prepare(spec))
    finally:
        device.leave(token)


# ------------------------------------------------------------------------------- PDL chains, clusters and TMA


@pytest.mark.parametrize("code", ["cubin", "ptx"])
def test_a_chain_under_programmatic_launch(device: Any, code: str) -> None:
    """200 dependent kernels, each waiting for its predecessor: one that runs early spoils the result.

    PTX for sm_80 has no instruction to wait with: its kernels must not be launched programmatically at all.
    """
    length = 200
    temps = tuple(Tensor(f"t{i}", "f32", ("n",)) for i in range(length - 1))
    names = ["x", *(t.name for t in temps), "y"]
    launches = tuple(scale_add(f"k{i}", names[i], "w", names[i + 1], 1.0, "n", "8") for i in range(length))
    for pdl in (False, True):
        steps = tuple(
            msgspec.structs.replace(k, variants=(msgspec.structs.replace(k.variants[0], pdl=pdl),)) for k in launches
        )
        program = Program(
            schema=SCHEMA,
            name="long",
            symbols=(Symbol("n"),),
            inputs=(Tensor("x", "f32", ("n",)),),
            outputs=(Tensor("y", "f32", ("n",)),),
            weights=(WeightEntry("w", "f32", (8,)),),
            temps=temps,
            aliases=(),
            launches=steps,
        )
        data = EngineData(program, {"scale_add": SCALE_ADD}, {"w": W})
        if code == "ptx":
            data = replace(data, ptx={"scale_add": compile_ptx(SCALE_ADD, "sm_80", name="scale_add")})
        engine = Engine(built(data, device.arch) if code == "cubin" else data, device)
        assert engine.memory(n=1 << 16).arena == 2 << 18
        x = np.random.default_rng(3).standard_normal(1 << 16).astype(np.float32)
        want = x.astype(np.float64) + length * np.tile(W, (1 << 16) // 8)
        for _ in range(4):
            np.testing.assert_allclose(engine(x), want, rtol=1e-4, atol=1e-3)


CLUSTERS = """#include "prims.cuh"
struct Params { i32* y; };
extern "C" __global__ void __launch_bounds__(32) clusters(const __grid_constant__ Params p) {
  unsigned rank, count;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
  if (threadIdx.x == 0) p.y[blockIdx.x] = rank * 100 + count;
}
EXPORT_KERNEL(clusters)
"""


def hopper(device: Any) -> None:
    if int(device.arch.removeprefix("sm_").rstrip("af")) < 90:
        pytest.skip("needs sm_90")


def test_clusters(device: Any) -> None:
    hopper(device)
    source = CLUSTERS.replace("i32* y;", "i32* y; const f32* x;")
    params = (Pointer("y", "y"), Pointer("x", "x"))
    variant = Variant("sm_90", "clusters", "clusters", ("4*n", "1", "1"), (32, 1, 1), 0, params, cluster=4)
    x, y = Tensor("x", "f32", ("n",)), Tensor("y", "i32", ("4*n",))
    engine = Engine(built(single("clusters", source, variant, (x,), y), device.arch), device)
    for _ in range(3):
        result = engine(np.zeros(3, np.float32))
        assert result.tolist() == [4, 104, 204, 304] * 3


def test_tensor_maps(device: Any) -> None:
    hopper(device)
    engine = Engine(built(tiles(), device.arch), device)
    for n in (8, 8, 8, 29, 29, 29, 1):
        array = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
        np.testing.assert_array_equal(engine(array), array.T)
