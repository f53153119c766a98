"""Models whose shapes or control flow depend on data: engines of stages, compared with ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import arcweld
from arcweld.compiler.errors import EngineFileError, InputError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.driver.api import build_engine
from arcweld.driver.remake import difference
from arcweld.driver.summary import host_text
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.sim.device import SimDevice
from arcweld.runtime.steps import Call, Choose, Literal, Read, Repeat, Run, Tensor, View, every_step

F, I64, B = T.FLOAT, T.INT64, T.BOOL
RNG = np.random.default_rng(5)
X = RNG.standard_normal((6, 4)).astype(np.float32)


def info(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
    **constants: Any,
) -> onnx.ModelProto:  # fmt: skip
    weights = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = h.make_graph(nodes, "staged", inputs, outputs, initializer=weights)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def agree(proto: onnx.ModelProto, *calls: dict[str, np.ndarray], **options: Any) -> Engine:
    """Compiles the model once, and compares each call with ONNX Runtime, on the checked simulator."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    engine = arcweld.compile(proto, device=SimDevice(checked=True), **options)
    for feeds in calls:
        found = engine.run(feeds)
        for output, want in zip(session.get_outputs(), session.run(None, feeds)):
            assert found[output.name].dtype == want.dtype
            assert found[output.name].shape == want.shape
            np.testing.assert_allclose(found[output.name], want, rtol=1e-4, atol=1e-5)
    assert difference(engine.data) == ""
    return engine


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# ------------------------------------------------------------------------------------------------ chosen elements


def chosen() -> onnx.ModelProto:
    nodes = [
        h.make_node("Relu", ["x"], ["r"]), h.make_node("NonZero", ["r"], ["i"], name="where"),
        h.make_node("Transpose", ["i"], ["t"]), h.make_node("GatherND", ["x", "t"], ["v"]),
        h.make_node("Exp", ["v"], ["e"]),
    ]  # fmt: skip
    return model(nodes, [info("x", F, ["n", 4])], [info("i", I64, None), info("e", F, None)])


def test_places_of_elements_that_are_not_zero() -> None:
    """None, some, all; the count is read once, and the kernels behind it take exactly that many."""
    engine = agree(chosen(), {"x": X}, {"x": -np.abs(X)}, {"x": np.abs(X[:1])}, {"x": X[:3]})
    kinds = [type(s) for s in engine.program.steps]
    assert kinds == [Run, Read, Run]
    assert host_text(engine.data) == "0 fallbacks, 2 stages, 1 host read"


def test_a_file_of_stages(tmp_path: Path) -> None:
    path = tmp_path / "chosen.engine"
    first = arcweld.compile(chosen(), device="sim")
    first.save(path)
    again = arcweld.load(path, "sim")
    assert again.program == first.program
    np.testing.assert_array_equal(again(X)[0], np.stack(np.nonzero(X > 0)))
    assert again.data.verify["level"] == "quick"
    assert {k["status"] for k in again.data.verify["kernels"]} == {"verified"}


def test_compressed_rows_and_columns() -> None:
    nodes = [
        h.make_node("Compress", ["x", "rows"], ["a"], axis=0), h.make_node("Compress", ["a", "columns"], ["b"], axis=1),
        h.make_node("Compress", ["x", "rows"], ["c"]), h.make_node("Tanh", ["b"], ["y"]),
    ]  # fmt: skip
    inputs = [info("x", F, [6, 4]), info("rows", B, [6]), info("columns", B, [4])]
    proto = model(nodes, inputs, [info("y", F, None), info("c", F, None)])
    some, none = np.array([1, 0, 1, 1, 0, 0], bool), np.zeros(6, bool)
    columns = np.array([0, 1, 1, 0], bool)
    agree(proto, {"x": X, "rows": some, "columns": columns}, {"x": X, "rows": none, "columns": columns})


