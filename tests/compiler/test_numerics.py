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

from arcweld.compiler.errors import DeviceError
from arcweld.driver import api
from arcweld.runtime.sim.device import SimDevice

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


A, B = np.array([[7, -7, 0], [5, -8, 1]]), np.array([[2, 0, 0], [0, 3, -4]])
DIVISIONS: dict[str, tuple[list[onnx.NodeProto], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "Div": ([N("Div", ["a", "b"], ["y"])], lambda a, b: np.trunc(a / b)),
    "Mod": ([N("Mod", ["a", "b"], ["y"])], np.mod),
    "fmod": ([N("Mod", ["a", "b"], ["y"], fmod=1)], np.fmod),
    "in a sum": (
        [N("Div", ["a", "b"], ["q"]), N("ReduceSum", ["q", "axis"], ["y"])],
        lambda a, b: np.trunc(a / b).sum(1, keepdims=True),
    ),
    # lanes of tiles and places of the padding, which compute nothing of the result, divide zeros too
    "before a product": ([N("Mod", ["a", "b"], ["q"]), N("MatMul", ["q", "w"], ["y"])], lambda a, b: np.mod(a, b) @ W),
    "after a product": (
        [N("MatMul", ["a", "w"], ["p"]), N("Slice", ["b", "start", "stop"], ["c"]), N("Div", ["p", "c"], ["y"])],
        lambda a, b: np.trunc((a @ W) / b[:, :1]),
    ),
    "padded": (
        [N("Div", ["a", "b"], ["q"]), N("Pad", ["q", "pads"], ["p"]), N("Add", ["p", "p"], ["y"])],
        lambda a, b: 2 * np.pad(np.trunc(a / b), ((1, 0), (2, 3))),
    ),
    "concatenated": (
        [N("Div", ["a", "b"], ["q"]), N("Concat", ["q", "a"], ["y"], axis=1)],
        lambda a, b: np.concatenate([np.trunc(a / b), a], 1),
    ),
}  # fmt: skip
W = np.arange(15).reshape(3, 5) - 7
CONSTANTS = {
    "axis": np.array([1]), "w": W, "pads": np.array([1, 2, 0, 3]), "start": np.array([0, 0]), "stop": np.array([9, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIVISIONS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_an_integer_division_by_zero_is_0_and_an_error_in_checked_mode(name: str, dtype: Any) -> None:
    nodes, by_numpy = DIVISIONS[name]
    used = {i for n in nodes for i in n.input}
    typed = {k: v.astype(dtype) if k == "w" else v for k, v in CONSTANTS.items() if k in used}
    proto = model(nodes, {k: (dtype, [2, 3]) for k in "ab"}, ["y"], typed)
    graph = api.import_model(proto)
    checked = api.compile_graph(graph, device=SimDevice(checked=True), verify="off")
    good = np.where(B == 0, 6, B)
    np.testing.assert_array_equal(checked(A.astype(dtype), good.astype(dtype)), by_numpy(A, good))
    with pytest.raises(DeviceError, match="an integer is divided by zero"):
        checked(A.astype(dtype), B.astype(dtype))
    with np.errstate(all="ignore"):
        fits = np.where(B == 0, 1, B)
    want = by_numpy(np.where(B == 0, 0, A), fits)  # 0 where the divisor is
    if name not in ("after a product", "concatenated"):
        engine = api.compile_graph(graph, device="sim", verify="off")
        np.testing.assert_array_equal(engine(A.astype(dtype), B.astype(dtype)), want)
