"""Small engines written by hand, with what they compute in numpy: for the tests of the runtime."""

from __future__ import annotations

import numpy as np

from arcweld.compiler.parameters import Float, Integer, Parameter, Pointer, TensorMap
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import SCHEMA, Alias, Launch, Program, Symbol, Tensor, Variant, WeightEntry

SCALE_ADD = """#include "prims.cuh"
// y = factor * x + w[i % m], one element a thread.
struct Params { const f32* x; const f32* w; f32* y; f32 factor; i32 n; i32 m; };
extern "C" __global__ void __launch_bounds__(128) scale_add(const __grid_constant__ Params p) {
  pdl_wait();
  int i = blockIdx.x * 128 + threadIdx.x;
  if (i < p.n) p.y[i] = p.factor * p.x[i] + p.w[i % p.m];
}
EXPORT_KERNEL(scale_add)
"""

ROW_SUM = """#include "prims.cuh"
// total[0] += the sum of each block's 128 elements: needs a cleared total.
struct Params { const f32* x; f32* total; i64 n; };
extern "C" __global__ void __launch_bounds__(128) row_sum(const __grid_constant__ Params p) {
  pdl_wait();
  int i = blockIdx.x * 128 + threadIdx.x;
  if (i < p.n) atomic_add(p.total, p.x[i]);
}
EXPORT_KERNEL(row_sum)
"""


def variant(kernel: str, params: tuple[Parameter[str], ...], count: str, arch: str = "sm_80") -> Variant:
    grid = (f"floordiv({count} + 127, 128)", "1", "1")
    return Variant(arch=arch, kernel=kernel, entry=kernel, grid=grid, block=(128, 1, 1), shared_bytes=0, params=params)


def scale_add(name: str, x: str, w: str, y: str, factor: float, count: str, period: str) -> Launch:
    params = (
        Pointer("x", x),
        Pointer("w", w),
        Pointer("y", y),
        Float("factor", factor),
        Integer("n", count),
        Integer("m", period),
    )
    return Launch(
        name,
        "pointwise",
        (variant("scale_add", params, count),),
        (x, w),
        (y,),
        origin=(name,),
        flops=f"2*({count})",
    )


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal(8).astype(np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
    }


def chain() -> EngineData:
    """``y = 3 * (2 * x + w) + w`` over ``x[n, 8]``, and ``total``, the sum of y: two temps' worth of
    launches.
    """
    elements = "8*n"
    sum_params = (Pointer("x", "y"), Pointer("total", "total"), Integer("n", elements, 64))
    program = Program(
        schema=SCHEMA,
        name="chain",
        symbols=(Symbol("n", 1, 4096),),
        inputs=(Tensor("x", "f32", ("n", "8")),),
        outputs=(Tensor("y", "f32", ("n", "8")), Tensor("total", "f32", ())),
        weights=(WeightEntry("w", "f32", (8,), "model.w"), WeightEntry("half", "f16", (3, 5))),
        temps=(Tensor("t", "f32", ("n", "8")), Tensor("flat", "f32", ("8*n",))),
        aliases=(Alias("flat", "t"),),
        launches=(
            scale_add("first", "x", "w", "t", 2.0, elements, "8"),
            scale_add("second", "flat", "w", "y", 3.0, elements, "8"),
            Launch(
                "third",
                "reduce",
                (variant("row_sum", sum_params, elements),),
                ("y",),
                ("total",),
                zero=("total",),
            ),
        ),
    )
    return EngineData(
        program=program,
        sources={"scale_add": SCALE_ADD, "row_sum": ROW_SUM},
        weights=weights(),
        graph="graph chain(x: f32[n, 8]) -> (y, total)\n",
        provenance={"arcweld": "test"},
        tuning={"cases": []},
        verify={"level": "full", "kernels": [], "outputs": []},
    )


