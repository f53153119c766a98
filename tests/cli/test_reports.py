"""``inspect`` and ``explain``: the memory plan, and an answer for any two nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import mlp, save_model
from onnx import TensorProto, helper, numpy_helper

from arcweld.cli.app import main
from arcweld.compiler.errors import InputError, UsageError
from arcweld.driver import api
from arcweld.runtime.engine import load

Words = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (["fc1", "relu"], "one contract kernel: fc1, relu\n"),
        (["fc2", "softmax"], "fc2 -> softmax: [heroes] a kernel has one of MatMul and Softmax, not both\n"),
        (["softmax", "fc2"], "fc2 -> softmax: [heroes] a kernel has one of MatMul and Softmax, not both\n"),
        (["relu", "fc2"], "relu -> fc2: [heroes] a kernel has one of MatMul and MatMul, not both\n"),
        (["fc1", "softmax"], "not neighbours"),
    ],
)
def test_explain_answers_for_any_two_nodes(model: Path, capsys: Words, nodes: list[str], said: str) -> None:
    assert main(["explain", str(model), *nodes]) == 0
    assert said in capsys.readouterr().out


def test_explain_answers_for_every_edge(tmp_path: Path, capsys: Words) -> None:
    """Residual blocks: an Add is read both inside the next block's kernels and past them."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) for i in range(3)}
    nodes, last = [], "x"
    for i in range(3):
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"], name=f"sigmoid{i}"),
            helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"m{i}"], name=f"mul{i}"),
            helper.make_node("Add", [last, f"m{i}"], [f"a{i}"], name=f"add{i}"),
        ]
        last = f"a{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], name="pool"))
    path = save_model(tmp_path / "r.onnx", nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 1, 1]}, weights)
    made = {n.output[0]: n.name for n in nodes}
    for node in nodes:
        for value in set(node.input) & set(made):
            for pair in ((made[value], node.name), (node.name, made[value])):
                assert main(["explain", str(path), *pair]) == 0
                out = capsys.readouterr().out
                assert "one " in out or "]" in out, pair
                assert "not neighbours" not in out, pair
    assert main(["explain", str(path), "conv0", "pool"]) == 0
    assert "not neighbours" in capsys.readouterr().out


