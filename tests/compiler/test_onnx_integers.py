"""Integer products of ONNX models against ONNX Runtime, or exact integers where it takes no such operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import Array, compare, evaluate, one_node

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.passes.common import count_ops
from arcweld.passes.pipeline import run_passes


def _bytes(dtype: type, *shape: int, seed: int = 0) -> Array:
    """Integers of the whole range."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape, dtype)


def _types(graph: Graph) -> set[DType]:
    return {o.dtype for n in graph.nodes for o in n.outputs}


ZEROS: dict[str, tuple[Array | None, Array | None]] = {
    "none": (None, None),
    "left": (np.uint8(131), None),
    "right": (None, np.int8(-3)),
    "both": (np.uint8([7]), np.int8([5])),
    "columns": (np.uint8(9), np.arange(-2, 3, dtype=np.int8)),
    "known to be 0": (np.uint8(0), np.zeros(5, np.int8)),
}


@pytest.mark.parametrize("zeros", ZEROS.values(), ids=list(ZEROS))
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("open_dims", [True, False])
def test_products(zeros: tuple[Array | None, Array | None], constant: bool, open_dims: bool) -> None:
    points = {k: np.asarray(z) for k, z in zip((2, 3), zeros) if z is not None}
    feeds: list[Array | None] = [_bytes(np.uint8, 2, 3, 700)]
    right = _bytes(np.int8, 700, 5, seed=1)
    if constant:
        points[1] = right
    else:
        feeds.append(right)
    proto, given = one_node("MatMulInteger", 13, feeds, {}, points, open_dims=open_dims)
    if constant:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 700
    graph = compare(proto, given)
    assert not any(t.is_float for t in _types(graph))


def test_rows_with_zero_points_of_their_own() -> None:
    a, b, zeros = _bytes(np.uint8, 3, 8), _bytes(np.uint8, 8, 4, seed=1), _bytes(np.uint8, 3, seed=2)
    proto, feeds = one_node("MatMulInteger", 13, [a], {}, {1: b, 2: zeros, 3: np.uint8(11)})
    (got,) = evaluate(import_onnx(proto), feeds)
    exact = (a.astype(object) - zeros.astype(object)[:, None]) @ (b.astype(object) - 11)
    np.testing.assert_array_equal(got, exact.astype(np.int32))


def test_vectors() -> None:
    a, b = _bytes(np.uint8, 8), _bytes(np.uint8, 8, seed=1)
    proto, feeds = one_node("MatMulInteger", 13, [a, b], {}, {2: np.uint8(3), 3: np.uint8(4)})
    (got,) = evaluate(import_onnx(proto), feeds)
    assert got == (a.astype(int) - 3) @ (b.astype(int) - 4)


CONVOLUTIONS: dict[str, tuple[dict[str, Any], dict[int, Array]]] = {
    "plain": ({}, {1: _bytes(np.int8, 4, 6, 3, 3, seed=1)}),
    "padded": ({"pads": [1, 0, 2, 1]}, {1: _bytes(np.int8, 4, 6, 3, 3, seed=1), 2: np.uint8(131)}),
    "both": ({"pads": [1] * 4}, {1: _bytes(np.uint8, 4, 6, 3, 3, seed=1), 2: np.uint8(9), 3: np.uint8(77)}),
    "stride": ({"pads": [1] * 4, "strides": [2, 2]}, {1: _bytes(np.uint8, 4, 6, 3, 3), 2: np.uint8([5])}),
    "groups": ({"pads": [1] * 4, "group": 2}, {1: _bytes(np.uint8, 4, 3, 3, 3), 2: np.uint8(5), 3: np.uint8(200)}),
    "same": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {1: _bytes(np.uint8, 4, 6, 3, 3), 2: np.uint8(100)}),
}


@pytest.mark.parametrize(("attrs", "fixed"), CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
@pytest.mark.parametrize("open_dims", [True, False])
def test_convolutions(attrs: dict[str, Any], fixed: dict[int, Array], open_dims: bool) -> None:
    feeds = [_bytes(np.uint8, 2, 6, 7, 8)]
    constants = {k: np.asarray(v) for k, v in fixed.items()}
    proto, given = one_node("ConvInteger", 13, feeds, attrs, constants, open_dims=open_dims)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    graph = compare(proto, given)
    assert not any(t.is_float for t in _types(graph))


def test_filters_with_zero_points_of_their_own() -> None:
    x, w, zeros = _bytes(np.uint8, 1, 2, 5, 5), _bytes(np.uint8, 3, 2, 3, 3, seed=1), np.uint8([1, 200, 90])
    scale = np.float32([0.5, 0.25, 0.125])
    fixed: dict[int, Any] = {
        1: np.float32(1), 2: np.uint8(17), 3: w, 4: scale, 5: zeros, 6: np.float32(4096), 7: np.uint8(100),
        8: np.int32([1000, -2000, 30]),
    }  # fmt: skip
    constants = {k: np.asarray(v) for k, v in fixed.items()}
    proto, feeds = one_node("QLinearConv", 13, [x], {"pads": [1] * 4}, constants)
    (got,) = evaluate(import_onnx(proto), feeds)
    padded = np.pad(x.astype(int) - 17, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, w.astype(int) - zeros.astype(int)[:, None, None, None])
    real = (exact + fixed[8][:, None, None]) * scale[:, None, None].astype(float) / 4096
    np.testing.assert_array_equal(got, np.clip(np.rint(real) + 100, 0, 255))


def test_sums_of_activations_are_part_of_the_product() -> None:
    """Unsigned weights in the middle of their range need none."""
    fixed = {1: _bytes(np.uint8, 64, 5), 2: np.asarray(np.uint8(3)), 3: np.empty(5, np.uint8)}
    for middle, operands in ((128, 2), (127, 3)):
        fixed[3] = np.full(5, middle, np.uint8)
        proto, _ = one_node("MatMulInteger", 13, [_bytes(np.uint8, 3, 64)], {}, fixed)
        graph = run_passes(import_onnx(proto), Options())
        (product,) = [n for n in graph.nodes if n.op == "MatMulInteger"]
        assert len(product.operands()) == operands
        assert count_ops(graph, "ReduceSum") == 0


def test_operands_of_other_types_are_refused() -> None:
    proto, _ = one_node("MatMulInteger", 13, [np.zeros((2, 3), np.int16), np.zeros((3, 2), np.int16)])
    with pytest.raises(Exception, match="8-bit") as caught:
        import_onnx(proto)
    assert not isinstance(caught.value, UnsupportedError)
