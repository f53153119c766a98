"""MaxPool with the indices of its maxima, MaxUnpool and Col2Im, against ONNX Runtime and the standard's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import compare, evaluate, floats, ints, one_node

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

F = floats
_TIES = np.round(F(2, 2, 6, 7))


@pytest.mark.parametrize(
    ("x", "attrs"),
    [
        (F(2, 3, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
        (F(2, 3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1}),
        (F(1, 2, 9, 8), {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 2, 1, 2]}),
        (F(2, 3, 9), {"kernel_shape": [4], "strides": [3], "pads": [2, 2]}),
        (F(2, 2, 4, 5, 6), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 3], "pads": [1, 1, 0, 0, 1, 1]}),
        (F(2, 2, 6, 7), {"kernel_shape": [3, 3], "storage_order": 1, "pads": [1, 1, 1, 1]}),
        (_TIES, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        (F(2, 2, 6, 7), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ],
)
def test_indices_of_maxima(x: np.ndarray, attrs: dict[str, Any]) -> None:
    compare(*one_node("MaxPool", 12, [x], attrs, outputs=2))


def test_a_maximum_of_minus_infinities_is_inside_the_image() -> None:
    """Whatever the padding holds: every index names an element."""
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    attrs = {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}
    proto, feeds = one_node("MaxPool", 12, [x], attrs, outputs=2)
    most, places = evaluate(import_onnx(proto), feeds)
    np.testing.assert_array_equal(x.reshape(-1)[places], most)


@pytest.mark.parametrize("attrs", [{}, {"pads": [1, 0, 0, 1]}, {"strides": [3, 2]}])
def test_unpooling(attrs: dict[str, Any]) -> None:
    proto, feeds = one_node(
        "MaxUnpool", 11, [F(2, 2, 3, 2), np.arange(24).reshape(2, 2, 3, 2)[..., ::-1].copy() * 3],
        {"kernel_shape": [3, 4], "strides": [2, 2], **attrs},
    )  # fmt: skip
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    np.testing.assert_array_equal(evaluate(import_onnx(proto), feeds)[0], expected)


def test_an_output_shape_of_unpooling_that_is_too_small_is_broken() -> None:
    proto, _ = one_node(
        "MaxUnpool", 11, [F(1, 1, 2, 2), np.zeros((1, 1, 2, 2), np.int64)],
        {"kernel_shape": [2, 2], "strides": [2, 2]}, {2: ints(1, 1, 3, 4)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="4 of 3 elements"):
        import_onnx(proto)


@pytest.mark.parametrize(
    ("x", "image", "block", "attrs"),
    [
        (F(2, 12, 20), (5, 6), (2, 2), {}),
        (F(2, 12, 9), (5, 6), (2, 3), {"strides": [2, 2], "pads": [1, 1, 0, 1]}),
        (F(1, 6, 12), (5, 6), (2, 3), {"dilations": [2, 2], "pads": [0, 1, 1, 0]}),
    ],
)
def test_blocks_add_up_to_an_image(
    x: np.ndarray, image: tuple[int, ...], block: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    compare(*one_node("Col2Im", 18, [x], attrs, {1: ints(*image), 2: ints(*block)}))


def test_a_number_of_blocks_that_does_not_fit_the_image_is_refused() -> None:
    proto, _ = one_node("Col2Im", 18, [F(1, 4, 5)], {}, {1: ints(5, 6), 2: ints(2, 2)})
    with pytest.raises((ModelError, UnsupportedError), match="blocks: 5 and 20"):
        import_onnx(proto)
