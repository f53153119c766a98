"""Layers of f8e4m3 as NVIDIA's ModelOpt writes them, and as transformers' ``fp8`` does.

    modelopt   weight f8e4m3[n, k], weight_scale f32[] or, per output, f32[n]
    fp8        weight f8e4m3[n, k], weight_scale_inv f32[n / rows, k / columns], blocks as ``weight_block_size`` says;
               AutoFP8, which has one scale for all, calls it weight_scale

Both mean ``weight * scale``. ModelOpt says what it did in ``hf_quant_config.json`` or in ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.compiler.checkpoints.cache_settings import states_caches
from arcweld.compiler.checkpoints.raw import Raw
from arcweld.compiler.checkpoints.scaled import Scaled
from arcweld.compiler.checkpoints.scales import blocks_of
from arcweld.compiler.checkpoints.tensors import StoredTensor
from arcweld.compiler.errors import ModelError, UnsupportedError

ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")


def read_modelopt(config: Mapping[str, Any], raw: Raw) -> dict[str, StoredTensor]:
    """The quantised layers of a ModelOpt checkpoint, taken from ``raw``. ``config`` is its section ``quantization``.

    Raises UnsupportedError for algorithms other than FP8, ModelError for scales that do not fit.
    """
    algorithm = config.get("quant_algo")
    if algorithm is None and states_caches(config):  # caches alone
        return {}
    if algorithm not in ALGORITHMS:
        raise UnsupportedError(f"a ModelOpt checkpoint quantised by {str(algorithm)[:80]}",
                               hint=f"{' and '.join(ALGORITHMS)} are read")  # fmt: skip
    return _layers(raw, "weight_scale", "modelopt fp8", (1, 0))


def read_float8(config: Mapping[str, Any], raw: Raw) -> dict[str, StoredTensor]:
    """The quantised layers of a checkpoint of transformers' method ``fp8``, taken from ``raw``."""
    block = config.get("weight_block_size")
    if block is None:
        part = "weight_scale_inv" if any(raw.layers("weight_scale_inv")) else "weight_scale"
        return _layers(raw, part, "fp8", (1, 0))
    if not isinstance(block, Sequence) or len(block) != 2 or not all(isinstance(b, int) and b > 0 for b in block):
        raise ModelError(f"weight_block_size is {str(block)[:80]}, which is no pair of sizes",
                         node="quantization_config", hint="fetch config.json again")  # fmt: skip
    return _layers(raw, "weight_scale_inv", "fp8", (block[0], block[1]))


def _layers(raw: Raw, part: str, kind: str, block: tuple[int, int]) -> dict[str, StoredTensor]:
    found = {}
    for layer in [n for n in raw.layers(part) if f"{n}.weight" in raw.arrays]:
        name, file = f"{layer}.weight", raw.files[f"{layer}.weight"]
        data, scale = raw.take(layer, "weight", 2, "float8_e4m3fn"), raw.take(layer, part)
        shape = (data.shape[0], data.shape[1])
        blocks = blocks_of(scale, shape, block[1], name, file, block[0])
        found[name] = StoredTensor(name, shape, Scaled(kind, blocks), {"data": data, "scale": scale}, file)
    return found
