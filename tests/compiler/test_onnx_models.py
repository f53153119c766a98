"""Whole-model features: functions, branches, loops, external data, reports, and names."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx_models import compare, evaluate, floats, ints, model

from arcweld.compiler import host_nodes
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx, support_report
from arcweld.compiler.text import parse_graph, print_graph

N = helper.make_node
X: dict[str, tuple[Any, list[Any]]] = {"x": (np.float32, ["N", 4])}


def _branch(nodes: list[NodeProto], outputs: list[str], inputs: list[str] | None = None) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    formal = [helper.make_tensor_value_info(i, TensorProto.FLOAT, None) for i in inputs or []]
    return helper.make_graph(nodes, "branch", formal, infos)


# ------------------------------------------------------------------------------------------- branches and functions


@pytest.mark.parametrize("wide", [False, True])
def test_a_branch_on_a_shape_is_taken_while_importing(wide: bool) -> None:
    nodes = [
        N("Shape", ["x"], ["s"], start=1, end=2), N("Equal", ["s", "four"], ["c1"]), N("Squeeze", ["c1"], ["c"]),
        N("If", ["c"], ["y"], then_branch=_branch([N("Relu", ["x"], ["t"])], ["t"]),
          else_branch=_branch([N("Neg", ["x"], ["e"])], ["e"])),
    ]  # fmt: skip
    width = 5 if wide else 4
    proto = model(nodes, {"x": (np.float32, ["N", width])}, ["y"], {"four": ints(4)})
    graph = compare(proto, {"x": floats(3, width)})
    assert [n.op for n in graph.nodes] == ["Neg" if wide else "Relu"]
    assert graph.outputs[0].name == "y"


def test_a_branch_on_data_is_in_the_graph() -> None:
    branches = {"then_branch": _branch([N("Relu", ["x"], ["t"])], ["t"]), "else_branch": _branch([], ["x"])}
    proto = model([N("If", ["c"], ["y"], **branches)], {**X, "c": (np.bool_, [])}, ["y"])
    (choice,) = import_onnx(proto).nodes
    assert [[n.op for n in b.nodes] for b in host_nodes.bodies(choice)] == [["Relu"], []]
    graph = import_onnx(proto, values={"c": np.bool_(True)})
    assert [n.op for n in graph.nodes] == ["Relu"]


def test_nodes_may_come_in_any_order() -> None:
    """Some converters append nodes at the end; ONNX Runtime sorts them too."""
    always = {
        "then_branch": _branch([N("Neg", ["h"], ["t"])], ["t"]),
        "else_branch": _branch([N("Exp", ["h"], ["e"])], ["e"]),
    }
    nodes = [
        N("Add", ["i", "h"], ["y"]), N("If", ["on"], ["i"], **always), N("Relu", ["g"], ["h"]), N("Exp", ["x"], ["g"]),
        N("Add", ["h", "x"], ["z"]),
    ]  # fmt: skip
    proto = model(nodes, X, ["y", "z"], {"on": np.bool_(True)})
    graph = compare(proto, {"x": floats(2, 4)})
    assert [n.op for n in graph.nodes] == ["Exp", "Relu", "Add", "Neg", "Add"]


def test_nodes_on_a_cycle_are_damage() -> None:
    proto = model([N("Add", ["x", "b"], ["a"]), N("Relu", ["a"], ["b"]), N("Exp", ["x"], ["y"])], X, ["y", "a"])
    with pytest.raises(ModelError, match="reads 'b', which no earlier node"):
        import_onnx(proto)


def test_what_a_refused_loop_emitted_is_forgotten() -> None:
    """The reshape behind the loop is folded from nodes that take the places of the loop's own."""

    def reshaped(x: str, y: str) -> list[NodeProto]:
        """Reshapes ``x`` to a shape of ones, which no table of the host's computes."""
        ones = [N("Det", ["eyes"], [f"{y}_e"]), N("Cast", [f"{y}_e"], [f"{y}_s"], to=TensorProto.INT64)]
        return [*ones, N("Reshape", [x, f"{y}_s"], [y])]

    again = [N("ReduceMax", ["r"], ["m"], keepdims=0), N("Less", ["m", "zero"], ["b"])]
    body = _branch([*reshaped("c", "r"), *again], ["b", "r"], ["i", "go", "c"])
    nodes = [N("Loop", ["trips", "", "x"], ["l"], body=body), *reshaped("x", "y")]
    constants = {"eyes": np.stack([np.eye(2, dtype=np.float32)] * 2), "zero": np.float32(0), "trips": np.int64(3)}
    graph = import_onnx(model(nodes, {"x": (np.float32, [1, 1])}, ["l", "y"], constants))
    assert [n.op for n in graph.nodes if n.op in host_nodes.OPS] == ["Repeat"]
    assert graph.outputs[-1].shape == (1, 1)


