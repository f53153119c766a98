"""Rows that attention and products look up where they are."""

from __future__ import annotations

import pytest
from pass_tools import build

from arcweld.passes.fusion import fuse
from arcweld.passes.schedule import schedule


def groups(text: str) -> list[tuple[str, ...]]:
    """The names of each region's nodes, in launch order."""
    return [tuple(n.output.name for n in r.nodes) for r in schedule(fuse(build(text))).regions]


@pytest.mark.parametrize(
    ("rows", "width", "together"),
    [(4, 32, True), (8, 16, True), (9, 32, False), (64, 32, False), (4, 8, False)],
    ids=["few", "as-many-as-few", "more", "many", "short"],
)
def test_products_of_few_rows_look_them_up(rows: int, width: int, together: bool) -> None:
    text = (
        f"input %x: f32[100, {width}]\ninput %i: i64[{rows}]\nweight %w: f32[{width}, 6]\n"
        f"%g: f32[{rows}, {width}] = Gather(%x, %i, axis=0, strict=0) @ 'g'\n"
        f"%m: f32[{rows}, 6] = MatMul(%g, %w) @ 'm'\noutput %m\n"
    )
    assert groups(text) == ([("g", "m")] if together else [("g",), ("m",)])


def test_queries_to_pages_are_looked_up() -> None:
    """Queries to dense keys are gathered by another kernel: attention may load them in bulk."""
    text = """input %q: f32[20, 4, 16]
input %tiles: i32[3, 2]
input %places: i32[20, 2]
input %pages: f32[pages, 8, 4, 16]
input %kv_indptr: i32[4]
input %kv_indices: i32[entries]
input %kv_last_page_len: i32[3]
weight %w: f32[64, 6]
%g: f32[3, 2, 4, 16] = Gather(%q, %tiles, axis=0, strict=0) @ 'g'
%h: f32[3, 4, 2, 16] = Transpose(%g, perm=(0, 2, 1, 3)) @ 'h'
%k: f32[3, 4, 64, 16] = PagedRead(%pages, %kv_indptr, %kv_indices, %kv_last_page_len, length=64) @ 'k'
%a: f32[3, 4, 2, 16] = Attention(%h, %k, %k, _, _, scale=0.25, is_causal=0, fill=float(-inf), softcap=0.0) @ 'a'
%t: f32[3, 2, 4, 16] = Transpose(%a, perm=(0, 2, 1, 3)) @ 't'
%b: f32[20, 4, 16] = GatherND(%t, %places, batch_dims=0, strict=0) @ 'b'
output %b
"""
    assert groups(text) == [("g", "h", "k", "a"), ("t", "b")]
    dense = "\n".join("input %k: f32[3, 4, 64, 16]" if x.startswith("%k:") else x for x in text.splitlines())
    inputs = sorted(dense.splitlines(), key=lambda line: line.startswith(("%", "output")))
    assert groups("\n".join(inputs) + "\n") == [("g",), ("h", "a"), ("t", "b")]
