"""Hugging Face folders of every method: each decodes as a written-out formula, or the method's own library, says."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.tensors import Packed
from arcweld.compiler.mapped import is_mapped
from arcweld.models import reencode

LAYER = "model.layers.0.mlp.up_proj"
Arrays = dict[str, np.ndarray]


def weights(n: int, k: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        f"{LAYER}.weight": rng.normal(0.01, 0.05, (n, k)).astype(np.float32),
        "model.norm.weight": rng.normal(1, 0.1, k).astype(np.float32),
    }


def written(folder: Path, made: tuple[Arrays, dict[str, Any]]) -> Arrays:
    """Writes a checkpoint; its layer's parts as the safetensors package reads them."""
    reencode.write_folder(folder, {}, made[0], made[1])
    found = safetensors.torch.load_file(folder / "model.safetensors")
    return {n.removeprefix(f"{LAYER}."): as_numpy(t) for n, t in found.items() if n.startswith(LAYER)}


def as_numpy(t: torch.Tensor) -> np.ndarray:
    if t.dtype is torch.float8_e4m3fn:
        return t.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    found: np.ndarray = t.numpy()
    return found


def opened(folder: Path) -> tuple[np.ndarray, Packed]:
    """The layer as f32, and packed, whose decoding is the same."""
    tensor = open_checkpoint(folder).tensors[f"{LAYER}.weight"]
    packed = tensor.to_stored()
    assert isinstance(packed, Packed)
    wide = tensor.decode()
    np.testing.assert_array_equal(packed.decode(), wide)
    return wide, packed


def field(words: np.ndarray, bits: int, i: int) -> int:
    """Field ``i`` of a vector of words, which is one long number."""
    number = int.from_bytes(np.ascontiguousarray(words).astype("<i4").tobytes(), "little")
    return number >> bits * i & ((1 << bits) - 1)


# ---------------------------------------------------------------------------------------------------------------- GPTQ


def by_gptq(parts: Arrays, bits: int, version: int) -> np.ndarray:
    """The formula of GPTQ: code less zero point, times scale, in f32; of format 1, a zero point is 1 more than stored.

    Codes of a column follow one another in its words, and zero points of a group in a row of words.
    """
    (groups, n), k = parts["scales"].shape, parts["g_idx"].size
    wide = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            g = int(parts["g_idx"][j])
            zero = field(parts["qzeros"][g], bits, i) + (version == 1)
            code = field(parts["qweight"][:, i], bits, j)
            wide[i, j] = np.float32(code - zero) * np.float32(parts["scales"][g, i])
    assert groups == parts["g_idx"].max() + 1
    return wide


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq(bits: int, version: int, act_order: bool, symmetric: bool, tmp_path: Path) -> None:
    state = weights(32, 96)
    parts = written(tmp_path, reencode.gptq(state, bits, 32, version=version, act_order=act_order, symmetric=symmetric))
    wide, packed = opened(tmp_path)
    zeros = [field(parts["qzeros"][g], bits, i) for g in range(3) for i in range(32)]
    assert version == 2 or max(zeros) < (1 << bits) - 1, "a field that wrapped has no formula"
    np.testing.assert_array_equal(wide, by_gptq(parts, bits, version))
    assert (packed.order is not None) == act_order
    assert packed.dtype.bits == {2: 2, 3: 4, 4: 4, 8: 8}[bits]
    assert symmetric == (packed.zero is not None and packed.zero.ndim == 0)
    error = np.abs(wide - state[f"{LAYER}.weight"]).max() / np.abs(wide).max()
    assert error < {2: 0.5, 3: 0.2, 4: 0.1, 8: 0.006}[bits]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_of_0_in_format_1(bits: int, tmp_path: Path) -> None:
    """Writers subtract 1 from all fields of a word at once: a field of 0 borrows, and adding gives it back."""
    state = weights(64, 64)
    state[f"{LAYER}.weight"][::3] = np.abs(state[f"{LAYER}.weight"][::3])
    for version in (1, 2):
        written(tmp_path / str(version), reencode.gptq(state, bits, 32, version=version))
    (one, packed), (two, _) = opened(tmp_path / "1"), opened(tmp_path / "2")
    assert packed.zero is not None
    assert (packed.zero.astype(np.int32) == 0).any()
    np.testing.assert_array_equal(one, two)


