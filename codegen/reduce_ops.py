"""What the reducing templates know of each combiner: its C++ functor, its identity, and the accumulator's
type.
"""

from __future__ import annotations

from arcweld.compiler.dtypes import DType

COMBINERS = {"sum": "OpSum", "prod": "OpProd", "max": "OpMax", "min": "OpMin"}
ARG_COMBINERS = ("argmax", "argmin")

_LIMITS: dict[DType, tuple[str, str]] = {
    DType.I8: ("-128", "127"),
    DType.I16: ("-32768", "32767"),
    DType.I32: ("(-2147483647 - 1)", "2147483647"),
    DType.I64: ("(-9223372036854775807ll - 1)", "9223372036854775807ll"),
    DType.U8: ("0", "255"),
    DType.U16: ("0", "65535"),
    DType.U32: ("0", "4294967295u"),
    DType.U64: ("0", "18446744073709551615ull"),
    DType.BOOL: ("false", "true"),
}


def identity(combine: str, dtype: DType) -> str:
    """C text of the value that changes nothing: what an empty reduction gives (ONNX's rule for max and min
    too).
    """
    if combine in ("sum", "prod"):
        return f"{dtype.cuda}({int(combine == 'prod')})"
    lowest = combine in ("max", "argmax")
    if dtype.is_float:
        return f"{'-' if lowest else ''}({dtype.cuda})INFINITY"
    return f"{dtype.cuda}({_LIMITS[dtype][0 if lowest else 1]})"
