"""A model with an operator of most kinds, for tests that damage it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def varied_model() -> onnx.ModelProto:
    """Convolutions, normalisation, pooling, movement, products, reductions and indexing over x[N, 3, 8, 8]."""
    node = helper.make_node
    rng = np.random.default_rng(0)
    weights = {
        "c.w": rng.standard_normal((8, 3, 3, 3)), "c.b": rng.standard_normal(8), "s": rng.uniform(1, 2, 8),
        "m": rng.standard_normal(8), "v": rng.uniform(1, 2, 8), "d.w": rng.standard_normal((8, 1, 3, 3)),
        "fc.w": rng.standard_normal((128, 12)), "ln.s": rng.standard_normal(12), "table": rng.standard_normal((5, 12)),
    }  # fmt: skip
    integers = {"flat": [0, -1], "from": [1], "to": [9], "axis": [1], "ids": [3, 0], "pads": [0, 1, 0, 1], "last": [-1]}
    nodes = [
        node("Conv", ["x", "c.w", "c.b"], ["a"], name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("BatchNormalization", ["a", "s", "c.b", "m", "v"], ["b"], name="norm", epsilon=1e-3),
        node("Clip", ["b", "low", "high"], ["c"], name="clip"),
        node("Conv", ["c", "d.w"], ["d"], name="depthwise", group=8, pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Add", ["d", "one"], ["e"], name="add"),
        node("Reshape", ["e", "flat"], ["f"], name="flatten"),
        node("Gemm", ["f", "fc.w"], ["g"], name="fc", alpha=0.5),
        node("LayerNormalization", ["g", "ln.s"], ["h"], name="layer", axis=-1),
        node("Gather", ["table", "ids"], ["i"], name="gather", axis=0),
        node("Transpose", ["i"], ["j"], name="transpose", perm=[1, 0]),
        node("MatMul", ["h", "j"], ["k"], name="product"),
        node("Slice", ["h", "from", "to", "axis"], ["l"], name="slice"),
        node("Pad", ["l", "pads"], ["o"], name="pad", mode="constant"),
        node("Concat", ["k", "o"], ["p"], name="concat", axis=1),
        node("ReduceMax", ["p", "last"], ["q"], name="reduce", keepdims=1),
        node("Sub", ["p", "q"], ["r"], name="sub"),
        node("Softmax", ["r"], ["y"], name="softmax", axis=-1),
        node("MaxPool", ["c"], ["z"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    scalars = {"low": -1.0, "high": 1.0, "one": 1.0}
    graph = helper.make_graph(
        nodes,
        "varied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("y", ["N", 12]), ("z", ["N", 8, 4, 4]))],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
        + [numpy_helper.from_array(np.array(a, np.int64), n) for n, a in integers.items()]
        + [numpy_helper.from_array(np.array(a, np.float32), n) for n, a in scalars.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model
