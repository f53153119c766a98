"""Numbers that are no numbers, and tensors without elements, through whole engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from bad_models import varied_model
from cli_models import mlp, mlp_weights
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arcweld.cli.app import main
from arcweld.compiler.errors import AccuracyError, InputError
from arcweld.driver.api import compile as compile_model


def runtime_result(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """ONNX Runtime's results: the reference evaluator's MaxPool drops NaN."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def onnx_result(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, {"x": x}))


def test_nan_weights_propagate_and_the_evidence_says_so(tmp_path: Path) -> None:
    weights = mlp_weights()
    weights["w1"][3, 5] = np.nan
    path = mlp(tmp_path / "nan.onnx", weights)
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match=r"output y .* NaN or infinite"):
        engine = compile_model(path, device="sim")
    np.testing.assert_array_equal(np.isnan(engine(x)), np.isnan(onnx_result(onnx.load(path), x)[0]))
    assert np.isnan(engine(x)).all()  # softmax spreads it over the row
    assert engine.data.verify is not None
    (row,) = engine.data.verify["outputs"]
    assert row["nonfinite"] == 1.0


def test_the_command_line_says_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = mlp_weights()
    weights["w2"][0, 0] = np.inf
    path = mlp(tmp_path / "inf.onnx", weights)
    assert main([str(path), "-o", str(tmp_path / "inf.engine"), "--arch=sm_80", "--device=sim"]) == 0
    shown = capsys.readouterr()
    assert "note: " in shown.err
    assert "NaN or infinite" in shown.err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_the_input_go_where_the_definition_sends_them(value: float) -> None:
    x = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    x[1, 2, 4, 4] = value
    model = varied_model()
    engine = compile_model(model, device="sim", verify="off")
    for got, want in zip(engine(x), runtime_result(model, x)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_half_precision_that_overflows_is_refused_or_mended(tmp_path: Path) -> None:
    weights = {n: a * (3e3 if n == "w1" else 1) for n, a in mlp_weights().items()}
    weights["w2"] = weights["w2"] * np.float32(1e3)
    path = mlp(tmp_path / "large.onnx", weights)
    try:
        engine = compile_model(path, device="sim", precision="fp16", verify="full")
    except AccuracyError:
        return
    x = np.random.default_rng(0).random((4, 16), np.float32)
    assert np.isfinite(engine(x)).all()  # or what overflows was kept in f32
    np.testing.assert_allclose(engine(x), onnx_result(onnx.load(path), x)[0], atol=2e-2)


def test_an_empty_batch(tmp_path: Path) -> None:
    model = varied_model()
    engine = compile_model(model, device="sim", verify="off")
    y, z = engine(np.zeros((0, 3, 8, 8), np.float32))
    assert (y.shape, z.shape) == ((0, 12), (0, 8, 4, 4))
    y, z = engine(np.ones((1, 3, 8, 8), np.float32))
    for got, want in zip((y, z), onnx_result(model, np.ones((1, 3, 8, 8), np.float32))):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


node = helper.make_node


def test_a_size_that_the_model_cannot_have_is_refused() -> None:
    """A table of 8 positions serves 8 rows; nothing is read behind its end."""
    nodes = [
        node("Shape", ["x"], ["s"], end=1), node("Slice", ["t", "zero", "s", "zero"], ["p"]),
        node("Add", ["x", "p"], ["y"]),
    ]  # fmt: skip
    arrays = {"t": np.arange(32, dtype=np.float32).reshape(8, 4), "zero": np.zeros(1, np.int64)}
    graph = helper.make_graph(
        nodes, "table", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    engine = compile_model(model, device="sim")
    np.testing.assert_array_equal(engine(np.ones((8, 4), np.float32)), arrays["t"] + 1)
    with pytest.raises(InputError, match="dimension n is 9; the engine serves 1 to 8"):
        engine(np.ones((9, 4), np.float32))
    assert engine(np.ones((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("nodes", "shape", "weights"),
    [
        ([node("Relu", ["x"], ["y"])], (0, 4), {}),
        ([node("MatMul", ["x", "w"], ["y"])], (0, 4), {"w": (4, 3)}),
        ([node("MatMul", ["x", "w"], ["y"])], (2, 4), {"w": (4, 0)}),
        ([node("MatMul", ["x", "w"], ["y"])], (2, 0), {"w": (0, 3)}),
        ([node("Concat", ["x", "w"], ["y"], axis=0)], (0, 4), {"w": (3, 4)}),
        ([node("ReduceSum", ["x"], ["y"], keepdims=1)], (2, 0), {}),
        ([node("Softmax", ["x"], ["y"])], (0, 4), {}),
        ([node("Softmax", ["x"], ["y"])], (3, 0), {}),
        ([node("Transpose", ["x"], ["y"])], (3, 0), {}),
        ([node("Conv", ["x", "w"], ["y"])], (0, 2, 5, 5), {"w": (3, 2, 3, 3)}),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], (0, 2, 5, 5), {}),
        ([node("Add", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])], (3, 0), {"w": (1,)}),
    ],
    ids=lambda v: f"{v[0].op_type}" if isinstance(v, list) else str(v),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tensors_without_elements(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "empty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(rng.random(s, np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = rng.random(shape, np.float32)
    got = compile_model(model, device="sim", verify="full")(x)
    (want,) = onnx_result(model, x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5)
