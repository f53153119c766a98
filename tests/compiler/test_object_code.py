"""Kernels that would spill registers get another tactic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arcweld.codegen import select
from arcweld.codegen.cache import DiskCache
from arcweld.codegen.kernel import KernelSource
from arcweld.compiler import object_code
from arcweld.compiler.build import plan_launches
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.object_code import compile_planned
from arcweld.passes.fusion import fuse
from arcweld.passes.schedule import schedule

HOG = """
// a kernel that keeps more values than there are registers: {name}
#include "prims.cuh"
struct Params {{ const f32* in0; f32* out0; int count; }};
extern "C" __global__ void __launch_bounds__(1024) {name}(const __grid_constant__ Params p) {{
  f32 kept[{size}];
#pragma unroll
  for (int i = 0; i < {size}; ++i) kept[i] = p.in0[threadIdx.x + i * 1024];
  __syncthreads();
  f32 sum = 0.f;
#pragma unroll
  for (int i = 0; i < {size}; ++i) sum = sum * kept[i] + kept[{size} - 1 - i];
  p.out0[threadIdx.x] = sum;
}}
EXPORT_KERNEL({name})
"""


def plan() -> tuple[object_code.Planned, ...]:
    x, y = (Value(n, TensorType(DType.F32, (1024,))) for n in "xy")
    graph = Graph("g", (x,), (y,), (Node("Tanh", (x,), (y,), {}, ("tanh",)),), {}, ("y",))
    return plan_launches(schedule(fuse(graph)), ("sm_80",))


def hog(name: str, size: int, like: KernelSource) -> KernelSource:
    return replace(like, entry=name, source=HOG.format(name=name, size=size))


def test_the_tactic_that_does_not_spill_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    (launch,) = plan()
    good = launch.sources[0]
    bad = replace(launch, sources=(hog("greedy", 200, good),))
    monkeypatch.setattr(object_code, "alternatives", lambda kernel, source: [hog("greedy2", 180, good), good])
    (mended,), code = compile_planned([bad], ("sm_80",), DiskCache())
    assert mended.sources == (good,)
    assert set(code.cubins) == {("sm_80", good.entry)}
    assert set(code.ptx) == {good.entry}


def test_the_least_spilling_one_is_kept_where_all_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    (launch,) = plan()
    worse, less = hog("worse", 220, launch.sources[0]), hog("less", 150, launch.sources[0])
    monkeypatch.setattr(object_code, "alternatives", lambda kernel, source: [less])
    (mended,), _ = compile_planned([replace(launch, sources=(worse,))], ("sm_80",), DiskCache())
    assert mended.sources == (less,)


def test_clean_kernels_stay() -> None:
    planned = plan()
    after, code = compile_planned(planned, ("sm_80", "sm_90a"), DiskCache())
    assert after == planned
    assert {arch for arch, _ in code.cubins} == {"sm_80", "sm_90a"}


def test_alternatives_are_other_sources_for_the_same_architecture() -> None:
    (launch,) = plan()
    others = select.alternatives(launch.bound.kernel, launch.sources[0])
    assert others
    assert launch.sources[0].source not in {s.source for s in others}
    assert {s.arch for s in others} == {launch.sources[0].arch}
