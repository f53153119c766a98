"""Scales of keys and values in 8 bits that a checkpoint stores.

A number ``x`` is kept as ``k = e4m3(x / scale)``, clamped at 448, and means ``k * scale``. Scales are f32, f16 or bf16,
of one number or of one for each head of keys:

    compressed-tensors  LAYER.k_scale and LAYER.v_scale of the attention layer: [], [1], or [heads, 1, 1] by
                        ``strategy: attn_head``; older ones LAYER.k_proj.output_scale, LAYER.v_proj.output_scale
    ModelOpt            LAYER.k_proj.k_scale and LAYER.v_proj.v_scale: the largest magnitude that was seen, over 448
    AutoFP8             LAYER.kv_scale: one for both, as vLLM takes it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.names import Bound
from arcweld.compiler.checkpoints.tensors import StoredTensor
from arcweld.compiler.errors import ModelError

_KINDS = {"keys": "k", "values": "v"}
_SCALE = re.compile(r"(?:.+\.)?(?:[kv]_scale|kv_scale|[kv]_proj\.output_scale)")


@dataclass(frozen=True, slots=True)
class CacheScales:
    """The scales of an attention layer's keys and of its values: one number each, or one for each head of keys."""

    keys: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StoredScales:
    """The scales of a checkpoint by the names of the module's attention layers."""

    checkpoint: Checkpoint
    bound: Bound

    def __bool__(self) -> bool:
        """Whether the checkpoint stores any scales of keys or values."""
        return any(_SCALE.fullmatch(name) for name in self.checkpoint.tensors)

    def __call__(self, layer: str, heads: int) -> CacheScales:
        """The scales of the attention layer of that name in the module, which has ``heads`` heads of keys.

        Raises ModelError for scales that are missing, not positive numbers, or not one or one for each head.
        """
        keys, values = (self._of(self._stored_name(layer), kind, heads) for kind in _KINDS)
        return CacheScales(keys, values)

    def _stored_name(self, layer: str) -> str:
        """What the checkpoint calls the layer: what it calls its parameters, without the ends that both names have."""
        for parameter, tensor in self.bound.tensors.items():
            rest = parameter.removeprefix(f"{layer}.")
            if rest != parameter and tensor.name.endswith(f".{rest}"):
                return tensor.name.removesuffix(f".{rest}")
        return layer

    def _of(self, layer: str, kind: str, heads: int) -> tuple[float, ...]:
        letter, tensors = _KINDS[kind], self.checkpoint.tensors
        names = [f"{letter}_scale", f"{letter}_proj.{letter}_scale", f"qkv_proj.{letter}_scale",
                 f"{letter}_proj.output_scale", "kv_scale"]  # fmt: skip
        found = next((tensors[name] for n in names if (name := f"{layer}.{n}") in tensors), None)
        if found is None:
            raise ModelError(
                f"the checkpoint stores scales of keys and values, and no tensor {f'{layer}.{names[0]}'[:200]!r} with "
                f"those of the {kind} of an attention layer", node=str(self.checkpoint.path),
                hint="a part of the checkpoint is missing: fetch it again; or name another kv_cache_dtype",
            )  # fmt: skip
        return _checked(found, kind, heads)


def _checked(tensor: StoredTensor, kind: str, heads: int) -> tuple[float, ...]:
    scale = tensor.decode().reshape(-1)
    if scale.size not in (1, heads):
        raise ModelError(f"tensor {tensor.name[:200]!r} has {scale.size} scales of {kind}, and the layer {heads} heads",
                         node=tensor.file, hint="one for all heads or one for each is read")  # fmt: skip
    bad = scale[~(np.isfinite(scale) & (scale > 0))]
    if bad.size:
        raise ModelError(f"tensor {tensor.name[:200]!r} has the scale {bad[0]}, which is no positive number",
                         node=tensor.file, hint="calibrate the checkpoint again, or name another kv_cache_dtype",
                         )  # fmt: skip
    return tuple(float(s) for s in scale)
