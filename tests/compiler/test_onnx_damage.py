"""Damaged files: whatever happens to the bytes, the importer raises a typed error, quickly and in bounded memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_models import floats, ints, model, runtime

from arcweld.compiler.errors import ArcweldError, InternalError, ModelError, UnsupportedError
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import HANDLERS, MICROSOFT, Result
from arcweld.compiler.onnx.importer import import_onnx, support_report

N = helper.make_node
X: dict[str, tuple[Any, list[Any]]] = {"x": (np.float32, ["N", 1, 4, 4])}


def _value(name: str, code: int, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, shape)


def _everything() -> bytes:
    """A small model in which most kinds of node, attribute and subgraph occur."""
    body = helper.make_graph(
        [N("Add", ["c", "k"], ["c2"]), N("Identity", ["go"], ["go2"]), N("Identity", ["c2"], ["item"])], "body",
        [_value("i", TensorProto.INT64, []), _value("go", TensorProto.BOOL, []), _value("c", TensorProto.FLOAT)],
        [_value("go2", TensorProto.BOOL, []), _value("c2", TensorProto.FLOAT), _value("item", TensorProto.FLOAT)],
    )  # fmt: skip
    branches = {
        "then_branch": helper.make_graph([N("Relu", ["t"], ["tr"])], "then", [], [_value("tr", TensorProto.FLOAT)]),
        "else_branch": helper.make_graph([N("Neg", ["t"], ["te"])], "else", [], [_value("te", TensorProto.FLOAT)]),
    }
    elu = N("Elu", ["a"], ["b"])
    elu.attribute.append(AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT))
    function = helper.make_function("my", "fn", ["a"], ["b"], [elu], [helper.make_opsetid("", 17)], ["alpha"])
    nodes = [
        N("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]), N("Shape", ["y"], ["sh"]),
        N("Gather", ["sh", "i0"], ["n"], axis=0), N("Unsqueeze", ["n", "ax"], ["nu"]),
        N("Concat", ["nu", "open"], ["target"], axis=0), N("Reshape", ["y", "target"], ["f"]),
        N("Gemm", ["f", "g", "gb"], ["t"], transB=1), N("If", ["cond"], ["z"], **branches),
        N("Softmax", ["z"], ["p"], axis=-1), N("Slice", ["p", "st", "en", "ax1", "sp"], ["q"]),
        N("Loop", ["trips", "", "q"], ["l", "items"], body=body), N("fn", ["l"], ["u"], domain="my", alpha=0.5),
        N("LayerNormalization", ["u", "scale"], ["ln"], axis=-1), N("Pad", ["ln", "pads"], ["pp"], mode="constant"),
        N("Cast", ["pp"], ["out"], to=10), N("Resize", ["y", "", "scales"], ["r"], mode="linear"),
        N("MaxPool", ["r"], ["pool"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        N("LSTM", ["seq", "lw", "lr"], ["hidden"], hidden_size=2), N("Expand", ["seq", "es"], ["wide"]),
        N("Split", ["seq", "sizes"], ["s1", "s2"], axis=2), N("CumSum", ["p", "i0"], ["sums"]),
        N("HannWindow", ["count"], ["window"]), N("Constant", [], ["kc"], value_ints=[1, 2, 3]),
    ]  # fmt: skip
    constants: dict[str, Any] = {
        "w": floats(2, 1, 3, 3), "b": floats(2), "i0": np.int64(0), "ax": ints(0), "open": ints(-1), "g": floats(3, 32),
        "gb": floats(3), "cond": np.bool_(True), "st": ints(0), "en": ints(2**31 - 1), "ax1": ints(1), "sp": ints(1),
        "trips": np.int64(3), "k": floats(3), "scale": floats(3), "pads": ints(0, 1, 0, 1), "es": ints(2, 3, 4),
        "scales": np.float32([1, 1, 2, 2]), "seq": floats(2, 1, 4), "lw": floats(1, 8, 4), "lr": floats(1, 8, 2),
        "sizes": ints(1, 3), "count": np.int64(4),
    }  # fmt: skip
    outputs = ["out", "pool", "hidden", "wide", "s1", "sums", "items", "window"]
    opsets = [helper.make_opsetid("my", 1)]
    data = model(nodes, X, outputs, constants, opsets=opsets, functions=[function]).SerializeToString()
    assert isinstance(data, bytes)
    return data


DATA = _everything()


def test_the_undamaged_model_imports() -> None:
    assert len(import_onnx(DATA).outputs) == 8


def _import_damaged(data: bytes) -> None:
    try:
        import_onnx(data)
    except ArcweldError as error:
        str(error)


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_changed_bytes(changes: list[tuple[int, int]], flip: bool) -> None:
    data = bytearray(DATA)
    for at, value in changes:
        data[at] = data[at] ^ (1 << value % 8) if flip else value
    _import_damaged(bytes(data))


@settings(max_examples=300)
@given(st.integers(0, len(DATA)))
def test_truncation(length: int) -> None:
    _import_damaged(DATA[:length])


@settings(max_examples=700)
@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)), st.integers(0, 300), st.booleans())
def test_splices(source: int, target: int, length: int, replace: bool) -> None:
    piece = DATA[source : source + length]
    _import_damaged(DATA[:target] + piece + DATA[target + (len(piece) if replace else 0) :])


# ------------------------------------------------------------------------------------------------ crafted damage


def _one(node: onnx.NodeProto, constants: dict[str, Any] | None = None, **inputs: Any) -> onnx.ModelProto:
    return model([node], inputs or {"x": (np.float32, [2, 3])}, [node.output[0]], constants or {})


def _sized(dims: list[int], raw: bytes) -> onnx.ModelProto:
    proto = _one(N("MatMul", ["x", "w"], ["y"]))
    proto.graph.initializer.append(TensorProto(name="w", data_type=1, dims=dims, raw_data=raw))
    return proto


@pytest.mark.parametrize(
    "proto",
    [
        _sized([2**40, 2**40], b"1234"),
        _sized([-1, 4], b"1234"),
        _sized([3, 4], b"1234"),
        _sized([2**62, 0], b""),
        _one(N("Reshape", ["x", "s"], ["y"]), {"s": np.full(1000, 1)}),
        _one(N("Reshape", ["x", "s"], ["y"]), {"s": ints(-5)}),
        _one(N("Transpose", ["x"], ["y"], perm=[0, 0])),
        _one(N("Concat", ["x"], ["y"], axis=9)),
        _one(N("Gather", ["x", "i"], ["y"], axis=7), {"i": ints(0)}),
        _one(N("Conv", ["x", "w"], ["y"], strides=[0, 1]), {"w": floats(1, 1, 1, 1)}, x=(np.float32, [1, 1, 4, 4])),
        _one(N("Conv", ["x", "w"], ["y"], pads=[2**62] * 4), {"w": floats(1, 1, 1, 1)}, x=(np.float32, [1, 1, 4, 4])),
        _one(N("Softmax", ["x"], ["y"], axis="last")),
        _one(N("Relu", ["x"], ["y"], bogus=1)),
        _one(N("Relu", ["z"], ["y"])),
        _one(N("Tile", ["x", "r"], ["y"]), {"r": ints(2**40, 2**40)}),
        _one(N("Add", ["x", "c"], ["y"]), {"c": floats(7)}),
        _one(N("Add", ["x"], ["y"])),
        _one(N("Add", ["x", "c"], ["y"]), {"c": ints(1)}),
        _one(
            N("LSTM", ["x", "w", "r"], ["y"]), {"w": floats(1, 8, 4), "r": floats(1, 8, 3)}, x=(np.float32, [2, 1, 4])
        ),
        _one(N("Einsum", ["x"], ["y"], equation="abc->a")),
        _one(N("ReverseSequence", ["x", "n"], ["y"]), {"n": ints(2)}, x=(np.float32, [2])),
        _one(N("MatMulInteger", ["x", "w", "", "z"], ["y"]), dict.fromkeys("wz", np.uint8(1)), x=(np.uint8, [2, 3])),
        model(
            [N("Attention", ["x", "x", "x", "", "past", "past"], ["y"])], {"x": (np.float32, [1, 2, 3, 4])}, ["y"],
            {"past": floats(1, 2)}, opset=23,
        ),
        model(
            [N("RotaryEmbedding", ["x", "cos", "sin"], ["y"])], {"x": (np.float32, [1, 2, 3, 4])}, ["y"],
            {"cos": floats(1, 3, 2), "sin": floats(3, 2)}, opset=23,
        ),
        _one(N("Concat", ["a", "b"], ["y"], axis=0), {"a": ints(1), "b": np.int64([[1]])}),
        _one(N("Add", ["a", "b"], ["y"]), {"a": ints(1, 2), "b": ints(1, 2, 3)}),
        _one(N("MaxPool", ["b"], ["y"], kernel_shape=[2]), {"b": np.ones((1, 1, 4), bool)}),
        _one(N("Range", ["a", "b", "b"], ["y"]), {"a": np.zeros(0, np.int64), "b": np.int64(1)}),
    ],
    ids=str,
)
def test_nonsense_is_a_model_error(proto: onnx.ModelProto) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(ModelError):
        import_onnx(proto)
    assert time.perf_counter() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_huge_constants_are_not_filled_in() -> None:
    """A graph may ask for a gigantic constant tensor in a few bytes; the importer only writes that down."""
    for node, constants in (
        (N("ConstantOfShape", ["s"], ["y"]), {"s": ints(2**20, 2**20)}),
        (N("Expand", ["c", "s"], ["y"]), {"c": np.float32(1), "s": ints(2**20, 2**20)}),
        (N("Range", ["a", "b", "d"], ["y"]), {"a": np.int64(0), "b": np.int64(2**40), "d": np.int64(1)}),
    ):
        graph = import_onnx(model([node], {}, ["y"], constants))
        assert graph.outputs[0].type.numel == 2**40
        assert all(w.data.size < 10 for w in graph.weights.values())


def test_loops_cannot_multiply_without_end() -> None:
    inner: onnx.GraphProto | None = None
    for level in range(4):
        nodes = [N("Identity", ["go"], ["go2"])]
        if inner is not None:
            nodes.append(N("Loop", ["trips", ""], [], body=inner))
        inner = helper.make_graph(
            nodes, f"level{level}", [_value("i", TensorProto.INT64, []), _value("go", TensorProto.BOOL, [])],
            [_value("go2", TensorProto.BOOL, [])],
        )  # fmt: skip
    started = time.process_time()  # of this process: other work on the machine must not fail the test
    with pytest.raises((ModelError, UnsupportedError)):
        import_onnx(
            model([N("Loop", ["trips", ""], [], body=inner), N("Relu", ["x"], ["y"])], X, ["y"], {"trips": ints(200)})
        )
    assert time.process_time() - started < 30


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model at all", DATA[:40], DATA[::-1], b"\xff" * 1000])
def test_files_that_are_no_models(data: bytes) -> None:
    for use in (import_onnx, support_report):
        with pytest.raises(ModelError):
            use(data)


def test_names_that_are_not_text() -> None:
    broken = DATA.replace(b"target", b"tar\xffet")
    with pytest.raises(ModelError, match="not valid text"):
        import_onnx(broken)


def test_names_defined_twice_or_never() -> None:
    twice = model([N("Relu", ["x"], ["y"]), N("Neg", ["x"], ["y"])], X, ["y"])
    with pytest.raises(ModelError, match="written twice"):
        import_onnx(twice)
    never = model([N("Relu", ["x"], ["y"])], X, ["z"])
    with pytest.raises(ModelError, match="nothing writes the output 'z'"):
        import_onnx(never)
    tensor = numpy_helper.from_array(floats(2), "w")
    again = model([N("Relu", ["x"], ["y"])], X, ["y"])
    again.graph.initializer.extend([tensor, tensor])
    with pytest.raises(ModelError, match="occurs twice"):
        import_onnx(again)


@pytest.mark.parametrize("version", [6, 10_000])
def test_operator_sets_out_of_range(version: int) -> None:
    proto = model([N("Relu", ["x"], ["y"])], X, ["y"])
    proto.opset_import[0].version = version
    with pytest.raises(UnsupportedError, match="operator set"):
        import_onnx(proto)


# ---------------------------------------------------------------------------------------------- defects, not damage


@pytest.fixture
def broken_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two handlers that look something up which is not there."""

    def broken(c: NodeContext) -> Result:
        raise KeyError("no such entry")

    monkeypatch.setitem(HANDLERS, ("", "LeakyRelu"), broken)
    monkeypatch.setitem(HANDLERS, (MICROSOFT, "QuickGelu"), broken)


