"""The metrics of accuracy."""

from __future__ import annotations

import math

import numpy as np

from arcweld.compiler.dtypes import from_numpy


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """``‖got - want‖ / ‖want‖`` (2-norms, in f64) of two arrays of the same shape.

    It is infinite if NaNs and infinities are not the same elements in both; these elements are left out otherwise. For
    ``want`` = 0 it is ``‖got‖``. For integers and booleans it is the share of unequal elements.
    """
    if want.dtype == np.bool_:  # a byte that is neither 0 nor 1 is no bool, though numpy takes it for True
        got, want = got.view(np.uint8), want.view(np.uint8)
    if from_numpy(want.dtype).is_int:
        return float(np.mean(got != want)) if want.size else 0.0
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
    g, w = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(w) & np.isfinite(g)
    scale = float(np.max(np.abs(w), initial=0.0, where=finite))
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.max(np.abs(g / scale - w / scale), initial=0.0, where=finite)) if scale else 0.0


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
