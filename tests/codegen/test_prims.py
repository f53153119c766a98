"""prims.cuh: the simulator's twin declares the same functions, everything compiles for both architectures, and inline
PTX occurs nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prim_cases import PrimCase, warp_level_cases
from prim_cases_async import async_cases
from prim_cases_lanes import lane_cases
from sim_harness import INCLUDE, render

from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.runtime import sim

SIM = Path(sim.__path__[0])
_DECLARATION = re.compile(
    r"(?:ARCWELD_DEVICE|SIM_UNCHECKED static __attribute__\(\(noinline\)\)) ([\w]+) (\w+)\(([^{;]*?)\) \{", re.S
)
_HELPER = re.compile(r"^sim_|_impl$")


def declared(path: Path) -> set[tuple[str, str, str]]:
    """(return type, name, parameter types with names and defaults) of every primitive in a header."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    tidy = lambda parameters: re.sub(r"\s+", " ", re.sub(r"(?<=\*)\s*\w+$", "", parameters)).strip()
    return {(r, name, tidy(p)) for r, name, p in _DECLARATION.findall(text) if not _HELPER.search(name)}


TWINS = [("prims.cuh", "sim_prims.h", 60), ("lanes.cuh", "sim_lanes.h", 3), ("prims_grid.cuh", "sim_prims_grid.h", 2),
         ("tiles.cuh", "sim_tiles.h", 2), ("team.cuh", "sim_team.h", 2)]  # fmt: skip


@pytest.mark.parametrize(("header", "twin", "least"), TWINS)
def test_the_twins_declare_the_same_functions(header: str, twin: str, least: int) -> None:
    cuda, simulated = declared(INCLUDE / header), declared(SIM / twin)
    names = lambda functions: {name for _, name, _ in functions}
    assert names(cuda) == names(simulated)
    unnamed = lambda functions: {
        (r, n, re.sub(r"TensorMap\* map|TensorMap\*", "TensorMap*", p)) for r, n, p in functions
    }
    assert unnamed(cuda) == unnamed(simulated)
    assert len(cuda) >= least


def test_inline_ptx_lives_in_the_primitive_headers_only() -> None:
    allowed = {"prims.cuh", "prims_grid.cuh", "wgmma.cuh.j2"}
    folders = (INCLUDE, INCLUDE.parent / "templates")
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in (".cuh", ".j2")]
    assert files
    found = {path.name for path in files if re.search(r"\basm\b\s*(?:volatile)?\s*\(", path.read_text())}
    assert found <= allowed


def test_no_header_is_included_but_our_own() -> None:
    own = {path.name for path in INCLUDE.iterdir()} | {"sim_prims.h", "sim_lanes.h", "sim_prims_grid.h", "sim_tiles.h",
           "sim_team.h"}  # fmt: skip
    for path in INCLUDE.iterdir():
        if path.suffix in (".cuh", ".j2"):
            assert set(re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text())) <= own, path.name


