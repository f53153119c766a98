"""NVRTC without a GPU: object code, resources, errors with the source's line, the cache and the worker
pool.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcweld.codegen.nvrtc import compiler as nvrtc
from arcweld.codegen.nvrtc import pool, worker
from arcweld.codegen.nvrtc.cache import DiskCache, content_key
from arcweld.codegen.nvrtc.compiler import Job, compile_cubin, compile_job, compile_ptx
from arcweld.compiler.errors import CompileError, EnvironmentError_

ADD = """
struct Params { const float* x; float* y; int n; };
extern "C" __global__ void __launch_bounds__(256) add_%d(const __grid_constant__ Params p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) p.y[i] = p.x[i] + %d.0f;
}
"""

# 200 live values in 64 registers: ptxas has no choice but to spill.
SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* x) {
    float a[200];
    #pragma unroll
    for (int i = 0; i < 200; i++) a[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 200; i++) x[i * 1024 + threadIdx.x] = a[199 - i] * a[(i * 7) % 200];
}
"""


def job(n: int, arch: str = "sm_80") -> Job:
    return Job(ADD % (n, n), arch, f"add_{n}", headers=())


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120"])
def test_cubin_is_a_whole_elf_file_for_the_arch(arch: str) -> None:
    done = compile_cubin(ADD % (1, 1), arch, strict=True)
    assert done.cubin[:4] == b"\x7fELF"
    header_table, entries = (
        int.from_bytes(done.cubin[40:48], "little"),
        int.from_bytes(done.cubin[60:62], "little"),
    )
    program_table, segments = (
        int.from_bytes(done.cubin[32:40], "little"),
        int.from_bytes(done.cubin[56:58], "little"),
    )
    # The binding alone returns one byte less than the tables need.
    assert len(done.cubin) >= max(header_table + 64 * entries, program_table + 56 * segments)
    assert b"add_1" in done.cubin
    assert 4 <= done.registers <= 255
    assert done.spill_bytes == 0


def test_same_source_gives_the_same_bytes() -> None:
    assert compile_cubin(ADD % (1, 1), "sm_90a").code == compile_cubin(ADD % (1, 1), "sm_90a").code


def test_ptx_is_text_for_the_least_arch() -> None:
    text = compile_ptx(ADD % (1, 1), "sm_80")
    assert text.endswith(b"\0")
    assert b".target sm_80" in text
    assert b".entry add_1" in text


def test_headers_are_given_as_texts() -> None:
    source = '#include "one.cuh"\nextern "C" __global__ void k(f32* x) { *x = ONE; }'
    done = compile_job(Job(source, "sm_80", headers=(("one.cuh", "typedef float f32;\n#define ONE 1.0f\n"),)))
    assert done.registers > 0


def test_every_shipped_header_is_offered() -> None:
    assert {n for n, _ in nvrtc.headers()} == {p.name for p in nvrtc.INCLUDE.glob("*.cuh")}


def test_spills_are_measured_and_refused_when_strict() -> None:
    assert compile_cubin(SPILLS, "sm_80").spill_bytes > 500
    with pytest.raises(CompileError, match="spills"):
        compile_cubin(SPILLS, "sm_80", strict=True)


def test_wgmma_warning_is_refused_when_strict() -> None:
    warning = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    done = nvrtc.finish(Job("", "sm_90a", "gemm"), ("ok", b"code", warning), None)
    assert done.warnings == (warning,)
    with pytest.raises(CompileError, match="serialized"):
        nvrtc.require_clean(done)


def test_an_error_names_the_line_and_shows_it() -> None:
    source = '\n\nextern "C" __global__ void k(float* x) {\n    x[0] = missing;\n}\n'
    with pytest.raises(CompileError) as caught:
        compile_cubin(source, "sm_80", name="bad")
    assert caught.value.node == "bad.cu:4"
    assert '"missing" is undefined' in str(caught.value)
    assert ">     4 |     x[0] = missing;" in str(caught.value)


