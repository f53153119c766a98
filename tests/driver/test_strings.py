"""Models with strings, which the host alone has: engines on the checked simulator, compared with ONNX Runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

import arcweld
from arcweld.cli.app import app
from arcweld.compiler.errors import EngineFileError, InputError, ModelError, UnsupportedError, UsageError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.ops import host, host_strings
from arcweld.driver.remake import difference
from arcweld.driver.summary import host_text
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData, check_data
from arcweld.runtime.sim.device import SimDevice
from arcweld.runtime.steps import Block, Call, Choose, Literal, Tensor

F, I64, S = T.FLOAT, T.INT64, T.STRING
Node = onnx.NodeProto
X = np.random.default_rng(7).standard_normal((5, 3)).astype(np.float32)


def texts(*values: Any) -> np.ndarray:
    return np.array(values, object)


def model(
    nodes: Sequence[Node], inputs: dict[str, tuple[int, Sequence[int | str] | None]], outputs: dict[str, int],
    opset: int = 21, **constants: Any,
) -> onnx.ModelProto:  # fmt: skip
    weights = [
        h.make_tensor(k, S, np.shape(v), [s.encode() for s in np.ravel(v)])
        if np.asarray(v).dtype == object
        else onnx.numpy_helper.from_array(np.asarray(v), k)
        for k, v in constants.items()
    ]
    given = [h.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    made = [h.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    graph = h.make_graph(nodes, "texts", given, made, initializer=weights)
    sets = [h.make_opsetid("", opset), h.make_opsetid("ai.onnx.ml", 4)]
    return h.make_model(graph, opset_imports=sets, ir_version=9)


def agree(proto: onnx.ModelProto, *calls: dict[str, np.ndarray], **options: Any) -> Engine:
    """Compiles the model, and compares each call with ONNX Runtime."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    engine = arcweld.compile(proto, device=SimDevice(checked=True), **options)
    for feeds in calls:
        found = engine.run(feeds)
        for output, want in zip(session.get_outputs(), session.run(None, feeds)):
            assert found[output.name].dtype == want.dtype, output.name
            assert found[output.name].shape == want.shape, output.name
            if want.dtype.kind == "f":
                np.testing.assert_allclose(found[output.name], want, rtol=1e-5)
            else:
                np.testing.assert_array_equal(found[output.name], want)
    assert difference(engine.data) == ""
    return engine


def classifier() -> onnx.ModelProto:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["scores"]), h.make_node("ArgMax", ["scores"], ["k"], axis=1, keepdims=0),
        h.make_node(
            "LabelEncoder", ["k"], ["label"], name="names", domain="ai.onnx.ml", keys_int64s=[0, 1, 2],
            values_strings=["cat", "dog", "größe"],
        ),
    ]  # fmt: skip
    return model(nodes, {"x": (F, ["n", 3])}, {"label": S, "scores": F}, w=np.eye(3, 4, dtype=np.float32))


# ------------------------------------------------------------------------------------------------ a classifier's labels


def test_the_labels_of_a_classifier() -> None:
    engine = agree(classifier(), {"x": X}, {"x": -X[:1]})
    assert host_text(engine.data) == "1 fallback (LabelEncoder), 1 stage"
    assert {k["status"] for k in engine.data.verify["kernels"]} == {"verified"}
    assert engine.memory(n=4).total > 0
    assert "label: str[n]" in repr(engine)


def test_a_file_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.engine"
    first = arcweld.compile(classifier(), device="sim")
    first.save(path)
    again = arcweld.load(path, "sim")
    assert again.program == first.program
    np.testing.assert_array_equal(again(X)[0], first(X)[0])


def test_labels_in_a_session_and_by_binding() -> None:
    session = arcweld.InferenceSession(arcweld.compile(classifier(), device="sim", verify="off"))
    want = ort.InferenceSession(classifier().SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(a.name, a.type) for a in session.get_outputs()] == [(a.name, a.type) for a in want.get_outputs()]
    np.testing.assert_array_equal(session.run(["label"], {"x": X})[0], want.run(["label"], {"x": X})[0])
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("label")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], want.run(["label"], {"x": X})[0])
    (value,) = binding.get_outputs()
    (other,) = want.run_with_ort_values(["label"], {"x": ort.OrtValue.ortvalue_from_numpy(X)})
    assert (value.data_type(), value.element_type()) == (other.data_type(), other.element_type())
    binding.bind_output("label", "cuda")
    with pytest.raises(InputError, match="stay on the host"):
        session.run_with_iobinding(binding)


