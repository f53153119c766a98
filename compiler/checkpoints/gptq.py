"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them (method: Frantar et al., arXiv 2210.17323).

A layer of ``k`` inputs and ``n`` outputs has

    qweight  i32[k * bits / 32, n]        codes of a column follow one another along k, the first in the lowest bits
    qzeros   i32[groups, n * bits / 32]   zero points, along n; format 1 stores them less 1
    scales   f16[groups, n]
    g_idx    i32[k]                       the group of each input; with act-order, in any order

and means ``(code - zero) * scale``. Codes of 3 bits may begin in one word and end in the next. Format 1 was made by
subtracting 1 from every field of the words, of 2, 4 and 8 bits in one subtraction: a field of 0 borrows from its
neighbour. Adding likewise gives all of them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.bits import fields, packed_in_chunks
from arcweld.compiler.checkpoints.raw import Raw
from arcweld.compiler.checkpoints.scales import (
    CODES,
    Blocks,
    Order,
    contradiction,
    decode_by_group,
    in_shape,
    order_of,
    zero_points,
)
from arcweld.compiler.checkpoints.tensors import Packed, StoredTensor
from arcweld.compiler.errors import ModelError, UnsupportedError

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True, slots=True)
class Gptq:
    """``bits`` of a code; ``group`` inputs that share a scale; ``version`` 1 or 2 of the format."""

    bits: int
    group: int
    version: int

    @property
    def kind(self) -> str:
        """The layout's name, with its bits."""
        return f"gptq {self.bits} bits"

    def widened(self, tensor: StoredTensor) -> str:
        """Why the tensor has no packed form: groups of unequal size."""
        return self._order(tensor).refusal

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The matrix as f32."""
        if not self._order(tensor).refusal:
            return self._packed(tensor).decode()
        scale, zero = tensor.parts["scales"].T, self._zeros(tensor)
        return decode_by_group(tensor, self._codes, scale, zero, tensor.parts["g_idx"])

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The packed form; with act-order, its columns group by group."""
        return self._packed(tensor)

    def _packed(self, tensor: StoredTensor) -> Packed:
        n, k = tensor.shape
        dtype, order = CODES[self.bits], self._order(tensor).columns
        blocks = Blocks(1, self.group if self.group < k else 0)
        elements = packed_in_chunks(lambda a, b: self._codes(tensor, a, b), (n, k), dtype.bits, order)
        scale = in_shape(tensor.parts["scales"].T, blocks, n)
        zero = zero_points(self._zeros(tensor), dtype, blocks)
        return Packed(dtype, (n, k), elements, scale, zero, None, blocks.columns, order)

    def _order(self, tensor: StoredTensor) -> Order:
        k = tensor.shape[1]
        return order_of(tensor.parts.get("g_idx"), k, tensor.parts["scales"].shape[0], self.group, tensor)

    def _codes(self, tensor: StoredTensor, a: int, b: int) -> np.ndarray:
        return fields(tensor.parts["qweight"][:, a:b].T, self.bits, tensor.shape[1])

    def _zeros(self, tensor: StoredTensor) -> np.ndarray:
        """Zero points ``u8[n, groups]``."""
        words, n = tensor.parts["qzeros"], tensor.shape[0]
        if self.version == 1 and self.bits != 3:
            ones = sum(1 << at for at in range(0, 32, self.bits))
            words = words.view(np.uint32) + np.uint32(ones)  # wraps, as the writer's subtraction did
        zeros = fields(words, self.bits, n)
        if self.version == 1 and self.bits == 3:
            zeros = zeros + np.uint8(1) & np.uint8(7)
        return zeros.T


def read_gptq(config: Mapping[str, Any], raw: Raw) -> dict[str, StoredTensor]:
    """The quantised layers among the tensors of a checkpoint, which are taken from ``raw``.

    ``config`` is ``quantization_config``. Raises ModelError where it contradicts shapes, UnsupportedError for bits and
    formats that are not read.
    """
    stated = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if stated not in FORMATS:
        raise UnsupportedError(f"a GPTQ checkpoint in the format {stated[:80]!r}",
                               hint=f"the formats {', '.join(FORMATS)} are read")  # fmt: skip
    bits, group = (config.get(what) for what in ("bits", "group_size"))
    if not isinstance(bits, int) or not isinstance(group, int):
        raise ModelError("the GPTQ configuration does not say bits and group_size", node="quantization_config",
                         hint="fetch config.json again")  # fmt: skip
    return {f"{layer}.weight": _layer(layer, raw, bits, group, FORMATS[stated], bool(config.get("dynamic")))
            for layer in raw.layers("qweight")}  # fmt: skip


def _layer(layer: str, raw: Raw, bits: int, group: int, version: int, differs: bool) -> StoredTensor:
    """``differs``: single layers may have other bits and groups than the configuration says for all."""
    file, name = raw.files[f"{layer}.qweight"], f"{layer}.weight"
    parts = {p: raw.take(layer, p, 2, "int32") for p in ("qweight", "qzeros")}
    parts["scales"] = raw.take(layer, "scales", 2)
    index = raw.take_if(layer, "g_idx")
    if index is not None:
        parts["g_idx"] = index
    groups, n = parts["scales"].shape
    if differs and n:
        bits = 32 * parts["qzeros"].shape[1] // n
    if bits not in BITS:
        raise UnsupportedError(f"weight {name[:200]!r} has GPTQ codes of {bits} bits", node=file,
                               hint="codes of 2, 3, 4 and 8 bits are read")  # fmt: skip
    k = parts["qweight"].shape[0] * 32 // bits
    if index is not None and index.ndim == 1 and -(-len(index) * bits // 32) == parts["qweight"].shape[0]:
        k = len(index)
    if group <= 0:
        group = k
    elif differs and groups:
        group = -(-k // groups)
    words = -(-n * bits // 32)
    if parts["qweight"].shape != (-(-k * bits // 32), n) or parts["qzeros"].shape != (groups, words):
        raise contradiction(
            name, file, f"qweight {list(parts['qweight'].shape)} and qzeros {list(parts['qzeros'].shape)} do not fit "
            f"scales of {[groups, n]} with {bits} bits",
        )  # fmt: skip
    if groups != -(-k // max(1, group)):
        raise contradiction(name, file, f"scales for {groups} groups, and {k} inputs are {-(-k // group)} groups of "
                            f"{group}")  # fmt: skip
    if not parts["scales"].dtype.kind == "f":
        raise contradiction(name, file, f"its scales are {parts['scales'].dtype}")
    return StoredTensor(name, (n, k), Gptq(bits, group, version), parts, file)