def chain_reference(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``chain`` in float64."""
    y = 3.0 * (2.0 * x.astype(np.float64) + w) + w
    return y, y.sum()


# total = the sum of x, whose blocks leave partial sums in a workspace of their own; the last one to count adds them up.
PARTIAL_SUMS = """#include "prims.cuh"
struct Params { const f32* x; f32* total; f32* partial; u32* count; i32 n; };
extern "C" __global__ void __launch_bounds__(32) partial_sums(const __grid_constant__ Params p) {
  DYN_SHARED(u32, last);
  pdl_wait();
  if (threadIdx.x == 0) {
    f32 sum = 0.f;
    for (int i = 32 * blockIdx.x; i < p.n && i < 32 * (int)blockIdx.x + 32; ++i) {
      if (p.x[i] == 1e9f) *reinterpret_cast<volatile int*>(8) = 0;  // an access that the simulator refuses
      sum += p.x[i];
    }
    p.partial[blockIdx.x] = sum;
    threadfence();
    last[0] = atomic_inc(p.count, gridDim.x - 1);
    threadfence();
    if (last[0] == gridDim.x - 1) {
      f32 total = 0.f;
      for (u32 b = 0; b < gridDim.x; ++b) total += p.partial[b];
      *p.total = total;
    }
  }
}
EXPORT_KERNEL(partial_sums)
"""


def partial_sums() -> EngineData:
    """``total = sum(x) + sum(2 x)`` by two launches of a kernel with a workspace and a counter, and one that adds."""
    blocks = "floordiv(n + 31, 32)"

    def launch(name: str, x: str, total: str) -> Launch:
        params = (
            Pointer("x", x), Pointer("total", total), Pointer("partial", f"{name}.partial"),
            Pointer("count", f"{name}.count"), Integer("n", "n"),
        )  # fmt: skip
        variant = Variant(
            "sm_80", "partial_sums", "partial_sums", (blocks, "1", "1"), (32, 1, 1), 16, params,
            workspace=(Tensor(f"{name}.partial", "f32", (blocks,)),), counters=(Tensor(f"{name}.count", "u32", ()),),
        )  # fmt: skip
        return Launch(name, "reduce", (variant,), (x,), (total,))

    program = Program(
        schema=SCHEMA,
        name="partial_sums",
        symbols=(Symbol("n", 1, 4096),),
        inputs=(Tensor("x", "f32", ("n",)),),
        outputs=(Tensor("once", "f32", ("1",)), Tensor("total", "f32", ("1",))),
        weights=(WeightEntry("zero", "f32", (1,)),),
        temps=(Tensor("twice", "f32", ("n",)), Tensor("doubled", "f32", ("1",))),
        aliases=(),
        launches=(
            launch("first", "x", "once"),
            scale_add("double", "x", "zero", "twice", 2.0, "n", "1"),
            launch("second", "twice", "doubled"),
            scale_add("sum", "doubled", "once", "total", 1.0, "1", "1"),
        ),
    )
    sources = {"partial_sums": PARTIAL_SUMS, "scale_add": SCALE_ADD}
    return EngineData(program, sources, {"zero": np.zeros(1, np.float32)})


# Each block brings one 8 x 32 tile of x into shared memory by TMA (128-byte swizzle) and writes it out
# transposed.
TILES = """#include "prims.cuh"
struct Params { f32* y; i32 rows; TensorMap x; };
extern "C" __global__ void __launch_bounds__(128) tiles(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  u32 tile = smem_u32(smem), bar = smem_u32(smem + 2048);
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    fence_mbar_init();
  }
  __syncthreads();
  pdl_wait();
  if (threadIdx.x == 0) {
    mbar_expect_tx(bar, 8 * 32 * 4);
    tma_load_2d(tile, &p.x, bar, 32 * blockIdx.x, 8 * blockIdx.y);
  }
  mbar_wait(bar, 0);
  const f32* s = reinterpret_cast<const f32*>(smem);
  for (int i = threadIdx.x; i < 256; i += 128) {
    int row = i / 32, column = i % 32;
    int chunk = (column / 4) ^ (row % 8);
    f32 value = s[row * 32 + chunk * 4 + column % 4];
    if (8 * blockIdx.y + row < p.rows) p.y[(32 * blockIdx.x + column) * p.rows + 8 * blockIdx.y + row] =
    value;
  }
}
EXPORT_KERNEL(tiles)
"""


def single(kernel: str, source: str, variant: Variant, inputs: tuple[Tensor, ...], y: Tensor) -> EngineData:
    launch = Launch(kernel, kernel, (variant,), tuple(t.name for t in inputs), ("y",))
    program = Program(SCHEMA, kernel, (Symbol("n"),), inputs, (y,), (), (), (), (launch,))
    return EngineData(program, {kernel: source}, {})


def tiles() -> EngineData:
    """``y[64, n]``, the transpose of ``x[n, 64]``, read through a tensor map."""
    view = TensorMap("x", "x", "0", dims=("64", "n"), strides=("256",), box=(32, 8), element_strides=(1, 1))
    params = (Pointer("y", "y"), Integer("rows", "n"), view)
    grid = ("2", "floordiv(n + 7, 8)", "1")
    variant = Variant("sm_90", "tiles", "tiles", grid, (128, 1, 1), 2048 + 64, params)
    return single("tiles", TILES, variant, (Tensor("x", "f32", ("n", "64")),), Tensor("y", "f32", ("64", "n")))


W = weights()["w"]


def rows(n: int, seed: int = 0) -> np.ndarray:
    """An input of ``chain`` with ``n`` rows."""
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


def check(engine: Engine, x: np.ndarray) -> None:
    """Calls an engine made of ``chain`` and compares both results with numpy."""
    y, total = engine(x)
    want, want_total = chain_reference(x, W)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, want_total, rtol=1e-4, atol=1e-3)
    assert y.dtype == np.float32
    assert total.shape == ()
