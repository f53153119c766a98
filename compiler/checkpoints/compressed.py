"""Checkpoints of compressed-tensors (vLLM's llm-compressor writes them): pack-, int- and float-quantized layers.

A layer of ``k`` inputs and ``n`` outputs has ``weight_scale`` and

    pack-quantized   weight_packed i32[n, k * bits / 32]: along k, codes ``value + 2^(bits - 1)``, the first in the
                     lowest bits; weight_shape i64[2]; with asymmetric schemes weight_zero_point
                     i32[n * bits / 32, groups], along n, as the codes
    int-quantized    weight i8[n, k]; with asymmetric schemes weight_zero_point i8, in the shape of the scales
    float-quantized  weight f8e4m3[n, k]

Scales are ``[1]``, ``[n, 1]``, ``[n, groups]`` or, of blocks, ``[n / rows, k / columns]``. What layers are quantised
how is in ``config_groups``; scales of activations and caches stay tensors of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.bits import fields, packed_in_chunks
from arcweld.compiler.checkpoints.cache_settings import states_caches
from arcweld.compiler.checkpoints.raw import Raw
from arcweld.compiler.checkpoints.scaled import Scaled
from arcweld.compiler.checkpoints.scales import (
    CODES,
    Blocks,
    Order,
    blocks_of,
    contradiction,
    decode_by_group,
    in_shape,
    order_of,
    zero_points,
)
from arcweld.compiler.checkpoints.tensors import Packed, StoredTensor
from arcweld.compiler.errors import ModelError, UnsupportedError

FORMATS = ("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
LAYER_FORMATS = FORMATS[1:5]
MOST_REPEATS = 3  # in a target's expression; it takes at most this power of a name's length
_REPEAT, _REPEATED_GROUP = re.compile(r"[*+?{]"), re.compile(r"\)\s*[*+?{]|\(\?")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a group of layers is quantised: ``columns`` and ``rows`` share a scale; ``columns`` 0 for whole rows."""

    format: str
    bits: int
    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """Codes of ``bits`` bits in words; ``blocks`` share a scale."""

    bits: int
    blocks: Blocks

    @property
    def kind(self) -> str:
        """The layout's name, with its bits."""
        return f"pack-quantized {self.bits} bits"

    def widened(self, tensor: StoredTensor) -> str:
        """Why the tensor has no packed form: groups of unequal size."""
        return self._order(tensor).refusal

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The matrix as f32."""
        if not self._order(tensor).refusal:
            return self._packed(tensor).decode()
        scale, zero = tensor.parts["weight_scale"], self._zeros(tensor)
        return decode_by_group(tensor, self._codes, scale, zero, tensor.parts["weight_g_idx"])

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The packed form, whose elements are a view of the file where the IR has the same bits in the same order."""
        return self._packed(tensor)

    def _packed(self, tensor: StoredTensor) -> Packed:
        (n, k), words = tensor.shape, tensor.parts["weight_packed"]
        dtype, order = CODES[self.bits], self._order(tensor).columns
        if order is None and dtype.bits == self.bits:
            elements = words.view(np.uint8)[:, : dtype.nbytes(k)]
        else:
            elements = packed_in_chunks(lambda a, b: self._codes(tensor, a, b), (n, k), dtype.bits, order)
        scale = in_shape(tensor.parts["weight_scale"], self.blocks, n)
        zero = zero_points(self._zeros(tensor), dtype, self.blocks)
        return Packed(dtype, (n, k), elements, scale, zero, None, self.blocks.columns, order)

    def _codes(self, tensor: StoredTensor, a: int, b: int) -> np.ndarray:
        return fields(tensor.parts["weight_packed"][a:b], self.bits, tensor.shape[1])

    def _zeros(self, tensor: StoredTensor) -> np.ndarray:
        """Zero points of the codes, ``u8[n, groups]``; without any in the file, the code of 0."""
        n, words = tensor.shape[0], tensor.parts.get("weight_zero_point")
        if words is not None:
            return fields(words.T, self.bits, n).T
        groups = tensor.parts["weight_scale"].size // n if self.blocks.rows else 1
        return np.full((n, max(1, groups)), 1 << (self.bits - 1), np.uint8)

    def _order(self, tensor: StoredTensor) -> Order:
        index = tensor.parts.get("weight_g_idx")
        if index is None or (index.size and (index == -1).all()) or not self.blocks.columns:  # -1: in no other order
            return Order()
        return order_of(index, tensor.shape[1], tensor.parts["weight_scale"].shape[1], self.blocks.columns, tensor)


