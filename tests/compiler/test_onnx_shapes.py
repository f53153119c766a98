"""Symbolic dimensions: names, overrides, ranges, and shape arithmetic that becomes attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper
from onnx_models import compare, evaluate, floats, ints, model, runtime

from arcweld.compiler import dims
from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx

N = helper.make_node
X: dict[str, tuple[Any, list[Any]]] = {"x": (np.float32, ["N", "S", 8])}


def _import(nodes: list[NodeProto], constants: dict[str, Any], inputs: Any = None, **options: Any) -> Graph:
    return import_onnx(model(nodes, inputs or X, [nodes[-1].output[0]], constants), **options)


# ------------------------------------------------------------------------------------------------------ input names


def test_symbols_take_legal_names() -> None:
    inputs = {
        "a b": (np.float32, ["batch", "p2o.Dim.0", None, "?"]),
        "c": (np.float32, ["batch", "p2o.Dim.0", "lambda", 3]),
    }
    graph = import_onnx(model([N("Relu", ["a b"], ["y"]), N("Relu", ["c"], ["z"])], inputs, ["y", "z"]))
    assert [str(v) for v in graph.inputs] == [
        "%a_b: f32[batch, p2o_Dim_0, a_b_d2, a_b_d3]",
        "%c: f32[batch, p2o_Dim_0, lambda_, 3]",
    ]
    assert graph.labels() == ("y", "z")
    assert all(s.lo == 1 and s.hi is None for s in graph.symbols())


def test_names_that_collide_are_told_apart() -> None:
    graph = import_onnx(model([N("Relu", ["x"], ["y"])], {"x": (np.float32, ["a.b", "a_b"])}, ["y"]))
    assert [str(d) for d in graph.inputs[0].shape] == ["a_b", "a_b_2"]


def test_overrides_hold_for_every_input_with_the_dim_param() -> None:
    proto = model([N("Add", ["x", "y"], ["z"])], {k: (np.float32, ["N", "S"]) for k in "xy"}, ["z"])
    graph = import_onnx(proto, shapes={"y": [2, "seq"]})
    assert [str(v.type) for v in graph.inputs] == ["f32[2, seq]", "f32[2, seq]"]
    graph = import_onnx(proto, shapes={"x": ["N", "4*k + 1"]})
    assert str(graph.outputs[0].type) == "f32[N, 4*k + 1]"


def test_a_name_that_is_a_formula_of_others_is_what_it_says() -> None:
    shapes = {"x": ["b", "past + new", "other + new"], "y": ["b", "past", "2"], "z": ["new", "b", "b-1"]}
    names = {k: (np.float32, v) for k, v in shapes.items()}
    proto = model([N("Relu", [k], [f"{k}_out"]) for k in names], names, [f"{k}_out" for k in names])
    graph = import_onnx(proto)  # "other" is no dimension, so that its sum is a mere name
    wanted = ["f32[b, past + new, other___new]", "f32[b, past, d2]", "f32[new, b, b - 1]"]
    assert [str(v.type) for v in graph.inputs] == wanted
    graph = import_onnx(proto, shapes={"x": [None, None, 3], "y": [2, "past", None], "z": [1, None, None]})
    assert [str(v.type) for v in graph.inputs] == ["f32[2, past + 1, 3]", "f32[2, past, d2]", "f32[1, 2, 1]"]
    graph = import_onnx(proto, shapes={"x": [None, 7, None], "z": [1, None, None]})  # fixed by itself
    assert str(graph.inputs[0].type) == "f32[b, 7, other___new]"


def test_ranges_bound_symbols_and_multiples_divide_exactly() -> None:
    nodes = [
        N("Shape", ["x"], ["s"]), N("Gather", ["s", "one"], ["d"]), N("Div", ["d", "k"], ["q"]),
        N("Unsqueeze", ["q", "ax"], ["qu"]), N("Concat", ["qu", "rest"], ["t"], axis=0),
        N("Reshape", ["x", "t"], ["y"]),
    ]  # fmt: skip
    constants = {"one": np.int64(1), "k": np.int64(4), "ax": ints(0), "rest": ints(-1)}
    graph = _import(nodes, constants, ranges={"S": (8, 100, 8), "N": (1, 4, 1)})
    assert str(graph.outputs[0].type) == "f32[2*S_by8, 32*N]"
    found = {s.name: (s.lo, s.hi) for s in graph.symbols()}
    assert found == {"S_by8": (1, 12), "N": (1, 4)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shapes": {"x": [1, 2]}}, "rank"),
        ({"shapes": {"x": [1, 2, 9]}}, "fixed dimension"),
        ({"shapes": {"q": [1]}}, "no input"),
        ({"shapes": {"x": [-1, 2, 8]}}, "cannot be -1"),
        ({"ranges": {"Q": (1, 2, 1)}}, "no dimension is called"),
        ({"ranges": {"N": (5, 2, 1)}}, "empty"),
        ({"values": {"q": np.zeros(1)}}, "no input"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        _import([N("Relu", ["x"], ["y"])], {}, **options)


# ------------------------------------------------------------------------------------------------- shape arithmetic


def _heads() -> list[NodeProto]:
    """Splits the last axis into heads the way torch's exporter writes it."""
    return [
        N("Shape", ["x"], ["s0"]), N("Gather", ["s0", "i0"], ["n"], axis=0), N("Shape", ["x"], ["s1"]),
        N("Gather", ["s1", "i1"], ["s"], axis=0), N("Unsqueeze", ["n", "ax"], ["nu"]),
        N("Unsqueeze", ["s", "ax"], ["su"]),
        N("Concat", ["nu", "su", "rest"], ["shape"], axis=0), N("Reshape", ["x", "shape"], ["y"]),
    ]  # fmt: skip


