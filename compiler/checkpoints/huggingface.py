"""Reads the folder of a model as Hugging Face has it: ``config.json`` and safetensors files, perhaps with an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arcweld.compiler.checkpoints.awq import read_awq
from arcweld.compiler.checkpoints.cache_settings import states_caches
from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.compressed import read_compressed
from arcweld.compiler.checkpoints.files import COPY_AGAIN, open_safetensors, read_json
from arcweld.compiler.checkpoints.float8 import read_float8, read_modelopt
from arcweld.compiler.checkpoints.gptq import read_gptq
from arcweld.compiler.checkpoints.raw import Raw
from arcweld.compiler.checkpoints.tensors import StoredTensor
from arcweld.compiler.errors import ModelError, UnsupportedError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")

# parts of quantised layers, by any method: none is a tensor of its own
PARTS = frozenset({
    "qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
    "weight_g_idx", "weight_scale_inv",
})  # fmt: skip

METHODS: Mapping[str, Callable[[Mapping[str, Any], Raw], dict[str, StoredTensor]]] = {
    "gptq": read_gptq, "awq": read_awq, "compressed-tensors": read_compressed, "modelopt": read_modelopt,
    "fp8": read_float8,
}  # fmt: skip
REFUSED = {
    "bitsandbytes": "bitsandbytes stores 4-bit weights as indices into a table of 16 floats, in an order of its own "
    "library, with scales that are quantised once more: no operand of a kernel here has that form",
}


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises ModelError for files that are missing, damaged or contradict each other, UnsupportedError for a method of
    quantisation that is not read, and for pickled weights.
    """
    config = read_json(folder, "config.json")
    if config is None:
        raise ModelError("the folder has no config.json", node=str(folder),
                         hint="name the folder of a Hugging Face model, or a GGUF file")  # fmt: skip
    raw = _tensors(folder)
    method, settings = _quantisation(folder, config)
    found = {}
    if method:
        if method not in METHODS:
            reason = REFUSED.get(method, f"weights quantised by {method[:80]!r} are not read")
            raise UnsupportedError(reason, node=str(folder),
                                   hint=f"use a checkpoint of {', '.join(METHODS)}, GGUF, or one that is not quantised",
                                   )  # fmt: skip
        found = METHODS[method](settings, raw)
        if not found and not states_caches(settings):
            raise ModelError(f"config.json says {method}, and no layer is quantised so", node=str(folder),
                             hint="config.json belongs to another checkpoint: fetch both again")  # fmt: skip
        _check_rest(raw)
    tensors = found | raw.rest()
    _check_sizes(config, tensors)
    return Checkpoint(folder, "Hugging Face", method, config, tensors, settings)


def _tensors(folder: Path) -> Raw:
    raw = Raw()
    index = read_json(folder, INDEX)
    if index is None:
        file = _only_file(folder)
        raw.add(file, open_safetensors(folder, file, f"the weights {file[:200]!r}"))
        return raw
    names = index.get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(f, str) for f in names.values()) or not names:
        raise ModelError("the index has no weight_map from tensors to files", node=INDEX, hint=COPY_AGAIN)
    for file in sorted(set(names.values())):
        first = next(n for n, f in names.items() if f == file)
        raw.add(file, open_safetensors(folder, file, f"file {file[:200]!r} with tensor {first[:200]!r}"))
    for name, file in names.items():
        if raw.files.get(name) != file:
            raise ModelError(f"the index says that tensor {name[:200]!r} is in {file[:200]!r}, and it is not there",
                             node=INDEX, hint=COPY_AGAIN)  # fmt: skip
    return raw


def _only_file(folder: Path) -> str:
    """The safetensors file of a folder without an index: ``model.safetensors``, or the only one, whatever its name."""
    found = sorted(p.name for p in folder.iterdir() if p.name.endswith(".safetensors"))
    if WEIGHTS in found or len(found) == 1:
        return WEIGHTS if WEIGHTS in found else found[0]
    if found:
        raise ModelError(f"the folder has {len(found)} safetensors files and neither {WEIGHTS} nor {INDEX}",
                         node=str(folder), hint="fetch the index too")  # fmt: skip
    pickled = next((p for p in _PICKLES if (folder / p).exists()), "")
    if pickled:
        raise UnsupportedError(f"the weights are pickled ({pickled}), and opening a pickle runs what is in it",
                               node=str(folder), hint="save it as safetensors: save_pretrained does")  # fmt: skip
    raise ModelError(f"the folder has neither {WEIGHTS} nor {INDEX}", node=str(folder),
                     hint="fetch the weights too, or name the GGUF file itself")  # fmt: skip


def _quantisation(folder: Path, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The method that weights are quantised by and its settings; an empty name for none."""
    found = config.get("quantization_config")
    text = config.get("text_config")
    if found is None and isinstance(text, Mapping):
        found = text.get("quantization_config")
    for file, method in (("hf_quant_config.json", "modelopt"), ("quantize_config.json", "gptq")):
        if found is None and (own := read_json(folder, file)) is not None:
            found = {"quant_method": method, **own.get("quantization", own)}
    if found is None:
        return "", {}
    if not isinstance(found, Mapping):
        raise ModelError("quantization_config is no object", node="config.json", hint="fetch config.json again")
    method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else ""))
    if not method:
        raise ModelError("quantization_config does not say quant_method", node="config.json",
                         hint="fetch config.json again")  # fmt: skip
    return method, found


def _check_rest(raw: Raw) -> None:
    """Raises ModelError for what is left of a layer whose other parts are missing."""
    for name, array in raw.arrays.items():
        part = name.rpartition(".")[2]
        if part in PARTS or (part == "weight" and array.dtype.itemsize == 1):
            raise ModelError(f"tensor {name[:200]!r} is a part of a quantised layer whose other parts are missing",
                             node=raw.files[name], hint=COPY_AGAIN)  # fmt: skip


def _check_sizes(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Raises ModelError where sizes in ``config.json`` contradict tensors whose names are the same in all decoders."""
    text = config.get("text_config")
    sizes = text if isinstance(text, Mapping) else config
    for prefix in ("model.", "model.language_model.", "language_model.model."):
        table = tensors.get(f"{prefix}embed_tokens.weight")
        if table is not None:
            stated = (sizes.get("vocab_size"), sizes.get("hidden_size"))
            if any(isinstance(s, int) and s != d for s, d in zip(stated, table.shape)):
                raise ModelError(f"tensor {table.name!r} is {list(table.shape)}, and config.json says "
                                 f"{list(stated)}", node=table.file, hint=COPY_AGAIN)  # fmt: skip
        layers = sizes.get("num_hidden_layers")
        numbers = [n.removeprefix(f"{prefix}layers.").partition(".")[0] for n in tensors
                   if n.startswith(f"{prefix}layers.")]  # fmt: skip
        found = 1 + max((int(n) for n in numbers if n.isdecimal() and len(n) < 10), default=-1)
        if isinstance(layers, int) and found and found < layers:
            raise ModelError(f"config.json says {layers} layers, and there are tensors of {found}", node="config.json",
                             hint="a part of the checkpoint is missing: fetch it again")  # fmt: skip