def test_functions_are_expanded() -> None:
    inner = N("Elu", ["a"], ["b"])
    inner.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT))
    opsets = [helper.make_opsetid("", 17)]
    scaled = helper.make_function("my", "scaled", ["a"], ["c"], [inner, N("Add", ["b", "a"], ["c"])], opsets, ["alpha"])
    outer = helper.make_function(
        "my", "outer", ["a"], ["d"], [N("scaled", ["a"], ["d"], domain="my", alpha=0.25)],
        [*opsets, helper.make_opsetid("my", 1)],
    )  # fmt: skip
    nodes = [N("outer", ["x"], ["y"], domain="my", name="first"), N("outer", ["y"], ["z"], domain="my", name="second")]
    proto = model(nodes, X, ["z"], opsets=[helper.make_opsetid("my", 1)], functions=[scaled, outer])
    graph = compare(proto, {"x": floats(2, 4)})
    assert [n.op for n in graph.nodes] == ["Elu", "Add", "Elu", "Add"]
    assert graph.nodes[2].origin[0].startswith("second/")


def test_functions_that_call_themselves_are_damage() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    endless = helper.make_function("my", "f", ["a"], ["b"], [N("f", ["a"], ["b"], domain="my")], opsets)
    proto = model([N("f", ["x"], ["y"], domain="my")], X, ["y"], opsets=opsets[1:], functions=[endless])
    with pytest.raises(ModelError, match="deep"):
        import_onnx(proto)


