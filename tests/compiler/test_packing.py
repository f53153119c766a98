"""Packed types: bytes beside ONNX's own packing, sizes, and what has no whole bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_oracle import ELEMENT

from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType, from_numpy, integer_range, pack, stored_form, unpack
from arcweld.compiler.ir import TensorType

PACKED = [d for d in DType if d.is_packed]
STORED = [d for d in DType if d.is_storage]


@given(st.sampled_from(PACKED), st.lists(st.integers(0, 3), min_size=0, max_size=3), st.integers(0, 9), st.integers(0))
def test_packing_is_that_of_onnx(dtype: DType, lead: list[int], last: int, seed: int) -> None:
    shape = (*lead, last)
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 1 << dtype.bits, shape).astype(np.uint8).view(dtype.numpy)
    packed = pack(array)
    if dtype in ELEMENT:
        tensor = onnx.numpy_helper.from_array(array)
        assert tensor.data_type == ELEMENT[dtype]
        assert packed.tobytes() == tensor.raw_data
    else:  # ONNX has no integers of one bit
        assert packed.tobytes() == np.packbits(array.view(np.uint8), bitorder="little").tobytes()
    assert (packed.dtype, packed.shape) == stored_form(dtype, shape)
    assert packed.nbytes == dtype.nbytes(array.size) == TensorType(dtype, shape).nbytes
    back = unpack(packed, dtype, shape)
    np.testing.assert_array_equal(back.view(np.uint8), array.view(np.uint8))
    assert from_numpy(back.dtype) is dtype


def test_open_sizes_count_whole_bytes() -> None:
    n = dims.symbol("n", 1, 9)
    assert [dims.evaluate(DType.I4.nbytes(n), {"n": k}) for k in (1, 2, 3)] == [1, 1, 2]
    assert [dims.evaluate(DType.U2.nbytes(n * 3), {"n": k}) for k in (1, 2, 3)] == [1, 2, 3]
    assert DType.F8E5M2.nbytes(7) == 7


@pytest.mark.parametrize("dtype", PACKED)
def test_an_element_of_a_packed_type_has_no_bytes(dtype: DType) -> None:
    with pytest.raises(ValueError, match=f"{dtype.value} has {dtype.bits} bits"):
        _ = dtype.size


@pytest.mark.parametrize("dtype", [d for d in DType if d.is_int])
def test_the_range_of_integers_is_that_of_numpy(dtype: DType) -> None:
    low, high = integer_range(dtype)
    assert np.array([low, high], object).astype(dtype.numpy).astype(object).tolist() == [low, high]
    wide = np.array([low - 1, high + 1], object)
    if dtype.bits < 64:
        assert (wide.astype(np.int64).astype(dtype.numpy).astype(np.int64) != wide.astype(np.int64)).all()


@pytest.mark.parametrize("dtype", STORED)
def test_what_is_computed_holds_what_is_stored(dtype: DType) -> None:
    patterns = np.arange(1 << dtype.bits, dtype=np.uint8).view(dtype.numpy)
    wide = patterns.astype(dtype.compute.numpy)
    back = wide.astype(dtype.numpy)
    same = (back.view(np.uint8) == patterns.view(np.uint8)) | np.isnan(wide.astype(np.float32))
    assert same.all()
