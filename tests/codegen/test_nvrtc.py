"""NVRTC without a GPU: object code, resources, errors with the source's line, the cache and the worker
pool.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from arcweld.codegen.nvrtc import cache as cache_module
from arcweld.codegen.nvrtc import compiler as nvrtc
from arcweld.codegen.nvrtc import pool, worker
from arcweld.codegen.nvrtc.cache import DiskCache, content_key
from arcweld.codegen.nvrtc.compiler import Job, compile_cubin, compile_job, compile_ptx
from arcweld.codegen.nvrtc.process import CompilerProcess
from arcweld.compiler.errors import CompileError, CompileLimitError, EnvironmentError_
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

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

    nvrtc.version.cache_clear()
    monkeypatch.setattr(nvrtc, "binding", broken)
    with pytest.raises(EnvironmentError_, match=r"libnvrtc\.so") as caught:
        nvrtc.version()
    assert (caught.value.hint or "").startswith("pip install")
    nvrtc.version.cache_clear()


LIMITED = """
    import resource
    import numpy
    from arcweld.codegen.nvrtc import compiler
    from arcweld.compiler.errors import EnvironmentError_
    resource.setrlimit(resource.RLIMIT_AS, ({limit} << 20, -1))
    try:
        compiler.version()
    except EnvironmentError_ as error:
        assert "not enough memory to load NVRTC" in error.message, error
        assert "ulimit" in error.hint
    else:
        raise AssertionError("it had enough")
