"""New weights in a compiled engine against a new compilation, for weights that the build packed, folded and joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.errors import InputError
from arcweld.driver.api import compile as compile_model
from arcweld.runtime.engine import Engine, load

Weights = dict[str, np.ndarray]


def model(
    nodes: list[onnx.NodeProto], x: tuple[int, ...], y: tuple[int, ...], weights: Weights, opset: int = 18
) -> onnx.ModelProto:
    """A checked model with one input and one output."""
    graph = helper.make_graph(
        nodes,
        "updatable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def conv_bn(weights: Weights) -> onnx.ModelProto:
    """Two convolutions with batch normalisation, one depthwise, and a dense layer with a single output."""
    nodes = [
        helper.make_node("Conv", ["x", "c1.w"], ["a"], name="c1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "b1.s", "b1.b", "b1.m", "b1.v"], ["b"], name="b1"),
        helper.make_node("Relu", ["b"], ["c"], name="r1"),
        helper.make_node("Conv", ["c", "c2.w", "c2.b"], ["d"], name="c2", pads=[1, 1, 1, 1], group=8),
        helper.make_node("BatchNormalization", ["d", "b2.s", "b2.b", "b2.m", "b2.v"], ["e"], name="b2"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], name="pool"),
        helper.make_node("Flatten", ["f"], ["g"], name="flat"),
        helper.make_node("Gemm", ["g", "fc.w", "fc.b"], ["y"], name="fc", transB=1),
    ]
    return model(nodes, (2, 3, 9, 9), (2, 1), weights)


def conv_bn_weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {"c1.w": (8, 3, 3, 3), "c2.w": (8, 1, 3, 3), "c2.b": (8,), "fc.w": (1, 8), "fc.b": (1,)}
    shapes |= {f"{b}.{k}": (8,) for b in ("b1", "b2") for k in "sbm"}
    found = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return found | {f"{b}.v": rng.uniform(0.5, 2, 8).astype(np.float32) for b in ("b1", "b2")}


def qkv(weights: Weights) -> onnx.ModelProto:
    """A residual block of attention over four heads whose Q, K and V are three products of one activation."""
    nodes = []
    for n in "qkv":
        perm = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["x", f"{n}.w"], [f"{n}0"], name=n),
            helper.make_node("Add", [f"{n}0", f"{n}.b"], [f"{n}1"], name=f"{n}.add"),
            helper.make_node("Reshape", [f"{n}1", "heads"], [f"{n}2"], name=f"{n}.split"),
            helper.make_node("Transpose", [f"{n}2"], [f"{n}3"], name=f"{n}.perm", perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["q3", "k3"], ["s0"], name="scores"),
        helper.make_node("Div", ["s0", "root"], ["s1"], name="scale"),
        helper.make_node("Softmax", ["s1"], ["s2"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["s2", "v3"], ["o0"], name="mix"),
        helper.make_node("Transpose", ["o0"], ["o1"], name="back", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["o1", "whole"], ["o2"], name="join"),
        helper.make_node("MatMul", ["o2", "o.w"], ["o3"], name="project"),
        helper.make_node("Add", ["o3", "x"], ["y"], name="residual"),
    ]
    fixed = {
        "heads": np.array([2, 6, 4, 16], np.int64), "whole": np.array([2, 6, 64], np.int64),
        "root": np.array(4.0, np.float32),
    }  # fmt: skip
    return model(nodes, (2, 6, 64), (2, 6, 64), weights | fixed)


def qkv_weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    found = {f"{n}.w": rng.standard_normal((64, 64)) / 8 for n in "qkvo"}
    found |= {f"{n}.b": rng.standard_normal(64) for n in "qkv"}
    return {n: a.astype(np.float32) for n, a in found.items()}


def compiled(made: onnx.ModelProto, precision: str = "fp32") -> Engine:
    return compile_model(made, device="sim", verify="off", precision=precision)


@pytest.mark.parametrize(("build", "weights"), [(conv_bn, conv_bn_weights), (qkv, qkv_weights)], ids=["conv-bn", "qkv"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_update_equals_compiling_again(
    build: Callable[[Weights], onnx.ModelProto], weights: Callable[[int], Weights], precision: str, tmp_path: Path
) -> None:
    old, new = weights(1), weights(2)
    shape = [d.dim_value for d in build(old).graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    engine, again = compiled(build(old), precision), compiled(build(new), precision)
    want = again(x)
    assert np.abs(engine(x) - want).max() > 0.01
    engine.save(tmp_path / "before.engine")
    engine.update_weights(new)
    np.testing.assert_array_equal(engine(x), want)
    for name, array in again.data.weights.items():  # what the kernels read is the same to the last bit
        np.testing.assert_array_equal(engine.data.weights[name], array, err_msg=name)
    loaded = load(tmp_path / "before.engine", "sim")  # and the record survives the file
    loaded.update_weights(new)
    np.testing.assert_array_equal(loaded(x), want)


def test_a_joined_weight_needs_all_its_parts() -> None:
    engine = compiled(qkv(qkv_weights(1)))
    with pytest.raises(InputError, match=r"stored joined with 'k.w', 'v.w'"):
        engine.update_weights({"q.w": qkv_weights(2)["q.w"]})
    engine.update_weights({"o.w": qkv_weights(2)["o.w"]})  # one that is stored by itself does not
