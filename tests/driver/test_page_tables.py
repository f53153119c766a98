"""Tables of pages that a build draws: they fit the pages, and a default build is verified with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paged_graphs import Decoder, Problem, decoder, paged

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph
from arcweld.compiler.paged import TABLE, check_table
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import build_data
from arcweld.driver.page_tables import page_tables
from arcweld.driver.samples import sample_inputs, sample_sizes

SMALL = Problem(DType.F32, length=40)


@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 70), st.integers(1, 64), st.integers(0, 100))
def test_drawn_tables_are_tables(batch: int, pages: int, entries: int, page_size: int, seed: int) -> None:
    sizes = {"b": batch, "pages": pages, "entries": entries, "size": page_size}
    feeds = sample_inputs(paged(SMALL), sizes, seed=seed)
    indptr, indices, last = (feeds[n] for n in TABLE)
    check_table(indptr, indices, last, pages=pages, page_size=page_size, length=SMALL.length)
    used = indices[: indptr[-1]]
    assert len(set(used)) == len(used)  # no sequence writes into another's page
    assert indptr[1] > 0
    run_reference(paged(SMALL), feeds)


def test_usual_sizes_make_several_sequences_of_several_pages() -> None:
    graph = paged(replace(SMALL, page_size=8))
    sizes = sample_sizes(graph)
    assert sizes == {"b": 3, "pages": 32, "entries": 32}
    lengths = [np.diff(sample_inputs(graph, sizes, seed=seed)["kv_indptr"]) for seed in range(20)]
    assert np.max(lengths) == 5  # of 8: 40 positions
    assert np.min(lengths) == 0


def test_a_table_behind_a_cast_and_one_of_lengths_only() -> None:
    graph = parse_graph("""graph 'g'
input %p: i64[3]
input %last: i64[2]
%q: i32[3] = Cast(%p, to=dtype(i32)) @ 'q'
%n = PagedLengths(%q, %last, page_size=16)
output %n
""")
    (table,) = page_tables(graph)
    assert (table.indptr.name, table.indices, table.last.name, table.page_size) == ("p", None, "last", 16)
    feeds = sample_inputs(graph, {})
    check_table(feeds["p"], np.zeros(feeds["p"][-1], np.int32), feeds["last"], pages=1, page_size=16)


def test_a_computed_table_is_not_drawn() -> None:
    graph = parse_graph("""graph 'g'
input %p: i32[3]
input %last: i32[2]
%q = Abs(%p)
%n = PagedLengths(%q, %last, page_size=16)
output %n
""")
    assert page_tables(graph) == []


def fixed(x: Problem) -> Graph:
    return paged(replace(x, batch=3, pages=9, entries=8, page_size=4))


DEFAULT = {
    "open sizes": (paged(SMALL), "fp32", 3),
    "fixed sizes": (fixed(Problem(DType.F16, new=2, length=30)), "fp32", 3),
    "a layer": (decoder(Decoder(new=2)), "fp32", 7),
    "a layer in half precision": (decoder(Decoder()), "fp16", 10),  # its caches are f32, and so converted
}


@pytest.mark.parametrize("name", DEFAULT)
def test_a_default_build_is_verified(name: str) -> None:
    graph, precision, kernels = DEFAULT[name]
    build, _, _ = build_data(graph, device="sim", precision=precision)
    evidence = build.data.verify
    assert evidence is not None
    assert {o["status"] for o in evidence["outputs"]} == {"verified"}
    assert {k["status"] for k in evidence["kernels"]} == {"verified"}
    portable = {v.kernel for x in build.data.program.launches for v in x.variants if v.arch == "sm_80"}
    assert len(portable) == kernels
