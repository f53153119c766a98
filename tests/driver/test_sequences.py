"""Models whose inputs and outputs are sequences or optional values, which are lists of arrays as in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import arcweld
from arcweld.cli.app import main
from arcweld.compiler.errors import EngineFileError, InputError, UnsupportedError, UsageError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.api import Input
from arcweld.runtime.engine import load
from arcweld.runtime.engine_file import check_data
from arcweld.runtime.sim.device import SimDevice

N = helper.make_node
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _tensor(name: str, *shape: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _sequence(name: str, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, FLOAT, list(shape))


def _optional(name: str, *shape: Any) -> onnx.ValueInfoProto:
    inner = helper.make_tensor_type_proto(FLOAT, list(shape))
    return helper.make_value_info(name, helper.make_optional_type_proto(inner))


def _model(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "lists", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _add() -> onnx.ModelProto:
    """Adds ``t`` to each item, and gives the items with ``t`` behind them, and all of them joined."""
    add = [N("Add", ["a", "b"], ["c"])]
    body = helper.make_graph(add, "body", [_tensor("a", "n"), _tensor("b")], [_tensor("c", "n")])
    nodes = [
        N("SequenceMap", ["xs", "t"], ["ys"], body=body), N("SequenceInsert", ["ys", "w"], ["longer"]),
        N("ConcatFromSequence", ["longer"], ["all"], axis=0), N("SequenceLength", ["longer"], ["count"]),
    ]  # fmt: skip
    inputs = [_sequence("xs", None), _tensor("t"), _tensor("w", "m")]
    return _model(nodes, inputs, [_sequence("longer", None), _tensor("all", None), _tensor("count", kind=INT64)])


def _draw(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(sizes))
    return [rng.normal(size=n).astype(np.float32) for n in sizes]


def _runtime(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _same(ours: Any, theirs: Any) -> None:
    assert isinstance(ours, list) == isinstance(theirs, list)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            _same(a, b)
        return
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def engine() -> arcweld.Engine:
    items = [Input("xs.0", ("n",)), Input("xs.1", (5,))]
    return arcweld.compile(_add(), inputs=items, device=SimDevice(checked=True))


def test_lists_go_in_and_come_out(engine: arcweld.Engine) -> None:
    for sizes in [(3, 5), (8, 5)]:
        t, w = np.array(2.0, np.float32), _draw(7)[0]
        feeds = {"xs": _draw(*sizes), "t": t, "w": w}
        theirs = _runtime(_add(), feeds)
        for ours in (engine(*feeds.values()), engine(**feeds), tuple(engine.run(feeds).values())):
            _same(list(ours), theirs)
        flat = {"xs.0": feeds["xs"][0], "xs.1": feeds["xs"][1], "t": t, "w": w}
        _same(list(engine.run(flat).values()), theirs)
    assert "xs: [f32[n], f32[5]]" in repr(engine)
    assert "longer: [f32[n], f32[5], f32[m]]" in repr(engine)


def test_a_session_follows_onnx_runtime(engine: arcweld.Engine) -> None:
    session = arcweld.InferenceSession(engine)
    feeds = {"xs": _draw(3, 5), "t": np.array(1.0, np.float32), "w": _draw(2)[0]}
    _same(session.run(["all", "longer"], feeds), [*_runtime(_add(), feeds)[1::-1]])
    assert [(a.name, a.type) for a in session.get_inputs()] == [
        ("xs", "seq(tensor(float))"), ("t", "tensor(float)"), ("w", "tensor(float)"),
    ]  # fmt: skip
    assert session.get_outputs()[0].type == "seq(tensor(float))"
    assert session.get_outputs()[0].shape == []
    with pytest.raises(InputError, match="output 'longer' is no tensor"):
        session.io_binding().bind_output("longer")
    with pytest.raises(UsageError, match="'xs' is no tensor"):
        session.run_with_ort_values(None, {})


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"xs": _draw(3, 5, 2)}, "a sequence of 2 tensors, 3 were given"),
        ({"xs": np.zeros((2, 5), np.float32)}, "a sequence of 2 tensors, not a ndarray"),
        ({"xs": [np.zeros(3, np.float32), np.zeros(4, np.float32)]}, "xs.1"),
        ({}, "input 'xs', a list of 2 arrays, is missing"),
        ({"xs.0": np.zeros(3, np.float32)}, "input 'xs.1' is missing"),
    ],
)
def test_lists_that_do_not_fit_are_refused(engine: arcweld.Engine, feeds: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        engine(**feeds, t=np.array(0, np.float32), w=_draw(1)[0])


def test_the_file_and_the_text_keep_the_lists(engine: arcweld.Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "lists.engine")
    again = load(tmp_path / "lists.engine", SimDevice())
    assert (again.arguments, again.results) == (engine.arguments, engine.results)
    graph = import_onnx(_add(), shapes={"xs.0": (2,), "xs.1": (3,)})
    back = parse_graph(print_graph(graph))
    assert (back.takes, back.gives) == (graph.takes, graph.gives)
    assert [a.kind for a in graph.takes] == ["sequence", "tensor", "tensor"]


def test_a_file_with_other_lists_is_refused(engine: arcweld.Engine) -> None:
    def altered(**changes: Any) -> Any:
        first = msgspec.structs.replace(engine.program.takes[0], **changes)
        program = msgspec.structs.replace(engine.program, takes=(first, *engine.program.takes[1:]))
        return replace(engine.data, program=program)

    for changes in (
        {"items": ("xs.0",)}, {"items": ("xs.1", "xs.0")}, {"kind": "tensor"}, {"name": "t"}, {"name": "xs.0"},
    ):  # fmt: skip
        with pytest.raises(EngineFileError, match="damaged"):
            check_data(altered(**changes))


def test_branches_and_loops_that_depend_on_data_carry_lists() -> None:
    """The sequences keep their lengths; items change their sizes."""
    double = helper.make_graph([N("SequenceConstruct", ["b", "a"], ["r"])], "then", [], [_sequence("r", None)])
    keep = helper.make_graph([N("Identity", ["xs"], ["r2"])], "else", [], [_sequence("r2", None)])
    turn = helper.make_graph(
        [
            N("SequenceAt", ["s", "zero"], ["p"]), N("SequenceAt", ["s", "one"], ["q"]),
            N("Concat", ["p", "single"], ["longer"], axis=0),
            N("SequenceConstruct", ["q", "longer"], ["next"]), N("Identity", ["go"], ["still"]),
        ],
        "turn", [_tensor("i", kind=INT64), _tensor("go", kind=BOOL), _sequence("s", None)],
        [_tensor("still", kind=BOOL), _sequence("next", None)],
    )  # fmt: skip
    nodes = [
        N("Constant", [], ["zero"], value_int=0), N("Constant", [], ["one"], value_int=1),
        N("Constant", [], ["single"], value_floats=[1.5]),
        N("SequenceAt", ["xs", "zero"], ["a"]), N("SequenceAt", ["xs", "one"], ["b"]),
        N("If", ["flag"], ["chosen"], then_branch=double, else_branch=keep),
        N("Loop", ["trips", "", "chosen"], ["ys"], body=turn),
    ]  # fmt: skip
    inputs = [_sequence("xs", None), _tensor("flag", kind=BOOL), _tensor("trips", kind=INT64)]
    proto = _model(nodes, inputs, [_sequence("ys", None)])
    made = arcweld.compile(proto, inputs=[Input("xs.0", ("a",)), Input("xs.1", ("b",))], device=SimDevice(checked=True))
    for flag, trips in [(True, 0), (False, 1), (True, 3)]:
        feeds = {"xs": _draw(2, 3), "flag": np.array(flag), "trips": np.array(trips)}
        _same(made(**feeds), _runtime(proto, feeds)[0])


def test_lists_whose_length_depends_on_data_are_refused() -> None:
    longer = helper.make_graph([N("SequenceConstruct", ["x", "x"], ["r"])], "then", [], [_sequence("r", None)])
    keep = helper.make_graph([N("SequenceConstruct", ["x"], ["r2"])], "else", [], [_sequence("r2", None)])
    proto = _model(
        [N("If", ["flag"], ["ys"], then_branch=longer, else_branch=keep)],
        [_tensor("x", 2), _tensor("flag", kind=BOOL)], [_sequence("ys", None)],
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="one branch gives a longer sequence"):
        import_onnx(proto)


def test_optional_inputs_and_outputs() -> None:
    """Whether they are there is said when compiling, as ONNX' reference evaluator is told in a call."""
    given = helper.make_graph([N("OptionalGetElement", ["o"], ["v"])], "then", [], [_tensor("v", None)])
    none = helper.make_graph([N("Neg", ["x"], ["n"])], "else", [], [_tensor("n", None)])
    nodes = [
        N("OptionalHasElement", ["o"], ["has"]), N("If", ["has"], ["y"], then_branch=given, else_branch=none),
        N("Identity", ["o"], ["same"]),
    ]  # fmt: skip
    inputs, outputs = [_tensor("x", 3), _optional("o", 3)], [_tensor("y", 3), _optional("same", 3)]
    proto = _model(nodes, inputs, outputs)
    x, o = _draw(3)[0], _draw(3)[0] + 1
    there = arcweld.compile(proto, device=SimDevice(checked=True), verify="off")
    _same(list(there(x=x, o=o)), [o, o])
    missing = arcweld.compile(proto, inputs=[Input("o", value=[])], device=SimDevice(checked=True), verify="off")
    y, same = missing(x=x)
    _same(y, -x)
    assert same is None
    assert arcweld.InferenceSession(missing).run(["same"], {"x": x}) == [None]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, UnsupportedError, "how many tensors the sequence has is not known"),
        ({"shapes": {"xs": (2,)}}, UsageError, "'xs' is a sequence"),
        ({"shapes": {"xs.a": (2,)}}, UsageError, "no input 'xs.a'"),
        ({"shapes": {"xs.4096": (2,)}}, UsageError, "more than 4096 items"),
        ({"shapes": {"xs.0": (2, 3)}}, UsageError, "rank 1"),
        ({"values": {"xs": 1.0}}, UsageError, "its value is a list of arrays"),
        ({"values": {"xs": None}}, UsageError, "not optional"),
    ],
)
def test_what_is_said_of_a_list_must_fit(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        import_onnx(_add(), **options)


def test_constant_lists() -> None:
    xs, t, w = _draw(2, 3), np.array(1.5, np.float32), _draw(4)[0]
    made = arcweld.compile(_add(), inputs=[Input("xs", value=xs)], device=SimDevice(checked=True), verify="off")
    _same(list(made(t=t, w=w)), _runtime(_add(), {"xs": xs, "t": t, "w": w}))
    assert [a.name for a in made.arguments] == ["t", "w"]


def test_the_command_shows_and_runs_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lists.onnx"
    onnx.save(_add(), path)
    shapes = ["--shapes", "xs.0:3,xs.1:5,w:2"]
    assert main(["inspect", str(path)]) == 3
    assert "input xs: sequence of f32[?]" in capsys.readouterr().out
    assert main(["run", str(path), "--device", "sim", *shapes]) == 0
    assert "longer.2: float32[2]" in capsys.readouterr().out
    assert main(["verify", str(path), "--device", "sim", "--onnxrt", *shapes]) == 0
    assert "pass longer.0" in capsys.readouterr().out
    assert main(["verify", str(path), "--device", "sim", *shapes]) == 0


def _appending(per_turn: int = 1) -> onnx.GraphProto:
    """What a scripted loop over a list becomes: each turn doubles ``v`` and appends it, until data end it."""
    nodes = [N("Add", ["v", "v"], ["w"]), N("SequenceInsert", ["s", "w"], ["s1"])]
    nodes += [N("SequenceInsert", [f"s{k}", "v"], [f"s{k + 1}"]) for k in range(1, per_turn)]
    nodes += [N("ReduceMax", ["w"], ["m"], keepdims=0), N("Less", ["m", "limit"], ["on"])]
    inputs = [_tensor("i", kind=INT64), _tensor("go", kind=BOOL), _tensor("v", 2, 3), _sequence("s", None, None)]
    outputs = [_tensor("on", kind=BOOL), _tensor("w", 2, 3), _sequence(f"s{per_turn}", None, None)]
    return helper.make_graph(nodes, "turn", inputs, outputs)


def _growing(rest: list[onnx.NodeProto], outputs: list[Any], per_turn: int = 1) -> onnx.ModelProto:
    nodes = [
        N("SequenceEmpty", [], ["empty"]),
        N("Loop", ["", "", "x", "empty"], ["last", "list"], body=_appending(per_turn)), *rest,
    ]  # fmt: skip
    return _model(nodes, [_tensor("x", 2, 3), _tensor("limit")], outputs)


def test_a_list_grows_as_often_as_data_say() -> None:
    rest = [
        N("ConcatFromSequence", ["list"], ["flat"], axis=1), N("SequenceLength", ["list"], ["count"]),
        N("ConcatFromSequence", ["list"], ["apart"], axis=-1, new_axis=1), N("Constant", [], ["end"], value_int=-1),
        N("SequenceAt", ["list", "end"], ["late"]), N("Neg", ["flat"], ["y"]),
    ]  # fmt: skip
    outputs = [_tensor(n, *shape) for n, shape in (("y", (2, None)), ("apart", (2, 3, None)), ("late", (2, 3)))]
    outputs += [_tensor("count", kind=INT64), _tensor("last", 2, 3)]
    proto = _growing(rest, outputs)
    made = arcweld.compile(proto, device=SimDevice(checked=True))
    for limit in (5.0, 3000.0):
        feeds = {"x": np.abs(_draw(6)[0].reshape(2, 3)) + 1, "limit": np.array(limit, np.float32)}
        _same(list(made(**feeds)), _runtime(proto, feeds))


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (_growing([], [_sequence("list", None, None)]), "a sequence whose length depends on the data"),
        (_growing([N("SequenceErase", ["list"], ["z"]), N("SequenceLength", ["z"], ["n"])], [_tensor("n", kind=INT64)]),
         "a sequence whose length depends on the data"),
        (_growing([N("SequenceLength", ["list"], ["n"])], [_tensor("n", kind=INT64)], 2), "a turn changes the length"),
    ],
)  # fmt: skip
def test_growing_lists_that_are_refused(proto: onnx.ModelProto, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        import_onnx(proto)
