"""Weight packing: constants in the order in which kernels read them, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pass_tools import build, same_results

from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.options import Options
from arcweld.compiler.records import sources
from arcweld.passes.pack_weights import pack_weights

CONV = """input %x: {t}[2, {size}, {c}]
weight %w: {t}[{w}]
%y: {t}[2, {size}, {o}] = {op}(%x, %w, _, {attrs}, layout='NHWC') @ 'y'
output %y
"""


def conv(
    rank: int, c: int, o: int, group: int, *, kernel: int = 3, transposed: bool = False, dtype: str = "f32"
) -> Graph:
    """A channels-last convolution whose output is as large as its input."""
    ones, none, pads = ((v,) * n for v, n in ((1, rank), (0, rank), (kernel // 2, 2 * rank)))
    shape = ([c, o // group] if transposed else [o, c // group]) + [kernel] * rank
    attrs = f"strides={ones}, dilations={ones}, pads={pads}, group={group}"
    if transposed:
        attrs += f", output_padding={none}"
    return build(
        CONV.format(
            t=dtype, size=", ".join(["5"] * rank), c=c, o=o, w=", ".join(map(str, shape)), attrs=attrs,
            op="ConvTranspose" if transposed else "Conv",
        )
    )  # fmt: skip


def packed(graph: Graph) -> tuple[Graph, Node, np.ndarray]:
    """The graph after packing, the node that uses the weight, and the stored array."""
    after = pack_weights(graph, Options())
    node = after.nodes[-1]
    view = after.producers()[node.operands()[1].name]
    return after, node, after.weights[view.operands()[0].name].data


@pytest.mark.parametrize(
    ("rank", "c", "o", "group", "order"),
    [(2, 4, 6, 1, (0, 2, 3, 1)), (1, 4, 6, 2, (0, 2, 1)), (3, 2, 4, 1, (0, 2, 3, 4, 1)), (2, 4, 4, 4, (2, 3, 1, 0))],
)
def test_convolutions(rank: int, c: int, o: int, group: int, order: tuple[int, ...]) -> None:
    """Dense: output channel, taps, input channel. Depthwise: taps, then channels."""
    graph = conv(rank, c, o, group)
    after, node, stored = packed(graph)
    np.testing.assert_array_equal(stored, graph.weights["w"].data.transpose(order))
    assert node.operands()[1].shape == graph.nodes[0].operands()[1].shape
    same_results(graph, after)


def test_transposed_convolutions_have_their_output_channels_first() -> None:
    graph = conv(2, 4, 6, 1, transposed=True)
    after, _, stored = packed(graph)
    np.testing.assert_array_equal(stored, graph.weights["w"].data.transpose(1, 2, 3, 0))
    same_results(graph, after)


@given(
    rank=st.integers(1, 2), group=st.sampled_from([1, 2, 4]), per_in=st.integers(1, 3), per_out=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]), transposed=st.booleans(),
)  # fmt: skip
def test_any_convolution_keeps_its_meaning(
    rank: int, group: int, per_in: int, per_out: int, kernel: int, transposed: bool
) -> None:
    graph = conv(rank, group * per_in, group * per_out, group, kernel=kernel, transposed=transposed)
    same_results(graph, pack_weights(graph, Options()))


PRODUCT = """input %x: {t}[3, {k}]
weight %w: {t}[{k}, 8]
%y: {t}[3, 8] = MatMul(%x, %w) @ 'y'
output %y
"""


def test_narrow_products_are_stored_by_column() -> None:
    graph = build(PRODUCT.format(t="f16", k=16))
    after, _, stored = packed(graph)
    np.testing.assert_array_equal(stored, graph.weights["w"].data.T)
    same_results(graph, after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "k"), [("f32", 16), ("f16", 12)])
def test_products_that_gain_nothing_stay(dtype: str, k: int) -> None:
    """f32, and rows that would not start on 16 bytes."""
    graph = build(PRODUCT.format(t=dtype, k=k))
    assert pack_weights(graph, Options()) is graph


def test_operands_that_are_no_weights_stay() -> None:
    graph = build(PRODUCT.format(t="f16", k=16).replace("weight %w", "input %w"))
    assert pack_weights(graph, Options()) is graph


def test_channels_first_convolutions_stay() -> None:
    graph = conv(2, 5, 5, 1)
    text = graph.nodes[0].attrs
    first = graph.replace(
        nodes=(Node("Conv", graph.nodes[0].inputs, graph.nodes[0].outputs, {**text, "layout": "NCHW"}),)
    )
    assert pack_weights(first, Options()) is first


def test_a_second_run_changes_nothing() -> None:
    once = pack_weights(conv(2, 4, 6, 1), Options())
    assert pack_weights(once, Options()) is once


def test_the_source_and_the_way_from_it_are_kept() -> None:
    """New weights of the model can be packed the same way."""
    graph = conv(2, 4, 6, 1)
    after, _, _ = packed(graph)
    weight = next(w for n, w in after.weights.items() if n.endswith(".packed"))
    assert sources(weight) == ("w",)
    assert weight.transform