def test_lists_of_strings() -> None:
    nodes = [
        h.make_node("StringConcat", ["s", "s"], ["t"]), h.make_node("SequenceConstruct", ["s", "t"], ["both"]),
        h.make_node("SequenceAt", ["both", "one"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"s": (S, [2])}, {"y": S}, one=np.array(1))
    proto.graph.output.append(h.make_tensor_sequence_value_info("both", S, None))
    engine = arcweld.compile(proto, device="sim", verify="off")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y, both = session.run(None, {"s": texts("a", "b")})
    found = engine.run({"s": texts("a", "b")})
    assert found["y"].tolist() == list(y)
    assert [a.tolist() for a in found["both"]] == [list(a) for a in both]
    ours = arcweld.InferenceSession(engine)
    assert [a.type for a in ours.get_outputs()] == [a.type for a in session.get_outputs()]


def test_strict_refuses_strings() -> None:
    with pytest.raises(UnsupportedError, match="LabelEncoder"):
        arcweld.compile(classifier(), device="sim", strict=True)


def test_half_precision_keeps_the_labels() -> None:
    engine = arcweld.compile(classifier(), device="sim", precision="fp16")
    want = ort.InferenceSession(classifier().SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(engine(X)[0], want.run(["label"], {"x": X})[0])


def test_labels_at_the_command_line(tmp_path: Path) -> None:
    source, target, engine = tmp_path / "m.onnx", tmp_path / "out.npz", tmp_path / "m.engine"
    nodes = [h.make_node("StringConcat", ["a", "b"], ["c"]), h.make_node("Equal", ["a", "b"], ["e"])]
    onnx.save(model(nodes, {"a": (S, ["n"])}, {"c": S, "e": T.BOOL}, b=texts("\x1b[2J")), source)
    np.save(tmp_path / "a.npy", np.array(["ü", "\x1b[2J"]))
    runner = CliRunner()

    def call(*arguments: str) -> str:
        found = runner.invoke(app, [*arguments], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    call("build", str(source), "-o", str(engine), "--device", "sim")
    shown = call("run", str(engine), "--device", "sim", "--loadInputs", f"a:{tmp_path / 'a.npy'}",
                 "--exportOutput", str(target), "--dumpOutput")  # fmt: skip
    assert "\x1b" not in shown
    assert np.load(target)["c"].tolist() == ["ü\x1b[2J", "\x1b[2J\x1b[2J"]
    assert "StringConcat" in call("inspect", str(engine))
    assert "on the host: EqualStrings" in call("inspect", str(engine))
    given = ("--loadInputs", f"a:{tmp_path / 'a.npy'}")
    assert "pass c: 0 of 2 strings differ" in call("verify", str(source), "--device", "sim", "--onnxrt", *given)
    json.loads(call("inspect", str(engine), "--json"))


# ------------------------------------------------------------------------------------------------------- operators


def test_labels_of_every_kind() -> None:
    def encoder(x: str, y: str, **attrs: Any) -> Node:
        return h.make_node("LabelEncoder", [x], [y], domain="ai.onnx.ml", **attrs)

    nodes = [
        encoder("s", "i", keys_strings=["a", "b"], values_int64s=[5, 6], default_int64=-7),
        encoder("s", "f", keys_strings=["a", "b"], values_floats=[0.5, 1.5], default_float=-2.5),
        encoder("s", "t", keys_strings=["a", "b"], values_strings=["A", "B"], default_string="?"),
        encoder("s", "u", keys_strings=["a", "b"], values_strings=["A", "B"]),
        encoder("n", "m", keys_floats=[1.0, 2.0], values_strings=["one", "two"], default_string=""),
        h.make_node("Add", ["i", "one"], ["j"]),
    ]  # fmt: skip
    proto = model(
        nodes, {"s": (S, ["n", 2]), "n": (F, [3])}, {"i": I64, "f": F, "t": S, "u": S, "m": S, "j": I64},
        one=np.array(1, np.int64),
    )  # fmt: skip
    agree(proto, {"s": texts(["a", "b"], ["", "c"]), "n": np.array([2, 1, 0.5], np.float32)})


def test_numbers_and_strings() -> None:
    """Casts both ways, with kernels between."""
    nodes = [
        h.make_node("Cast", ["s"], ["f"], to=F), h.make_node("Mul", ["f", "f"], ["g"]),
        h.make_node("Cast", ["g"], ["t"], to=S), h.make_node("Cast", ["i"], ["u"], to=S),
        h.make_node("Cast", ["u"], ["j"], to=I64), h.make_node("Cast", ["d"], ["v"], to=S),
        h.make_node("Cast", ["b"], ["w"], to=S),
    ]  # fmt: skip
    inputs = {"s": (S, ["n"]), "i": (I64, [2]), "d": (T.DOUBLE, [4]), "b": (T.BOOL, [2])}
    proto = model(nodes, inputs, {"f": F, "g": F, "t": S, "u": S, "j": I64, "v": S, "w": S})
    agree(proto, {
        "s": texts("1.5", "-2e3", "0.1", "12345678.9"), "i": np.array([-(2**63), 2**63 - 1]),
        "d": np.array([1 / 3, np.inf, np.nan, -np.inf]), "b": np.array([True, False]),
    })  # fmt: skip


@pytest.mark.parametrize("text", ["", "1_000", "twelve", "0x1p3", "1e", "²", "9" * 50])
def test_text_that_is_no_number(text: str) -> None:
    proto = model([h.make_node("Cast", ["s"], ["i"], to=I64, name="number")], {"s": (S, ["n"])}, {"i": I64})
    engine = arcweld.compile(proto, device="sim", verify="off")
    with pytest.raises(InputError, match="number"):
        engine(texts(text))


def test_operators_that_move_strings() -> None:
    """Each moves the places of strings; ONNX Runtime moves the strings."""
    nodes = [
        h.make_node("Transpose", ["s"], ["a"]), h.make_node("Reshape", ["s", "flat"], ["b"]),
        h.make_node("Gather", ["b", "places"], ["c"]), h.make_node("Slice", ["s", "from", "to", "axis"], ["d"]),
        h.make_node("Concat", ["s", "more"], ["e"], axis=0), h.make_node("Where", ["yes", "s", "other"], ["f"]),
        h.make_node("Unsqueeze", ["s", "axis"], ["g"]), h.make_node("Expand", ["other", "wide"], ["i"]),
        h.make_node("Identity", ["s"], ["j"]), h.make_node("Shape", ["e"], ["k"]),
        h.make_node("Split", ["s"], ["l", "m"], axis=1, num_outputs=2), h.make_node("Tile", ["b", "twice"], ["o"]),
        h.make_node("Squeeze", ["g", "axis"], ["p"]), h.make_node("Flatten", ["g"], ["q"]),
    ]  # fmt: skip
    names = "abcdefgijlmopq"
    proto = model(
        nodes, {"s": (S, ["n", 2]), "places": (I64, ["k"]), "yes": (T.BOOL, ["n", 1])},
        {**dict.fromkeys(names, S), "k": I64}, flat=np.array([-1]), more=texts(["x", "y"]), axis=np.array([1]),
        other=texts("?"), wide=np.array([3, 2]), twice=np.array([2]), to=np.array([9]), **{"from": np.array([1])},
    )  # fmt: skip
    s = texts(["a", "b"], ["c", ""], ["é", "日本"])
    calls = [{"s": s[:n], "places": np.array([1, 0, -1, 0]), "yes": np.arange(n)[:, None] % 2 == 0} for n in (3, 1)]
    agree(proto, *calls)


def test_strings_that_are_split_and_joined() -> None:
    nodes = [
        h.make_node("StringSplit", ["s"], ["parts", "counts"], delimiter=",", maxsplit=2),
        h.make_node("StringConcat", ["parts", "end"], ["y"]), h.make_node("Shape", ["parts"], ["shape"]),
        h.make_node("Cast", ["counts"], ["f"], to=F), h.make_node("ReduceSum", ["f"], ["sum"], keepdims=0),
        h.make_node("Equal", ["parts", "end"], ["same"]),
    ]  # fmt: skip
    outputs = {"parts": S, "counts": I64, "y": S, "shape": I64, "sum": F, "same": T.BOOL}
    proto = model(nodes, {"s": (S, ["n"])}, outputs, end=texts("!"))
    engine = agree(proto, {"s": texts("a,b", "!", "a,b,c,d")}, {"s": texts("x")})
    assert "StringSplit" in host_text(engine.data)


def test_normal_forms_of_strings() -> None:
    nodes = [
        h.make_node("StringNormalizer", ["s"], ["y"], case_change_action="LOWER", stopwords=["The", "of"]),
        h.make_node("StringNormalizer", ["s"], ["z"], case_change_action="UPPER", is_case_sensitive=1, stopwords=["b"]),
    ]  # fmt: skip
    proto = model(nodes, {"s": (S, ["n"])}, {"y": S, "z": S}, opset=18)
    engine, oracle = arcweld.compile(proto, device="sim"), ReferenceEvaluator(proto)  # ONNX Runtime needs a locale
    for s in (texts("The", "king", "OF", "b", "B"), texts("the")):
        for found, want in zip(engine(s), oracle.run(None, {"s": s}), strict=True):
            np.testing.assert_array_equal(found, want)


def test_n_grams_of_strings() -> None:
    nodes = [
        h.make_node(
            "TfIdfVectorizer", ["s"], ["y"], mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=1,
            ngram_counts=[0, 3], ngram_indexes=[0, 1, 2, 3, 4], pool_strings=["a", "b", "c", "a", "b", "b", "a"],
        ),
        h.make_node("Sqrt", ["y"], ["z"]),
    ]  # fmt: skip
    agree(model(nodes, {"s": (S, [2, 4])}, {"z": F}), {"s": texts(["a", "b", "x", "a"], ["b", "c", "c", "a"])})


def test_branches_and_loops_of_strings() -> None:
    """A branch gives strings, a loop carries one and collects others."""
    def graph(name: str, nodes: Sequence[Node], inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]):
        def infos(found: Sequence[tuple[str, int]]) -> list[onnx.ValueInfoProto]:
            return [h.make_tensor_value_info(n, k, None if k == S else []) for n, k in found]

        return h.make_graph(nodes, name, infos(inputs), infos(outputs))

    then = graph("then", [h.make_node("StringConcat", ["s", "s"], ["twice"])], [], [("twice", S)])
    other = graph("other", [h.make_node("Identity", ["end"], ["alone"])], [], [("alone", S)])
    body = graph(
        "body", [
            h.make_node("Identity", ["go"], ["still"]), h.make_node("StringConcat", ["at", "end"], ["next"]),
            h.make_node("Identity", ["next"], ["item"]),
        ], [("turn", I64), ("go", T.BOOL), ("at", S)], [("still", T.BOOL), ("next", S), ("item", S)],
    )  # fmt: skip
    nodes = [
        h.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
        h.make_node("Loop", ["turns", "", "s"], ["last", "all"], body=body),
    ]
    inputs = {"s": (S, [2]), "yes": (T.BOOL, []), "turns": (I64, [])}
    proto = model(nodes, inputs, {"y": S, "last": S, "all": S}, end=texts("!", "?"))
    calls = [{"s": texts("a", "b"), "yes": np.array(n > 1), "turns": np.array(n)} for n in (1, 3)]
    agree(proto, *calls)


def test_constants_and_outputs_that_are_inputs() -> None:
    nodes = [h.make_node("Constant", [], ["c"], value_strings=["a", "b"]), h.make_node("Identity", ["s"], ["t"])]
    agree(model(nodes, {"s": (S, [1])}, {"c": S, "t": S, "s": S, "w": S}, w=texts("x")), {"s": texts("é")})


# -------------------------------------------------------------------------------------------------------- refusals


def test_what_strings_cannot_be() -> None:
    for op in ("Relu", "NonZero", "Hardmax"):
        with pytest.raises(UnsupportedError, match=f"{op} of strings"):
            import_onnx(model([h.make_node(op, ["s"], ["y"])], {"s": (S, [2, 2])}, {"y": S}))
    with pytest.raises(UnsupportedError, match="exponential"):
        import_onnx(model([h.make_node("RegexFullMatch", ["s"], ["y"], pattern="(a+)+b")], {"s": (S, [2])}, {"y": S}))
    with pytest.raises(ModelError, match="strings"):
        import_onnx(model([h.make_node("Reshape", ["x", "s"], ["y"])], {"x": (F, [2])}, {"y": F}, s=texts("2")))
    with pytest.raises(ModelError):
        import_onnx(model([h.make_node("Concat", ["s", "x"], ["y"], axis=0)], {"s": (S, [2]), "x": (F, [2])}, {"y": S}))


def test_a_tensor_of_bytes_that_are_no_text() -> None:
    proto = model([h.make_node("Identity", ["w"], ["y"])], {}, {"y": S}, w=texts("a"))
    proto.graph.initializer[0].string_data[0] = b"\xff"
    with pytest.raises(ModelError, match="valid text"):
        import_onnx(proto)
    proto.graph.initializer[0].string_data.append(b"b")
    with pytest.raises(ModelError, match="needs 1 strings, it has 2"):
        import_onnx(proto)


def test_inputs_that_are_no_strings() -> None:
    nodes = [h.make_node("StringConcat", ["s", "s"], ["y"])]
    engine = arcweld.compile(model(nodes, {"s": (S, ["n"])}, {"y": S}), device="sim", verify="off")
    assert engine(np.array(["a", "b"])).tolist() == ["aa", "bb"]
    for wrong in (np.zeros(2), texts("a", 1), texts(None), np.array([b"a"]), ["a"]):
        with pytest.raises(InputError, match="must be strings"):
            engine(wrong)
    given = texts("a")
    assert engine(given) is not given
    constant = import_onnx(model(nodes, {"s": (S, [1])}, {"y": S}), values={"s": ["x"]})
    assert not constant.inputs
    with pytest.raises(UsageError, match="int64"):
        import_onnx(model(nodes, {"s": (S, [1])}, {"y": S}), values={"s": [1]})


def test_text_that_grows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_strings, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(host_strings, "MAX_ELEMENTS", 100)
    long = texts("a" * 60)
    with pytest.raises(InputError, match="more than 100 characters"):
        host.compute("StringConcat", [long, long], {})
    with pytest.raises(InputError, match="more than 100 characters"):
        host.compute("StringNormalizer", [texts("ß" * 60)], {"case_change_action": "UPPER"})
    with pytest.raises(InputError, match="more than 100 elements"):
        host.compute("StringSplit", [texts("a " * 60, "b")], {})


def test_constants_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcweld.driver.stages.MAX_LITERAL_CHARACTERS", 10)
    with pytest.raises(UnsupportedError, match="characters"):
        arcweld.compile(classifier(), device="sim", verify="off")



def test_files_with_strings_where_none_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    data = arcweld.compile(classifier(), device="sim", verify="off").data
    (call,) = (s for s in data.program.steps if isinstance(s, Call))

    def program(**changes: Any) -> EngineData:
        return dataclasses.replace(data, program=msgspec.structs.replace(data.program, **changes))

    def with_steps(*steps: Any) -> EngineData:
        return program(steps=(*(s for s in data.program.steps if not isinstance(s, Call)), *steps))

    def literal(dtype: str, values: tuple[Any, ...]) -> EngineData:
        changed = (Literal(call.literals[0].place, dtype, (len(values),), values), *call.literals[1:])
        return with_steps(msgspec.structs.replace(call, literals=changed))

    block, made = Block((), (call.inputs[0],)), call.outputs[0].name
    cases = [
        (literal("i64", ("a",)), "strings for numbers"),
        (literal("str", (1,)), "strings for numbers"),
        (literal("text", ("a",)), "no type"),
        (with_steps(call, Choose(made, block, block, (Tensor("z", "i64", ("n",)),))), "which is strings"),
        (program(stages=tuple(
            msgspec.structs.replace(s, inputs=tuple(Tensor(t.name, "str", t.shape) for t in s.inputs))
            for s in data.program.stages
        )), "unknown element type"),
    ]  # fmt: skip
    check_data(with_steps(call))
    for wrong, why in cases:
        with pytest.raises(EngineFileError, match=why):
            check_data(wrong)
    monkeypatch.setattr("arcweld.runtime.validate_steps.MAX_LITERAL_CHARACTERS", 5)
    with pytest.raises(EngineFileError, match="characters"):
        check_data(data)


def test_a_file_whose_call_has_other_results() -> None:
    data = arcweld.compile(classifier(), device="sim", verify="off").data
    steps = tuple(
        msgspec.structs.replace(s, outputs=(*s.outputs, Tensor("z", "str", ("n",)))) if isinstance(s, Call) else s
        for s in data.program.steps
    )
    program = msgspec.structs.replace(data.program, steps=steps)
    with pytest.raises(EngineFileError, match="LabelEncoder gives 1 results"):
        Engine(dataclasses.replace(data, program=program), "sim", trusted=True)(X)


@pytest.mark.parametrize("name", sorted(host_strings.REFERENCES))
def test_operands_that_do_not_fit(name: str) -> None:
    """Whatever a file gives to an operator, only our errors come out."""
    for operands in ([], [None], [np.zeros(2)] * 2, [texts("a", "b")], [texts("a"), np.zeros(1)], [None] * 4):
        for attrs in ({}, {"to": "text", "maxsplit": "x", "case_change_action": 3, "stopwords": 5, "delimiter": 1}):
            with contextlib.suppress(InputError):
                assert all(isinstance(a, np.ndarray) for a in host.compute(name, operands, attrs))
