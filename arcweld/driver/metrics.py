"""The metrics of accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dtypes import from_numpy

PART = 1 << 15  # elements: their f64 fit the second-level cache


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """``‖got - want‖ / ‖want‖`` (2-norms, in f64) of two arrays of the same shape.

    It is infinite if NaNs and infinities are not the same elements in both; these elements are left out otherwise. For
    ``want`` = 0 it is ``‖got‖``. For integers and booleans it is the share of unequal elements.
    """
    if want.dtype == np.bool_:  # a byte that is neither 0 nor 1 is no bool, though numpy takes it for True
        got, want = got.view(np.uint8), want.view(np.uint8)
    if from_numpy(want.dtype).is_int:
        return float(np.mean(got != want)) if want.size else 0.0
    known = _sums(got, want)
    if known is not None:
        return math.sqrt(known.differences / known.squares if known.squares else known.differences)
    g, w = got.astype(np.float64), want.astype(np.float64)
    odd = ~np.isfinite(w)
    if not np.array_equal(np.isfinite(g), ~odd) or not np.array_equal(g[odd], w[odd], equal_nan=True):
        return float("inf")
    g, w = g[~odd], w[~odd]
    scale = float(np.max(np.abs(w), initial=0.0))
    if scale == 0:
        return math.sqrt(np.sum(np.square(g)))
    with np.errstate(over="ignore"):  # squares of the largest and the least numbers would be infinite or 0
        g, w = g / scale, w / scale
        return math.sqrt(np.sum(np.square(g - w)) / np.sum(np.square(w)))


def largest_error(got: np.ndarray, want: np.ndarray) -> float:
    """``max |got - want| / max |want|`` of two float arrays of the same shape: a single wrong element shows in it.

    Elements that are not finite are left out. It is 0 where ``want`` has no other elements than 0.
    """
    known = _sums(got, want)
    if known is not None:
        return known.largest_difference / known.largest if known.largest else 0.0
    g, w = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(w) & np.isfinite(g)
    scale = float(np.max(np.abs(w), initial=0.0, where=finite))
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.max(np.abs(g / scale - w / scale), initial=0.0, where=finite)) if scale else 0.0


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the metrics are made of: sums of squares of got - want and of want, and their largest magnitudes."""

    differences: float
    squares: float
    largest_difference: float
    largest: float


def _sums(got: np.ndarray, want: np.ndarray) -> _Sums | None:
    """In f64, a part at a time; None for elements that are not finite and for f64, whose squares may overflow."""
    if got.shape != want.shape or max(got.dtype.itemsize, want.dtype.itemsize) > 4:
        return None
    differences = squares = most = largest = 0.0
    g, w = got.reshape(-1), want.reshape(-1)
    for at in range(0, g.size, PART):
        part = w[at : at + PART].astype(np.float64)
        difference = g[at : at + PART].astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference -= part
        if not np.isfinite(difference).all():  # infinities and NaN stay so in a difference
            return None
        differences += float(np.dot(difference, difference))
        squares += float(np.dot(part, part))
        most = max(most, float(difference.max()), -float(difference.min()))
        largest = max(largest, float(part.max()), -float(part.min()))
    return _Sums(differences, squares, most, largest)


def rounded_up(error: float) -> float:
    """An error as evidence has it: rounded up to one digit.

    The reference's products are added up by the host's BLAS in an order that depends on its number of cores. That
    changes the digits behind the first, and equal builds should give equal files.
    """
    if not 0 < error < math.inf:
        return error
    power = 10.0 ** math.floor(math.log10(error))
    return float(f"{math.ceil(error / power - 1e-9) * power:.0e}")


def nonfinite_share(array: np.ndarray) -> float:
    """The share of elements that are NaN or infinite."""
    if not array.size or array.dtype.kind in "biu":
        return 0.0
    return float(np.mean(~np.isfinite(array.astype(np.float64))))