def test_explain_refuses_names_that_no_node_has(model: Path, capsys: Words) -> None:
    assert main(["explain", str(model), "softmux"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no node called 'softmux'" in shown.err
    assert "softmax" in shown.err


def test_inspect_gives_the_memory_plan(model: Path, tmp_path: Path, capsys: Words) -> None:
    path = tmp_path / "mlp.engine"
    assert main([str(model), "-o", str(path), "--device=sim", "--arch=sm_80", "--verify=off"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path), "--json", "--shapes=x:4x16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sizes"] == {"N": 4}
    bytes_of = {row["tensor"]: row["bytes"] for row in report["memory_plan"]}
    assert sorted(bytes_of.values()) == [4 * 10 * 4, 4 * 32 * 4]
    for row in report["memory_plan"]:  # written by one launch, read by the next; both alive during the middle one
        assert row["last_launch"] == row["first_launch"] + 1
        assert row["offset"] % 256 == 0
        assert row["offset"] + row["bytes"] <= report["arena_bytes"]
    assert [x["bytes"] for x in report["launches"]] == [
        4 * (4 * 16 + 16 * 32 + 32 + 4 * 32), 4 * (4 * 32 + 32 * 10 + 4 * 10), 4 * (4 * 10 + 4 * 10),
    ]  # fmt: skip
    assert main(["inspect", str(path)]) == 0
    assert "workspace depends on N: give --shapes" in capsys.readouterr().out


def test_inspect_says_whether_a_dimension_may_be_zero(model: Path, tmp_path: Path, capsys: Words) -> None:
    """As the engine does: empty results for an empty batch, an error where a result would not be empty."""
    total = [helper.make_node("ReduceSum", ["x"], ["y"], name="sum", keepdims=0)]
    other = save_model(tmp_path / "total.onnx", total, {"x": ["n", 4]}, {"y": []})
    for path, shape, said in ((model, (0, 16), "dimension N: from 1, and 0 with empty results\n"),
                              (other, (0, 4), "dimension n: from 1\n")):  # fmt: skip
        built = tmp_path / "z.engine"
        assert main([str(path), "-o", str(built), "--device=sim", "--arch=sm_80", "--verify=off"]) == 0
        assert main(["inspect", str(built)]) == 0
        assert said in capsys.readouterr().out
        engine = load(built, "sim")
        if "0 with" in said:
            assert engine(np.zeros(shape, np.float32)).shape == (0, 10)
        else:
            with pytest.raises(InputError, match="dimension n is 0; the engine serves 1 or more"):
                engine(np.zeros(shape, np.float32))


def test_verify_without_onnx_runtime_is_the_machines_lack(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what makes an import fail
    assert main(["verify", str(model), "--device=sim", "--onnxrt"]) == 4
    assert "error: ONNX Runtime is not installed\n  hint: pip install onnxruntime" in capsys.readouterr().err


def test_open_shapes_keep_what_they_name_open(model: Path, tmp_path: Path, capsys: Words) -> None:
    path = tmp_path / "mlp.engine"
    flags = ["--device=sim", "--arch=sm_80", "--verify=off"]
    assert main([str(model), "-o", str(path), "--shapes=x:[4*batch,16]", *flags]) == 0
    assert main(["inspect", str(path), "--json", "--shapes=x:12x16"]) == 0
    report = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert report["inputs"] == {"x": "f32[4*batch, 16]"}
    assert report["sizes"] == {"batch": 3}
    assert main(["run", str(path), "--device=sim", "--shapes=x:12x16"]) == 0
    assert "y: float32[12, 10]" in capsys.readouterr().out
    assert main(["run", str(path), "--device=sim", "--shapes=x:13x16"]) == 2
    assert "axis 0 of input x is 4*batch in the model, which cannot be 13" in capsys.readouterr().err
    assert main(["run", str(path), "--device=sim", "--shapes=x:nx16"]) == 2
    assert "is no shape of numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minShapes=x:4x16", "--maxShapes=x:2x16"], "axis 0 of input x ranges from 4 to 2"),
        (["--minShapes=x:1x16", "--maxShapes=x:2x16", "--optShapes=x:3x16"], "in --optShapes, its range is 1 to 2"),
    ],
)
def test_ranges_that_hold_nothing(model: Path, tmp_path: Path, capsys: Words, flags: list[str], said: str) -> None:
    assert main([str(model), "-o", str(tmp_path / "m.engine"), "--device=sim", "--arch=sm_80", *flags]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_range_in_python(model: Path) -> None:
    with pytest.raises(UsageError, match="dimension n of input x ranges from 4 to 2"):
        api.compile(model, inputs=[api.Input("x", (("n", 4, 2), 16))], device="sim")


def test_verify_refuses_another_models_engine(model: Path, tmp_path: Path, capsys: Words) -> None:
    path = tmp_path / "mlp.engine"
    assert main([str(model), "-o", str(path), "--device=sim", "--arch=sm_80", "--verify=off"]) == 0
    nodes = [helper.make_node("Relu", ["z"], ["y"], name="relu")]
    other = save_model(tmp_path / "other.onnx", nodes, {"z": ["N", 16]}, {"y": ["N", 16]})
    assert main(["verify", str(path), "--onnx", str(other), "--device=sim"]) == 2
    assert "its inputs are x, those of the model z" in capsys.readouterr().err
    assert main(["verify", str(path), "--onnx", str(model), "--device=sim", "--onnxrt"]) == 0


def quantised(rows: int | str, path: Path, dtype: type = np.float32) -> Path:
    """A product by weights of 4 bits in blocks, as MatMulNBits has them, of activations and scales of that type."""
    rng = np.random.default_rng(0)
    weights = {
        "B": rng.integers(0, 256, (512, 16, 16)).astype(np.uint8),
        "S": rng.uniform(0.01, 0.03, 512 * 16).astype(dtype),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "S"], ["y"], name="wide", domain="com.microsoft", K=512, N=512, bits=4, block_size=32
    )
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [node], "quantised", [helper.make_tensor_value_info("x", element, [rows, 512])],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize(("rows", "stored"), [(1, "u4"), (4096, "f16")])
def test_products_of_quantised_weights(
    rows: int, stored: str, tmp_path: Path, capsys: Words
) -> None:
    """What is stored, what is computed in, what is read, and the two modelled times behind the choice."""
    model, engine = quantised(rows, tmp_path / "m.onnx"), tmp_path / "m.engine"
    arguments = [str(model), "-o", str(engine), "--fp16", "--arch", "sm_90a", "--verify", "off", "--device", "sim"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["inspect", str(engine), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["quantised_products"]
    assert (found["node"], found["stored"], found["from"], found["computes"]) == ("wide", stored, "u4", "f16")
    scales = 4 * 512 * 16
    assert found["reads"] == (512 * 512 // 2 + scales if stored == "u4" else 512 * 512 * 2)
    times = found["modelled"]["sm_90a"]
    assert (times["packed"] <= 1.1 * times["widened"]) == (stored == "u4")
    assert main(["inspect", str(engine)]) == 0
    shown = capsys.readouterr().out
    assert "products of quantised weights, modelled microseconds on sm_90a:" in shown
    assert stored == "u4" or "f16, widened from u4" in shown


def test_by_which_instructions_products_of_quantised_weights_multiply(tmp_path: Path, capsys: Words) -> None:
    """Rows of 16 bits can be fetched by TMA, so that products by packed weights run on warpgroups."""
    model, engine = quantised("n", tmp_path / "m.onnx", np.float16), tmp_path / "m.engine"
    arguments = ["--fp16", "--arch", "sm_80,sm_90a", "--verify", "off", "--device", "sim"]
    assert main([str(model), "-o", str(engine), *arguments]) == 0
    capsys.readouterr()
    assert main(["inspect", str(engine), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["quantised_products"]
    assert (found["stored"], found["by"]) == ("u4", {"sm_80": "mma.sync", "sm_90a": "wgmma"})
    assert main(["inspect", str(engine)]) == 0
    assert "wgmma" in capsys.readouterr().out


def float8(rows: int, path: Path) -> Path:
    """A product of 8-bit floats by 8-bit floats of the other type."""
    weight = helper.make_tensor("w", TensorProto.FLOAT8E5M2, (64, 32), bytes(64 * 32), raw=True)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=TensorProto.FLOAT8E4M3FN),
        helper.make_node("DequantizeLinear", ["q", "s"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"], name="wide"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "float8", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, numpy_helper.from_array(np.float32(0.5), "s")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("rows", "archs", "said"),
    [
        (64, "sm_80", "f16"), (64, "sm_89", "f8e4m3fn x f8e5m2"), (64, "sm_90a", "f8e4m3fn x f8e5m2"),
        (64, "sm_86,sm_89", "f16 (sm_86), f8e4m3fn x f8e5m2 (sm_89)"), (64, "sm_90", "f16"),
        (64, "sm_120", "f8e4m3fn x f8e5m2"), (64, "sm_100", "f16"), (1, "sm_89", "f16"),
    ],
)  # fmt: skip
def test_what_products_of_8_bit_floats_compute_in(
    rows: int, archs: str, said: str, tmp_path: Path, capsys: Words
) -> None:
    model, engine = float8(rows, tmp_path / "m.onnx"), tmp_path / "m.engine"
    assert main([str(model), "-o", str(engine), "--arch", archs, "--verify", "off", "--device", "sim"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(engine), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["quantised_products"]
    assert (found["node"], found["stored"], found["computes"], found["modelled"]) == ("wide", "f8e5m2", said, None)
