"""Launch parameters: the struct's layout and bytes against ctypes, and their conversion from one form to the next."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.dims import evaluate, parse, symbol, to_text
from arcweld.compiler.parameters import Float, Integer, Parameter, Pointer, TensorMap, pack, struct_offsets

CTYPES: dict[str, Any] = {
    "pointer": ctypes.c_uint64, "i32": ctypes.c_int32, "i64": ctypes.c_int64, "float": ctypes.c_float,
}  # fmt: skip


def parameter(kind: str, name: str, value: int) -> Parameter[int]:
    """A parameter whose value follows from ``value``."""
    if kind == "pointer":
        return Pointer(name, f"t{value}")
    if kind == "float":
        return Float(name, value / 8)
    return Integer(name, value, int(kind[1:]))


@given(st.lists(st.tuples(st.sampled_from(sorted(CTYPES)), st.integers(-(1 << 20), 1 << 20)), max_size=12))
def test_bytes_are_those_of_a_c_struct(members: list[tuple[str, int]]) -> None:
    params = [parameter(kind, f"m{i}", value) for i, (kind, value) in enumerate(members)]
    addresses = {f"t{value}": abs(value) << 20 for _, value in members}
    declared = [(f"m{i}", CTYPES[kind]) for i, (kind, _) in enumerate(members)]
    oracle = type("Params", (ctypes.Structure,), {"_fields_": declared})
    want = oracle()
    for i, (kind, value) in enumerate(members):
        setattr(want, f"m{i}", addresses[f"t{value}"] if kind == "pointer" else value / 8 if kind == "float" else value)
    offsets = tuple(getattr(oracle, f"m{i}").offset for i in range(len(members)))
    assert struct_offsets(params) == (offsets, ctypes.sizeof(oracle))
    assert pack(params, addresses, no_descriptor) == bytes(want)


def no_descriptor(view: TensorMap[int], address: int) -> bytes:
    raise AssertionError("there is no tensor map")


VIEW = TensorMap("m", "x", 48, (64, 8), (128,), (64, 8), (1, 1))


def test_a_tensor_map_is_aligned_to_64_bytes_and_encoded_at_its_first_byte() -> None:
    asked: list[tuple[TensorMap[int], int]] = []

    def encode(view: TensorMap[int], address: int) -> bytes:
        asked.append((view, address))
        return bytes(range(128))

    params: list[Parameter[int]] = [Pointer("x", "x"), Integer("n", 7), VIEW, Integer("after", -1)]
    assert struct_offsets(params) == ((0, 8, 64, 192), 256)
    packed = pack(params, {"x": 0x1000}, encode)
    assert asked == [(VIEW, 0x1030)]
    assert packed[64:192] == bytes(range(128))
    assert packed[:16] == (0x1000).to_bytes(8, "little") + (7).to_bytes(4, "little") + bytes(4)
    assert packed[192:] == b"\xff" * 4 + bytes(60)
    assert struct_offsets(()) == ((), 0)


def test_a_parameter_goes_from_dimensions_through_text_to_numbers() -> None:
    n = symbol("n", 1)
    rendered: tuple[Parameter[Any], ...] = (
        Pointer("in0", "in0"), Integer("count", n * 8 + 1), Float("scale", 0.5),
        TensorMap("map_a", "in0", n * 2, (64, n), (n * 128,), (64, 8), (1, 2), 64),
    )  # fmt: skip
    stored = tuple(p.convert(to_text, {"in0": "layer.x"}.__getitem__) for p in rendered)
    data = msgspec.json.encode(stored)
    assert msgspec.json.decode(data, type=tuple[Parameter[str], ...]) == stored
    numbers = tuple(p.convert(lambda text: evaluate(parse(text), {"n": 5})) for p in stored)
    assert numbers == (
        Pointer("in0", "layer.x"), Integer("count", 41), Float("scale", 0.5),
        TensorMap("map_a", "layer.x", 10, (64, 5), (640,), (64, 8), (1, 2), 64),
    )  # fmt: skip


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1])
def test_an_integer_beyond_its_bits_is_not_packed(value: int) -> None:
    assert pack([Integer("n", value, 64)], {}, no_descriptor) == value.to_bytes(8, "little", signed=True)
    with pytest.raises(struct.error):
        pack([Integer("n", value)], {}, no_descriptor)