EVERYTHING = """
struct Params { f32* out; const void* in; TensorMap map; };
extern "C" __global__ void __launch_bounds__(128) everything(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  const u32 s = smem_u32(smem);
  u32 r2[2] = {1, 2}, r4[4] = {1, 2, 3, 4};
  f32 d[4] = {};
  i32 e[4] = {};
  pdl_launch_dependents();
  pdl_wait();
  prefetch_l2(p.in);
  ldmatrix_x4(r4, s); ldmatrix_x4_trans(r4, s); ldmatrix_x2(r2, s); ldmatrix_x2_trans(r2, s);
  mma_m16n8k16<f16>(d, r4, r2); mma_m16n8k16<bf16>(d, r4, r2); mma_m16n8k8_tf32(d, r4, r2);
  mma_m16n8k32<i8, i8>(e, r4, r2); mma_m16n8k32<i8, u8>(e, r4, r2);
  mma_m16n8k32<u8, i8>(e, r4, r2); mma_m16n8k32<u8, u8>(e, r4, r2);
  e[0] += dp4a<i8, i8>(1, 2, 3) + dp4a<i8, u8>(1, 2, 3) + dp4a<u8, i8>(1, 2, 3) + dp4a<u8, u8>(1, 2, 3);
  f32 tile[1][1][4] = {}; u32 ta[1][4] = {}, tb[1][2] = {};
  mma_tile<f16>(tile, ta, tb);
  i32 whole[1][1][4] = {};
  mma_tile_bytes<i8, u8>(whole, ta, tb);
  mma_tile_bytes<f8e4m3fn, f8e4m3fn>(tile, ta, tb); mma_tile_bytes<f8e4m3fn, f8e5m2>(tile, ta, tb);
  mma_tile_bytes<f8e5m2, f8e4m3fn>(tile, ta, tb); mma_tile_bytes<f8e5m2, f8e5m2>(tile, ta, tb);
  cp_async16(s, p.in); cp_async8(s, p.in, 3); cp_async4(s, p.in, 0); cp_async_commit(); cp_async_wait<1>();
  *(i64*)p.out = index_in(3, 4) + strict_index(3, 4) + checked_divisor(2) + strict_divisor(2);
  named_bar_sync(1, 128); named_bar_arrive(2, 128);
  threadfence();
  add_release((u32*)p.out, 1u); wait_acquire((const u32*)p.out, 1u);
  f32 lo, hi;
  unpack2<f16>(pack2<f16>(d[0], d[1]), lo, hi); unpack2<bf16>(pack2<bf16>(lo, hi), lo, hi);
  r2[0] = fma2<f16>(r2[0], r2[1], r4[0]); r2[1] = fma2<bf16>(r2[0], r2[1], r4[1]) + and_xor(r4[0], 5, 7);
  d[2] += tanh_approx(lo) + ex2_approx(hi) + __uint_as_float(f32_to_tf32(lo)) + INFINITY + NAN;
  atomic_add(p.out, lo); atomic_add((f64*)p.out, 1.0); atomic_add((i32*)p.out, 1); atomic_add((u32*)p.out, 1u);
  atomic_add((i64*)p.out, (i64)1); atomic_add((f16*)p.out, cvt<f16>(1)); atomic_add((bf16*)p.out, cvt<bf16>(1));
  atomic_max((i32*)p.out, 1); atomic_min((i32*)p.out, 1); atomic_inc((u32*)p.out, 3u);
  atomic_max((i64*)p.out, (i64)1); atomic_min((i64*)p.out, (i64)1);
  atomic_max(p.out, hi); atomic_min(p.out, hi);
  HOPPER
  p.out[opaque(threadIdx.x)] = d[0] + d[2] + e[0] + r4[0] + r2[0] + tile[0][0][0];
}
EXPORT_KERNEL(everything)
"""
HOPPER = """
  stmatrix_x4(s, r4);
  mbar_init(s, 1); fence_mbar_init(); fence_proxy_async(); mbar_expect_tx(s, 64); mbar_arrive(s); mbar_wait(s, 0);
  tma_prefetch_map(&p.map);
  tma_load_2d(s, &p.map, s, 0, 1); tma_load_3d(s, &p.map, s, 0, 1, 2); tma_load_4d(s, &p.map, s, 0, 1, 2, 3);
  tma_store_2d(&p.map, s, 0, 1); tma_store_3d(&p.map, s, 0, 1, 2); tma_store_4d(&p.map, s, 0, 1, 2, 3);
  tma_store_commit(); tma_store_wait_read<1>(); tma_store_wait<0>();
  bulk_load(s, p.out, 16, s, evict_first_policy());
  f32 w[32] = {};
  setmaxnreg_dec<40>(); setmaxnreg_inc<232>();
  wgmma_fence();
  wgmma_ss<f16, 64, 0>(w, wgmma_desc(s, 16, 1024), wgmma_desc(s, 16, 1024), 1); wgmma_ss<bf16, 64, 1>(w, 1, 2, 0);
  wgmma_rs<f16, 64, 1>(w, r4, 1, 1); wgmma_rs<bf16, 64, 0>(w, r4, 1, 1);
  i32 v[32] = {};
  wgmma_ss_bytes<i8, i8, 64>(v, 1, 2, 1); wgmma_ss_bytes<i8, u8, 64>(v, 1, 2, 1);
  wgmma_ss_bytes<u8, i8, 64>(v, 1, 2, 1); wgmma_ss_bytes<u8, u8, 64>(v, 1, 2, 1);
  wgmma_ss_bytes<f8e4m3fn, f8e4m3fn, 64>(w, 1, 2, 1); wgmma_ss_bytes<f8e4m3fn, f8e5m2, 64>(w, 1, 2, 1);
  wgmma_ss_bytes<f8e5m2, f8e4m3fn, 64>(w, 1, 2, 1); wgmma_ss_bytes<f8e5m2, f8e5m2, 64>(w, 1, 2, 1);
  wgmma_commit(); wgmma_wait<0>(); wgmma_pin(w); wgmma_pin(v);
  cluster_arrive(); cluster_wait(); cluster_store(s, 0, d[0], d[1], d[2], d[3]);
  d[0] += w[0] + w[31] + v[0];
"""
HOPPER_ONLY = ("stmatrix", "mbar_", "fence_", "tma_", "bulk_", "evict_", "wgmma_", "setmaxnreg", "cluster_")