@given(
    bits=st.sampled_from([2, 3, 4, 8]), n=st.integers(1, 4), k=st.integers(1, 4),
    group=st.sampled_from([-1, 16, 32, 64]), act_order=st.booleans(),
)  # fmt: skip
def test_gptq_of_any_shape(
    bits: int, n: int, k: int, group: int, act_order: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also a last group of fewer inputs, and one scale for all."""
    folder = tmp_path_factory.mktemp("gptq")
    made = reencode.gptq(weights(32 * n, 32 * k), bits, group, version=2, act_order=act_order and group < 32 * k)
    parts = written(folder, made)
    tensor = open_checkpoint(folder).tensors[f"{LAYER}.weight"]
    np.testing.assert_array_equal(tensor.decode(), by_gptq(parts, bits, 2))
    assert not tensor.widened


def test_act_order_in_unequal_groups_is_widened_and_said(tmp_path: Path) -> None:
    arrays, settings = reencode.gptq(weights(32, 96), 4, 32, act_order=True)
    index = arrays[f"{LAYER}.g_idx"].copy()
    index[np.flatnonzero(index == 0)[0]] = 1
    parts = written(tmp_path, (arrays | {f"{LAYER}.g_idx": index}, settings))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.widened() == {f"{LAYER}.weight": "groups of unequal size"}
    assert checkpoint.summary().endswith("1 widened to f32: groups of unequal size")
    np.testing.assert_array_equal(checkpoint.tensors[f"{LAYER}.weight"].to_stored(), by_gptq(parts, 4, 2))


def test_layers_with_bits_of_their_own(tmp_path: Path) -> None:
    """GPTQModel's ``dynamic``: the shapes say bits and groups."""
    arrays, settings = reencode.gptq(weights(32, 64), 8, 16)
    parts = written(tmp_path, (arrays, settings | {"bits": 4, "group_size": 32, "dynamic": {"+:.*up.*": {"bits": 8}}}))
    np.testing.assert_array_equal(opened(tmp_path)[0], by_gptq(parts, 8, 2))


# ----------------------------------------------------------------------------------------------------------------- AWQ


def by_awq(parts: Arrays, version: str, group: int) -> np.ndarray:
    """The formula of AWQ: code less zero point, times scale, in f32."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    gemm = version == "gemm"
    rows, columns = parts["qweight"].shape
    (k, n) = (rows, columns * 8) if gemm else (columns * 8, rows)
    wide = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            if gemm:
                place = 8 * (i // 8) + order.index(i % 8)
                code = field(parts["qweight"][j], 4, place)
                zero, scale = field(parts["qzeros"][j // group], 4, place), parts["scales"][j // group, i]
            else:
                code = field(parts["qweight"][i], 4, j)
                zero, scale = field(parts["qzeros"][i], 4, j // group), parts["scales"][i, j // group]
            wide[i, j] = np.float32(code - zero) * np.float32(scale)
    return wide


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@given(n=st.integers(1, 6), k=st.integers(1, 5), group=st.sampled_from([32, 64, 128]))
def test_awq(version: str, n: int, k: int, group: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("awq")
    state = weights(8 * n, 32 * k)
    parts = written(folder, reencode.awq(state, group, version))
    wide, packed = opened(folder)
    np.testing.assert_array_equal(wide, by_awq(parts, version, group))
    assert np.abs(wide - state[f"{LAYER}.weight"]).max() < 0.1 * np.abs(wide).max()
    assert packed.dtype.bits == 4


# -------------------------------------------------------------------------------------------------- compressed-tensors


def by_library(parts: Arrays, settings: dict[str, Any]) -> np.ndarray:
    """What compressed-tensors itself makes of a layer, with its scales as f32: it rounds to the scales' type."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme(**settings["config_groups"]["group_0"])
    state = {n: torch.from_numpy(a.astype(np.float32) if n == "weight_scale" else a.view(np.uint8) if a.dtype ==
             ml_dtypes.float8_e4m3fn else a.copy()) for n, a in parts.items()}  # fmt: skip
    if settings["format"] == "float-quantized":
        state["weight"] = state["weight"].view(torch.float8_e4m3fn)
    made = BaseCompressor.get_value_from_registry(settings["format"]).decompress(state, scheme)["weight"]
    found: np.ndarray = made.numpy()
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [0, 32, 64])
def test_pack_quantized(bits: int, group: int, symmetric: bool, tmp_path: Path) -> None:
    arrays, settings = reencode.compressed(weights(40, 128), "pack-quantized", bits, group, symmetric=symmetric)
    _, packed = opened_beside_library(tmp_path, arrays, settings)
    assert packed.dtype.bits == {2: 2, 3: 4, 4: 4, 5: 8, 8: 8}[bits]
    assert is_mapped(packed.elements) == (bits not in (3, 5))


