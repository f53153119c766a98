"""Fusion of attention with what reads pages, and of masks with the lengths of sequences."""

from __future__ import annotations

from pass_tools import build

from arcweld.passes.fusion import fuse
from arcweld.passes.schedule import schedule

PAGES = """input %q: f32[2, 4, 1, 8]
input %pages: f32[9, 4, 2, 8]
input %p: i32[3]
input %i: i32[9]
input %l: i32[2]
%k = PagedRead(%pages, %p, %i, %l, length=32)
"""


def stored(text: str) -> dict[str, tuple[str, ...]]:
    """For each region what it stores, and its nodes."""
    fused = schedule(fuse(build(PAGES + text)))
    return {o.name: tuple(n.output.name for n in r.nodes) for r in fused.regions for o in r.outputs}


def test_attention_reads_pages_as_keys_and_values() -> None:
    assert stored("%y = Attention(%q, %k, %k, scale=0.5)\noutput %y\n") == {"y": ("k", "y")}


def test_every_attention_reads_the_pages_for_itself() -> None:
    text = "%a = Attention(%q, %k, %k, scale=0.5)\n%y = Attention(%a, %k, %k, scale=0.5)\noutput %y\n"
    assert stored(text) == {"a": ("k", "a"), "y": ("k", "y")}


def test_an_output_is_stored_beside() -> None:
    text = "%y = Attention(%q, %k, %k, scale=0.5)\noutput %y\noutput %k\n"
    assert stored(text) == {"y": ("k", "y"), "k": ("k",)}


def test_pages_of_another_type_are_converted_as_they_are_read() -> None:
    text = """%h: f16[2, 2, 32, 8] = Cast(%k, to=dtype(f16))
%r: f16[2, 4, 1, 8] = Cast(%q, to=dtype(f16))
%y = Attention(%r, %h, %h, scale=0.5)
output %y
"""
    assert stored(text)["y"] == ("k", "h", "r", "y")


def test_products_read_a_dense_copy() -> None:
    """They read each row many times."""
    text = "%s: f32[2, 2, 32, 5] = MatMul(%k, %w)\noutput %s\n"
    assert stored("weight %w: f32[8, 5]\n" + text) == {"k": ("k",), "s": ("s",)}


def test_every_mask_has_the_lengths_for_itself() -> None:
    text = """%n = PagedLengths(%p, %l, page_size=4)
%m: i64[2, 1, 1, 1] = Reshape(%n, shape=(2, 1, 1, 1))
%t = Range(length=32)
%s = Less(%t, %m)
%a = Attention(%q, %k, %k, %s, scale=0.5)
%y = Attention(%a, %k, %k, %s, scale=0.5)
output %y
output %n
"""
    found = {name: sorted(nodes) for name, nodes in stored(text).items()}
    assert found == {"n": ["n"], "a": sorted("nmtska"), "y": sorted("nmtsky")}
