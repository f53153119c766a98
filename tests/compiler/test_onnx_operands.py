"""Operands and attributes that ONNX's checker accepts, and that their operator does not: one error that names them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper
from onnx_models import floats, ints, model

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.handlers.base import MICROSOFT
from arcweld.compiler.onnx.importer import import_onnx

N = helper.make_node
ML = "ai.onnx.ml"
IMAGE = (np.float32, [1, 1, 3, 3])
FAR = (1 << 63) - 1


def one(
    op: str, operands: str, constants: dict[str, Any] | None = None, *, opset: int = 22, x: Any = IMAGE, **attrs: Any
) -> onnx.ModelProto:
    """A model of one node; its operands are separated by blanks, ``_`` is none."""
    names = [n.replace("_", "") for n in operands.split()]
    inputs = {"x": x} if "x" in names else {}
    return model(
        [N(op, names, ["y"], **attrs)], inputs, ["y"], constants, opset=opset, opsets=[helper.make_opsetid(ML, 4)]
    )


def of_contrib(op: str, operands: str, *, num_heads: int | None = None, **constants: Any) -> onnx.ModelProto:
    """A model of one node of com.microsoft, of which ONNX's checker knows nothing."""
    names, attrs = [n.replace("_", "") for n in operands.split()], {} if num_heads is None else {"num_heads": num_heads}
    inputs = {"x": (np.float32, [1, 3, 4])} if "x" in names else {}
    arrays = {n: np.asarray(v, np.float32 if isinstance(v, float) else None) for n, v in constants.items()}
    node = N(op, names, ["y"], domain=MICROSOFT, **attrs)
    return model([node], inputs, ["y"], arrays, opsets=[helper.make_opsetid(MICROSOFT, 1)])


def of_function() -> onnx.ModelProto:
    """A function whose constant is an integer, called with text."""
    inner = N("Constant", [], ["b"])
    inner.attribute.append(AttributeProto(name="value_int", ref_attr_name="n", type=AttributeProto.INT))
    function = helper.make_function("own", "F", [], ["b"], [inner], [helper.make_opsetid("", 17)], ["n"])
    node = N("F", [], ["y"], domain="own", n="text")
    return model([node], {}, ["y"], opsets=[helper.make_opsetid("own", 1)], functions=[function])


MASKED = {"w": floats(1, 1, 2, 2), "o": floats(1, 8, 2, 2)}
POOL = {"r": np.float32([[0, 0, 0, 2, 2]])}
GRAMS = {"pool_int64s": [1, 2], "ngram_counts": [0], "mode": "TF", "min_gram_length": 1, "max_gram_length": 1,
         "max_skip_count": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (one("DeformConv", "x w o _ m", MASKED | {"m": floats(10)}), "input 4 has rank 1"),
        (one("Slice", "c s x", {"c": floats(4), "s": np.int64(0)}, x=(np.int64, [1])), "input 1 has rank 0"),
        (one("AffineGrid", "t s", {"t": floats(1, 2, 3), "s": ints(1, 1, 2, 2)}, align_corners="x"), "value_int"),
        (one("HannWindow", "n", {"n": np.int64(4)}, periodic="x"), "value_int"),
        (one("CenterCropPad", "x s", {"s": ints(2)}, axes="x"), "value_ints"),
        (of_function(), "value_int"),
        (one("Trilu", "x k", {"k": np.float32(np.nan)}), "input 1 should be an integer, it is f32"),
        (one("DFT", "x n", {"n": np.float32(np.inf)}, x=(np.float32, [1, 4, 1]), axis=1, opset=17), "an integer"),
        (one("STFT", "x n w", {"n": np.int64(1), "w": np.float32(1)}, x=(np.float32, [1, 8, 1])), "input 2 has rank 0"),
        (
            one("MelWeightMatrix", "n n n f f", {"n": np.int64(8), "f": np.float32(np.nan)}),
            "frequencies from nan to nan Hz",
        ),
        (one("MaxRoiPool", "x r", POOL, pooled_shape=[FAR, 1]), "pooled_shape is"),
        (
            one("Attention", "q x x x", {"q": np.ones((1, 1, 3, 3), np.int32)}, opset=23, is_causal=1),
            "does not take i32 operands",
        ),
        (one("RoiAlign", "x r i i", {"r": floats(1, 4), "i": ints(0)}), "input size 4 not in range"),
        (of_contrib("MultiHeadAttention", "x x x b", b=1.0, num_heads=1), "input 3 has rank 0"),
        (of_contrib("MultiHeadAttention", "q q q", q=1.0, num_heads=1), "made of an operand of rank 0, not 3"),
        (of_contrib("MultiHeadAttention", "q q q", q=np.ones((1, 1, 4), np.uint8), num_heads=1), "not take u8"),
        (of_contrib("MultiHeadAttention", "x x x _ _ b", b=1.0, num_heads=1), "input 5 has rank 0"),
        (of_contrib("Attention", "q w", q=floats(4), w=floats(4, 12), num_heads=1), "make f32.12."),
        (of_contrib("RotaryEmbedding", "x p c c", p=np.int64([[0, 1, 2]]), c=floats(3)), "input 2 has rank 1"),
        (of_contrib("EmbedLayerNormalization", "i _ e e _ g g", i=np.int32(0), e=floats(2, 4), g=floats(4)), "rank 0"),
        (one("ReduceMax", "e", {"e": np.zeros((2, 0), ml_dtypes.int4)}), "does not take i4 operands"),
        (
            one("LabelEncoder", "s", {"s": np.array(["a"], object)}, domain=ML, keys_strings=["a"],
                values_int64s=[1], default_tensor=numpy_helper.from_array(np.float32([np.nan]))),
            "the default values are 1 elements of float32, not one of i64",
        ),
        (one("Upsample", "x", scales=[1, 1, 2, 2], opset=7), "attribute scales has the wrong type"),
    ],
    ids=lambda v: v.graph.node[0].op_type if isinstance(v, onnx.ModelProto) else "",
)
def test_they_break_the_model(proto: onnx.ModelProto, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        import_onnx(proto)


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (
            one("DFT", "x", x=(np.float32, [1, 0, 1]), axis=1, inverse=1, opset=17),
            "a Fourier transform of 0 elements",
        ),
        (
            one("TfIdfVectorizer", "t", {"t": ints(1, 2)}, **GRAMS, ngram_indexes=[0, FAR]),
            "9223372036854775808 places",
        ),
        (
            one("Resize", "x _ _ s", {"s": ints(1, 1, 3, FAR)}, mode="linear", antialias=1),
            "more than 67108864 weights",
        ),
    ],
    ids=lambda v: v.graph.node[0].op_type if isinstance(v, onnx.ModelProto) else "",
)
def test_they_are_refused(proto: onnx.ModelProto, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        import_onnx(proto)