def _loop(trips: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [N("Add", ["acc", "x"], ["next"]), N("Identity", ["go"], ["still"]), N("ReduceSum", ["next"], ["total"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("acc", TensorProto.FLOAT, ["N", 4]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, None),
        ],
    )
    nodes = [N("Loop", ["trips", "", "x"], ["y", "totals"], body=body)]
    return model(nodes, X, ["y", "totals"], {"trips": np.int64(trips)})


def test_loops_of_known_length_are_unrolled() -> None:
    graph = compare(_loop(3), {"x": floats(2, 4)})
    assert sum(n.op == "ReduceSum" for n in graph.nodes) == 3
    assert sum(n.op == "Repeat" for n in import_onnx(_loop(10_000)).nodes) == 1


def test_scans_are_unrolled() -> None:
    body = _branch(
        [N("Add", ["acc", "item"], ["next"]), N("Mul", ["next", "next"], ["square"])],
        ["next", "square"],
        ["acc", "item"],
    )
    nodes = [
        N("Scan", ["x0", "seq"], ["last", "squares"], body=body, num_scan_inputs=1, scan_input_directions=[1],
          scan_output_directions=[1], scan_input_axes=[1], scan_output_axes=[-1]),
    ]  # fmt: skip
    proto = model(nodes, {"x0": (np.float32, [3]), "seq": (np.float32, [3, 5])}, ["last", "squares"])
    compare(proto, {"x0": floats(3), "seq": floats(3, 5, seed=1)})


# ---------------------------------------------------------------------------------------------------- external data


def _saved(folder: Path) -> Path:
    proto = model([N("MatMul", ["x", "w"], ["y"])], X, ["y"], {"w": floats(4, 300)})
    path = folder / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    graph = import_onnx(_saved(tmp_path))
    weight = graph.weights["w"].data
    assert isinstance(weight, np.memmap) or isinstance(weight.base, np.memmap)
    (ours,) = evaluate(graph, {"x": floats(2, 4)})
    np.testing.assert_allclose(ours, floats(2, 4) @ floats(4, 300), atol=1e-5)


def _root(array: np.ndarray) -> object:
    """What a chain of views ends in."""
    found: object = array
    while isinstance(found, np.ndarray) and found.base is not None:
        found = found.base
    return found.obj if isinstance(found, memoryview) else found


def test_large_initializers_are_views_of_the_file(tmp_path: Path) -> None:
    weights = {
        "w": floats(4, 30000),
        "v": floats(30000, 2, seed=1),
        "small": floats(2),
        "zeros": np.zeros(40000, np.float32),
    }
    nodes = [N("MatMul", ["x", "w"], ["h"]), N("MatMul", ["h", "v"], ["t"]), N("Add", ["t", "small"], ["y"])]
    nodes.append(N("Sub", ["zeros", "small_"], ["z"]))
    proto = model(nodes, X, ["y", "z"], {**weights, "small_": np.float32(1)})
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    graph = import_onnx(tmp_path / "model.onnx")
    for name, data in weights.items():
        weight = graph.weights[name]
        np.testing.assert_array_equal(weight.data, data)
        assert weight.source == name
        assert isinstance(_root(weight.data), mmap.mmap if name != "small" else bytes)
    assert isinstance(_root(import_onnx(proto).weights["w"].data), bytes)


def test_missing_external_data_names_tensor_and_file(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'w'.*'weights\.bin'"):
        import_onnx(path)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"'w'.*'weights\.bin'"):
        import_onnx(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "", "a/../../b"])
def test_external_data_stays_below_the_model(tmp_path: Path, location: str) -> None:
    path = _saved(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="relative path"):
        import_onnx(path)


@pytest.mark.parametrize("kind", ["file", "folder", "inside", "nowhere"])
def test_external_data_is_no_symbolic_link(tmp_path: Path, kind: str) -> None:
    """A link could bring any readable file into the weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = _saved(folder)
    secret = tmp_path / "secret.bin"
    (folder / "weights.bin").rename(secret)
    location = "weights.bin"
    match kind:
        case "file":
            (folder / location).symlink_to(secret)
        case "folder":
            (folder / "below").symlink_to(tmp_path)
            location = "below/secret.bin"
        case "inside":
            secret.rename(folder / "real.bin")
            (folder / location).symlink_to("real.bin")
        case _:
            (folder / location).symlink_to("/nowhere")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"external data of tensor 'w'.*symbolic link"):
        import_onnx(path)


def test_a_linked_model_has_its_data_beside_the_link(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (tmp_path / "link.onnx").symlink_to(path)
    assert import_onnx(tmp_path / "link.onnx").weights


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_external_data_is_a_file(tmp_path: Path, kind: str) -> None:
    path = _saved(tmp_path)
    (tmp_path / "weights.bin").unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match=r"'w'.*'weights\.bin'"):
        import_onnx(path)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="cannot read"):
            import_onnx(path)


# ----------------------------------------------------------------------------------------------------------- reports


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    nodes = [
        N("Relu", ["x"], ["a"], name="fine"), N("Unknown", ["a"], ["b"], name="first"),
        N("Cast", ["b"], ["c"], to=1, name="behind"), N("Unheard", ["c"], ["d"], name="second"),
        N("Squeeze", ["x"], ["e"], name="third"), N("Custom", ["x"], ["f"], name="fourth", domain="acme"),
    ]  # fmt: skip
    proto = model(nodes, X, ["d", "e", "f"], opsets=[helper.make_opsetid("acme", 1)])
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(proto)
    text = str(caught.value)
    for part in ("4 node(s)", "Unknown [first]", "Unheard [second]", "N == 1", "acme.Custom is not implemented"):
        assert part in text
    assert "behind" not in text
    report = {r.node: (r.op, r.supported) for r in support_report(proto)}
    assert report == {
        "fine": ("Relu", True), "first": ("Unknown", False), "behind": ("Cast", True), "second": ("Unheard", False),
        "third": ("Squeeze", False), "fourth": ("Custom", False),
    }  # fmt: skip


def test_unusable_inputs_are_reported_where_they_are_read() -> None:
    proto = model([N("Relu", ["x"], ["y"]), N("Identity", ["t"], ["u"])], {**X, "t": (np.complex64, [2])}, ["y", "u"])
    with pytest.raises(UnsupportedError, match="COMPLEX64"):
        import_onnx(proto)


def test_every_node_names_its_origin() -> None:
    nodes = [N("Gemm", ["x", "w"], ["h"], name="dense"), N("Softmax", ["h"], ["y"])]
    graph = import_onnx(model(nodes, X, ["y"], {"w": floats(4, 3)}))
    assert {n.origin for n in graph.nodes} == {("dense",), ("Softmax_y",)}


def test_outputs_that_nothing_computes() -> None:
    """Inputs, constants, and one value under two names: each output is a value of its own, under its own name."""
    nodes = [
        N("Identity", ["x"], ["a"]),
        N("Relu", ["x"], ["b"]),
        N("Identity", ["b"], ["c"]),
        N("Shape", ["x"], ["s"]),
    ]
    proto = model(nodes, X, ["a", "b", "c", "s", "k"], {"k": np.float32([1, 2])})
    graph = compare(proto, {"x": floats(3, 4)})
    assert [o.name for o in graph.outputs] == ["a", "b", "c", "s", "k"]
    assert graph.labels() == ("a", "b", "c", "s", "k")


def test_imported_graphs_survive_the_text_form() -> None:
    nodes = [N("Relu", ["in put:0"], ["a(b)"]), N("Reshape", ["a(b)", "t"], ["y=%1,'"])]
    inputs = {"in put:0": (np.float32, ["N", 4])}
    graph = import_onnx(model(nodes, inputs, ["y=%1,'"], {"t": ints(-1, 2, 2)}), ranges={"N": (1, 8, 1)})
    assert parse_graph(print_graph(graph)) == graph.replace(weights={})


def test_element_types() -> None:
    for code, dtype in (
        (TensorProto.BFLOAT16, DType.BF16),
        (TensorProto.FLOAT16, DType.F16),
        (TensorProto.UINT8, DType.U8),
    ):
        proto = model([N("Identity", ["x"], ["y"])], X, ["y"])
        proto.graph.input[0].type.tensor_type.elem_type = code
        assert import_onnx(proto).outputs[0].dtype is dtype
