"""A published YOLO with its decoding and suppression appended: the boxes that ONNX Runtime finds, in its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, compose, helper, numpy_helper

import arcweld
from arcweld.compiler.errors import EnvironmentError_
from arcweld.models.catalogue import text_image
from arcweld.models.fetch import fetch

pytestmark = [pytest.mark.models, pytest.mark.slow]

SIDE, STRIDES = 416, (8, 16, 32)
CENTRES = sum((SIDE // s) ** 2 for s in STRIDES)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows ``[1, centres, 2]`` of the cells of all scales, and the cells' sides ``[1, centres, 1]``."""
    cells, sides = [], []
    for stride in STRIDES:
        n = SIDE // stride
        rows, columns = np.mgrid[:n, :n]
        cells.append(np.stack([columns, rows], -1).reshape(-1, 2))
        sides.append(np.full((n * n, 1), stride))
    return np.concatenate(cells)[None].astype(np.float32), np.concatenate(sides)[None].astype(np.float32)


def head(most: int, overlap: float, score: float) -> onnx.ModelProto:
    """From ``[1, centres, 6]`` (centre and logarithm of the size in cells, objectness, class) to the chosen boxes.

    Results are boxes ``[n, 4]`` (centre, size) and scores ``[n]``, the best first.
    """
    cells, sides = grid()
    constants = {
        "cells": cells, "sides": sides, "k0": np.array([0]), "k2": np.array([2]), "k3": np.array([3]),
        "k4": np.array([4]), "k5": np.array([5]), "k6": np.array([6]), "axis2": np.array([2]), "most": np.array([most]),
        "overlap": np.array([overlap], np.float32), "score": np.array([score], np.float32), "two": np.array(2),
        "flat4": np.array([-1, 4]), "flat": np.array([-1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["raw", "k0", "k2", "axis2"], ["centre"]),
        helper.make_node("Slice", ["raw", "k2", "k4", "axis2"], ["size"]),
        helper.make_node("Slice", ["raw", "k4", "k5", "axis2"], ["objectness"]),
        helper.make_node("Slice", ["raw", "k5", "k6", "axis2"], ["class"]),
        helper.make_node("Add", ["centre", "cells"], ["moved"]),
        helper.make_node("Mul", ["moved", "sides"], ["place"]),
        helper.make_node("Exp", ["size"], ["ratio"]),
        helper.make_node("Mul", ["ratio", "sides"], ["extent"]),
        helper.make_node("Concat", ["place", "extent"], ["all_boxes"], axis=2),
        helper.make_node("Mul", ["objectness", "class"], ["confidence"]),
        helper.make_node("Transpose", ["confidence"], ["all_scores"], perm=[0, 2, 1]),
        helper.make_node(
            "NonMaxSuppression", ["all_boxes", "all_scores", "most", "overlap", "score"], ["chosen"], center_point_box=1
        ),
        helper.make_node("Gather", ["chosen", "two"], ["numbers"], axis=1),
        helper.make_node("Reshape", ["all_boxes", "flat4"], ["flat_boxes"]),
        helper.make_node("Reshape", ["all_scores", "flat"], ["flat_scores"]),
        helper.make_node("Gather", ["flat_boxes", "numbers"], ["boxes"], axis=0),
        helper.make_node("Gather", ["flat_scores", "numbers"], ["scores"], axis=0),
    ]
    graph = helper.make_graph(
        nodes, "boxes",
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, [1, CENTRES, 6])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def detector(path: Path) -> None:
    try:
        body = onnx.load(fetch("yolox"))
    except EnvironmentError_ as error:
        pytest.skip(f"yolox cannot be fetched: {error}")
    onnx.save(compose.merge_models(body, head(50, 0.45, 0.1), io_map=[("output", "raw")]), path)


def page() -> np.ndarray:
    """Nine letters and digits in three lines, black on white, as ``f32[1, 3, 416, 416]``."""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for top, text in ((10, "7 K 2"), (150, "W 8 a"), (280, "m 3 Q")):
        image[top : top + 96] = text_image(text, 96, SIDE)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32))


def test_boxes(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    detector(path)
    feeds = {"images": page()}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], feeds)
    assert (scores > 0.5).sum() == 9, "every letter is found once"
    assert (np.diff(scores) < -1e-4).all(), "an order that rounding can't change"
    got = arcweld.compile(str(path), device="sim", verify="off").run(feeds)
    np.testing.assert_allclose(got["boxes"], boxes, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(got["scores"], scores, rtol=1e-3, atol=1e-5)