@pytest.mark.usefixtures("broken_handlers")
@pytest.mark.parametrize("use", [import_onnx, support_report])
def test_a_handler_that_fails_on_a_valid_node_is_our_defect(use: Any) -> None:
    proto = _one(N("LeakyRelu", ["x"], ["y"], name="leak", alpha=0.5))
    runtime(proto, {"x": floats(2, 3)})
    what = "LeakyRelu failed with KeyError: 'no such entry'.*defect of Arcweld"
    with pytest.raises(InternalError, match=what) as why:
        use(proto)
    assert why.value.node == "leak"
    assert isinstance(why.value.__cause__, KeyError)


@pytest.mark.usefixtures("broken_handlers")
def test_inside_a_function_too() -> None:
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("my", "f", ["a"], ["b"], [N("LeakyRelu", ["a"], ["b"], name="leak")], [opset])
    call = N("f", ["x"], ["y"], domain="my", name="call")
    proto = model([call], X, ["y"], opsets=[helper.make_opsetid("my", 1)], functions=[function])
    with pytest.raises(InternalError) as why:
        import_onnx(proto)
    assert why.value.node == "call/leak"


@pytest.mark.usefixtures("broken_handlers")
@pytest.mark.parametrize(
    ("node", "said"),
    [
        (N("LeakyRelu", ["x"], ["y"], alpha="much"), "Expected: 'FLOAT', actual: 'STRING'"),
        (N("LeakyRelu", ["x"], ["y"], beta=1.0), "Unrecognized attribute: beta"),
        (N("LeakyRelu", ["x", "x"], ["y"]), "input size 2 not in range"),
        (N("QuickGelu", ["x"], ["y"], domain=MICROSOFT), "no such entry"),  # of which ONNX's checker knows nothing
    ],
    ids=["type", "attribute", "operands", "domain"],
)
def test_one_that_fails_on_what_the_checker_does_not_accept_is_damage(node: onnx.NodeProto, said: str) -> None:
    """The error says what the checker says."""
    proto = model([node], X, ["y"], opsets=[helper.make_opsetid(MICROSOFT, 2**40)])
    with pytest.raises(ModelError, match=f"{node.op_type} is malformed: .*{said}"):
        import_onnx(proto)
