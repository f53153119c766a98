"""Copies of large arrays in parts, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler import bulk
from arcweld.compiler.dtypes import DType


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LARGE", 100)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["f2", "f4", "i8"]))
def test_transposed_matrices(rows: int, columns: int, dtype: str) -> None:
    a = np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)
    copy = bulk.contiguous(a.T)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, a.T)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (3, 4, 5), (1, 7)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    a = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape).T
    copy = bulk.contiguous(a)
    assert copy.shape == a.shape
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, a)


@given(st.integers(0, 2000), st.sampled_from([DType.F16, DType.BF16, DType.F64, DType.I32, DType.BOOL]))
def test_conversions(size: int, to: DType) -> None:
    a = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 100
    with np.errstate(all="ignore"):
        want = a.astype(to.numpy)
    got = bulk.converted(a, to.numpy)
    assert got.dtype == to.numpy
    np.testing.assert_array_equal(got, want)


def test_a_failing_part_is_reported() -> None:
    def part(start: int, stop: int) -> None:
        raise MemoryError(f"{start}:{stop}")

    with pytest.raises(MemoryError):
        bulk._in_parts(part, 10)