def opened_beside_library(folder: Path, arrays: Arrays, settings: dict[str, Any]) -> tuple[np.ndarray, Packed]:
    parts = written(folder, (arrays, settings))
    wide, packed = opened(folder)
    np.testing.assert_array_equal(wide, by_library(parts, settings))
    return wide, packed


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 32])
def test_int_quantized(group: int, symmetric: bool, tmp_path: Path) -> None:
    arrays, settings = reencode.compressed(weights(24, 96), "int-quantized", 8, group, symmetric=symmetric)
    _, packed = opened_beside_library(tmp_path, arrays, settings)
    assert is_mapped(packed.elements)
    assert packed.block == group


def test_float_quantized(tmp_path: Path) -> None:
    _, packed = opened_beside_library(tmp_path, *reencode.compressed(weights(24, 96), "float-quantized"))
    assert packed.elements.dtype == ml_dtypes.float8_e4m3fn
    assert is_mapped(packed.elements)


@given(n=st.integers(1, 40), k=st.integers(1, 70), bits=st.sampled_from([2, 3, 4, 6, 8]), symmetric=st.booleans())
def test_pack_quantized_of_any_shape(
    n: int, k: int, bits: int, symmetric: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows that end inside of a word."""
    arrays, settings = reencode.compressed(weights(n, k), "pack-quantized", bits, 0, symmetric=symmetric)
    opened_beside_library(tmp_path_factory.mktemp("pack"), arrays, settings)


def test_blocks_of_floats(tmp_path: Path) -> None:
    """FP8_BLOCK: a scale for each block of rows and columns, the last ones smaller."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 20, (40, 72)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (3, 3)).astype(np.float32)
    weights_ = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": [16, 32]}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights_}}}  # fmt: skip
    written(tmp_path, ({f"{LAYER}.weight": data, f"{LAYER}.weight_scale": scale}, settings))
    want = data.astype(np.float32) * scale[np.arange(40)[:, None] // 16, np.arange(72) // 32]
    np.testing.assert_array_equal(opened(tmp_path)[0], want)


def test_groups_in_another_order(tmp_path: Path) -> None:
    """``actorder: group``: a part tells the group of each column."""
    state = weights(24, 96)
    arrays, settings = reencode.compressed(state, "pack-quantized", 4, 32)
    index = np.random.default_rng(0).permutation(np.arange(96, dtype=np.int32) // 32)
    parts = written(tmp_path / "a", (arrays | {f"{LAYER}.weight_g_idx": index}, settings))
    codes = np.array([[field(row, 4, j) for j in range(96)] for row in parts["weight_packed"]])
    want = (codes - 8).astype(np.float32) * parts["weight_scale"].astype(np.float32)[:, index]
    wide, packed = opened(tmp_path / "a")
    np.testing.assert_array_equal(wide, want)
    assert packed.order is not None
    np.testing.assert_array_equal(index[packed.order], np.arange(96) // 32)
    written(tmp_path / "b", (arrays | {f"{LAYER}.weight_g_idx": np.full(96, -1, np.int32)}, settings))  # in place
    written(tmp_path / "c", (arrays, settings))
    np.testing.assert_array_equal(opened(tmp_path / "b")[0], opened(tmp_path / "c")[0])


def test_groups_of_layers_with_different_schemes(tmp_path: Path) -> None:
    """Two groups, told apart by expressions."""
    first, settings = reencode.compressed(weights(16, 64), "pack-quantized", 4, 32)
    other = {f"{LAYER}.weight".replace("up", "down"): weights(16, 64, 1)[f"{LAYER}.weight"]}
    second, more = reencode.compressed(other, "pack-quantized", 8, 0)
    groups = {
        "a": settings["config_groups"]["group_0"] | {"targets": ["re:.*up_proj$"]},
        "b": more["config_groups"]["group_0"] | {"targets": ["re:.*down_proj$"]},
    }
    reencode.write_folder(tmp_path, {}, first | second, settings | {"config_groups": groups})
    kinds = {n: t.layout.kind for n, t in open_checkpoint(tmp_path).tensors.items() if "proj" in n}
    assert sorted(kinds.values()) == ["pack-quantized 4 bits", "pack-quantized 8 bits"]
    assert kinds[f"{LAYER}.weight"] == "pack-quantized 4 bits"


# -------------------------------------------------------------------------------------------------------------- others


def test_modelopt(tmp_path: Path) -> None:
    arrays, settings = reencode.modelopt(weights(24, 96))
    parts = written(tmp_path / "a", (arrays, settings))
    want = parts["weight"].astype(np.float32) * parts["weight_scale"]
    np.testing.assert_array_equal(opened(tmp_path / "a")[0], want)
    # older versions write a file of their own
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    reencode.write_folder(tmp_path / "b", {}, arrays)
    (tmp_path / "b" / "hf_quant_config.json").write_text(json.dumps(own))
    np.testing.assert_array_equal(opened(tmp_path / "b")[0], want)
    assert open_checkpoint(tmp_path / "b").quantisation == "modelopt"


def test_transformers_fp8(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(0, 20, (200, 130)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (2, 2)).astype(np.float32)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    written(tmp_path, ({f"{LAYER}.weight": data, f"{LAYER}.weight_scale_inv": scale}, settings))
    want = data.astype(np.float32) * scale[np.arange(200)[:, None] // 128, np.arange(130) // 128]
    np.testing.assert_array_equal(opened(tmp_path)[0], want)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_unquantised_tensors_are_views_of_the_files(shards: int, dtype: Any, tmp_path: Path) -> None:
    state = weights(24, 96) | {"lm_head.weight": np.ones((5, 96), np.float32)}
    reencode.write_folder(tmp_path, {}, reencode.dense(state, dtype), shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(state)
    for name, array in state.items():
        stored = checkpoint.tensors[name].to_stored()
        assert isinstance(stored, np.ndarray)
        assert is_mapped(stored)
        assert not stored.flags.writeable
        np.testing.assert_array_equal(stored, array.astype(dtype))
        np.testing.assert_array_equal(checkpoint.tensors[name].decode(), array.astype(dtype).astype(np.float32))


def test_older_gptq_folders(tmp_path: Path) -> None:
    """AutoGPTQ's file has a name of its own, and its configuration is a file."""
    arrays, settings = reencode.gptq(weights(32, 64), 4, 32, version=1)
    parts = written(tmp_path, (arrays, settings))
    os.rename(tmp_path / "model.safetensors", tmp_path / "gptq_model-4bit-32g.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    np.testing.assert_array_equal(opened(tmp_path)[0], by_gptq(parts, 4, 1))


def test_a_large_checkpoint_is_opened_without_reading_it(tmp_path: Path) -> None:
    """64 GiB, which are a hole in the file."""
    (tmp_path / "config.json").write_text("{}")
    size = 1 << 36
    entries = {
        "big": {"dtype": "F16", "shape": [1 << 15, 1 << 20], "data_offsets": [0, size]},
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
    }
    header = json.dumps(entries).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(size, os.SEEK_CUR)
        file.write(np.array([1, 2], np.float32).tobytes())
    tracemalloc.start()
    tensors = open_checkpoint(tmp_path).tensors
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert tensors["big"].nbytes == size
    np.testing.assert_array_equal(tensors["small"].decode(), [1, 2])
    stored = tensors["big"].to_stored()
    assert isinstance(stored, np.ndarray)
    assert stored[-1, -1] == 0


@pytest.mark.parametrize("form", sorted(reencode.FOLDERS))
def test_tensors_at_odd_addresses(form: str, tmp_path: Path) -> None:
    """Other writers end a header at any byte. All parts are views of the file, whatever their addresses are."""
    state = weights(32, 64)
    even = reencode.write_folder(tmp_path / "even", {}, *reencode.FOLDERS[form](state))
    odd = reencode.write_folder(tmp_path / "odd", {}, *reencode.FOLDERS[form](state))
    data = (odd / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    moved = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    (odd / "model.safetensors").write_bytes(moved)
    found = [open_checkpoint(folder).tensors for folder in (even, odd)]
    for name, tensor in found[1].items():
        assert all(is_mapped(p) for p in tensor.parts.values())
        np.testing.assert_array_equal(tensor.decode(), found[0][name].decode())


@pytest.mark.parametrize("method", ["gptq", "act-order", "gptq 3 bits", "awq"])
def test_packing_takes_the_memory_of_its_result(method: str, tmp_path: Path) -> None:
    """4M elements: the peak is the result and a chunk's temporaries, less than the matrix has in f32."""
    state = weights(2048, 2048)
    if method == "awq":
        made = reencode.awq(state, 128)
    else:
        made = reencode.gptq(state, 3 if "3" in method else 4, 128, act_order="act" in method)
    written(tmp_path, made)
    tensor = open_checkpoint(tmp_path).tensors[f"{LAYER}.weight"]
    tracemalloc.start()
    packed = tensor.to_stored()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(packed, Packed)
    assert peak < packed.nbytes + (10 << 20)