def test_boxes_that_others_suppress() -> None:
    """A detector's tail: the host reads how many boxes stay, and nothing else."""
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 8, (2, 40, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 4, (2, 40, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 3, 40)).astype(np.float32)
    nodes = [
        h.make_node("Sigmoid", ["scores"], ["p"]),
        h.make_node("NonMaxSuppression", ["boxes", "p", "most", "overlap", "least"], ["kept"], name="nms"),
        h.make_node("GatherND", ["p", "kept"], ["s"]), h.make_node("Sqrt", ["s"], ["y"]),
    ]  # fmt: skip
    proto = model(
        nodes, [info("boxes", F, [2, 40, 4]), info("scores", F, [2, 3, 40])],
        [info("kept", I64, None), info("y", F, None)],
        most=ints(7), overlap=np.float32([0.4]), least=np.float32([0.55]),
    )  # fmt: skip
    engine = agree(proto, {"boxes": boxes, "scores": scores}, {"boxes": boxes, "scores": scores - 9})
    assert [type(s) for s in engine.program.steps] == [Run, Read, Run]
    assert host_text(engine.data) == "0 fallbacks, 2 stages, 1 host read"


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("ordered", [0, 1])
def test_unique_elements_and_slices(axis: int | None, ordered: int) -> None:
    attrs: dict[str, Any] = {"sorted": ordered} if axis is None else {"sorted": ordered, "axis": axis}
    nodes = [h.make_node("Unique", ["x"], ["y", "first", "inverse", "counts"], name="unique", **attrs)]
    names = ("first", "inverse", "counts")
    proto = model(nodes, [info("x", F, ["n", 3])], [info("y", F, None), *(info(n, I64, None) for n in names)])
    x = np.float32([[1, 2, 1], [0, 3, 0], [1, 2, 1], [2, 2, 2]])
    engine = agree(proto, {"x": x}, {"x": x[:1]})
    if axis is not None:
        assert [s.op for s in engine.program.steps if isinstance(s, Call)] == ["Unique"]
        assert host_text(engine.data).startswith("1 fallback (Unique)")
        with pytest.raises(UnsupportedError, match=r"Unique \[unique\]: there is no kernel"):
            arcweld.compile(proto, device="sim", strict=True)


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("kind", [T.FLOAT, T.DOUBLE, T.INT64, T.INT8])
def test_unique_elements_of_an_open_number(kind: int, ordered: int) -> None:
    names = ("first", "inverse", "counts")
    nodes = [h.make_node("Unique", ["x"], ["y", *names], sorted=ordered)]
    proto = model(nodes, [info("x", kind, ["n"])], [info("y", kind, None), *(info(n, I64, None) for n in names)])
    draw = lambda n: {"x": RNG.integers(-20, 20, n).astype(h.tensor_dtype_to_np_dtype(kind))}
    engine = agree(proto, draw(1), draw(7), draw(300), {"x": np.zeros_like(draw(9)["x"])}, verify="off", strict=True)
    assert [type(s) for s in engine.program.steps] == [Run, Read]
    assert [x.template for stage in engine.program.stages for x in stage.launches] == ["sort", "runs"]


def test_unique_numbers_that_are_none() -> None:
    """NaNs are one element, the last, as in numpy and in ONNX' reference."""
    proto = model([h.make_node("Unique", ["x"], ["y", "", "", "counts"])], [info("x", F, [7])],
                  [info("y", F, None), info("counts", I64, None)])  # fmt: skip
    x = np.float32([np.nan, 2, -np.inf, 2, np.nan, np.inf, 0])
    found = arcweld.compile(proto, device=SimDevice(checked=True), verify="off").run({"x": x})
    values, counts = np.unique(x, return_counts=True)
    np.testing.assert_array_equal(found["y"], values)
    np.testing.assert_array_equal(found["counts"], counts)


# ------------------------------------------------------------------------------------------- sizes computed from data


def shaped(op: str, *given: str, **constants: Any) -> onnx.ModelProto:
    nodes = [h.make_node(op, ["x", *given], ["y"], name="sized"), h.make_node("Cos", ["y"], ["z"])]
    inputs = [info("x", F, [6, 4])] + [info(n, I64, [2]) for n in given if n not in constants]
    return model(nodes, inputs, [info("z", F, None)], **constants)


def test_shapes_that_are_given_at_run_time() -> None:
    agree(shaped("Reshape", "s"), *({"x": X, "s": ints(*s)} for s in ((6, 4), (2, 12), (24, 1), (0, -1), (-1, 3))))
    agree(shaped("Tile", "s"), *({"x": X, "s": ints(*s)} for s in ((1, 1), (2, 3))))
    slices = [((0, 0), (6, 4)), ((1, 2), (3, 99)), ((2, 0), (2, 4))]
    agree(shaped("Slice", "a", "b"), *({"x": X, "a": ints(*a), "b": ints(*b)} for a, b in slices))


