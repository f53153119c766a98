"""What operators of order compute, by ONNX Runtime and by numpy: suppression of boxes, runs of equal elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def runs(attrs: Mapping[str, Any], x: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """By numpy's unique, for which NaNs are equal too; ``order`` is not needed."""
    values, first, kinds, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    if attrs["by_place"]:
        moved = np.argsort(first)
        values, first, counts, kinds = values[moved], first[moved], counts[moved], np.argsort(moved)[kinds.reshape(-1)]

    def whole(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.zeros(len(x) - len(a), a.dtype)])

    return [whole(x[first]), whole(first), kinds.reshape(-1), whole(counts), np.array([len(values)])]


def suppressed(
    attrs: Mapping[str, Any], boxes: np.ndarray, valid: np.ndarray, overlap: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """By ONNX Runtime's NonMaxSuppression, with scores that fall along a row, and negative ones where no box counts."""
    n = valid.shape[-1]
    flat, counts = boxes.reshape(-1, n, 4), valid.reshape(-1, n)
    scores = np.where(counts, n - np.arange(n), -1).astype(np.float32)[:, None]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["y"])
    feeds = {"boxes": flat, "scores": scores, "most": most.reshape(1), "overlap": overlap.reshape(1),
             "least": np.zeros(1, np.float32)}  # fmt: skip
    info, code = helper.make_tensor_value_info, helper.np_dtype_to_tensor_dtype
    infos = [info(k, code(v.dtype), v.shape) for k, v in feeds.items()]
    graph = helper.make_graph([node], "nms", infos, [info("y", TensorProto.INT64, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    stays = np.zeros(counts.shape, bool)
    stays[found[:, 0], found[:, 2]] = True
    return stays.reshape(valid.shape)