def test_ptxas_errors_are_reported() -> None:
    with pytest.raises(CompileError, match="ptxas"):
        compile_cubin('extern "C" __global__ void k() { asm volatile("bogus.op %%r1;"); }', "sm_80")


@pytest.mark.parametrize("arch", ["sm_999", "volta", "sm_35", ""])
def test_unknown_arch_is_refused(arch: str) -> None:
    with pytest.raises(EnvironmentError_):
        compile_cubin(ADD % (1, 1), arch)


def test_missing_nvrtc_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(worker, "binding", broken)
    reply = worker.compile_once(job(1).request())
    assert reply[0] == "missing"
    with pytest.raises(EnvironmentError_) as caught:
        nvrtc.finish(job(1), reply, None)
    assert (caught.value.hint or "").startswith("pip install")
    nvrtc.version.cache_clear()
    with pytest.raises(EnvironmentError_, match=r"libnvrtc\.so"):
        nvrtc.version()
    nvrtc.version.cache_clear()


def test_cache_hits_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path)
    first = compile_job(job(1), cache=cache)
    monkeypatch.setattr(worker, "compile_once", lambda request: pytest.fail("compiled again"))
    assert compile_job(job(1), cache=cache) == first


def test_cache_key_covers_all_that_matters() -> None:
    base = job(1)
    others = [
        job(2),
        job(1, "sm_90a"),
        Job(base.source, base.arch, base.name, "ptx", headers=()),
        Job(base.source, base.arch, base.name, debug=True, headers=()),
        Job(base.source, base.arch, base.name, headers=(("a.cuh", ""),)),
        Job(base.source, base.arch, base.name, headers=(("a.cuh", "1"),)),
    ]
    assert len({j.key() for j in [base, *others]}) == 7
    assert content_key(["ab", "c"]) != content_key(["a", "bc"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_entry_is_rebuilt(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path)
    first = compile_job(job(1), cache=cache)
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:100]), "empty": b""}[damage])
    assert cache.get(job(1).key()) is None
    assert compile_job(job(1), cache=cache) == first
    assert cache.get(job(1).key()) is not None


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, destination: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = DiskCache(tmp_path)
    cache.put("ab" * 32, b"value")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_pool_equals_in_process_compiles_once_and_reports() -> None:
    jobs = [job(n) for n in range(9)] + [job(0), job(1)]
    seen: list[tuple[int, int, str]] = []
    workers = pool.CompilePool(2)
    try:
        results = workers.run(jobs, progress=lambda *a: seen.append(a))
        assert len(workers._idle) == 2
    finally:
        workers.close()
    assert [r.name for r in results] == [j.name for j in jobs]
    assert results[9] is results[0]
    assert results[3].code == compile_job(jobs[3]).code
    assert [s[:2] for s in seen] == [(n, 9) for n in range(1, 10)]


def test_pool_raises_compile_errors_and_stays_usable() -> None:
    workers = pool.CompilePool(2)
    try:
        with pytest.raises(CompileError, match="oops"):
            workers.run([*(job(n) for n in range(8)), Job("int x = oops;", "sm_80", "bad", headers=())])
        assert len(workers.run([job(n) for n in range(8)])) == 8
    finally:
        workers.close()


def test_pool_survives_a_dead_worker() -> None:
    workers = pool.CompilePool(2)
    try:
        workers.run([job(n) for n in range(8)])
        os.kill(workers._idle[-1].process.pid, signal.SIGKILL)
        with pytest.raises(CompileError, match="died"):
            workers.run([job(n) for n in range(8)])
        assert len(workers.run([job(n) for n in range(8)])) == 8
    finally:
        workers.close()


def test_worker_starts_without_the_package() -> None:
    load = f"worker = runpy.run_path({worker.__file__!r}); worker['binding']()"
    code = f"import sys, runpy; {load}; print(sorted(sys.modules))"
    begin = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - begin < 5
    for heavy in ("arcweld", "onnx", "torch"):
        assert f"'{heavy}'" not in out
