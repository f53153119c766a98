"""NaN, infinities and zeros: as in ONNX Runtime, and where docs/numerics.md says otherwise, as in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model
from onnx_oracle import by_onnxruntime

from arcweld.driver import api

NAN, INF = np.nan, np.inf
N = helper.make_node
X = np.array([[1, NAN, 3, 0], [NAN, 1, 2, 0], [5, 1, NAN, 7], [INF, -INF, 0, -0.0]], np.float32)
IMAGE = X.reshape(1, 1, 4, 4)


def run(nodes: list[onnx.NodeProto], feeds: dict[str, np.ndarray], constants: dict[str, Any]) -> tuple[Any, Any]:
    """The result by Arcweld's kernels on the simulator, and by ONNX Runtime."""
    inputs = {k: (v.dtype.type, list(v.shape)) for k, v in feeds.items()}
    proto = model(nodes, inputs, ["y"], constants)
    engine = api.compile_graph(api.import_model(proto), device="sim", verify="off")
    return engine.run(feeds)["y"], by_onnxruntime(proto, feeds)[0]


SAME: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray], dict[str, Any]]] = {
    "Max": (N("Max", ["x", "z"], ["y"]), {"x": X, "z": np.ones_like(X)}, {}),
    "Min": (N("Min", ["x", "z"], ["y"]), {"x": X, "z": np.ones_like(X)}, {}),
    "Relu": (N("Relu", ["x"], ["y"]), {"x": X}, {}),
    "Clip": (N("Clip", ["x", "a", "b"], ["y"]), {"x": X}, {"a": np.float32(0), "b": np.float32(6)}),
    "Sign": (N("Sign", ["x"], ["y"]), {"x": X}, {}),
    "Div": (N("Div", ["x", "z"], ["y"]), {"x": X, "z": np.zeros_like(X)}, {}),
    "Softmax": (N("Softmax", ["x"], ["y"]), {"x": X}, {}),
    "Softmax of minus infinity": (N("Softmax", ["x"], ["y"]), {"x": np.full((1, 4), -INF, np.float32)}, {}),
    "Round": (N("Round", ["x"], ["y"]), {"x": np.array([0.5, 1.5, -0.5, 2.5], np.float32)}, {}),
    "Mod": (N("Mod", ["x", "z"], ["y"]), {"x": np.array([-7, 7, -7]), "z": np.array([3, -3, -3])}, {}),
    "Conv with infinite weights": (
        N("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), {"x": np.ones((1, 1, 3, 4), np.float32)},
        {"w": np.where(np.eye(3)[None, None] > 0, INF, 1).astype(np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_as_in_onnx_runtime(name: str) -> None:
    node, feeds, constants = SAME[name]
    got, want = run([node], feeds, constants)
    np.testing.assert_array_equal(got, want)


OTHER: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "ReduceMax": (N("ReduceMax", ["x"], ["y"], axes=[1]), {"x": X}, lambda x: x.max(1, keepdims=True)),
    "ReduceMin": (N("ReduceMin", ["x"], ["y"], axes=[1]), {"x": X}, lambda x: x.min(1, keepdims=True)),
    "ArgMax": (N("ArgMax", ["x"], ["y"], axis=1), {"x": X}, lambda x: x.argmax(1)[:, None]),
    "ArgMin": (N("ArgMin", ["x"], ["y"], axis=1), {"x": X}, lambda x: x.argmin(1)[:, None]),
    "GlobalMaxPool": (N("GlobalMaxPool", ["x"], ["y"]), {"x": IMAGE}, lambda x: x.max((2, 3), keepdims=True)),
    "MaxPool": (
        N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]), {"x": IMAGE},
        lambda x: np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(2, 3)).max((4, 5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_nan_is_never_lost(name: str) -> None:
    node, feeds, by_numpy = OTHER[name]
    got, theirs = run([node], feeds, {})
    np.testing.assert_array_equal(got, by_numpy(feeds["x"]))
    assert not np.array_equal(got, theirs, equal_nan=got.dtype.kind == "f"), "docs/numerics.md lists a difference"
