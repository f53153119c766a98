"""Weights of 16-bit floats in graphs in f32: they keep two bytes an element, whatever the build's precision."""

from __future__ import annotations

import pytest
from pass_tools import build, run, same_results

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.passes.cleanup import cleanup
from arcweld.passes.merge_matmuls import merge_matmuls
from arcweld.passes.pipeline import run_passes
from arcweld.passes.storage import storage

TEXT = """input %x: f32[1, 128]
weight %w: {t}[96, 128] source='w'
weight %v: {t}[64, 128] source='v'
weight %one: f32[] data=(1.0,)
%d = DequantizeLinear(%w, %one, axis=0, dtype=dtype(f32)) @ 'd'
%e = DequantizeLinear(%v, %one, axis=0, dtype=dtype(f32)) @ 'e'
%t = Transpose(%d, perm=(1, 0))
%u = Transpose(%e, perm=(1, 0))
%y = MatMul(%x, %t)
%z = MatMul(%x, %u)
%p = Exp(%y)
%q = Exp(%z)
output %p
output %q
"""


def large(graph: Graph) -> dict[DType, int]:
    """The elements of the weights that are read, by type, small ones aside."""
    read = {v.name: v for n in graph.nodes for v in n.operands() if v.name in graph.weights}
    found: dict[DType, int] = {}
    for v in read.values():
        if graph.weights[v.name].data.size > 256:
            found[v.dtype] = found.get(v.dtype, 0) + graph.weights[v.name].data.size
    return found


@pytest.mark.parametrize("stored", ["f16", "bf16"])
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("fp16", 0.1), ("bf16", 0.5)])
def test_two_bytes_an_element(stored: str, precision: str, atol: float) -> None:
    before = build(TEXT.format(t=stored).replace("Exp", "Neg"))
    after = run_passes(before, Options(precision=precision, arch=("sm_80",)), verify_each=True)
    wanted = DType(stored) if precision == "fp32" else Options(precision=precision).float_type
    assert large(after) == {wanted: 160 * 128}
    kept = [n for n in after.nodes if n.op == "DequantizeLinear"]
    assert bool(kept) == (precision == "fp32")
    same_results(before, after, rtol=2e-2, atol=atol)


def test_merged_matrices_share_the_scale() -> None:
    before = build(TEXT.format(t="bf16"))
    after = run(before, storage, merge_matmuls, options=Options(arch=("sm_80",)))
    (node,) = [n for n in after.nodes if n.op == "DequantizeLinear"]
    assert [v.shape for v in node.operands()] == [(160, 128), ()]
    assert node.attrs["keep"] == 1
    same_results(before, after)


@pytest.mark.parametrize(("scale", "to", "left"), [("1.0", "bf16", 0), ("2.0", "bf16", 1), ("1.0", "f16", 1)])
def test_a_cast_back(scale: str, to: str, left: int) -> None:
    before = build(
        f"input %x: bf16[3, 8]\nweight %one: f32[] data=({scale},)\n%d = DequantizeLinear(%x, %one, axis=0, "
        f"dtype=dtype(f32))\n%c = Cast(%d, to=dtype({to}))\n%y = Neg(%c)\noutput %y\n"
    )
    after = run(before, cleanup)
    assert sum(n.op == "DequantizeLinear" for n in after.nodes) == left
    same_results(before, after)
