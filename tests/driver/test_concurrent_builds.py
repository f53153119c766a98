"""Builds in two threads at once: each engine computes what its own model says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from arcweld.driver import api


def product(width: int) -> tuple[onnx.ModelProto, np.ndarray]:
    w = np.random.default_rng(width).standard_normal((16, width)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])
    graph = helper.make_graph(nodes, f"product{width}", [x], [y], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), w


def test_two_threads_build_and_call_at_once() -> None:
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)

    def work(width: int) -> bool:
        model, w = product(width)
        engine = api.compile(model, device="sim", arch=["sm_90a"])
        return all(np.allclose(engine(x[:n]), np.maximum(x[:n] @ w, 0), 1e-4, 1e-5) for n in (5, 3, 5))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [8, 24, 40, 72])) == [True] * 4


def test_threads_share_one_engine() -> None:
    model, w = product(24)
    engine = api.compile(model, device="sim", verify="off")
    rng = np.random.default_rng(1)
    batches = [rng.standard_normal((1 + i % 5, 16)).astype(np.float32) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(engine, batches))
    for x, y in zip(batches, results):
        np.testing.assert_allclose(y, np.maximum(x @ w, 0), 1e-4, 1e-5)