def test_an_open_axis_beside_a_computed_one() -> None:
    nodes = [
        h.make_node("Cast", ["k"], ["wide"], to=I64), h.make_node("Concat", ["wide", "rest"], ["s"], axis=0),
        h.make_node("Reshape", ["x", "s"], ["y"]), h.make_node("Cos", ["y"], ["z"]),
    ]  # fmt: skip
    proto = model(nodes, [info("x", F, ["n", 4]), info("k", T.INT32, [1])], [info("z", F, None)], rest=ints(-1))
    agree(proto, *({"x": X, "k": np.array([k], np.int32)} for k in (1, 3, 24)))


def test_wrong_sizes_are_refused_at_run_time() -> None:
    engine = arcweld.compile(shaped("Reshape", "s"), device="sim")
    with pytest.raises(InputError, match=r"sized: \[6, 4\] cannot become \[5, 5\]"):
        engine(X, ints(5, 5))
    with pytest.raises(InputError, match=r"sized: the data make dimension y_0 -2; the engine serves 0 or more"):
        engine(X, ints(-2, 12))
    engine = arcweld.compile(shaped("Expand", "s"), device="sim")
    np.testing.assert_allclose(engine(X, ints(1, 4)), np.cos(X), atol=1e-6)
    with pytest.raises(InputError, match="an axis of 6 elements cannot be expanded to"):
        engine(X, ints(3, 4))


def test_a_size_beyond_its_bound_is_refused_with_the_bound() -> None:
    nodes = [h.make_node("TopK", ["x", "k"], ["v", "i"], axis=1, name="best")]
    proto = model(nodes, [info("x", F, [6, 4]), info("k", I64, [1])], [info("v", F, None), info("i", I64, None)])
    engine = agree(proto, *({"x": X, "k": ints(k)} for k in (1, 4)))
    with pytest.raises(InputError, match="best: the data make dimension v_size 5; the engine serves 0 to 4"):
        engine(X, ints(5))


def test_ranges_and_constants_of_computed_lengths() -> None:
    nodes = [
        h.make_node("ReduceSum", ["x"], ["s"], keepdims=0), h.make_node("Abs", ["s"], ["a"]),
        h.make_node("Cast", ["a"], ["n"], to=I64), h.make_node("Range", ["zero", "n", "two"], ["r"]),
        h.make_node("Reshape", ["n", "one"], ["shape"]), h.make_node("ConstantOfShape", ["shape"], ["c"]),
    ]  # fmt: skip
    outputs = [info("r", I64, None), info("c", F, None)]
    proto = model(nodes, [info("x", F, [6, 4])], outputs, zero=np.int64(0), two=np.int64(2), one=ints(1))
    agree(proto, {"x": X}, {"x": 0 * X}, {"x": 3 * np.abs(X)})


# ------------------------------------------------------------------------------------------------------ control flow


def branching() -> onnx.ModelProto:
    """Both branches multiply by one weight; the second gives twice as many rows."""
    then = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["a"]), h.make_node("Relu", ["a"], ["p"])], "then", [], [info("p", F, None)]
    )
    other = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["b"]), h.make_node("Concat", ["b", "b"], ["q"], axis=0)], "else", [],
        [info("q", F, None)],
    )  # fmt: skip
    nodes = [
        h.make_node("ReduceSum", ["x"], ["s"], keepdims=0), h.make_node("Greater", ["s", "zero"], ["c"]),
        h.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other), h.make_node("Exp", ["y"], ["z"]),
    ]  # fmt: skip
    w = RNG.standard_normal((4, 4)).astype(np.float32) / 4
    return model(nodes, [info("x", F, ["n", 4])], [info("z", F, None)], zero=np.float32(0), w=w)


def test_one_of_two_branches_runs() -> None:
    engine = agree(branching(), {"x": np.abs(X)}, {"x": -np.abs(X)}, {"x": X[:1]})
    assert sum(isinstance(s, Choose) for s in engine.program.steps) == 1
    assert [w.name for w in engine.program.weights] == ["w"], "the weight of both branches is stored once"


