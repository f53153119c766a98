"""Fusion around quantised values: what is stored between kernels has 8 bits."""

from __future__ import annotations

import pytest
from pass_tools import build

from arcweld.compiler.dtypes import DType
from arcweld.compiler.region import FusedGraph
from arcweld.passes.fusion import fuse
from arcweld.passes.schedule import schedule


def fused(text: str) -> FusedGraph:
    return schedule(fuse(build(text)))


def groups(f: FusedGraph) -> list[tuple[str, ...]]:
    """The names of each region's nodes, in launch order."""
    return [tuple(n.output.name for n in r.nodes) for r in f.regions]


@pytest.mark.parametrize(
    ("reader", "group"),
    [
        ("%y = Relu(%b)", ("d", "n", "h", "r", "e", "b", "y")),
        ("%y = Relu(%b)\n%y2 = Softmax(%d, axis=1)\noutput %y2", ("d", "y2")),
        ("%v = Reshape(%d, shape=(1, 1, 4, 8))\n%y = AveragePool(%v, kernel_shape=(2, 2), strides=(2, 2), "
         "dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0, count_include_pad=0, layout='NCHW')", ("d", "v", "y")),
    ],
    ids=["a sum", "two kernels", "a pool"],
)  # fmt: skip
def test_values_between_kernels_stay_in_8_bits(reader: str, group: tuple[str, ...]) -> None:
    """A sum of two quantised products, as residual blocks have it: the first kernel stores 8 bits."""
    text = f"""
        input %x: i8[4, 8]
        weight %w: i8[8, 8]
        weight %s: f32[] data=0.5
        %m = MatMulInteger(%x, %w)
        %f = Cast(%m, to=dtype(f32))
        %q = QuantizeLinear(%f, %s, axis=0, dtype=dtype(i8))
        %d = DequantizeLinear(%q, %s, axis=0)
        %n = MatMulInteger(%q, %w)
        %h = Cast(%n, to=dtype(f32))
        %r = QuantizeLinear(%h, %s, axis=0, dtype=dtype(i8))
        %e = DequantizeLinear(%r, %s, axis=0)
        %b = Add(%d, %e)
        {reader}
        output %y
    """
    f = fused(text)
    assert not any(o.dtype is DType.F32 for r in f.regions for o in r.outputs if not o.name.startswith("y"))
    assert group in groups(f)
