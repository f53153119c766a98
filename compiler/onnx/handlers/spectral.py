"""Handlers of Fourier transforms: a short DFT is a product with the transform's matrix, a short STFT a convolution.

Longer ones are split as ``compiler/ops/fourier.py`` says. Both parts of a short one come side by side from one product.
"""

from __future__ import annotations

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.ops.fourier import MAX_LENGTH, Signal, plan, real_inverse, transform

MAX_FILTERS = 8192
MAX_HZ = 1e9  # of a filter: such numbers of samples stay exact


def _angles(c: NodeContext, length: int, onesided: bool) -> np.ndarray:
    """``2 pi t f / length`` in f64, times t by frequencies f."""
    t, f = np.arange(length), np.arange(length // 2 + 1 if onesided else length)
    return 2 * np.pi * (np.outer(t, f) % length) / length


def _is_short(c: NodeContext, length: int) -> bool:
    """True if a transform is best one product. Raises UnsupportedError for more elements than are transformed."""
    if not 1 <= length <= MAX_LENGTH:
        c.unsupported(f"a Fourier transform of {length} elements (1 to {MAX_LENGTH})")
    return plan(length) == "direct"


def _signal(c: NodeContext, x: Value) -> Signal:
    """``[.., 1 or 2]`` as its parts."""
    last = x.type.rank - 1
    parts = (c.slice(x, last, k, 1) for k in range(c.concrete(x.shape[last], "the number of parts")))
    return Signal(*(c.reshape(p, x.shape[:-1]) for p in parts))


def _joined(c: NodeContext, parts: tuple[Value, Value]) -> Value:
    return c.concat([c.reshape(p, (*p.shape, 1)) for p in parts], parts[0].type.rank)


@handles("DFT")
def _dft(c: NodeContext) -> Result:
    """``[.., n, .., 1 or 2]`` (real, or real and imaginary parts) along one axis to ``[.., frequencies, .., 2]``."""
    rank = c.needs_rank(0, 2)
    inverse, onesided = bool(c.int_attr("inverse")), bool(c.int_attr("onesided"))
    given = c.int_attr("axis", 1) if c.opset < 20 else c.integer(2) if c.has(2) else -2
    axis = c.axis(given, rank)
    x = c.value(0)
    parts = c.concrete(x.shape[-1], "the number of parts")
    if axis == rank - 1 or parts not in (1, 2) or (onesided and parts == 2 and not inverse):
        c.broken(f"axis {given} of {parts} parts")
    if onesided and inverse:
        return _real_signal(c, x, axis, parts)
    length = c.integer(1) if c.has(1) else c.concrete(x.shape[axis], "the length of the transform")
    short = _is_short(c, length)
    x, scale = _resized(c, x, axis, length), 1 / length if inverse else 1.0
    if not short:
        signal = _signal(c, x)
        return _joined(c, transform(c, signal, axis, inverse=inverse, onesided=onesided, scale=scale))
    angles = _angles(c, length, onesided)
    # the transformed axis and the parts last: [.., parts, n] as one row of parts * n
    others = [a for a in range(rank - 1) if a != axis]
    row = c.transpose(x, (*others, rank - 1, axis))
    lead = row.shape[:-2]
    cos, sin = np.cos(angles), np.sin(angles) * (-1 if inverse else 1)
    rows = [np.concatenate([cos, -sin], axis=1), np.concatenate([sin, cos], axis=1)][:parts]
    matrix = np.concatenate(rows) * scale
    y = c.emit("MatMul", c.reshape(row, (*lead, parts * length)), c.const(matrix, x.dtype))
    y = c.reshape(y, (*lead, 2, angles.shape[1]))
    back = {a: i for i, a in enumerate((*others, rank - 1, axis))}
    return c.transpose(y, tuple(back[a] for a in range(rank)))


def _real_signal(c: NodeContext, x: Value, axis: int, parts: int) -> Value:
    """The inverse of a one-sided transform: ``[.., frequencies, .., 2]`` to ``[.., n, .., 1]``.

    A frequency counts twice, for itself and for its mirror image, unless it is its own.
    """
    if parts != 2:
        c.broken(f"the spectrum has {parts} parts")
    given = c.concrete(x.shape[axis], "the number of frequencies")
    length, rank = c.integer(1) if c.has(1) else 2 * (given - 1), x.type.rank
    if not _is_short(c, length):
        whole = _resized(c, x, axis, length // 2 + 1)
        y = real_inverse(c, _signal(c, whole), axis, length, 1 / length)
        return c.reshape(y, (*y.shape, 1))
    angles = _angles(c, length, onesided=True).T  # frequencies by times
    count = len(angles)
    times = np.array([1 if f == 0 or 2 * f == length else 2 for f in range(count)])[:, None]
    matrix = np.concatenate([times * np.cos(angles), -times * np.sin(angles)]) / length
    x = _resized(c, x, axis, count)
    others = [a for a in range(rank - 1) if a != axis]
    row = c.transpose(x, (*others, rank - 1, axis))
    lead = row.shape[:-2]
    y = c.emit("MatMul", c.reshape(row, (*lead, 2 * count)), c.const(matrix, x.dtype))
    back = {a: i for i, a in enumerate((*others, rank - 1, axis))}
    return c.transpose(c.reshape(y, (*lead, 1, length)), tuple(back[a] for a in range(rank)))


def _resized(c: NodeContext, x: Value, axis: int, length: int) -> Value:
    """``x`` cut or filled with zeros to ``length`` along ``axis``."""
    n = c.concrete(x.shape[axis], "the length of the signal")
    if n >= length:
        return c.slice(x, axis, 0, length)
    ends = [0] * x.type.rank
    ends[axis] = length - n
    return c.emit("Pad", x, pads=(*[0] * x.type.rank, *ends), mode="constant", value=0.0)


@handles("STFT")
def _stft(c: NodeContext) -> Result:
    """``[B, N]`` or ``[B, N, 1]`` to ``[B, frames, frequencies, 2]``: a convolution, its stride the step."""
    signal = c.value(0)
    if c.needs_rank(0, 2, 3) == 3 and signal.shape[2] != 1:
        c.unsupported("the frames of a complex signal")
    step = c.integer(1)
    if c.has(3):
        length = c.integer(3)
    elif c.has(2):
        c.needs_rank(2, 1, 1)
        length = c.concrete(c.shape(2)[0], "the length of the window")
    else:
        c.broken("neither a window nor a frame length is given")
    if step < 1:
        c.broken(f"the step is {step}")
    onesided = bool(c.int_attr("onesided", 1))
    c.has_room(signal.shape[1], length)
    if not _is_short(c, length):
        return _long_frames(c, signal, length, step, onesided)
    angles = _angles(c, length, onesided)
    filters: Value = c.const(np.concatenate([np.cos(angles), -np.sin(angles)], axis=1).T[:, None], signal.dtype)
    if c.has(2):
        filters = c.emit("Mul", filters, c.cast(c.value(2), signal.dtype))
    batch: Dim = signal.shape[0]
    y = c.emit(
        "Conv", c.reshape(signal, (batch, 1, signal.shape[1])), filters, None,
        strides=(step,), dilations=(1,), pads=(0, 0), group=1, layout="NCHW",
    )  # fmt: skip
    y = c.reshape(y, (batch, 2, angles.shape[1], y.shape[2]))
    return c.transpose(y, (0, 3, 2, 1))


def _long_frames(c: NodeContext, signal: Value, length: int, step: int, onesided: bool) -> Value:
    rows = c.reshape(signal, (1, signal.shape[0], signal.shape[1]))
    taps = c.emit("WindowTaps", rows, kernel_shape=(length,), strides=(step,), dilations=(1,), pads=(0, 0))
    frames = c.reshape(taps, taps.shape[1:])
    if c.has(2):
        frames = c.emit("Mul", frames, c.cast(c.value(2), signal.dtype))
    return _joined(c, transform(c, Signal(frames), 2, onesided=onesided))


@handles("MelWeightMatrix")
def _mel_weights(c: NodeContext) -> Result:
    """Triangles over the frequencies of a transform, evenly spaced in mel; everything is known while importing."""
    bins, length, rate = (c.integer(i) for i in range(3))
    lower, upper = (c.number(i) for i in (3, 4))
    if not 1 <= bins <= MAX_FILTERS or not 1 <= length <= 8 * MAX_FILTERS or rate < 1:
        c.broken(f"{bins} bins of a transform of {length} elements at {rate} Hz")
    if not 0 <= lower <= upper <= MAX_HZ:
        c.broken(f"frequencies from {lower} to {upper} Hz")
    low, high = (2595 * np.log10(1 + f / 700) for f in (lower, upper))
    mels = low + np.arange(bins + 2) * ((high - low) / (bins + 2))
    places = ((length + 1) * (700 * (10 ** (mels / 2595) - 1)) // rate).astype(np.int64)
    frequency = np.arange(length // 2 + 1)[:, None]
    left, centre, right = places[:-2], places[1:-1], places[2:]
    rising = np.where(centre == left, frequency == centre, (frequency - left) / np.maximum(centre - left, 1))
    rising = np.where((frequency >= left) & (frequency <= centre), rising, 0)
    falling = (right - frequency) / np.maximum(right - centre, 1)
    falling = np.where((frequency >= centre) & (frequency < right), falling, 0)
    weights = np.where(frequency < centre, rising, np.where(frequency == centre, 1.0, falling))
    return c.const(weights, element_type(c.int_attr("output_datatype", 1)))
