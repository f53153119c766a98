"""Discrete Fourier transforms as products with constant matrices, for importers.

A short transform is one product with the matrix of its roots of unity. A longer one is split by Cooley and Tukey's
factorisation (J. W. Cooley and J. W. Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965)
into two shorter ones with a product by roots of unity between them. A long prime length becomes a convolution of a
longer length that splits (L. Bluestein, "A linear filtering approach to the computation of the discrete Fourier
transform", 1970). So the work for n elements grows as n log n.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter

MAX_DIRECT = 512  # elements: the matrix of a longer transform is larger than what it saves
MAX_LENGTH = 1 << 20  # elements: the constants of any transform stay below some hundred megabytes
PASS = 512  # multiplications that take as long as writing an element and reading it again


@dataclass(frozen=True, slots=True)
class Signal:
    """Real and imaginary parts of equal shapes and types; ``im`` is None for a real signal."""

    re: Value
    im: Value | None = None

    @property
    def parts(self) -> list[Value]:
        """The parts that there are."""
        return [self.re] if self.im is None else [self.re, self.im]


def transform(
    e: Emitter, x: Signal, axis: int, *, inverse: bool = False, onesided: bool = False, scale: float = 1.0
) -> tuple[Value, Value]:
    """Both parts of ``scale * sum_j x[j] exp(-2 pi i j k / n)`` along ``axis`` (``+`` where ``inverse``).

    ``onesided``: only the frequencies from 0 to n / 2. Raises UnsupportedError for a symbolic length, and for more than
    ``MAX_LENGTH`` elements.
    """
    n = _length(x.re.shape[axis])
    count = n // 2 + 1 if onesided else n
    rows = _rows(e, x, axis)
    re, im = _spectrum(e, rows, n, 1 if inverse else -1, count, scale)
    assert im is not None
    return _axis_back(e, re, axis), _axis_back(e, im, axis)


def real_inverse(e: Emitter, x: Signal, axis: int, length: Dim, scale: float = 1.0) -> Value:
    """The real signal of ``length`` elements whose one-sided spectrum is ``x``, times ``scale * length``.

    The imaginary parts of frequencies that are their own mirror images do not count. Raises as ``transform`` does.
    """
    n = _length(length)
    count = n // 2 + 1
    rows = Signal(*(e.slice(p, p.type.rank - 1, 0, count) for p in _rows(e, x, axis).parts))
    if plan(n) == "direct":
        angles = 2 * np.pi * (np.outer(np.arange(count), np.arange(n)) % n) / n
        weights = np.array([1 if k == 0 or 2 * k == n else 2 for k in range(count)])[:, None] * scale
        matrix = np.concatenate([weights * np.cos(angles), -weights * np.sin(angles)])
        return _axis_back(e, _product(e, rows, matrix), axis)
    last = rows.re.type.rank - 1
    assert rows.im is not None
    mirror = [e.slice(p, last, n - count, n - count, -1) for p in rows.parts]
    whole = Signal(
        e.concat([rows.re, mirror[0]], last), e.concat([rows.im, e.emit("Neg", mirror[1])], last)
    )  # fmt: skip
    return _axis_back(e, _spectrum(e, whole, n, 1, n, scale, real=True)[0], axis)


def _length(n: Dim) -> int:
    if not isinstance(n, int):
        raise UnsupportedError(f"a Fourier transform along the symbolic dimension {n}")
    if not 1 <= n <= MAX_LENGTH:
        raise UnsupportedError(f"a Fourier transform of {n} elements (1 to {MAX_LENGTH})")
    return n


def _rows(e: Emitter, x: Signal, axis: int) -> Signal:
    """The signal with ``axis`` moved to the end."""
    rank = x.re.type.rank
    order = (*(a for a in range(rank) if a != axis), axis)
    return Signal(*(e.transpose(p, order) for p in x.parts))


def _axis_back(e: Emitter, v: Value, axis: int) -> Value:
    rank = v.type.rank
    return e.transpose(v, (*range(axis), rank - 1, *range(axis, rank - 1)))


# ------------------------------------------------------------------------------------------------------ the plan


@functools.lru_cache(maxsize=4096)
def plan(n: int) -> str | int:
    """How n elements are transformed: "direct", "bluestein", or the first factor of a split."""
    return _best(n)[1]


@functools.lru_cache(maxsize=4096)
def _best(n: int) -> tuple[float, str | int]:
    """(multiplications an element, the plan)."""
    choices: list[tuple[float, str | int]] = []
    if n <= MAX_DIRECT:
        choices.append((4.0 * n, "direct"))
    for a in range(2, math.isqrt(n) + 1):
        if n % a == 0:
            choices.append((_best(a)[0] + _best(n // a)[0] + PASS, a))
    if not choices:
        m = _padded(n)
        choices.append((2 * m / n * (_best(m)[0] + PASS), "bluestein"))
    return min(choices, key=lambda c: c[0])


def _padded(n: int) -> int:
    """The length of the circular convolution that holds a linear one of n elements: a power of two."""
    return 1 << (2 * n - 2).bit_length()


# ----------------------------------------------------------------------------------------------------- transforms

Parts = tuple[Value, Value | None]


def _spectrum(
    e: Emitter, x: Signal, n: int, sign: int, count: int, scale: float = 1.0, *, real: bool = False
) -> Parts:
    """The first ``count`` frequencies along the last axis; with ``real`` their real parts only."""
    how = plan(n)
    if how == "bluestein":
        return _bluestein(e, x, n, sign, count, scale, real)
    if how == "direct":
        return _direct(e, x, n, sign, count, scale, real)
    assert isinstance(how, int)
    return _split(e, x, (how, n // how), sign, count, scale, real)


def roots(sign: int, n: int, exponents: np.ndarray) -> np.ndarray:
    """``exp(sign * 2 pi i exponents / n)`` in f64; the exponents are reduced modulo n as integers first."""
    angles = 2 * np.pi * (exponents % n) / n
    return np.cos(angles) + 1j * sign * np.sin(angles)


def _direct(e: Emitter, x: Signal, n: int, sign: int, count: int, scale: float, real: bool) -> Parts:
    w = roots(sign, n, np.outer(np.arange(n), np.arange(count))) * scale
    rows = [np.concatenate([w.real, w.imag], axis=1), np.concatenate([-w.imag, w.real], axis=1)][: len(x.parts)]
    matrix = np.concatenate(rows)
    if real:
        return _product(e, x, matrix[:, :count]), None
    y = _product(e, x, matrix)
    last = y.type.rank - 1
    return e.slice(y, last, 0, count), e.slice(y, last, count, count)


def _product(e: Emitter, x: Signal, matrix: np.ndarray) -> Value:
    """Rows of all parts times a matrix that has the rows of the real part first."""
    row = e.concat(x.parts, x.re.type.rank - 1)
    vector = row.type.rank == 1
    y = e.emit("MatMul", e.reshape(row, (1, *row.shape)) if vector else row, e.const(matrix, row.dtype))
    return e.reshape(y, (matrix.shape[1],)) if vector else y


def _split(
    e: Emitter, x: Signal, factors: tuple[int, int], sign: int, count: int, scale: float, real: bool
) -> Parts:
    """``n = a * b``: element ``i * b + j`` and frequency ``k + a * l``, with i and k below a, and j and l below b."""
    a, b = factors
    lead, rank = x.re.shape[:-1], x.re.type.rank
    columns = _swapped(e, Signal(*(e.reshape(p, (*lead, a, b)) for p in x.parts)))
    inner = Signal(*_spectrum(e, columns, a, sign, a, scale))  # [.., b, a]
    turned = times(e, inner, roots(sign, a * b, np.outer(np.arange(b), np.arange(a))))
    needed = -(-count // a)
    found = _spectrum(e, _swapped(e, turned), b, sign, needed, real=real)  # [.., a, needed]

    def flat(v: Value) -> Value:
        order = (*range(rank - 1), rank, rank - 1)
        return e.slice(e.reshape(e.transpose(v, order), (*lead, needed * a)), rank - 1, 0, count)

    re, im = found
    return flat(re), None if im is None else flat(im)


def _swapped(e: Emitter, x: Signal) -> Signal:
    """The last two axes exchanged."""
    rank = x.re.type.rank
    return Signal(*(e.transpose(p, (*range(rank - 2), rank - 1, rank - 2)) for p in x.parts))


def times(e: Emitter, x: Signal, factors: np.ndarray, *, real: bool = False) -> Signal:
    """The signal times complex constants, which are broadcast; with ``real`` only the real part of it."""
    cos, sin = e.const(factors.real, x.re.dtype), e.const(factors.imag, x.re.dtype)
    if x.im is None:
        return Signal(e.emit("Mul", x.re, cos), None if real else e.emit("Mul", x.re, sin))
    re = e.emit("Sub", e.emit("Mul", x.re, cos), e.emit("Mul", x.im, sin))
    return Signal(re, None if real else e.emit("Add", e.emit("Mul", x.re, sin), e.emit("Mul", x.im, cos)))


def _bluestein(e: Emitter, x: Signal, n: int, sign: int, count: int, scale: float, real: bool) -> Parts:
    """With ``j k = (j^2 + k^2 - (k - j)^2) / 2`` the sum over j is a convolution with a chirp."""
    j = np.arange(n, dtype=np.int64)
    chirp = roots(sign, 2 * n, j * j)
    m = _padded(n)
    filter_ = np.zeros(m, np.complex128)
    filter_[:n] = np.conj(chirp)
    filter_[m - n + 1 :] = np.conj(chirp[1:][::-1])
    rank = x.re.type.rank
    pads = (*[0] * (2 * rank - 1), m - n)
    started = times(e, x, chirp)
    padded = Signal(*(e.emit("Pad", p, pads=pads, mode="constant", value=0.0) for p in started.parts))
    spectrum = Signal(*_spectrum(e, padded, m, -1, m))
    filtered = times(e, spectrum, np.fft.fft(filter_) * (scale / m))
    found = Signal(*_spectrum(e, filtered, m, 1, count))
    ended = times(e, found, chirp[:count], real=real)
    return ended.re, ended.im