"""


@pytest.mark.parametrize("limit", [150, 250, 350])
def test_too_little_memory_is_not_a_missing_nvrtc(limit: int) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(LIMITED.format(limit=limit))], check=True)


def test_a_server_without_nvrtc_says_so() -> None:
    server = CompilerProcess("/nowhere/libnvrtc.so.12")
    try:
        for _ in range(2):
            reply = server.ask(job(1).request())
            assert reply[:2] == ("missing", b"")
            with pytest.raises(EnvironmentError_, match="nowhere"):
                nvrtc.finish(job(1), reply, None)
    finally:
        server.close()


def test_cache_hits_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path)
    first = compile_job(job(1), cache=cache)
    monkeypatch.setattr(nvrtc, "_ask", lambda job: pytest.fail("compiled again"))
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


def test_the_number_of_entries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_ENTRIES", 20 * cache_module._FOLDERS)
    cache = DiskCache(tmp_path)
    keys = [f"ab{n:062x}" for n in range(60)]
    for n, key in enumerate(keys):
        cache.put(key, b"value")
        os.utime(cache._path(key), (n, n))  # so that all have different ages
        assert cache.get(keys[0]) == b"value"  # what is used stays
    found = cache.keys()
    assert 15 <= len(found) <= 20
    assert set(found) == {keys[0], *keys[-len(found) + 1 :]}


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


def test_server_imports_the_standard_library_only() -> None:
    code = f"import sys, runpy; runpy.run_path({worker.__file__!r}); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert {m.split(".")[0] for m in out.split()} - set(sys.stdlib_module_names) - {"__main__"} == set()


def test_a_forked_child_has_compiler_processes_of_its_own() -> None:
    expected = compile_job(job(1)).code
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if compile_job(job(1)).code == expected else 2
        finally:
            nvrtc._process.close() if nvrtc._process else None
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert compile_job(job(2)).code


# -------------------------------------------------------------------------------------------------- equal bytes


def test_other_jobs_and_other_processes_change_no_byte() -> None:
    """NVRTC orders by addresses in its heap: whatever the server did before, and whoever started it."""
    jobs = [job(n, a) for n in range(3) for a in ("sm_80", "sm_90a")]
    jobs.append(Job(SPILLS, "sm_80", "spills", headers=()))
    seen: dict[Job, set[bytes]] = {j: set() for j in jobs}
    for run in range(3):
        server = CompilerProcess(nvrtc.library())
        try:
            for j in random.Random(run).sample(jobs, len(jobs)):
                status, code, _ = server.ask(j.request())
                assert status == "ok"
                seen[j].add(code)
        finally:
            server.close()
    assert [len(codes) for codes in seen.values()] == [1] * len(jobs)


PACKED = """graph 'packed'
input %x: f32[1, 197, 576]
%r = Reshape(%x, shape=(1, 197, 3, 3, 64))
%t = Transpose(%r, perm=(2, 0, 3, 1, 4))
%a = Slice(%t, starts=(0, 0, 0, 0, 0), sizes=(1, 1, 3, 197, 64), steps=(1, 1, 1, 1, 1))
%b = Slice(%t, starts=(1, 0, 0, 0, 0), sizes=(1, 1, 3, 197, 64), steps=(1, 1, 1, 1, 1))
%c = Slice(%t, starts=(2, 0, 0, 0, 0), sizes=(1, 1, 3, 197, 64), steps=(1, 1, 1, 1, 1))
%q = Reshape(%a, shape=(1, 3, 197, 64))
%k = Reshape(%b, shape=(1, 3, 197, 64))
%v = Reshape(%c, shape=(1, 3, 197, 64))
%y = Attention(%q, %k, %v, scale=0.125, is_causal=0, fill=float(-inf), softcap=0.0)
output %y
"""


@pytest.mark.slow
def test_a_busy_machine_changes_no_byte() -> None:
    """Of this kernel, NVRTC has two forms.

    While threads of the server decided what its heap held, one in ten compiles gave the other form.
    """
    (source,) = {
        s.source
        for p in build_graph(parse_graph(PACKED), Options(arch=("sm_80",)), compile_kernels=False).planned
        for s in p.sources
    }
    attention = Job(source, "sm_80", "attention_bb659e82", "ptx")
    seen: set[bytes] = set()

    def compiles(seed: int) -> None:
        rng = random.Random(seed)
        server = CompilerProcess(nvrtc.library())
        try:
            if seed % 2:
                os.sched_setaffinity(server.process.pid, {min(os.sched_getaffinity(0))})
            for _ in range(20):
                j = rng.choice((attention, attention, job(rng.randrange(3), rng.choice(("sm_80", "sm_90a")))))
                status, code, _ = server.ask(j.request())
                assert status == "ok"
                if j is attention:
                    seen.add(code)
        finally:
            server.close()

    threads = [threading.Thread(target=compiles, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


def test_where_the_server_was_started_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_job(job(1)).code
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOMETHING", "x" * 10000)
    server = CompilerProcess(nvrtc.library())
    try:
        assert server.ask(job(1).request())[1] == first
    finally:
        server.close()


REFUSED = """
import platform
from arcweld.codegen.nvrtc import worker
from arcweld.codegen.nvrtc.compiler import Job, library
from arcweld.codegen.nvrtc.process import CompilerProcess

machine, _ = worker._FORBIDDEN[platform.machine()]
worker._FORBIDDEN[platform.machine()] = machine, ({"x86_64": 135, "aarch64": 92}[platform.machine()],)  # personality
assert worker.confine()
for n in range(2):
    server = CompilerProcess(library())
    for m in range(2):
        print(server.ask(Job("__global__ void k() {}", "sm_80", headers=()).request())[0])
    server.close()
"""


def test_random_addresses_are_said_once() -> None:
    """As in a container that forbids ``personality``."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok"] * 4
    assert done.stderr.count("forbids personality(ADDR_NO_RANDOMIZE)") == 1


# ------------------------------------------------------------------------------- sources that nobody should compile

KERNEL = 'extern "C" __global__ void k(int* x) { *x = 1; }\n'
SECRET = "a-secret-that-no-source-may-see"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.h"
    path.write_text(f'#define SECRET "{SECRET}"\n')
    return path


