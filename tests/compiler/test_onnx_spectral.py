"""Fourier transforms and mel filters, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import compare, evaluate, floats, ints, one_node

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

WINDOW = np.hanning(16).astype(np.float32)


@pytest.mark.parametrize(
    ("opset", "shape", "attrs", "constants"),
    [
        (17, (2, 8, 1), {"axis": 1}, {}),
        (17, (2, 7, 3, 2), {"axis": 1}, {}),
        (17, (2, 3, 7, 2), {"axis": -2}, {}),
        (17, (2, 8, 1), {"onesided": 1}, {}),
        (17, (2, 9, 1), {"onesided": 1}, {}),
        (17, (2, 8, 2), {"inverse": 1}, {}),
        (17, (2, 8, 1), {"onesided": 1}, {1: np.int64(6)}),
        (17, (2, 8, 1), {}, {1: np.int64(12)}),
        (20, (2, 8, 3, 1), {}, {2: np.int64(1)}),
        (20, (2, 8, 1), {}, {}),
    ],
)
def test_transforms(opset: int, shape: tuple[int, ...], attrs: dict[str, Any], constants: dict[int, Any]) -> None:
    compare(*one_node("DFT", opset, [floats(*shape)], attrs, constants))


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(
    "constants",
    [
        {1: np.int64(8), 2: WINDOW},
        {1: np.int64(8), 2: WINDOW, 3: np.int64(16)},
        {1: np.int64(5), 3: np.int64(10)},
    ],
)
def test_frames(onesided: int, constants: dict[int, Any]) -> None:
    compare(*one_node("STFT", 17, [floats(2, 67, 1)], {"onesided": onesided}, constants))


def test_frames_of_a_signal_of_any_length() -> None:
    fixed = {1: np.int64(8), 2: WINDOW}
    proto, feeds = one_node("STFT", 17, [floats(2, 40, 1)], {}, fixed)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    graph = compare(proto, feeds)
    assert {s.name: s.lo for s in graph.symbols()} == {"n": 16}


@pytest.mark.parametrize(
    ("bins", "length", "rate", "low", "high"), [(8, 64, 8192, 0, 4096), (40, 512, 16000, 20, 8000)]
)
def test_mel_filters(bins: int, length: int, rate: int, low: float, high: float) -> None:
    constants = {0: ints(bins)[0], 1: ints(length)[0], 2: ints(rate)[0], 3: np.float32(low), 4: np.float32(high)}
    compare(*one_node("MelWeightMatrix", 17, [], {}, constants))


def test_what_cannot_be_transformed_is_refused() -> None:
    proto, _ = one_node("STFT", 17, [floats(2, 67, 1)], {}, {1: np.int64(8)})
    with pytest.raises(ModelError, match="neither a window nor a frame length"):
        import_onnx(proto)
    proto, _ = one_node("DFT", 17, [floats(2, 8, 1)], {}, open_dims=True)
    with pytest.raises(UnsupportedError, match="number of parts"):
        import_onnx(proto)


@pytest.mark.parametrize(
    ("frequencies", "length"), [(6, None), (6, 11), (6, 8), (4, 10), (3, 1), (321, None), (300, 641)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_real_signal_from_half_of_its_spectrum(frequencies: int, length: int | None, axis: int) -> None:
    """numpy's irfft: of even and odd lengths, cut and filled, with parts that a real signal's spectrum lacks."""
    shape = (frequencies, 3, 2) if axis == 0 else (3, frequencies, 2)
    constants = {2: np.int64(axis)} | ({} if length is None else {1: np.int64(length)})
    proto, feeds = one_node("DFT", 20, [floats(*shape)], {"inverse": 1, "onesided": 1}, constants)
    expected = np.fft.irfft(feeds["x0"][..., 0] + 1j * feeds["x0"][..., 1], length, axis)[..., None]
    (ours,) = evaluate(import_onnx(proto), feeds)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def _is_numpys(proto: Any, feeds: dict[str, Any], expected: np.ndarray) -> None:
    """ONNX Runtime's sums over hundreds of terms are less exact than ours, so numpy is the oracle."""
    (ours,) = evaluate(import_onnx(proto), feeds)
    found = ours[..., 0] + 1j * ours[..., 1]
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 5e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("length", [640, 521])
def test_long_transforms_are_split(length: int) -> None:
    proto, feeds = one_node("DFT", 17, [floats(2, length, 1)], {"onesided": 1})
    _is_numpys(proto, feeds, np.fft.rfft(feeds["x0"][..., 0].astype(np.float64)))
    proto, feeds = one_node("DFT", 17, [floats(2, length, 3, 2)], {"axis": 1, "inverse": 1})
    z = feeds["x0"].astype(np.float64)
    _is_numpys(proto, feeds, np.fft.ifft(z[..., 0] + 1j * z[..., 1], axis=1))


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("windowed", [False, True])
def test_long_frames(onesided: int, windowed: bool) -> None:
    window = np.hanning(640).astype(np.float32) if windowed else np.ones(640, np.float32)
    constants = {1: np.int64(25)} | ({2: window} if windowed else {3: np.int64(640)})
    proto, feeds = one_node("STFT", 17, [floats(2, 700, 1)], {"onesided": onesided}, constants)
    signal = feeds["x0"][..., 0].astype(np.float64)
    frames = np.stack([signal[:, k : k + 640] for k in range(0, 61, 25)], 1) * window
    _is_numpys(proto, feeds, (np.fft.rfft if onesided else np.fft.fft)(frames))


def test_half_of_a_real_spectrum_is_broken() -> None:
    proto, _ = one_node("DFT", 20, [floats(6, 3, 1)], {"inverse": 1, "onesided": 1}, {2: np.int64(0)})
    with pytest.raises(ModelError, match="1 parts"):
        import_onnx(proto)
