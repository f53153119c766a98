"""What a model demands of its open dimensions, found while importing it: multiples and least sizes.

Multiples come from skip connections, least sizes from windows that need room. Both are compared with ONNX Runtime.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import compare, floats, ints, model

from arcweld.compiler import dims
from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.compiler.onnx import importer
from arcweld.compiler.onnx.importer import import_onnx, support_report

N = helper.make_node
IMAGE: dict[str, tuple[Any, list[Any]]] = {"x": (np.float32, ["n", 2, "height", "width"])}


def pyramid(levels: int, join: str = "Add", axes: str = "hw") -> onnx.ModelProto:
    """Halves an image ``levels`` times by strided pools, doubles it as often, and joins each level with its equal."""
    stride = [2 if a in axes else 1 for a in "hw"]
    pads = [int("h" in axes), int("w" in axes)]
    nodes, sizes = [], ["x"]
    for i in range(levels):
        kernel = [3 if s == 2 else 1 for s in stride]
        nodes.append(N("MaxPool", [sizes[-1]], [f"d{i}"], kernel_shape=kernel, strides=stride, pads=[*pads, *pads]))
        sizes.append(f"d{i}")
    top = sizes.pop()
    for i, same in enumerate(reversed(sizes)):
        nodes.append(N("Resize", [top, "", "scales"], [f"u{i}"], mode="nearest"))
        nodes.append(N(join, [f"u{i}", same], [f"j{i}"], **({"axis": 1} if join == "Concat" else {})))
        top = f"j{i}"
    scales = np.array([1, 1, *stride], np.float32)
    return model(nodes, IMAGE, [top], {"scales": scales})


@pytest.mark.parametrize("join", ["Add", "Concat"])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_skip_connections_ask_for_multiples(levels: int, join: str) -> None:
    step = 2**levels
    proto = pyramid(levels, join)
    for height, width in ((step, 2 * step), (3 * step, step)):
        graph = compare(proto, {"x": floats(1, 2, height, width)})
        assert [str(d) for d in graph.inputs[0].shape[2:]] == [f"{step}*height_by{step}", f"{step}*width_by{step}"]


def test_an_axis_that_is_not_halved_stays_open() -> None:
    graph = compare(pyramid(2, axes="w"), {"x": floats(2, 2, 5, 8)})
    assert [str(d) for d in graph.inputs[0].shape] == ["n", "2", "height", "4*width_by4"]


def test_it_is_said_which_sizes_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "arcweld"):
        import_onnx(pyramid(2, axes="h"))
    assert caplog.messages == ["axis 2 of input x: only multiples of 4, so that the operands of Add_j0 agree"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "arcweld"):
        import_onnx(pyramid(2, axes="h"), shapes={"x": [1, 2, "4*h", "w"]})
    assert caplog.messages == []


def test_what_several_nodes_ask_for_is_said_as_one(caplog: pytest.LogCaptureFixture) -> None:
    """The first Add needs an even width, the second one, of the halves, a multiple of 4."""
    nodes = []
    for top, half, again, joined in (("x", "a", "b", "c"), ("a", "d", "e", "f")):
        pool = {"kernel_shape": [1, 3], "strides": [1, 2], "pads": [0, 1, 0, 1]}
        nodes += [
            N("MaxPool", [top], [half], **pool), N("Resize", [half, "", "scales"], [again], mode="nearest"),
            N("Add", [again, top], [joined]),
        ]  # fmt: skip
    proto = model(nodes, IMAGE, ["c", "f"], {"scales": np.array([1, 1, 1, 2], np.float32)})
    graph = compare(proto, {"x": floats(1, 2, 3, 12)})
    assert str(graph.inputs[0].shape[3]) == "4*width_by2_by2"
    assert caplog.messages == ["axis 3 of input x: only multiples of 4, so that the operands of Add_c and Add_f agree"]


def test_declared_ranges_hold_for_the_multiples() -> None:
    for options in (
        {"shapes": {"x": [1, 2, dims.symbol("h", 10, 100), 16]}},
        {"ranges": {"height": (10, 100, 1)}, "shapes": {"x": [1, 2, None, 16]}},
    ):
        (symbol,) = import_onnx(pyramid(3), **options).symbols()
        assert (symbol.name[-4:], symbol.lo, symbol.hi) == ("_by8", 2, 12)
    with pytest.raises(UnsupportedError, match="cannot broadcast"):
        import_onnx(pyramid(3), shapes={"x": [1, 2, dims.symbol("h", 10, 15), 16]})


def test_multiples_are_bounded_by_the_rest_of_the_model() -> None:
    """A table of 20 columns bounds the width, after the skip connection asked for multiples of 8."""
    proto = pyramid(3, axes="w")
    nodes = [
        N("Shape", ["x"], ["width"], start=3), N("Slice", ["table", "zero", "width", "axis"], ["rows"]),
        N("Add", [proto.graph.output[0].name, "rows"], ["z"]),
    ]  # fmt: skip
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = "z"
    constants = {"table": floats(20), "zero": ints(0), "axis": ints(0)}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    graph = compare(proto, {"x": floats(1, 2, 3, 16)})
    assert str(graph.inputs[0].shape[3]) == "8*width_by8"
    assert {s.hi for s in dims.free_symbols(graph.inputs[0].shape[3])} == {2}


def test_a_coarser_multiple_of_the_users_is_kept() -> None:
    graph = import_onnx(pyramid(2), shapes={"x": [1, 2, "8*h", "2*w"]})
    assert [str(d) for d in graph.inputs[0].shape] == ["1", "2", "8*h", "4*w_by2"]


def test_fixed_sizes_are_taken_as_they_are() -> None:
    compare(pyramid(2, "Concat", axes="h"), {"x": floats(1, 2, 12, 5)}, shapes={"x": [1, 2, 12, 5]})
    with pytest.raises(ModelError, match="cannot broadcast"):
        import_onnx(pyramid(1), shapes={"x": [1, 2, 7, 8]})


def test_the_support_report_takes_them_too() -> None:
    assert all(row.supported for row in support_report(pyramid(5)))


def test_dimensions_that_never_agree_are_refused() -> None:
    inputs = {"x": (np.float32, [1, "a"]), "y": (np.float32, [1, "b"])}
    with pytest.raises(UnsupportedError, match="a and b are not known to be equal"):
        import_onnx(model([N("Concat", ["x", "y"], ["z"], axis=0)], inputs, ["z"]))


# ------------------------------------------------------------------------------------------------------ several passes


def _tower(levels: int) -> list[onnx.NodeProto]:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return [N("MaxPool", ["x" if i == 0 else f"p{i}"], [f"p{i + 1}"], **pool) for i in range(levels)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[importer.Visitor]:
    """The visitors of all passes over the models that the test imports."""
    made: list[importer.Visitor] = []

    class Counted(importer.Visitor):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(importer, "Visitor", Counted)
    return made


def test_one_pass_finds_the_least_sizes_of_all_windows(passes: list[importer.Visitor]) -> None:
    graph = compare(model(_tower(5), IMAGE, ["p5"]), {"x": floats(1, 2, 32, 33)})
    assert {s.name: s.lo for s in graph.symbols()} == {"n": 1, "height": 32, "width": 32}
    assert len(passes) == 2  # one that finds them, one with them


def test_a_model_that_demands_nothing_is_imported_once(passes: list[importer.Visitor]) -> None:
    import_onnx(model(_tower(5), IMAGE, ["p5"]), shapes={"x": [1, 2, 64, 64]})
    assert len(passes) == 1


def test_a_pass_ends_at_the_first_node_that_fails(passes: list[importer.Visitor]) -> None:
    proto = pyramid(2)
    proto.graph.node.append(N("Relu", [proto.graph.output[0].name], ["after"]))
    proto.graph.output[0].name = "after"
    graph = compare(proto, {"x": floats(1, 2, 8, 4)})
    assert [str(d) for d in graph.inputs[0].shape[2:]] == ["4*height_by4", "4*width_by4"]
    assert [p.visits for p in passes] == [4, 4, 7]  # height, width, neither


def test_least_sizes_that_contradict_the_given_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"dimension 'height' ranges over 1..20, but the model works only from 32"):
        import_onnx(model(_tower(5), IMAGE, ["p5"]), ranges={"height": (1, 20, 1)})


def test_nodes_refused_before_the_sizes_were_known_are_imported_after_all() -> None:
    """That the width is positive and thus the slice not negative follows from the pool that comes later."""
    nodes = [
        N("Shape", ["x"], ["w"], start=3), N("Sub", ["w", "five"], ["end"]),
        N("Slice", ["x", "zero", "end", "axis"], ["cut"]), N("MaxPool", ["x"], ["p"], kernel_shape=[1, 6]),
    ]  # fmt: skip
    constants = {"five": ints(5), "zero": ints(0), "axis": ints(3)}
    graph = compare(model(nodes, IMAGE, ["p", "cut"], constants), {"x": floats(1, 2, 3, 9)})
    assert {s.name: s.lo for s in graph.symbols()}["width"] == 6
