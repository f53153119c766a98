"""Columns in another order: activations are permuted, never packed weights."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import build, run, same_results

from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.passes.column_orders import column_orders
from arcweld.passes.pipeline import run_passes

STORED = """input %x: f32[3, 128]
weight %w: i8[96, 128] source='w'
weight %s: f32[96, 4] source='s'
weight %at: i64[{length}] source='at'
%d = DequantizeLinear(%w, %s, axis=1, block=32) @ 'd'
"""
PRODUCT = STORED + """%g = Gather(%d, %at, axis=1)
%t = Transpose(%g, perm=(1, 0))
%y = MatMul(%x, %t) @ 'y'
output %y
"""
ORDER = np.random.default_rng(0).permutation(128)


def with_places(text: str, places: np.ndarray) -> Graph:
    graph = build(text.format(length=places.size))
    return graph.replace(weights={**graph.weights, "at": Weight(places.astype(np.int64), "at")})


def test_the_activation_is_permuted_and_the_weights_stay_packed() -> None:
    before = with_places(PRODUCT, ORDER)
    moved = run(before, column_orders)
    (gather,) = [n for n in moved.nodes if n.op == "Gather"]
    assert gather.operands()[0].name == "x"
    same_results(before, moved)
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    assert [n.attrs["keep"] for n in after.nodes if n.op == "DequantizeLinear"] == [1]
    same_results(before, after)


def test_a_matrix_that_is_multiplied_as_it_is_stored() -> None:
    text = STORED.replace("[3, 128]", "[3, 96]") + "%g = Gather(%d, %at, axis=0)\n%y = MatMul(%x, %g)\noutput %y\n"
    before = with_places(text, np.random.default_rng(1).permutation(96))
    moved = run(before, column_orders)
    assert [n.operands()[0].name for n in moved.nodes if n.op == "Gather"] == ["x"]
    same_results(before, moved)


def test_products_of_one_activation_in_one_order_share_it() -> None:
    text = STORED.replace("%d =", "weight %v: i8[64, 128] source='v'\nweight %r: f32[64, 4] source='r'\n%d =") + (
        "%e = DequantizeLinear(%v, %r, axis=1, block=32)\n"
        "%g = Gather(%d, %at, axis=1)\n%t = Transpose(%g, perm=(1, 0))\n%y = MatMul(%x, %t)\n"
        "%h = Gather(%e, %at, axis=1)\n%u = Transpose(%h, perm=(1, 0))\n%z = MatMul(%x, %u)\n"
        "%p = Exp(%y)\n%q = Exp(%z)\noutput %p\noutput %q\n"
    )
    before = with_places(text, ORDER)
    moved = run(before, column_orders)
    assert sum(n.op == "Gather" for n in moved.nodes) == 1
    same_results(before, moved)
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    assert sum(n.op == "MatMul" for n in after.nodes) == 1
    same_results(before, after)


@pytest.mark.parametrize("case", ["a column twice", "rows"])
def test_what_is_no_permutation_of_the_sum_stays(case: str) -> None:
    text = PRODUCT if case != "rows" else PRODUCT.replace("%at, axis=1", "%at, axis=0")
    places = ORDER.copy()
    places[0] = places[1]
    before = with_places(text, np.random.default_rng(1).permutation(96) if case == "rows" else places)
    assert column_orders(before, Options()) is before