def test_reshape_from_a_shape_subgraph() -> None:
    constants = {"i0": np.int64(0), "i1": np.int64(1), "ax": ints(0), "rest": ints(2, -1)}
    graph = compare(model(_heads(), X, ["y"], constants), {"x": floats(2, 3, 8)})
    assert [n.op for n in graph.nodes] == ["Reshape"]
    assert str(graph.outputs[0].type) == "f32[N, S, 2, 4]"


def test_expand_with_the_usual_guard() -> None:
    """torch writes ``where(shape == -1, 1, shape)`` before Expand: decided, as dimensions are positive."""
    nodes = [
        N("Shape", ["x"], ["s"]), N("ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("v", 7, [1], [1])),
        N("Mul", ["ones", "neg"], ["minus"]), N("Equal", ["s", "minus"], ["open"]),
        N("Where", ["open", "ones", "s"], ["t"]), N("Expand", ["c", "t"], ["y"]),
    ]  # fmt: skip
    graph = compare(
        model(nodes, X, ["y"], {"three": ints(3), "neg": np.int64(-1), "c": floats(1, 1, 8)}), {"x": floats(2, 3, 8)}
    )
    assert [n.op for n in graph.nodes] == ["Expand"]


def test_float_scales_of_dimensions() -> None:
    """``floor(S * 0.5)`` as float arithmetic becomes an exact integer expression."""
    nodes = [
        N("Shape", ["x"], ["s"], start=1, end=2), N("Cast", ["s"], ["f"], to=1), N("Mul", ["f", "half"], ["h"]),
        N("Floor", ["h"], ["fl"]), N("Cast", ["fl"], ["i"], to=7), N("Slice", ["x", "zero", "i", "one"], ["y"]),
    ]  # fmt: skip
    constants = {"half": np.float32([0.5]), "zero": ints(0), "one": ints(1)}
    graph = compare(model(nodes, X, ["y"], constants), {"x": floats(2, 7, 8)})
    assert [n.op for n in graph.nodes] == ["Slice"]
    assert str(graph.outputs[0].type) == "f32[N, floordiv(S, 2), 8]"


def test_dimensions_used_as_data_become_a_dims_node() -> None:
    nodes = [
        N("Size", ["x"], ["n"]),
        N("Cast", ["n"], ["f"], to=1),
        N("ReduceSum", ["x"], ["t"]),
        N("Div", ["t", "f"], ["y"]),
    ]
    graph = compare(model(nodes, X, ["y"], opset=17), {"x": floats(2, 3, 8)})
    assert sorted(n.op for n in graph.nodes) == ["Cast", "Dims", "Div", "ReduceSum"]


def test_a_symbolic_range_feeds_a_gather() -> None:
    nodes = [
        N("Shape", ["x"], ["s"]), N("Gather", ["s", "one"], ["d"]), N("Range", ["zero", "d", "one"], ["r"]),
        N("Gather", ["table", "r"], ["p"]), N("Add", ["x", "p"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, X, ["y"], {"one": np.int64(1), "zero": np.int64(0), "table": floats(16, 8)})
    graph = compare(proto, {"x": floats(2, 5, 8)})
    assert [n.op for n in graph.nodes] == ["Range", "Gather", "Add"]


def test_slicing_a_table_bounds_the_dimension() -> None:
    nodes = [
        N("Shape", ["x"], ["s"], start=1, end=2), N("Slice", ["table", "zero", "s", "ax"], ["p"]),
        N("Add", ["x", "p"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, X, ["y"], {"zero": ints(0), "ax": ints(1), "table": floats(1, 16, 8)})
    graph = compare(proto, {"x": floats(2, 5, 8)})
    assert {s.name: s.hi for s in graph.symbols()} == {"N": None, "S": 16}
    with pytest.raises(UsageError, match="only up to 16"):
        import_onnx(proto, ranges={"S": (4, 32, 1)})


def _counted() -> onnx.ModelProto:
    """A pool of 20 elements, plus as many numbers as it gives."""
    nodes = [
        N("AveragePool", ["x"], ["p"], kernel_shape=[20], strides=[10]), N("Shape", ["p"], ["s"], start=2),
        N("Squeeze", ["s"], ["n"]), N("Range", ["zero", "n", "one"], ["r"]), N("Cast", ["r"], ["f"], to=1),
        N("Add", ["p", "f"], ["y"]),
    ]  # fmt: skip
    return model(nodes, {"x": (np.float32, ["N", 2, "S"])}, ["y"], {"zero": np.int64(0), "one": np.int64(1)})


def test_the_least_size_of_a_dimension_is_deduced() -> None:
    graph = compare(_counted(), {"x": floats(2, 2, 35)})
    assert {s.name: s.lo for s in graph.symbols()} == {"N": 1, "S": 20}
    compare(_counted(), {"x": floats(1, 2, 64)}, shapes={"x": ["N", 2, dims.symbol("T", 1) * 32]})
    for options in ({"ranges": {"S": (4, 32, 1)}}, {"shapes": {"x": ["N", 2, dims.symbol("S", 1, 19)]}}):
        with pytest.raises(UsageError, match="only from 20"):
            import_onnx(_counted(), **options)


@pytest.mark.parametrize(("ceil_mode", "least"), [(0, 3), (1, 2)])
def test_a_window_may_be_cut_off_where_the_extent_is_rounded_up(ceil_mode: int, least: int) -> None:
    attrs = {"kernel_shape": [3], "strides": [2], "ceil_mode": ceil_mode}
    proto = model([N("MaxPool", ["x"], ["y"], **attrs)], {"x": (np.float32, ["N", 2, "S"])}, ["y"])
    for size in (least, 4, 7):
        graph = compare(proto, {"x": floats(2, 2, size)})
    assert {s.name: s.lo for s in graph.symbols()} == {"N": 1, "S": least}


def test_a_dimension_that_a_trace_has_fixed_is_fixed() -> None:
    """An open length, and a Reshape that was traced for 6: the model runs for 6 only."""
    nodes = [N("Shape", ["x"], ["n"], end=1), N("Concat", ["six", "n", "eight"], ["s"], axis=0)]
    proto = model([*nodes, N("Reshape", ["x", "s"], ["y"])], X, ["y"], {"six": ints(6), "eight": ints(8)})
    graph = compare(proto, {"x": floats(3, 6, 8)})
    assert [str(v.type) for v in graph.inputs] == ["f32[N, 6, 8]"]
    with pytest.raises(UsageError, match="only up to 6"):
        import_onnx(proto, ranges={"S": (8, 32, 1)})


def test_what_is_left_of_a_slice_may_bound_the_dimension() -> None:
    """x[:, 3:] has max(0, S - 3) columns; a sum with S - 3 of them says that S is at least 3."""
    nodes = [
        N("Slice", ["x", "three", "end", "axis"], ["a"]), N("Shape", ["x"], ["s"]), N("Sub", ["s", "off"], ["t"]),
        N("Expand", ["c", "t"], ["e"]), N("Add", ["a", "e"], ["y"]),
    ]  # fmt: skip
    constants = {"three": ints(3), "end": ints(2**62), "axis": ints(1), "off": ints(0, 3), "c": floats(1, 1)}
    graph = compare(model(nodes, {"x": (np.float32, ["N", "S"])}, ["y"], constants), {"x": floats(2, 7)})
    assert {s.name: s.lo for s in graph.symbols()} == {"N": 1, "S": 3}


def test_as_many_elements_as_are_asked_for_must_be_there() -> None:
    proto = model([N("TopK", ["x", "k"], ["v", "i"])], {"x": (np.float32, ["N", "S"])}, ["v", "i"], {"k": ints(3)})
    graph = compare(proto, {"x": floats(2, 7)})
    assert {s.name: s.lo for s in graph.symbols()} == {"N": 1, "S": 3}
    with pytest.raises(ModelError, match="3 of 2"):
        import_onnx(proto, shapes={"x": [4, 2]})


def test_indices_of_a_fixed_shape_bound_what_they_pick_from() -> None:
    constants = {"i": np.array([[2, 0], [1, -1]], np.int64)}
    proto = model([N("GatherElements", ["x", "i"], ["y"], axis=1)], {"x": (np.float32, ["N", 3])}, ["y"], constants)
    assert {s.name: s.lo for s in compare(proto, {"x": floats(2, 3)}).symbols()} == {"N": 2}


def test_dropped_rows_bound_what_they_are_divided_from() -> None:
    """Of S rows S // 16 are left, which a reshape drops: they must be one, so that S is 16 to 31."""
    nodes = [
        N("MaxPool", ["x"], ["p"], kernel_shape=[16, 1], strides=[16, 1]), N("Shape", ["x"], ["s"]),
        N("Gather", ["s", "places"], ["t"]), N("Reshape", ["p", "t"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": (np.float32, ["N", 2, "S", "T"])}, ["y"], {"places": ints(0, 1, 3)})
    graph = compare(proto, {"x": floats(2, 2, 20, 5)})
    assert {s.name: (s.lo, s.hi) for s in graph.symbols()} == {"N": (1, None), "S": (16, 31), "T": (1, None)}
    compare(proto, {"x": floats(1, 2, 31, 3)})


def test_bounds_are_deduced_behind_divisions() -> None:
    """A table of 16 rows serves (S + 1) // 2 positions, so S is at most 32."""
    nodes = [
        N("MaxPool", ["x"], ["p"], kernel_shape=[1], strides=[2]), N("Shape", ["p"], ["s"], start=2),
        N("Slice", ["table", "zero", "s", "zero"], ["t"]), N("Add", ["p", "t"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": (np.float32, ["N", 2, "S"])}, ["y"], {"zero": ints(0), "table": floats(16)})
    graph = compare(proto, {"x": floats(2, 2, 32)})
    assert {s.name: s.hi for s in graph.symbols()} == {"N": None, "S": 32}


def test_only_the_dimension_that_matters_becomes_a_multiple() -> None:
    """Cutting an image into even and odd rows needs an even height, whatever the batch is."""
    nodes = [
        N("Slice", ["x", "zero", "end", "two", "two"], ["a"]), N("Slice", ["x", "one", "end", "two", "two"], ["b"]),
        N("Concat", ["a", "b"], ["y"], axis=1),
    ]  # fmt: skip
    constants = {"zero": ints(0), "one": ints(1), "two": ints(2), "end": ints(2**62)}
    proto = model(nodes, {"x": (np.float32, ["N", 3, "H", 4])}, ["y"], constants)
    graph = compare(proto, {"x": floats(2, 3, 6, 4)})
    assert [str(d) for d in graph.inputs[0].shape] == ["N", "3", "2*H_by2", "4"]


@given(
    extent=st.integers(1, 9), start=st.integers(-12, 12), end=st.integers(-12, 12),
    step=st.sampled_from([-3, -2, -1, 1, 2, 3]),
)  # fmt: skip
def test_slices_of_open_dimensions(extent: int, start: int, end: int, step: int) -> None:
    """One import with an open dimension, evaluated for a concrete one, against ONNX Runtime."""
    nodes = [N("Slice", ["x", "b", "e", "a", "s"], ["y"])]
    constants = {"b": ints(start), "e": ints(end), "a": ints(0), "s": ints(step)}
    graph = _import(nodes, constants, {"x": (np.float32, ["D"])})
    x = np.arange(extent, dtype=np.float32)
    (ours,) = evaluate(graph, {"x": x})
    (theirs,) = runtime(model(nodes, {"x": (np.float32, ["D"])}, ["y"], constants), {"x": x})
    np.testing.assert_array_equal(ours, theirs)
    assert dims.evaluate(graph.outputs[0].shape[0], {"D": extent}) == len(theirs)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_reshape_solves_the_missing_dimension(shape: list[int], data: st.DataObject) -> None:
    """Targets made of kept (0), symbolic and missing (-1) dimensions, against ONNX Runtime."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    target = [0] * len(shape)
    target[axis] = -1
    if data.draw(st.booleans()):
        target.append(1)
    inputs = {"x": (np.float32, [f"d{i}" for i in range(len(shape))])}
    proto = model([N("Reshape", ["x", "t"], ["y"])], inputs, ["y"], {"t": ints(*target)})
    compare(proto, {"x": floats(*shape)})


def test_open_facts_are_reported_with_the_dimension() -> None:
    nodes = [N("Squeeze", ["x"], ["y"])]
    with pytest.raises(UnsupportedError, match="N == 1") as caught:
        _import(nodes, {})
    assert caught.value.hint
    assert "--shapes" in caught.value.hint
    assert str(_import(nodes, {}, shapes={"x": [1, 5, 8]}).outputs[0].type) == "f32[5, 8]"


def test_an_undecided_comparison_stays_a_computation() -> None:
    """Whether S == 3 is not known while importing: the comparison runs on the device, and is right for both."""
    nodes = [
        N("Shape", ["x"], ["s"], start=1, end=2), N("Equal", ["s", "three"], ["is3"]),
        N("Where", ["is3", "a", "b"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, X, ["y"], {"three": ints(3), "a": np.float32([1]), "b": np.float32([2])})
    for length in (3, 4):
        compare(proto, {"x": floats(2, length, 8)})


def test_values_make_an_input_a_constant() -> None:
    inputs = {"x": (np.float32, ["N"]), "shape": (np.int64, [2])}
    proto = model([N("Reshape", ["x", "shape"], ["y"])], inputs, ["y"])
    assert [v.name for v in import_onnx(proto).inputs] == ["x", "shape"]
    graph = import_onnx(proto, values={"shape": ints(-1, 2)}, shapes={"x": [6]})
    assert [v.name for v in graph.inputs] == ["x"]
    (theirs,) = runtime(proto, {"x": floats(6), "shape": ints(-1, 2)})
    np.testing.assert_array_equal(evaluate(graph, {"x": floats(6)})[0], theirs)


@pytest.mark.parametrize(
    ("declared", "value", "want"),
    [
        (([], np.int64), 16000, "exact"), (([1], np.int64), 16000, "exact"), ((["n"], np.int64), [3, 4], "exact"),
        (([], np.float32), 3, "exact"), (([], np.float32), 0.1, "exact"), (([], bool), True, "exact"),
        (([], np.uint8), 256, "does not fit in u8"), (([], np.int64), 0.5, "is float64, not i64"),
        (([], bool), 2, "does not fit in bool"), (([], np.int64), "a", "not i64"),
        (([2], np.int64), 5, r"the shape \[1\], not \[2\]"), ((["n"], np.int64), [[3]], "exact"),
        ((["n"], np.int64), [[3, 4]], r"the shape \[1, 2\], not \[n\]"),
    ],
)  # fmt: skip
def test_values_have_the_inputs_type_and_rank(declared: tuple[list[int | str], type], value: object, want: str) -> None:
    shape, dtype = declared
    proto = model([N("Identity", ["c"], ["y"])], {"c": (dtype, shape)}, ["y"])
    if want != "exact":
        with pytest.raises(UsageError, match=want):
            import_onnx(proto, values={"c": value})
        return
    graph = import_onnx(proto, values={"c": value})
    assert graph.inputs == ()
    (ours,) = evaluate(graph, {})
    (theirs,) = runtime(proto, {"c": np.asarray(value, dtype).reshape([1] * len(shape) if np.size(value) == 1 else -1)})
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_what_depends_on_an_inputs_data_says_how_to_give_it() -> None:
    inputs = {"x": (np.float32, ["N", 2]), "axes": (np.int64, [1])}
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(model([N("ReduceSum", ["x", "axes"], ["y"])], inputs, ["y"]))
    assert "--values axes:VALUE" in str(caught.value.hint)
    assert "Input('axes', value=" in str(caught.value.hint)


def test_impossible_reshapes_are_model_errors() -> None:
    for target, shapes in (([5, -1], [2, 3, 8]), ([-1, -1], [2, 3, 8]), ([7], [2, 3, 8]), ([1, 1, 1, 0], [2, 3, 8])):
        with pytest.raises((ModelError, UnsupportedError)):
            _import([N("Reshape", ["x", "t"], ["y"])], {"t": ints(*target)}, shapes={"x": shapes})


def test_the_remedy_names_the_axis_whose_size_decides() -> None:
    nodes = [N("Reshape", ["x", "t"], ["y"])]
    proto = model(nodes, {"x": (np.float32, ["N", "S", 4])}, ["y"], {"t": ints(5, 12)})
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(proto)
    assert "S is axis 1 of input x" in str(caught.value.hint)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_of_one_known_number(op: str, keep: int) -> None:
    nodes = [N(op, ["c"], ["r"], keepdims=keep), N("Add", ["x", "r"], ["y"])]
    compare(model(nodes, {"x": (np.float32, [2])}, ["y"], {"c": np.float32([1.5])}, opset=18), {"x": floats(2)})
