"""Attention and appends over pages, on the checked simulator: against contiguous caches to the bit, and numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import paged_checks
import paged_oracle
import pytest
from graph_runs import built
from harness import assert_compiles, render_with, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import matches
from mutate import mutations, survivors
from paged_checks import drawn, softmax_attention
from paged_graphs import BATCH, ENTRIES, FORMS, PAGE, PAGES, Arrays, Problem, Table, table_of

from arcweld.codegen.templates.attention.ffma import FfmaTactic
from arcweld.codegen.templates.attention.mma import MmaTactic
from arcweld.codegen.templates.attention.split import SplitTactic
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import DeviceError, InputError, ModelError
from arcweld.compiler.paged import TABLE, check_table
from arcweld.compiler.reference import run_reference
from arcweld.driver.build import Build
from arcweld.driver.object_code import PlannedLaunch
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

F32, F16 = DType.F32, DType.F16


@functools.cache
def build_of(x: Problem, form: str) -> Build:
    return built(FORMS[form](x))


@functools.cache
def engine_of(x: Problem, form: str, seed: int = 0) -> Engine:
    return Engine(build_of(x, form).data, SimDevice(checked=True, seed=seed))


def attention_launch(build: Build) -> PlannedLaunch:
    (found,) = (p for p in build.planned if p.bound.kernel.template == "attention")
    return found


def implementation(build: Build) -> str:
    """The name of the implementation of attention."""
    return implementations(attention_launch(build).bound.kernel, "sm_80")[0].name


def check(x: Problem, table: Table, rng: np.random.Generator) -> None:
    """``paged_checks.check`` on the checked simulator, by the implementation that both forms have."""
    kinds = {implementation(build_of(x, form)) for form in ("paged", "contiguous")}
    (kind,) = kinds
    paged_checks.check(x, table, rng, engine_of, np.nan if kind == "split" else 3.0)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    page_size = draw(st.one_of(st.sampled_from([1, 2, 8, 16, 64]), st.integers(1, 64)))
    lengths = draw(st.lists(st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 130)), min_size=1, max_size=3))
    seed = draw(st.integers(0, 1 << 30))
    return table_of(lengths, page_size, np.random.default_rng(seed)), seed


@pytest.mark.parametrize("dtype", [F32, F16])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), st.sampled_from([1, 3]))
def test_pages_are_contiguous_caches_to_the_bit(dtype: DType, drawn_table: tuple[Table, int], new: int) -> None:
    """Any page size, order and lengths; one new position or several. Keys are divided among blocks."""
    table, seed = drawn_table
    check(Problem(dtype, new), table, np.random.default_rng(seed))


MORE = {
    "window": Problem(F16, window=40),
    "window, several": Problem(F32, new=3, window=5),
    "one group of many heads": Problem(F16, heads=8, groups=1, new=2),
    "no groups": Problem(F32, heads=2, groups=2, d=40),
    "an odd head size": Problem(F16, heads=2, groups=1, d=12),
    "few keys": Problem(F32, new=2, length=30),
    "few keys in f16": Problem(F16, length=30),
    "many queries": Problem(F16, new=40),
    "many queries in f32": Problem(F32, new=20),
    "a wide head": Problem(F16, new=20, heads=2, groups=1, d=136),
    "many splits": Problem(F16, heads=1, groups=1, length=600),
    "pages of 1": Problem(F16, page_size=1),
    "pages of 16": Problem(F32, page_size=16, new=2),
    "pages of 17, a batch of 3": Problem(F16, page_size=17, batch=3, pages=80, entries=80),
}


@pytest.mark.parametrize("name", MORE)
def test_every_form_of_attention_reads_pages(name: str) -> None:
    x, rng = MORE[name], np.random.default_rng(1)
    page_size = x.page_size if isinstance(x.page_size, int) else 8
    for lengths in ([x.length, 0, 1], [7, x.length // 2, min(x.length, 3 * page_size)]):
        table = table_of(lengths, page_size, rng)
        if isinstance(x.pages, int):
            assert isinstance(x.entries, int)
            indices = np.resize(table.indices, x.entries)
            table = Table(table.indptr, indices, table.last, x.pages, page_size)
        check(x, table, rng)


def test_the_kernel_reads_pages_and_nothing_else_holds_a_cache() -> None:
    build = build_of(Problem(F16), "paged")
    launch, program = attention_launch(build), build.data.program
    assert sorted(r.template for r in build.fused.regions) == ["attention", "pointwise", "scatter", "scatter"]
    read = {launch.bound.tensors[b.name]: b.shape for b in launch.bound.kernel.buffers if not b.written}
    values = {label: o.name for label, o in zip(build.fused.graph.labels(), build.fused.graph.outputs)}
    pages = (PAGES, PAGE, 2, 16)
    assert read == {
        "q": (BATCH, 4, 1, 16), values["k_now"]: pages, values["v_now"]: pages,
        "kv_indptr": (BATCH + 1,), "kv_indices": (ENTRIES,), "kv_last_page_len": (BATCH,),
    }  # fmt: skip
    assert build.fused.copied == {}
    assert [t.name for t in program.temps] == ["pagedslots"]


def fed(x: Problem, **changes: np.ndarray) -> Arrays:
    """Two sequences of 9 and 3 positions in pages of 4, with some parts changed."""
    rng = np.random.default_rng(3)
    table = table_of([9, 3], 4, rng, spare=0)
    return {**drawn(x, table, rng)[0], **changes}


WRONG = {
    "a page that doesn't exist": {"kv_indices": [0, 1, 9, 3]},
    "a negative page": {"kv_indices": [0, 1, 2, -1]},
    "pages behind the table": {"kv_indptr": [0, 3, 5], "kv_last_page_len": [1, 3]},
    "pages before the table": {"kv_indptr": [-1, 3, 4]},
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("form", ["paged", "reading", "appending"])
def test_entries_out_of_range_are_errors_in_checked_mode(name: str, form: str) -> None:
    x = Problem(F32)
    feeds = fed(x, **{k: np.array(v, np.int32) for k, v in WRONG[name].items()})
    indptr, indices, last = (feeds[n] for n in TABLE)
    with pytest.raises(InputError):
        check_table(indptr, indices, last, pages=4, page_size=4)
    engine = engine_of(x, form)
    if form == "appending" and name == "pages before the table":
        return  # it writes to the last of these only
    with pytest.raises(DeviceError, match="index"):
        engine.run({t.name: feeds[t.name] for t in engine.inputs})
    with pytest.raises(ModelError, match=r"page|index"):
        run_reference(FORMS[form](x), feeds)


def test_unchecked_kernels_stay_inside_of_the_pages() -> None:
    """Of two sequences of 4 positions one has a page that does not exist: the other's results are right."""
    x, table = Problem(F32), table_of([4, 4], 4, np.random.default_rng(4), spare=0)
    pages, whole = drawn(x, table, np.random.default_rng(5))
    wrong = {**pages, "kv_indices": np.array([1 << 20, table.indices[1]], np.int32)}
    got = Engine(build_of(x, "paged").data, SimDevice()).run(wrong)
    np.testing.assert_allclose(got["y"][1], softmax_attention(x, whole, table)[1], 1e-5, 1e-5)


