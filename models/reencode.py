"""Writes the weights of a language model in every form that checkpoints have, by rounding to the nearest code.

The forms are those of ``compiler/checkpoints``, whose readers share no code with these writers. Rounding to nearest is
no good method of quantisation: the files are for tests of readers and kernels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from arcweld.runtime import tensors_file

State = Mapping[str, np.ndarray]
AWQ_FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight outputs, the field of a word that each lies in


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix ``[n, k]`` as ``(codes - zero) * scale``: codes ``[n, k]``, ``zero`` and ``scale`` ``[n, groups]``."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


def is_quantised(name: str, array: np.ndarray) -> bool:
    """Whether writers quantise a tensor: the matrices of layers, and neither embeddings nor the head."""
    return array.ndim == 2 and name.endswith("_proj.weight")


def rounded(w: np.ndarray, bits: int, groups: np.ndarray, symmetric: bool) -> Codes:
    """``w`` in codes of ``bits`` bits; ``groups[j]`` is the group of column j. Scales are f16.

    Symmetric codes have the zero point ``2^(bits - 1)``; others reach from the least to the largest of a group and 0.
    """
    count, most = int(groups.max()) + 1, (1 << bits) - 1
    scale, zero = (np.zeros((w.shape[0], count), np.float32) for _ in range(2))
    for g in range(count):
        part = w[:, groups == g]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            scale[:, g], zero[:, g] = np.maximum(-low, high) / ((most - 1) / 2), 1 << (bits - 1)
        else:
            scale[:, g] = (high - low) / most
    scale = np.maximum(scale, 2e-5).astype(np.float16)
    wide = scale.astype(np.float32)
    if not symmetric:
        for g in range(count):
            zero[:, g] = np.clip(np.rint(-np.minimum(w[:, groups == g].min(axis=1), 0) / wide[:, g]), 0, most)
    codes = np.clip(np.rint(w / wide[:, groups]) + zero[:, groups], 0, most)
    return Codes(codes.astype(np.uint32), scale, zero.astype(np.uint32))


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as rows of i32, without gaps, the first code in the lowest bits."""
    rows, columns = codes.shape
    lengths = -(-columns * bits // 32) * 4
    flat = (codes[:, :, None] >> np.arange(bits, dtype=np.uint32) & 1).astype(np.uint8).reshape(rows, -1)
    packed = np.packbits(flat, axis=1, bitorder="little")
    return np.pad(packed, ((0, 0), (0, lengths - packed.shape[1]))).view(np.int32)


# -------------------------------------------------------------------------------------------------------------- folders


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: State, settings: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """Writes ``config.json``, with ``settings`` as its quantization_config, and safetensors files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = dict(config) | ({"quantization_config": dict(settings)} if settings else {})
    (folder / "config.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    names = sorted(tensors)
    parts = [names[i::shards] for i in range(shards)]
    where = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        arrays = {n: np.ascontiguousarray(tensors[n]) for n in part}
        header, order, _ = tensors_file.header(arrays)
        with (folder / file).open("wb") as out:
            for chunk in tensors_file.chunks(arrays, header, order):
                out.write(chunk)
        where.update(dict.fromkeys(part, file))
    if shards > 1:
        total = sum(a.nbytes for a in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def dense(state: State, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """All tensors in one float type."""
    return {name: a.astype(dtype) for name, a in state.items()}


def _layers(state: State) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The matrices to quantise by layer, and the other tensors in f16."""
    chosen = {n.removesuffix(".weight"): a for n, a in state.items() if is_quantised(n, a)}
    return chosen, {n: a.astype(np.float16) for n, a in state.items() if not is_quantised(n, a)}


def gptq(
    state: State, bits: int = 4, group: int = 32, *, version: int = 2, act_order: bool = False, symmetric: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a GPTQ checkpoint and its settings; with ``act_order``, inputs are in groups at random."""
    layers, found = _layers(state)
    for layer, w in layers.items():
        k = w.shape[1]
        size = k if group <= 0 else group
        index = np.arange(k) // size
        if act_order:
            index = np.random.default_rng(k).permutation(index)
        made = rounded(w, bits, index, symmetric)
        zeros = words(made.zero.T, bits)
        if version == 1 and bits == 3:
            zeros = words((made.zero.T - 1) & 7, bits)
        elif version == 1:
            zeros = (zeros.view(np.uint32) - np.uint32(sum(1 << at for at in range(0, 32, bits)))).view(np.int32)
        found |= {
            f"{layer}.qweight": words(made.codes, bits).T, f"{layer}.qzeros": zeros, f"{layer}.scales": made.scale.T,
            f"{layer}.g_idx": index.astype(np.int32),
        }  # fmt: skip
    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    return found, settings


def awq(state: State, group: int = 32, version: str = "gemm") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of an AWQ checkpoint and its settings."""
    layers, found = _layers(state)
    for layer, w in layers.items():
        made = rounded(w, 4, np.arange(w.shape[1]) // group, symmetric=False)
        if version == "gemm":
            parts = {"qweight": _in_outputs(made.codes), "qzeros": _in_outputs(made.zero), "scales": made.scale.T}
        else:
            pad = -made.zero.shape[1] % (8 * max(1, 128 // group))
            zero, scale = (np.pad(a, ((0, 0), (0, pad))) for a in (made.zero, made.scale))
            parts = {"qweight": words(made.codes, 4), "qzeros": words(zero, 4), "scales": scale}
        found |= {f"{layer}.{part}": a for part, a in parts.items()}
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}
    return found, settings


def _in_outputs(codes: np.ndarray) -> np.ndarray:
    """Codes ``[n, m]`` as words ``i32[m, n / 8]`` in the order of AWQ's gemm."""
    n, m = codes.shape
    eights = codes.T.reshape(m, n // 8, 8).astype(np.uint32)
    shifts = 4 * np.array(AWQ_FIELDS, np.uint32)
    return np.bitwise_or.reduce(eights << shifts, axis=2).view(np.int32)


def compressed(
    state: State, form: str = "pack-quantized", bits: int = 4, group: int = 32, *, symmetric: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a checkpoint of compressed-tensors and its settings; ``group`` 0: scales for whole rows."""
    layers, found = _layers(state)
    for layer, w in layers.items():
        k = w.shape[1]
        if form == "float-quantized":
            scale = np.maximum(np.abs(w).max(axis=1, keepdims=True) / 448, 1e-6)
            parts = {"weight": (w / scale).astype(ml_dtypes.float8_e4m3fn), "weight_scale": scale}
        else:
            made = rounded(w, bits, np.arange(k) // (group or k), symmetric)
            parts = {"weight_scale": made.scale}
            if form == "pack-quantized":
                parts |= {"weight_packed": words(made.codes, bits), "weight_shape": np.array(w.shape, np.int64)}
                zero = words(made.zero.T, bits).T
            else:
                half = 1 << (bits - 1)
                parts["weight"] = (made.codes.astype(np.int32) - half).astype(np.int8)
                zero = (made.zero.astype(np.int32) - half).astype(np.int8)
            if not symmetric:
                parts["weight_zero_point"] = zero
        found |= {f"{layer}.{part}": a for part, a in parts.items()}
    is_float = form == "float-quantized"
    weights = {
        "num_bits": 8 if is_float else bits, "type": "float" if is_float else "int",
        "symmetric": symmetric, "strategy": "group" if group and not is_float else "channel",
        "group_size": group if group and not is_float else None,
    }  # fmt: skip
    settings = {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
    }  # fmt: skip
    return found, settings


def modelopt(state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a checkpoint of ModelOpt in FP8, a scale for each matrix, and its settings."""
    layers, found = _layers(state)
    for layer, w in layers.items():
        scale = np.array(max(float(np.abs(w).max()) / 448, 1e-6), np.float32)
        found[f"{layer}.weight"] = (w / scale).astype(ml_dtypes.float8_e4m3fn)
        found[f"{layer}.weight_scale"] = scale
        found[f"{layer}.input_scale"] = np.array(1, np.float32)
    return found, {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]}


# ----------------------------------------------------------------------------------------------------------------- GGUF


def write_gguf(
    path: Path, arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, str]]
) -> Path:
    """Writes a GGUF file by the package ``gguf``: each tensor as f32 with the name of its type, or as bytes of it.

    ``metadata``: int, float, str, bool and lists of these, by full key.
    """
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, (array, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        data = array if array.dtype == np.uint8 else gguf.quants.quantize(array, number)
        raw = None if data.dtype in (np.float32, np.float16) else number
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    else:
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