def read_compressed(config: Mapping[str, Any], raw: Raw) -> dict[str, StoredTensor]:
    """The quantised layers among the tensors of a checkpoint, which are taken from ``raw``.

    ``config`` is ``quantization_config``. Raises ModelError where it contradicts shapes, UnsupportedError for formats
    and types that are not read.
    """
    stated = config.get("format", "dense")
    if stated not in FORMATS:
        raise UnsupportedError(f"compressed-tensors in the format {str(stated)[:80]!r}",
                               hint=f"{', '.join(FORMATS)} are read")  # fmt: skip
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(f"sparse compressed-tensors in the format {str(sparsity.get('format'))[:80]!r}",
                               hint="convert the checkpoint to a dense format")  # fmt: skip
    groups = config.get("config_groups")
    if groups is None and states_caches(config):
        groups = {}
    if not isinstance(groups, Mapping) or not all(isinstance(g, Mapping) for g in groups.values()):
        raise ModelError("the configuration of compressed-tensors has no config_groups", node="quantization_config",
                         hint="fetch config.json again")  # fmt: skip
    schemes = [(_targets(g), _scheme(g, str(stated))) for g in groups.values()]
    found = {}
    for layer in [*raw.layers("weight_packed"), *_scaled_layers(raw)]:
        found[f"{layer}.weight"] = read_layer(layer, raw, _of_layer(layer, schemes))
    return found


def _scaled_layers(raw: Raw) -> list[str]:
    return [layer for layer in raw.layers("weight_scale") if f"{layer}.weight" in raw.arrays]


def _targets(group: Mapping[str, Any]) -> Sequence[str]:
    targets = group.get("targets", ())
    return [str(t) for t in targets] if isinstance(targets, Sequence) else ()


def _scheme(group: Mapping[str, Any], stated: str) -> Scheme | None:
    """The scheme of a group's weights; None for a group that quantises activations alone."""
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        return None
    form = str(group.get("format") or stated)
    bits, kind, strategy = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("strategy")
    if form == "naive-quantized":
        form = "float-quantized" if kind == "float" else "int-quantized"
    if form not in LAYER_FORMATS or not isinstance(bits, int) or not 2 <= bits <= 8 or (kind == "float" and bits != 8):
        raise UnsupportedError(f"compressed-tensors in the format {form[:80]!r}, {str(bits)[:20]} bits of type {kind}",
                               hint=f"{', '.join(LAYER_FORMATS)} of 2 to 8 bits are read, floats of 8")  # fmt: skip
    group_size, block = weights.get("group_size"), weights.get("block_structure")
    if strategy == "block":
        if isinstance(block, str):
            block = block.split("x")
        if not isinstance(block, Sequence) or len(block) != 2 or not all(str(b).isdigit() and int(b) for b in block):
            raise ModelError(f"the block structure {str(block)[:80]!r} is no pair of sizes", node="quantization_config",
                             hint="fetch config.json again")  # fmt: skip
        return Scheme(form, bits, int(block[1]), int(block[0]))
    grouped = strategy in ("group", "tensor_group") or (strategy is None and isinstance(group_size, int))
    return Scheme(form, bits, group_size if grouped and isinstance(group_size, int) else 0, 1)


def _of_layer(layer: str, schemes: Sequence[tuple[Sequence[str], Scheme | None]]) -> Scheme:
    """The scheme of a layer: of the first group that names it or, as module classes are unknown here, of the only one.

    Raises UnsupportedError where several groups could hold it.
    """
    named = [s for targets, s in schemes if s is not None and any(_is_target(layer, t) for t in targets)]
    rest = [s for targets, s in schemes if s is not None and any(t.isidentifier() for t in targets)]
    found = named[:1] or rest
    if not found or any(s != found[0] for s in found):
        raise UnsupportedError(f"layer {layer[:200]!r} is quantised, and no single group of config_groups names it",
                               node="quantization_config", hint="name the group's layers in its targets")  # fmt: skip
    return found[0]