READS = {
    "quoted": '#include "PATH"\n',
    "in angles": "#include <PATH>\n",
    "computed": '#define P "PATH"\n#include P\n',
    "digraph": '%:include "PATH"\n',
    "trigraph": '??=include "PATH"\n',
    "continued": '#inc\\\nlude "PATH"\n',
    "after a comment": '/**/ # /**/ include "PATH"\n',
    "relative": '#include "../../../../../../../../../../../../PATH"\n',
    "next": '#include_next "PATH"\n',
    "import": '#import "PATH"\n',
    "embedded": '__device__ const char c[] = {\n#embed "PATH"\n};\n',
    "line": '#line 1 "PATH"\n',
    "error in it": '#line 1 "PATH"\nint x = oops;\n',
    "from a header": '#include "mine.cuh"\n',
    "assembler": '__device__ void f() { asm(".incbin \\"PATH\\";"); }\n',
    "assembler include": '__device__ void f() { asm(".include \\"PATH\\";"); }\n',
}


@pytest.mark.parametrize("way", READS)
def test_a_source_reads_no_file(way: str, secret: Path) -> None:
    source = READS[way].replace("PATH", str(secret)) + "__device__ const char* stolen = SECRET;\n" + KERNEL
    mine = (("mine.cuh", f'#include "{secret}"\n'),)
    with pytest.raises(CompileError) as caught:
        compile_job(Job(source, "sm_80", "thief", headers=mine))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("probe", ['"PATH"', "<PATH>"])
def test_a_source_learns_of_no_file(probe: str, secret: Path) -> None:
    codes = set()
    for path in (secret, secret.with_name("secret.g")):
        there = probe.replace("PATH", str(path))
        source = f"#if __has_include({there})\n#define X 1\n#else\n#define X 2\n#endif\n"
        source += 'extern "C" __global__ void k(int* x) { *x = X; }\n'
        codes.add(compile_job(Job(source, "sm_80", "probe", headers=())).code)
    assert len(codes) == 1
    with pytest.raises(CompileError) as there_is:
        compile_job(Job(f'#include "{secret}"\n', "sm_80", "probe", headers=()))
    with pytest.raises(CompileError) as there_is_not:
        compile_job(Job(f'#include "{secret.with_name("secret.g")}"\n', "sm_80", "probe", headers=()))
    assert str(there_is.value).replace("secret.h", "secret.g") == str(there_is_not.value)


def test_a_rebuild_of_an_engines_kernel_reads_no_file(secret: Path) -> None:
    from arcweld.driver.api import rebuild_kernel

    with pytest.raises(CompileError, match="cannot open source file"):
        rebuild_kernel("k", f'#include "{secret}"\n{KERNEL}', {"prims.cuh": ""}, "sm_80")


# each macro doubles the one before it
BOMB = "".join(f"#define A{n} A{n - 1} A{n - 1}\n" for n in range(1, 40))
ENDLESS = "#define A0 f(1),\n" + BOMB + "__device__ int f(int); __device__ int x = (A39 0);\n"


@pytest.mark.parametrize(
    ("source", "limits", "message"),
    [
        (ENDLESS, (1, 4 << 30, 64 << 20), "1 s of processor time"),
        (ENDLESS, (60, 512 << 20, 64 << 20), "512 MiB of memory"),
        ("__device__ int a[1 << 20] = {1};" + KERNEL, (60, 4 << 30, 1 << 20), "1 MiB of object code"),
    ],
    ids=["time", "memory", "size"],
)
def test_what_a_source_may_take(
    source: str, limits: worker.Limits, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "LIMITS", limits)
    with pytest.raises(CompileLimitError, match=message):
        compile_job(Job(source, "sm_80", "greedy", headers=()))
    assert compile_job(job(1)).code  # the server lives


def test_a_kernel_that_cannot_confine_compiles_only_what_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentError_, match="confined"):
        nvrtc.finish(job(1), ("open", b"", "seccomp"), None)


@pytest.mark.parametrize("body", [b"", b"x", bytes(17), b"\x09" + bytes(16), b"\0" * 17 + b"more"])
def test_a_damaged_reply_is_no_reply(body: bytes) -> None:
    if body == bytes(17):
        assert worker.decode(body) == ("ok", b"", "")
        return
    with pytest.raises(ValueError, match="reply"):
        worker.decode(body)
