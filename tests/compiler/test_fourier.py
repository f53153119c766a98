"""Fourier transforms made of products, against numpy's in f64: short, split, prime and long ones."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.ops.fourier import MAX_DIRECT, Signal, plan, real_inverse, transform
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify

LENGTHS = (1, 2, 3, 7, 128, 256, 400, 521, 1000, 1009, 1024, 4096, 6000)


def _evaluate(n: int, dtype: DType, shape: tuple[int, ...], axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ours, numpy's) of the transform, its inverse, the one-sided one of the real part, and that one's inverse."""
    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal(shape).astype(dtype.numpy) for _ in range(2))
    rw = Rewriter(Graph("transforms", (), (), ()))
    e = Emitter(rw, ())
    x, y = (Value(name, TensorType(dtype, shape)) for name in "xy")
    both = transform(e, Signal(x, y), axis)
    back = transform(e, Signal(x, y), axis, inverse=True, scale=1 / n)
    half = transform(e, Signal(x), axis, onesided=True)
    again = real_inverse(e, Signal(*half), axis, n, 1 / n)
    graph = Graph("transforms", (x, y), (*both, *back, *half, again), tuple(rw.nodes), dict(rw.weights))
    verify(graph)
    found = run_reference(graph, {"x": a, "y": b})
    out = [found[v.name].astype(np.float64) for v in graph.outputs]
    z, real = a.astype(np.float64) + 1j * b.astype(np.float64), a.astype(np.float64)
    return [
        (out[0] + 1j * out[1], np.fft.fft(z, axis=axis)),
        (out[2] + 1j * out[3], np.fft.ifft(z, axis=axis)),
        (out[4] + 1j * out[5], np.fft.rfft(real, axis=axis)),
        (out[6], real),
    ]


@pytest.mark.parametrize("n", LENGTHS)
def test_f32_is_as_exact_as_its_rounding(n: int) -> None:
    """The error in the norm stays below 8 units of rounding (6e-8), whatever the length."""
    for ours, exact in _evaluate(n, DType.F32, (2, n), 1):
        assert np.linalg.norm(ours - exact) < 5e-7 * np.linalg.norm(exact)


@pytest.mark.parametrize("n", [6, 400, 521])
def test_f64(n: int) -> None:
    for ours, exact in _evaluate(n, DType.F64, (n, 3), 0):
        assert np.linalg.norm(ours - exact) < 2e-15 * np.linalg.norm(exact)


def test_a_middle_axis() -> None:
    for ours, exact in _evaluate(640, DType.F32, (2, 640, 3), 1):
        assert np.linalg.norm(ours - exact) < 5e-7 * np.linalg.norm(exact)


@pytest.mark.parametrize("n", [1024, 4093, 4096, 65536, 1 << 20])
def test_long_transforms_hold_no_square_matrix(n: int) -> None:
    """All constants together are a few times as large as the signal, and no matrix has more than MAX_DIRECT rows."""
    rw = Rewriter(Graph("long", (), (), ()))
    transform(Emitter(rw, ()), Signal(Value("x", TensorType(DType.F32, (n,)))), 0)
    assert plan(n) != "direct"
    assert max(w.data.shape[0] for w in rw.weights.values() if w.data.ndim == 2) <= max(2 * MAX_DIRECT, n // 16)
    assert sum(w.data.size for w in rw.weights.values()) < 64 * n


def test_a_symbolic_length_is_refused() -> None:
    rw = Rewriter(Graph("open", (), (), ()))
    x = Value("x", TensorType(DType.F32, (2, symbol("n", 1, None))))
    with pytest.raises(UnsupportedError, match="along the symbolic dimension n"):
        transform(Emitter(rw, ()), Signal(x), 1)