def _is_target(layer: str, target: str) -> bool:
    """Whether ``target`` is the layer's name, or ``re:`` and an expression that its name begins with.

    An expression comes from a file that nobody vouches for, and some take exponential time: those are refused that
    repeat groups, or repeat more than ``MOST_REPEATS`` times.
    """
    if not target.startswith("re:"):
        return target == layer
    expression = target[3:]
    try:
        if _REPEATED_GROUP.search(expression) or len(_REPEAT.findall(expression)) > MOST_REPEATS or len(layer) > 500:
            raise UnsupportedError(f"the target {target[:200]!r} repeats too much to be looked for",
                                   node="quantization_config", hint="name the layers")  # fmt: skip
        return re.match(expression, layer) is not None
    except (re.error, RecursionError) as error:
        raise ModelError(f"the target {target[:200]!r} is no regular expression: {error}", node="quantization_config",
                         hint="fetch config.json again") from error  # fmt: skip


def read_layer(layer: str, raw: Raw, scheme: Scheme) -> StoredTensor:
    """A quantised layer, whose parts are taken from ``raw``. Raises ModelError where they contradict the scheme."""
    if scheme.format == "pack-quantized":
        return _packed_layer(layer, raw, scheme)
    name, file = f"{layer}.weight", raw.files.get(f"{layer}.weight", "")
    type_ = "int8" if scheme.format == "int-quantized" else "float8_e4m3fn"
    data = raw.take(layer, "weight", 2, type_)
    scale, zero = raw.take(layer, "weight_scale"), raw.take_if(layer, "weight_zero_point")
    shape = (data.shape[0], data.shape[1])
    blocks = blocks_of(scale, shape, scheme.columns, name, file, scheme.rows)
    parts = {"data": data, "scale": scale}
    if zero is not None:
        if zero.shape != scale.shape or (zero.dtype != data.dtype and not data.dtype.name.startswith("float8")):
            raise contradiction(name, file, f"zero points {zero.dtype}{list(zero.shape)}, scales {list(scale.shape)}")
        parts["zero"] = zero
    return StoredTensor(name, shape, Scaled(scheme.format, blocks), parts, file)


def _packed_layer(layer: str, raw: Raw, scheme: Scheme) -> StoredTensor:
    name, file, bits = f"{layer}.weight", raw.files.get(f"{layer}.weight_packed", ""), scheme.bits
    parts = {"weight_packed": raw.take(layer, "weight_packed", 2, "int32")}
    parts["weight_scale"] = raw.take(layer, "weight_scale")
    stated = raw.take(layer, "weight_shape", 1)
    if stated.shape != (2,) or stated.dtype.kind not in "iu":
        raise contradiction(name, file, f"weight_shape is {stated.dtype}{list(stated.shape)}")
    n, k = (int(d) for d in stated)
    if parts["weight_packed"].shape != (n, -(-k * bits // 32)):
        raise contradiction(name, file, f"weight_packed {list(parts['weight_packed'].shape)} does not hold {[n, k]} "
                            f"codes of {bits} bits")  # fmt: skip
    blocks = blocks_of(parts["weight_scale"], (n, k), scheme.columns, name, file, scheme.rows)
    if blocks.rows > 1:
        raise UnsupportedError(f"weight {name[:200]!r} is pack-quantized in blocks", node=file,
                               hint="groups, channels and one scale for all are read")  # fmt: skip
    for part in ("weight_zero_point", "weight_g_idx"):
        found = raw.take_if(layer, part)
        if found is not None:
            parts[part] = found
    zero = parts.get("weight_zero_point")
    groups = parts["weight_scale"].size // max(1, n) if blocks.rows else 1
    if zero is not None and (zero.dtype != np.int32 or zero.shape != (-(-n * bits // 32), groups)):
        raise contradiction(name, file, f"weight_zero_point {zero.dtype}{list(zero.shape)} does not hold {[n, groups]} "
                            f"codes of {bits} bits")  # fmt: skip
    return StoredTensor(name, (n, k), PackQuantized(bits, blocks), parts, file)
