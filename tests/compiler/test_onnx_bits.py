"""BitCast of tensors that are not constants."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from onnx_models import evaluate, floats, one_node

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx


def test_bits_of_floats() -> None:
    x = floats(3, 4)
    proto, feeds = one_node("BitCast", 26, [x], {"to": TensorProto.UINT32})
    np.testing.assert_array_equal(evaluate(import_onnx(proto), feeds)[0], x.view(np.uint32))


def test_bits_of_other_sizes_and_of_16_bit_floats_are_refused() -> None:
    proto, _ = one_node("BitCast", 26, [floats(3)], {"to": TensorProto.INT64})
    with pytest.raises(ModelError, match="f32 has not the bits of i64"):
        import_onnx(proto)
    proto, _ = one_node("BitCast", 26, [floats(3).astype(np.float16)], {"to": TensorProto.INT16})
    with pytest.raises(UnsupportedError, match="the bits of f16 as i16, unless they are constants"):
        import_onnx(proto)
