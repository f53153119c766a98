"""Kernel replay on small kernels: every verdict, the errors, the exit status, and what a collector writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import collect
import msgspec
import pytest
import replay
import test_golden
from compare import NEUTRAL, Neutral, Outcome, compare, gains, loaded, report, same_ptx
from records import VERSION, Collection, FormatError, Record, Tiled, load, save
from reduced import reduced

from arcweld.codegen.nvrtc import compiler as nvrtc
from arcweld.codegen.nvrtc.compiler import Job, compile_job
from arcweld.compiler.text import parse_graph
from arcweld.compiler.tiling import Tiling

HEADER = """#pragma once
// scales
__device__ __forceinline__ float scaled(float x) { return x * 3.0f; }
template <class T> struct Pair { T a, b; };
"""
KERNEL = """#include "scale.cuh"
__constant__ float table[2] = {0.5f, 0.25f};
extern "C" __global__ void __launch_bounds__(64) ENTRY(const float* x, float* y) {
  const float value = x[threadIdx.x];
  y[threadIdx.x] = scaled(value) + table[threadIdx.x & 1]; // one element
}
"""


def collection(
    text: str = KERNEL, header: str = HEADER, launch: Sequence[str] = ("grid 1 | 1 | 1",), ids: Sequence[str] = ("a",),
    entry: str = "k_1",
) -> Collection:  # fmt: skip
    records = tuple(Record(i, "sm_80", entry, 0, tuple(launch)) for i in ids)
    options = {"sm_80": Job("", "sm_80").flags}
    return Collection(VERSION, options, {"scale.cuh": header}, (text.replace("ENTRY", entry),), records, ())


def verdicts(o: Outcome) -> tuple[int, int, int]:
    return len(o.equal), len(o.moved), len(o.changed)


def compared(o: Outcome) -> list[int]:
    """How many pairs each step compared: reduced texts that were the same; PTX, cubins; both in new processes."""
    return [int(step.split()[0]) for step in o.steps]


def tiled(tiles: int, columns: int) -> Tiled:
    """A product by tiles of 64 rows and ``columns`` columns, 12 steps of k."""
    numbers = {"macs": 64 * columns * 64, "loaded": (64 + columns) * 128, "read": (64 + columns) * 128}
    return Tiled("product", Tiling("wgmma", "f16", tiles, 12, 6, elements=64 * columns, **numbers), 100 << 10, 160)


def test_a_kernel_in_other_tiles_is_listed_with_its_modelled_gain() -> None:
    """Eight tiles of 64 x 128 on 132 multiprocessors, or 32 of 64 x 32: four times as many multiply."""
    base, work = collection(), collection(launch=["grid 32 | 1 | 1"])
    sides = (
        replace(c, records=(replace(c.records[0], arch="sm_90a", tiled=t),), options={"sm_90a": ()})
        for c, t in ((base, tiled(8, 128)), (work, tiled(32, 32)))
    )
    (change,) = compare(*sides).changed
    assert change.modelled is not None
    before, after = change.modelled
    assert before.us > after.us > 1
    lines = [line for line in gains([change, change]) if "modelled" in line]
    assert lines == [f"modelled {before.us:.2f} -> {after.us:.2f} us ({after.us / before.us - 1:+.1%}): a and 1 more"]
    assert [*gains(compare(base, work).changed)] == []  # records without tiles


def test_the_same_text_is_equal() -> None:
    found = compare(collection(), collection())
    assert (verdicts(found), compared(found), found.status) == ((1, 0, 0), [0, 0, 0], 0)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (KERNEL.replace("// one element", "/* each */"), HEADER),
        (KERNEL, HEADER + "__device__ int another(int i) { return i + 1; }\n"),
        (KERNEL, HEADER.replace("T a, b", "T b, a")),
        (KERNEL.replace('#include "scale.cuh"\n', HEADER.replace("#pragma once\n", "")), HEADER),
    ],
    ids=["comment", "function that is not called", "type that is not used", "from the header into the text"],
)
def test_what_the_kernel_does_not_reach_is_not_compiled(text: str, header: str) -> None:
    found = compare(collection(), collection(text, header))
    assert (verdicts(found), compared(found), found.status) == ((0, 1, 0), [1, 0, 0], 0)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (KERNEL.replace("value", "element"), HEADER),
        (KERNEL.replace("value", "element"), HEADER.replace("float x", "float z").replace("x *", "z *")),
        (KERNEL.replace("table", "offsets"), HEADER),
        (KERNEL + "__constant__ int unused[1] = {7};\n", HEADER),
    ],
    ids=["local", "local and parameter", "constant", "unused constant"],
)
def test_other_names_for_the_same_code_are_moved(text: str, header: str) -> None:
    found = compare(collection(), collection(text, header, entry="k_22"))
    assert (verdicts(found), found.status) == ((0, 1, 0), 0)
    assert compared(found)[1] == 1


@pytest.mark.parametrize(
    ("text", "header", "shows"),
    [
        (KERNEL.replace("+ table", "- table"), HEADER, "-  y[threadIdx.x] = scaled(value) + table"),
        (KERNEL, HEADER.replace("3.0f", "4.0f"), "-__device__ __forceinline__ float scaled(float x)"),
        (KERNEL.replace("0.25f", "0.75f"), HEADER, "-__constant__ float table[2] = {0.5f, 0.25f};"),
        (KERNEL.replace("(64)", "(128)"), HEADER, '-extern "C" __global__ void __launch_bounds__(64)'),
    ],
    ids=["arithmetic", "header", "constant", "bound"],
)
def test_other_object_code_is_changed_and_shown(text: str, header: str, shows: str) -> None:
    found = compare(collection(), collection(text, header))
    assert (verdicts(found), found.status) == ((0, 0, 1), 1)
    assert (found.changed[0].what, compared(found)) == ("object code", [0, 1, 1])
    assert any(line.startswith(shows) for line in report(found))


def test_another_launch_is_changed_though_the_text_is_the_same() -> None:
    found = compare(collection(), collection(launch=["grid 2 | 1 | 1"]))
    assert (verdicts(found), found.changed[0].what, found.status) == ((0, 0, 1), "launch", 1)
    assert {"-grid 1 | 1 | 1", "+grid 2 | 1 | 1"} <= set(report(found))


def test_kernels_that_come_and_go() -> None:
    found = compare(collection(ids=["a", "b"]), collection(ids=["b", "c"]))
    assert (found.equal, found.removed, found.added, found.status) == (("b",), ("a",), ("c",), 1)
    assert compare(collection(ids=["a"]), collection(ids=["a", "b"])).status == 1
    assert compare(collection(ids=["a", "b"]), collection(ids=["a"])).status == 1


def test_a_kernel_that_no_longer_compiles_is_changed_and_others_are_still_compared() -> None:
    (text,), (record,) = collection().texts, collection().records
    base = replace(collection(), texts=(text, text), records=(record, replace(record, id="b", text=1)))
    work = replace(base, texts=(text.replace("scaled(value)", "scaled(valu)"), text.replace("value", "element")))
    found = compare(base, work)
    assert (found.moved, [(c.id, c.what) for c in found.changed]) == (("b",), [("a", "does not compile")])
    assert any('identifier "valu" is undefined' in line for line in report(found))


def test_only_the_first_diffs_and_names_are_printed() -> None:
    many = [f"id{n}" for n in range(30)]
    found = compare(collection(ids=many), collection(launch=["grid 9"], ids=many))
    lines = list(report(found, diffs=2, names=5))
    assert sum(line == "+grid 9" for line in lines) == 2
    assert "changed: and 25 more" in lines
    assert "changed     30" in lines


def test_two_kernels_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two kernels are called a"):
        compare(collection(ids=["a", "a"]), collection())


# --------------------------------------------------------------------------------------------------- reduced texts


WHOLE = ("argmax_f32", "concat_rope_f16", "matmul_bias_relu_f16_sm90", "pointwise_integers_i32", "softmax_f16")


@pytest.mark.parametrize("name", WHOLE)
def test_a_reduced_text_gives_the_ptx_of_the_whole_one(name: str) -> None:
    """NVRTC is the judge of what may be left out; together these kernels include every header."""
    found, every = collect.Collector(), nvrtc.headers()
    found.graph(name, parse_graph("graph 'golden'\n" + test_golden.SYMBOLS + test_golden.CASES[name][1]))
    for r, text in zip(found.records, found.texts):
        neutral = text.replace(r.entry, NEUTRAL)
        short = reduced(neutral, dict(every))
        assert len(short) < len(neutral) + sum(len(t) for _, t in every) / 2
        assert same_ptx(ptx(neutral, r.arch, every), ptx(short, r.arch, ()))


def ptx(text: str, arch: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    options = nvrtc.Job("", arch).flags
    return nvrtc.compile_job(Neutral(text, arch, NEUTRAL, "ptx", headers=headers, options=options)).code


@pytest.mark.parametrize(
    ("definition", "use"),
    [
        ("__device__ int f(int x) { return x; }", "f(1)"),
        ("template <class T> __device__ T f(T x) { return x; }", "f(1)"),
        ("template <int N> struct alignas(N * 4) f { int v = 1; };", "f<1>().v"),
        ("struct f { int v; };", "f{1}.v"),
        ("constexpr int g = 4, f = 1;", "f"),
        ("using f = int;", "f(1)"),
        ("typedef int f;", "f(1)"),
        ("#define f 1", "f"),
        ("enum f { ONE = 1 };", "ONE"),
        ("struct N { int v; }; __device__ int operator+(N a, N b) { return a.v + b.v; }", "(N{1} + N{0})"),
        ("__device__ int h(int x) { return x; }\n#define f(x) h(x)", "f(1)"),
        ("__device__ auto f(int x) -> decltype(x) { return x; }", "f(1)"),
        ("__device__ int f(int x) noexcept(true) { return x; }", "f(1)"),
        ("struct f { int v; __device__ f(int x); };\n__device__ f::f(int x) : v(x) {}", "f(1).v"),
        ("enum class f { ONE = 1 };", "(int)f::ONE"),
        ('__device__ int f(int x) { asm("// {%0" : "+r"(x)); return x; }', "f(1)"),
    ],
)
def test_what_is_used_stays(definition: str, use: str) -> None:
    text = definition + '\nextern "C" __global__ void k(int* y) { *y = ' + use + "; }\n"
    assert compile_job(Job(reduced(text, {}), "sm_80", headers=())).code


def test_loaded_sections_hold_the_code_and_no_names() -> None:
    text = 'extern "C" __global__ void k(int* y) { *y = 7; }'
    names = [name for name, _, _ in loaded(compile_job(Job(text, "sm_80", headers=())).code)]
    assert ".text.k" in names
    assert not {".symtab", ".strtab", ".debug_line"} & set(names)


# ------------------------------------------------------------------------------------------- the command, the file


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, tagged: before there was a collector, and with one."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(replay, "ROOT", tmp_path)
    (tmp_path / "README").write_text("a")
    _git(tmp_path, "init", "--quiet")
    _commit(tmp_path, "old")
    (tmp_path / replay.COLLECTOR).parent.mkdir(parents=True)
    (tmp_path / replay.COLLECTOR).write_text("raise SystemExit('broken')\n")
    _commit(tmp_path, "new")
    return tmp_path


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _commit(folder: Path, tag: str) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "-m", tag)
    _git(folder, "tag", tag)


def test_a_base_without_a_collector_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["old"]) == 2
    first = _git(repository, "rev-parse", "--short", "new").strip()
    expected = f"error: old has no {replay.COLLECTOR}: kernel replay starts with {first}\n"
    assert capsys.readouterr().err == expected


def test_a_base_that_does_not_exist_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["nothing"]) == 2
    assert capsys.readouterr().err == "error: nothing is no revision of this repository\n"


@pytest.mark.parametrize(("launch", "status"), [("grid 1 | 1 | 1", 0), ("grid 2 | 1 | 1", 1)])
def test_exit_status(
    launch: str, status: int, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay, "collect", lambda commit: (collection(), collection(launch=[launch])))
    assert replay.main(["new"]) == status
    assert f"changed{status:7}" in capsys.readouterr().out


def test_records_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records"
    save(collection(), path)
    assert load(path) == collection()
    path.write_bytes(msgspec.msgpack.encode({"version": VERSION + 1, "more": []}))
    with pytest.raises(FormatError, match=f"version {VERSION + 1} can't be compared with version {VERSION}"):
        load(path)


def test_a_collector_writes_the_recorded_golden_text() -> None:
    found = collect.Collector()
    arch, text = test_golden.CASES["residual_layernorm_f16"]
    found.graph("g", parse_graph("graph 'golden'\n" + test_golden.SYMBOLS + text))
    recorded = (test_golden.FOLDER / "residual_layernorm_f16.cu").read_text(encoding="utf-8")
    assert list(found.texts) == [recorded]
    assert [(r.id, r.arch) for r in found.records] == [(f"g/000/{arch}", arch)]
    assert "__launch_bounds__(128)" in recorded
    assert {"block (128, 1, 1)", "shared 0", "pdl True", "buffer in0 + 0"} <= set(found.records[0].launch)


def test_a_collector_refuses_another_revisions_package(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(collect.__file__)), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"not from {tmp_path}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_alternatives_are_spread_over_all_tactics() -> None:
    assert collect.spread(1) == [0]
    assert collect.spread(collect.ALTERNATIVES) == list(range(collect.ALTERNATIVES))
    many = collect.spread(50)
    assert (many[0], many[-1], len(many)) == (0, 49, collect.ALTERNATIVES + 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("fma.rn.f32 \t%f1, %f2, %f3, %f4;", "fma.rn.f32 \t%f1, %f3, %f2, %f4;", True),
        ("mul.f32 \t%f1, %f2, %f3;", "mul.f32 \t%f1, %f3, %f2;", True),
        ("fma.rn.f32 \t%f1, %f2, %f3, %f4;", "fma.rn.f32 \t%f1, %f2, %f4, %f3;", False),
        ("sub.f32 \t%f1, %f2, %f3;", "sub.f32 \t%f1, %f3, %f2;", False),
        ("div.rn.f32 \t%f1, %f2, %f3;", "div.rn.f32 \t%f1, %f3, %f2;", False),
    ],
)
def test_the_order_of_factors_is_no_difference(one: str, other: str, same: bool) -> None:
    assert same_ptx(f"\t{one}\n".encode(), f"\t{other}\n".encode()) is same
