"""Uniform: random numbers by Philox 4x32-10, which makes 128 random bits of a counter and a key.

The counter is the element's place and the key the seed, so that every element is computed by itself.
J. K. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, flat_index
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, const, index
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import movement
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import FLOATS, check_dtype

Attrs = Mapping[str, Any]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio, and sqrt(3) - 1
_MASK = (1 << 32) - 1


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    if types:
        raise ModelError(f"Uniform takes no operands, got {len(types)}")
    if attrs["half"] not in (0, 1) or not 0 <= attrs["seed"] < 1 << 64:
        raise ModelError(f"Uniform: half {attrs['half']} of the numbers of the seed {attrs['seed']}")
    t = TensorType(attrs["dtype"], tuple(attrs["shape"]))
    check_dtype("Uniform", t, FLOATS)
    return (t,)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    place = np.arange(int(np.prod(attrs["shape"], dtype=np.int64)), dtype=np.uint64)
    low, word = np.uint64(_MASK), np.uint64(32)
    c = [place & low, place >> word, np.zeros_like(place), np.zeros_like(place)]
    key = [attrs["seed"] & _MASK, attrs["seed"] >> 32]
    for _ in range(ROUNDS):
        a, b = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [(b >> word) ^ c[1] ^ np.uint64(key[0]), b & low, (a >> word) ^ c[3] ^ np.uint64(key[1]), a & low]
        key = [(k + s) & _MASK for k, s in zip(key, KEY_STEPS)]
    first, second = c[2 * attrs["half"] : 2 * attrs["half"] + 2]
    if attrs["dtype"] is DType.F64:
        numbers = (((first << word) | second) >> np.uint64(11)) * 2.0**-53
    else:
        numbers = (first >> np.uint64(8)) * 2.0**-24
    return (numbers.reshape(attrs["shape"]).astype(attrs["dtype"].numpy),)


def _lower(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    place, word = index(flat_index(coords, node.output.shape)), const(32, DType.U64)
    words = [cast(place, DType.U32), cast(binary("shr", place, const(32, DType.I64)), DType.U32)]
    words += [const(0, DType.U32)] * 2
    seed = node.attrs["seed"]
    for r in range(ROUNDS):
        keys = [((seed >> shift) + r * step) & _MASK for shift, step in zip((0, 32), KEY_STEPS)]
        products = [
            binary("mul", cast(words[i], DType.U64), const(m, DType.U64)) for i, m in zip((0, 2), MULTIPLIERS)
        ]
        upper = [cast(binary("shr", p, word), DType.U32) for p in products]
        lower = [cast(p, DType.U32) for p in products]
        mixed = [
            binary("bitxor", binary("bitxor", u, w), const(k, DType.U32))
            for u, w, k in zip(reversed(upper), (words[1], words[3]), keys)
        ]
        words = [mixed[0], lower[1], mixed[1], lower[0]]
    first, second = words[2 * node.attrs["half"] :][:2]
    if node.output.dtype is DType.F64:
        both = binary("bitor", binary("shl", cast(first, DType.U64), word), cast(second, DType.U64))
        return cast(binary("shr", both, const(11, DType.U64)), DType.F64) * 2.0**-53
    return cast(binary("shr", first, const(8, DType.U32)), DType.F32) * 2.0**-24


movement(
    "Uniform", "", _infer, _reference, _lower,
    {
        "shape": Attr("dims", required=True),
        "seed": Attr("int", required=True),
        "half": Attr("int", 0),
        "dtype": Attr("dtype", DType.F32),
    },
    [
        Case((), {"shape": (3, 5), "seed": 0}),
        Case((), {"shape": (4, 2, 3), "seed": 0xFEDCBA9876543210, "half": 1}),
        Case((), {"shape": (7,), "seed": 1 << 63, "dtype": DType.F64}),
        Case((), {"shape": (5,), "seed": 3, "half": 1, "dtype": DType.F64}),
        Case((), {"shape": (), "seed": 9, "dtype": DType.F16}),
    ],
    cost=100,
    doc="numbers in [0, 1), multiples of 2^-24 (f64: 2^-53), of Philox 4x32-10: the counter is an element's place, the "
    "key is ``seed``; ``half`` says which 64 bits of the counter's 128 are used",
)  # fmt: skip