@pytest.mark.parametrize("name", ["a page that doesn't exist", "a negative page", "pages behind the table"])
def test_unchecked_appends_to_no_place_are_dropped(name: str) -> None:
    x = Problem(F32)
    feeds = fed(x, **{k: np.array(v, np.int32) for k, v in WRONG[name].items()})
    wrong = 0 if name == "a page that doesn't exist" else 1  # the sequence
    engine = Engine(build_of(x, "appending").data, SimDevice())
    got = engine.run({t.name: feeds[t.name].copy() for t in engine.inputs})["k_now"]
    changed = np.argwhere((got != feeds["k"]).any(axis=(2, 3)) & ~np.isnan(got).all(axis=(2, 3)))
    assert len(changed) == 1
    np.testing.assert_array_equal(got[tuple(changed[0])], feeds["new_k"][1 - wrong, :, 0])


BROKEN = {
    "shapes": ([0, 1], [0], [1, 1], "no table of pages"),
    "order": ([0, 2, 1], [0, 1], [1, 1], "sequence 1 has pages 2 to 1"),
    "no last position": ([0, 1], [0], [0], "the last page of sequence 0 holds 0 positions, not 1 to 4"),
    "a last page of more": ([0, 1], [0], [5], "the last page of sequence 0 holds 5 positions"),
    "length": ([0, 0, 3], [0, 1, 2], [0, 3], "sequence 1 has more than 10 positions"),
    "pages": ([0, 2], [1, 3], [4], "page 3 of 3"),
    "shared": ([0, 2, 4], [1, 0, 1, 2], [2, 2], "sequence 0 appends to page 1, which another sequence has too"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tables_are_checked_on_the_host(name: str) -> None:
    *parts, text = BROKEN[name]
    indptr, indices, last = (np.array(a, np.int32) for a in parts)
    with pytest.raises(InputError, match=text):
        check_table(indptr, indices, last, pages=3, page_size=4, length=10, new=3)


def test_a_table_of_nothing_is_one_and_full_pages_may_be_shared() -> None:
    zeros = np.zeros(3, np.int32)
    check_table(zeros, zeros[:0], zeros[:2], pages=0, page_size=4, new=1)
    shared = [np.array(a, np.int32) for a in ([0, 2, 4], [1, 0, 1, 2], [2, 2])]
    check_table(shared[0], shared[1], shared[2], pages=3, page_size=4, new=2)


TACTICS = [
    (F16, 3, SplitTactic(3, 2, 16)), (F16, 3, SplitTactic(1, 4, 16)), (F32, 3, SplitTactic(3, 2, 16)),
    (F16, 40, MmaTactic(2, 1, 16, 2)), (F16, 40, MmaTactic(1, 2, 16, 1)), (F32, 20, FfmaTactic(8, 1, 2, 64)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "new", "tactic"), TACTICS, ids=str)
def test_every_barrier_wait_and_count_is_needed(dtype: DType, new: int, tactic: Any) -> None:
    """As for contiguous caches."""
    x, rng = Problem(dtype, new, length=150), np.random.default_rng(0)
    table = table_of([150, 90], 16, rng)
    build = build_of(x, "reading")
    bound = attention_launch(build).bound
    kernel = bound.kernel
    pages, whole = drawn(x, table, rng)
    for b, places in enumerate(paged_oracle.places(*table.parts, table.page_size)):
        for t, place in enumerate(places):
            for n in ("k", "v"):
                pages[n][place] = whole[n][b, :, t]
    values = {**pages, **{n: w.data for n, w in build.fused.graph.weights.items()}}
    data = {b.name: values[bound.tensors[b.name]] for b in kernel.buffers if not b.written}
    env = {"b": 2, "size": 16, "pages": table.pages, "entries": len(table.indices)}
    source, want = render_with(kernel, tactic), {"out0": softmax_attention(x, whole, table)}

    def passes(text: str) -> bool:
        try:
            return matches(kernel, run_kernel(source, kernel, data, env, text=text), want, slack=2)
        except AssertionError:  # counters that are not zeros
            return False

    header = "last_block.cuh" if isinstance(tactic, SplitTactic) and tactic.splits > 1 else None
    assert passes(source.source)
    assert len(mutations(source.source)) >= 2
    assert [m.deleted for m in survivors(source.source, passes, header)] == []


REAL = [
    pytest.param(dtype, new, heads, d, marks=[] if (new, d, dtype) == (1, 64, F16) else pytest.mark.slow)
    for dtype in (F16, DType.BF16, F32)
    for new, heads, d in ((1, 32, 64), (1, 32, 128), (1, 64, 128), (4, 32, 128), (512, 32, 128))
]


@pytest.mark.parametrize(("dtype", "new", "heads", "d"), REAL)
def test_kernels_for_real_sizes_compile_without_spills(dtype: DType, new: int, heads: int, d: int) -> None:
    """With pages of 16 and of any size; the kernels of appends too."""
    for page_size in (16, PAGE):
        x = Problem(dtype, new, heads, 8, d, 32768, page_size=page_size, pages=8192, entries=8192)
        for launch in built(FORMS["paged"](x)).planned:
            for source in launch.sources:
                assert_compiles(source)
