"""Paged caches one position at a time, in plain Python: the oracle of the operators and of attention over pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Attrs = Mapping[str, Any]


def places(indptr: np.ndarray, indices: np.ndarray, last: np.ndarray, page_size: int) -> list[list[tuple[int, int]]]:
    """For each sequence the (page, place in it) of all its positions."""
    found: list[list[tuple[int, int]]] = []
    for b in range(len(last)):
        own = [int(page) for page in indices[int(indptr[b]) : int(indptr[b + 1])]]
        full = [(page, slot) for page in own[:-1] for slot in range(page_size)]
        found.append(full + [(page, slot) for page in own[-1:] for slot in range(int(last[b]))])
    return found


def lengths(attrs: Attrs, indptr: np.ndarray, last: np.ndarray) -> np.ndarray:
    found = places(indptr, np.zeros(int(indptr[-1]), np.int64), last, attrs["page_size"])
    return np.array([len(own) for own in found], np.int64)


def slots(
    attrs: Attrs, indptr: np.ndarray, indices: np.ndarray, last: np.ndarray, new: np.ndarray | None = None
) -> np.ndarray:
    found = []
    for b, own in enumerate(places(indptr, indices, last, attrs["page_size"])):
        most = len(own) if new is None else int(new[b])
        real = own[-min(attrs["count"], most) :] if most else []
        found.append([(-1, -1)] * (attrs["count"] - len(real)) + real)
    return np.array(found, indices.dtype).reshape(len(last), attrs["count"], 2)


def dense(attrs: Attrs, pages: np.ndarray, indptr: np.ndarray, indices: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[batch, heads, length, head size]; zeros where a sequence has no such position."""
    out = np.zeros((len(last), pages.shape[2], attrs["length"], pages.shape[3]), pages.dtype)
    for b, own in enumerate(places(indptr, indices, last, pages.shape[1])):
        for t, (page, slot) in enumerate(own[: attrs["length"]]):
            out[b, :, t] = pages[page, slot]
    return out