def _shapes() -> str:
    return render('<% include "wgmma.cuh.j2" %>', wgmma_ns=[64], wgmma_types=["f16", "bf16", "int8", "float8"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_every_function_compiles(arch: str) -> None:
    hopper = arch == "sm_90a"
    source = EVERYTHING.replace("HOPPER", HOPPER if hopper else "")
    used = set(re.findall(r"\b(\w+)(?:<[^<>()]*>)?\(", source))
    wanted = {name for h in ("prims.cuh", "prims_grid.cuh") for _, name, _ in declared(INCLUDE / h)}
    if not hopper:
        wanted = {name for name in wanted if not name.startswith(HOPPER_ONLY)}
    assert wanted <= used | {"f16_bits_to_f32", "f32_to_f16_bits", "f32_to_bf16_bits"}
    header = '#include "prims.cuh"\n#include "prims_grid.cuh"\n' + (_shapes() if hopper else "")
    assert compile_cubin(header + source, arch, name="everything").cubin


def _cases() -> Iterator[tuple[PrimCase, str]]:
    for case in [*warp_level_cases(), *lane_cases(), *async_cases()]:
        for arch in ("sm_80", "sm_90a"):
            if arch >= case.arch:
                yield case, arch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "arch"), list(_cases()), ids=lambda value: value if isinstance(value, str) else value.name
)
def test_every_case_compiles(case: PrimCase, arch: str) -> None:
    assert compile_cubin(case.source, arch, name=case.name, strict=False).cubin


def test_wgmma_widths_render_and_compile() -> None:
    widths = [8, 40, 96, 128, 256]
    calls = "\n".join(
        f"{{ f32 d[{n // 2}]; for (int i = 0; i < {n // 2}; ++i) d[i] = p.x[i]; wgmma_fence();"
        f" wgmma_ss<f16, {n}, 0>(d, 1, 2, 1); wgmma_commit(); wgmma_wait<0>();"
        f" for (int i = 0; i < {n // 2}; ++i) p.x[threadIdx.x * 256 + i] = d[i]; }}"
        for n in widths
    )
    source = (
        '#include "prims.cuh"\n' + render('<% include "wgmma.cuh.j2" %>', wgmma_ns=widths)
        + 'struct Params { f32* x; };\nextern "C" __global__ void __launch_bounds__(128) widths('
        f"const __grid_constant__ Params p) {{ {calls} }}\nEXPORT_KERNEL(widths)\n"
    )  # fmt: skip
    assert compile_cubin(source, "sm_90a", name="widths").cubin
