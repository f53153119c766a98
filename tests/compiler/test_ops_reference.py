"""Every entry's numpy reference against an independent implementation (onnxruntime, onnx.reference, torch)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx_oracle import oracle
from op_sweep import Sweep, assert_close, label, sweeps

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.ops.reference_math import erf, sigmoid, truncating_divide
from arcweld.compiler.ops.reference_nn import conv, conv_transpose
from arcweld.compiler.ops.registry import check_attrs, opdef
from arcweld.compiler.reference import run_reference


@pytest.mark.parametrize("sweep", sweeps(), ids=label)
def test_reference_agrees_with_an_independent_implementation(sweep: Sweep) -> None:
    graph, feeds = sweep.build()
    ours = run_reference(graph, feeds)
    for out, theirs in zip(graph.outputs, oracle(graph, feeds), strict=True):
        assert_close(ours[out.name], theirs, sweep.dtype, sweep.op.tolerance)


def test_erf_is_exact_to_twelve_digits() -> None:
    x = np.concatenate([np.linspace(-7, 7, 5001), [0.0, -0.0, 1e-300, np.inf, -np.inf]])
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], rtol=1e-11, atol=1e-300)
    assert np.isnan(erf(np.array([np.nan])))[0]


def test_sigmoid_keeps_its_relative_accuracy_in_the_tails() -> None:
    x = np.linspace(-80, 80, 333, dtype=np.float32)
    np.testing.assert_allclose(sigmoid(x), torch.sigmoid(torch.from_numpy(x).double()).numpy(), rtol=1e-5)


def test_division_of_integers_rounds_towards_zero() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.int8, np.int32, np.int64, np.uint8):
        info = np.iinfo(dtype)
        a = rng.integers(info.min + 1, info.max, 500, dtype=dtype)
        b = rng.integers(1, 9, 500, dtype=dtype)
        want = [abs(int(p)) // int(q) * (1 if p >= 0 else -1) for p, q in zip(a, b)]
        np.testing.assert_array_equal(truncating_divide(a, b), want)


def test_convolution_agrees_with_torch_at_the_size_of_a_real_layer() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 32, 28, 28)).astype(np.float32)
    for w_shape, stride, group in (((64, 32, 3, 3), 2, 1), ((32, 1, 5, 5), 1, 32), ((64, 8, 1, 1), 1, 4)):
        w = rng.standard_normal(w_shape).astype(np.float32)
        pad = w_shape[2] // 2
        ours = conv(x, w, (stride, stride), (1, 1), (pad,) * 4, group)
        theirs = torch.conv2d(torch.from_numpy(x), torch.from_numpy(w), None, stride, pad, 1, group)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_resizing_nothing_is_an_error_of_the_model() -> None:
    """An axis of unknown extent may turn out to be empty."""
    n = symbol("n")
    x, y = (Value(name, TensorType(DType.F32, (d,))) for name, d in (("x", n), ("y", 4)))
    node = Node("Resize", (x,), (y,), check_attrs(opdef("Resize"), {"sizes": (4,), "mode": "linear"}, "Resize"))
    graph = Graph("g", (x,), (y,), (node,))
    assert run_reference(graph, {"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ModelError, match="no elements"):
        run_reference(graph, {"x": np.ones(0, np.float32)})


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_of_no_channels_is_zero(kernel: int) -> None:
    x, w = np.ones((2, 0, 5, 5), np.float32), np.ones((4, 0, kernel, kernel), np.float32)
    np.testing.assert_array_equal(conv(x, w, (1, 1), (1, 1), (0,) * 4, 1), np.zeros((2, 4, 6 - kernel, 6 - kernel)))
    w = np.ones((0, 4, kernel, kernel), np.float32)
    y = conv_transpose(x, w, (1, 1), (1, 1), (0,) * 4, (0, 0), 1)
    np.testing.assert_array_equal(y, np.zeros((2, 4, 4 + kernel, 4 + kernel)))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolution_of_no_pixels_adds_nothing(stride: int) -> None:
    x, w = np.ones((1, 2, 4, 0), np.float32), np.ones((2, 3, 1, 5), np.float32)
    y = conv_transpose(x, w, (1, stride), (1, 1), (0,) * 4, (0, 0), 1)
    np.testing.assert_array_equal(y, np.zeros((1, 3, 4, 5 - stride)))