def test_weights_of_both_branches_are_updated_at_once() -> None:
    engine = arcweld.compile(branching(), device="sim")
    w = np.eye(4, dtype=np.float32)
    engine.update_weights({"w": w})
    np.testing.assert_allclose(engine(np.abs(X)), np.exp(np.abs(X)), rtol=1e-5)
    np.testing.assert_allclose(engine(-np.abs(X)), np.exp(-np.abs(np.concatenate([X, X]))), rtol=1e-5)


def loop(body: Sequence[onnx.NodeProto], carried: Sequence[str], results: Sequence[str], types: Sequence[int]) -> Any:
    given = [info("i", I64, []), info("go", B, []), *(info(n, F, None) for n in carried)]
    return h.make_graph(body, "body", given, [info("on", B, []), *(info(n, t, None) for n, t in zip(results, types))])


def doubling() -> onnx.ModelProto:
    """Doubles until an element reaches 100; collects the halves."""
    body = loop(
        [
            h.make_node("Add", ["v", "v"], ["v2"]), h.make_node("ReduceMax", ["v2"], ["top"], keepdims=0),
            h.make_node("Less", ["top", "limit"], ["on"]), h.make_node("Mul", ["v2", "half"], ["item"]),
        ],
        ["v"], ["v2", "item"], [F, F],
    )  # fmt: skip
    nodes = [h.make_node("Loop", ["", "", "x"], ["y", "items"], body=body, name="doubling")]
    outputs = [info("y", F, None), info("items", F, None)]
    return model(nodes, [info("x", F, ["n", 4])], outputs, limit=np.float32(100), half=np.float32(0.5))


def test_a_loop_that_data_ends() -> None:
    engine = agree(doubling(), {"x": np.abs(X)}, {"x": 200 * np.abs(X)}, {"x": np.abs(X[:1]) / 50})
    assert sum(isinstance(s, Repeat) for s in engine.program.steps) == 1


def test_a_loop_that_never_ends_is_stopped() -> None:
    graph = import_onnx(doubling(), loop_limit=20)
    engine = build_engine(graph, device="sim")[1]
    with pytest.raises(InputError, match="doubling: the loop has not ended after 20 iterations"):
        engine(0 * X)


def test_a_loop_whose_shapes_grow_and_whose_length_is_an_input() -> None:
    body = loop(
        [
            h.make_node("Concat", ["v", "x"], ["v2"], axis=0), h.make_node("Identity", ["go"], ["on"]),
            h.make_node("Cast", ["i"], ["f"], to=F), h.make_node("Add", ["f", "half"], ["item"]),
        ],
        ["v"], ["v2", "item"], [F, F],
    )  # fmt: skip
    nodes = [h.make_node("Loop", ["k", "", "x"], ["y", "items"], body=body), h.make_node("Mul", ["y", "half"], ["z"])]
    inputs, outputs = [info("x", F, ["n", 4]), info("k", I64, [])], [info("z", F, None), info("items", F, None)]
    proto = model(nodes, inputs, outputs, half=np.float32(0.5))
    agree(proto, *({"x": X, "k": np.array(k)} for k in (0, 1, 4)))


@pytest.mark.parametrize("backward", [0, 1])
def test_a_scan_over_an_open_length(backward: int) -> None:
    body = h.make_graph(
        [h.make_node("Add", ["state", "item"], ["next"]), h.make_node("Mul", ["next", "item"], ["out"])], "body",
        [info("state", F, [4]), info("item", F, [4])], [info("next", F, [4]), info("out", F, [4])],
    )  # fmt: skip
    scan = h.make_node(
        "Scan", ["s", "x"], ["y", "z"], body=body, num_scan_inputs=1, scan_input_directions=[backward],
        scan_output_directions=[1 - backward], scan_output_axes=[1],
    )  # fmt: skip
    proto = model([scan], [info("s", F, [4]), info("x", F, ["n", 4])], [info("y", F, [4]), info("z", F, [4, "n"])])
    agree(proto, {"s": X[0], "x": X}, {"s": X[1], "x": X[:1]})


