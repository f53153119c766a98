"""Channels-last layout: transposes end at the edges, every rule computes the same, and reshapes factor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pass_tools import body, build, check, lines, ops

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.passes.cleanup import cleanup
from arcweld.passes.cse import cse
from arcweld.passes.decompose import decompose
from arcweld.passes.layout import layout, transposes
from arcweld.passes.layout_rules import factor

ATTRS = "strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=1"
POOL = "kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0)"
HEADER = f"""
    input %x: f32[2, 4, 6, 8]
    weight %w: f32[4, 4, 3, 3]
    weight %b: f32[4]
    weight %c4: f32[4, 1, 1]
    weight %c6: f32[6, 1]
    %c = Conv(%x, %w, %b, {ATTRS})
"""


def edges_only(graph: Graph) -> bool:
    """Whether every transpose reads a graph input or writes a graph output."""
    ends = {v.name for v in graph.inputs} | graph.output_names()
    return all(n.operands()[0].name in ends or n.output.name in ends for n in graph.nodes if n.op == "Transpose")


def test_a_block_is_channels_last_between_its_edges() -> None:
    after = check(f"{HEADER}%r = Relu(%c)\n%m = Mul(%r, %c4)\n%y = Conv(%m, %w, {ATTRS})\noutput %y", layout)
    attrs = f"{ATTRS}, layout='NHWC'"
    assert body(after) == lines(f"""
        %x.p0231 = Transpose(%x, perm=(0, 2, 3, 1))
        %c.p0231 = Conv(%x.p0231, %w, %b, {attrs})
        %r.p0231 = Relu(%c.p0231)
        %m.p0231 = Mul(%r.p0231, %c4.p0231)
        %y.p0231 = Conv(%m.p0231, %w, {attrs})
        %y = Transpose(%y.p0231, perm=(0, 3, 1, 2))
        output %y
    """)
    assert transposes(after) == 2
    assert edges_only(after)


BETWEEN = {
    "pointwise with a row constant": "%d = Add(%c, %c6)",
    "pointwise of two": "%e = Relu(%c)\n%d = Sub(%e, %c)",
    "where": "%e = Greater(%c, %c4)\n%d = Where(%e, %c, %c6)",
    "concat on channels": "%e = Relu(%c)\n%f = Concat(%c, %e, axis=1)\n"
    "%d = Slice(%f, starts=(0, 2, 0, 0), sizes=(2, 4, 6, 8), steps=(1, 1, 1, 1))",
    "concat on rows": "%e = Concat(%c, %c, axis=2)\n%d = MaxPool(%e, " + POOL + ")",
    "pad": "%d = Pad(%c, pads=(0, 0, 1, 2, 0, 0, 3, 0), mode='reflect')",
    "strided slice": "%d = Slice(%c, starts=(1, 3, 0, 7), sizes=(1, 4, 3, 4), steps=(1, -1, 2, -2))",
    "resize": "%d = Resize(%c, sizes=(2, 4, 12, 16), scales=(1.0, 1.0, 2.0, 2.0), mode='linear')",
    "tile": "%d = Tile(%c, repeats=(1, 1, 2, 1))",
    "expand": "%e = ReduceMax(%c, axes=(2, 3), keepdims=1)\n%d = Expand(%e, shape=(2, 4, 3, 5))",
    "squeeze and excite": "%e = ReduceSum(%c, axes=(2, 3), keepdims=1)\n%f = Sigmoid(%e)\n%d = Mul(%c, %f)",
    "max pool": "%d = MaxPool(%c, " + POOL + ")",
    "average pool": "%d = AveragePool(%c, " + POOL + ", count_include_pad=1)",
    "softmax over channels": "%d = Softmax(%c, axis=1)",
    "dropped batch": "%e = ReduceMax(%c, axes=(0,), keepdims=0)\n%d = Reshape(%e, shape=(1, 4, 6, 8))",
    "split channels and back": "%e = Reshape(%c, shape=(2, 2, 2, 6, 8))\n%f = Neg(%e)\n"
    "%d = Reshape(%f, shape=(2, 4, 6, 8))",
    "norm over channels": "%t = Transpose(%c, perm=(0, 2, 3, 1))\n%n = LayerNormalization(%t, %b, %b, axis=3)\n"
    "%d = Transpose(%n, perm=(0, 3, 1, 2))",
    "instance norm": "%d = InstanceNormalization(%c, %b, %b)",
    "group norm": "%d = GroupNormalization(%c, %b, %b, num_groups=2)",
    "positions merged": "%e = Reshape(%c, shape=(2, 4, 48))\n%f = Relu(%e)\n%d = Reshape(%f, shape=(2, 4, 8, 6))",
    "quantised": "weight %s: f32[4] data=(0.1, 0.2, 0.3, 0.4)\nweight %z: u8[4] data=128\n"
    "%e = QuantizeLinear(%c, %s, %z, axis=1)\n%d = DequantizeLinear(%e, %s, %z, axis=1)",
    "gather channels": "weight %i: i64[4] data=(3, 1, 1, 0)\n%d = Gather(%c, %i, axis=1)",
}


def test_a_quantised_scalar_has_no_axis() -> None:
    text = "input %x: i8[]\nweight %s: f32[] data=0.5\n%y = DequantizeLinear(%x, %s, axis=0)\noutput %y"
    assert [n.op for n in check(text, layout).nodes] == ["DequantizeLinear"]


@pytest.mark.parametrize("between", BETWEEN)
def test_between_convolutions_no_transpose_is_left(between: str) -> None:
    text = f"{HEADER}{BETWEEN[between]}\n%y = Conv(%d, %w, {ATTRS})\noutput %y"
    after = check(text, decompose, layout, decompose, cleanup, cse, rtol=1e-3, atol=1e-3)
    assert transposes(after) == 2
    assert edges_only(after)
    assert all(n.attrs["layout"] == "NHWC" for n in after.nodes if "layout" in n.attrs)


@pytest.mark.parametrize(
    "shuffle",
    [
        # channel shuffle
        "%e = Reshape(%c, shape=(2, 2, 2, 6, 8))\n%f = Transpose(%e, perm=(0, 2, 1, 3, 4))\n"
        "%d = Reshape(%f, shape=(2, 4, 6, 8))\nweight %w2: f32[4, 4, 3, 3]",
        # pixel shuffle
        "%e = Reshape(%c, shape=(2, 1, 2, 2, 6, 8))\n%f = Transpose(%e, perm=(0, 1, 4, 2, 5, 3))\n"
        "%d = Reshape(%f, shape=(2, 1, 12, 16))\nweight %w2: f32[4, 1, 3, 3]",
    ],
)
def test_shuffles_move_elements_once(shuffle: str) -> None:
    after = check(f"{HEADER}{shuffle}\n%y = Conv(%d, %w2, {ATTRS})\noutput %y", layout, cleanup)
    assert transposes(after) == 3  # the two edges and the shuffle itself


def test_classifier_heads_need_no_transpose() -> None:
    text = f"""{HEADER}
        %p = ReduceSum(%c, axes=(2, 3), keepdims=1)
        %f = Reshape(%p, shape=(2, 4))
        weight %h: f32[4, 3]
        %y = MatMul(%f, %h)
        output %y
    """
    after = check(text, layout, cleanup)
    assert transposes(after) == 1


def test_flattened_maps_are_transposed_back_once() -> None:
    text = f"{HEADER}weight %h: f32[192, 3]\n%r = Relu(%c)\n%f = Reshape(%r, shape=(2, 192))\n"
    text += "%y = MatMul(%f, %h)\noutput %y"
    assert transposes(check(text, layout, cleanup)) == 2


def test_tokens_come_out_of_a_convolution_in_order() -> None:
    text = f"""{HEADER}
        %f = Reshape(%c, shape=(2, 4, 48))
        %t = Transpose(%f, perm=(0, 2, 1))
        weight %h: f32[4, 3]
        %y = MatMul(%t, %h)
        output %y
    """
    after = check(text, layout, cleanup)
    assert transposes(after) == 1
    assert ops(after) == ["Transpose", "Conv", "Reshape", "MatMul"]


@pytest.mark.parametrize(
    ("shape", "kernel", "rank"), [("[2, 4, 9]", "[4, 4, 3]", 1), ("[2, 4, 5, 6, 7]", "[4, 4, 3, 3, 3]", 3)]
)
def test_one_and_three_spatial_axes(shape: str, kernel: str, rank: int) -> None:
    ones, pads = str((1,) * rank), str((1,) * 2 * rank)
    attrs = f"strides={ones}, dilations={ones}, pads={pads}, group=1"
    text = f"""
        input %x: f32{shape}
        weight %w: f32{kernel}
        %a = Conv(%x, %w, {attrs})
        %r = Relu(%a)
        %t = ConvTranspose(%r, %w, {attrs}, output_padding={(0,) * rank})
        output %t
    """
    after = check(text, layout, rtol=1e-3, atol=1e-3)
    assert transposes(after) == 2
    assert edges_only(after)


def test_symbolic_sizes() -> None:
    text = (
        HEADER.replace("[2, 4, 6, 8]", "[n, 4, h, 8]")
        + f"""
        %p = MaxPool(%c, {POOL})
        %u = Resize(%p, sizes=(n, 4, h, 8), mode='nearest')
        %d = Concat(%u, %c, axis=1)
        %f = Reshape(%d, shape=(n, 8, 8*h))
        %y = Softmax(%f, axis=1)
        output %y
    """
    )
    after = check("symbol n(lo=1)\nsymbol h(lo=2)\n" + text, decompose, layout, cleanup, dims={"n": 3, "h": 4})
    assert transposes(after) == 2


def test_graphs_without_images_stay_unless_transposes_go() -> None:
    stays = build("input %x: f32[2, 3]\n%t = Transpose(%x, perm=(1, 0))\n%y = Neg(%t)\noutput %y")
    assert layout(stays, Options()) is stays
    text = (
        "input %x: f32[2, 3]\n%t = Transpose(%x, perm=(1, 0))\n%n = Exp(%t)\n%y = Transpose(%n, perm=(1, 0))\noutput %y"
    )
    assert ops(check(text, layout)) == ["Exp"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_factor_pairs_have_equal_products(shape: list[int], data: st.DataObject) -> None:
    total = 1
    for d in shape:
        total *= d
    other: list[int] = []
    while total > 1:
        d = data.draw(st.sampled_from([k for k in range(2, total + 1) if total % k == 0]))
        other.append(d)
        total //= d
    groups = factor(shape, other)
    if not other:
        assert groups is None
        return
    assert groups is not None
    assert [a for ins, _ in groups for a in ins] == [i for i, d in enumerate(shape) if d != 1]
    assert [b for _, outs in groups for b in outs] == list(range(len(other)))
    for ins, outs in groups:
        left = right = 1
        for a in ins:
            left *= shape[a]
        for b in outs:
            right *= other[b]
        assert left == right


def test_factor_refuses_what_it_cannot_compare() -> None:
    assert factor((2, 3), (5,)) is None


def test_one_zero_point_of_all_blocks_has_no_axes_to_move() -> None:
    check(
        """
        input %x: i8[2, 4, 6, 8]
        weight %s: f32[2, 2, 6, 8]
        weight %z: i8[] data=3
        weight %w: f32[4, 4, 3, 3]
        %d = DequantizeLinear(%x, %s, %z, axis=1, block=2)
        %y = Conv(%d, %w, strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=1)
        output %y
        """,
        layout,
    )