def test_a_branch_inside_of_a_loop() -> None:
    then = h.make_graph([h.make_node("Mul", ["v", "half"], ["p"])], "then", [], [info("p", F, None)])
    other = h.make_graph([h.make_node("Sub", ["v", "one"], ["q"])], "else", [], [info("q", F, None)])
    body = loop(
        [
            h.make_node("ReduceMax", ["v"], ["top"], keepdims=0), h.make_node("Greater", ["top", "ten"], ["large"]),
            h.make_node("If", ["large"], ["v2"], then_branch=then, else_branch=other),
            h.make_node("ReduceMax", ["v2"], ["left"], keepdims=0), h.make_node("Greater", ["left", "zero"], ["on"]),
        ],
        ["v"], ["v2"], [F],
    )  # fmt: skip
    constants = {"half": np.float32(0.5), "one": np.float32(1), "ten": np.float32(10), "zero": np.float32(0)}
    proto = model([h.make_node("Loop", ["", "", "x"], ["y"], body=body)], [info("x", F, [6, 4])], [info("y", F, None)],
                  **constants)  # fmt: skip
    engine = agree(proto, {"x": 50 * np.abs(X)}, {"x": np.abs(X)})
    assert sum(isinstance(s, Choose) for s in every_step(engine.program.steps)) == 1


# -------------------------------------------------------------------------------------------------------- bad input


def test_state_in_stages_is_refused() -> None:
    double = h.make_node("Add", ["cache", "cache"], ["cache_out"])
    nodes = [h.make_node("Compress", ["x", "rows"], ["y"], axis=0), double]
    inputs = [info("x", F, [6, 4]), info("rows", B, [6]), info("cache", F, [4])]
    proto = model(nodes, inputs, [info("y", F, None), info("cache_out", F, [4])])
    with pytest.raises(UnsupportedError, match="outputs take over inputs of a model whose shapes"):
        arcweld.compile(proto, inputs=[arcweld.Input("cache", inout="cache_out")], device="sim")


def test_changes_of_a_stage_are_seen() -> None:
    """A kernel, a launch and a graph of the second stage; its weights and the steps between are data."""
    data = arcweld.compile(chosen(), device="sim").data
    *first, last = data.program.stages
    *others, launch = last.launches

    def renamed(name: str) -> EngineData:
        own = msgspec.structs.replace(last, launches=(*others, msgspec.structs.replace(launch, name=name)))
        return dataclasses.replace(data, program=msgspec.structs.replace(data.program, stages=(*first, own)))

    (kernel,) = {v.kernel for v in launch.variants}
    source = dataclasses.replace(data, sources={**data.sources, kernel: data.sources[kernel] + "// more"})
    extra = dataclasses.replace(data, sources={**data.sources, "more": "// more"})
    for changed, message in (
        (source, f"the source of {kernel} is another"),
        (extra, "its kernels are others, such as more"),
        (renamed("0/" + launch.name[2:]), f"launch 0/{launch.name[2:]} of stage 1 is called otherwise"),
        (renamed("1/other"), "stage 1: launch other is another"),
        (dataclasses.replace(data, graph=data.graph.replace("Exp(", "Log(")), "stage 1: "),
        (dataclasses.replace(data, graph=data.graph.split("\n# ")[0]), "it has 2 stages and 1 graphs"),
    ):
        assert difference(changed).startswith(message)


def test_damaged_steps_are_refused(tmp_path: Path) -> None:
    """A stage that does not exist, a tensor that no step makes, an operator that the host lacks."""
    engine = arcweld.compile(chosen(), device="sim")
    program = engine.program
    read = next(s for s in program.steps if isinstance(s, Read))
    constant = Call("Unique", {}, ("",), (), (), (Literal(0, "f32", (2,), (1.0,)),))
    for steps, message in (
        ((*program.steps[:-1], Run(7)), "there is no stage 7"),
        ((program.steps[0], msgspec.structs.replace(read, tensor="no")), "reads 'no', which no earlier step makes"),
        ((*program.steps[:2], Call("Shell", {}, (), ())), "the host has no operator 'Shell'"),
        (program.steps[:2], "an output is never made"),
        ((program.steps[0], View("x", Tensor("y", "f32", ("i_count",))), *program.steps[1:]), "uses a size that no"),
        ((*program.steps[:2], constant), "a constant of a step is of no type or shape"),
        ((*program.steps[:2], msgspec.structs.replace(read, whole=())), "beginnings of other tensors"),
    ):
        data = dataclasses.replace(engine.data, program=msgspec.structs.replace(program, steps=steps))
        with pytest.raises(EngineFileError, match=message):
            Engine(data, "sim")
