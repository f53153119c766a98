"""AWQ checkpoints of 4 bits, as AutoAWQ and GPTQModel write them (method: Lin et al., arXiv 2306.00978).

A layer of ``k`` inputs and ``n`` outputs means ``(code - zero) * scale``, with a scale for ``group`` inputs. Version
``gemm`` packs 8 outputs in a word, the 4-bit fields from the lowest on being outputs 0, 2, 4, 6, 1, 3, 5, 7 of them:

    qweight  i32[k, n / 8]    qzeros  i32[k / group, n / 8]    scales  f16[k / group, n]

Version ``gemv`` packs inputs, and groups, in their order; rows are padded with zeros:

    qweight  i32[n, k / 8]    qzeros  i32[n, words]            scales  f16[n, 8 * words]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.bits import fields, packed_in_chunks
from arcweld.compiler.checkpoints.raw import Raw
from arcweld.compiler.checkpoints.scales import Blocks, contradiction, in_shape, zero_points
from arcweld.compiler.checkpoints.tensors import Packed, StoredTensor
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError

OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight, the one in each field of a word


@dataclass(frozen=True, slots=True)
class Awq:
    """``version``: gemm or gemv. ``group`` inputs share a scale."""

    version: str
    group: int

    @property
    def kind(self) -> str:
        """The layout's name, with its version."""
        return f"awq {self.version}"

    def widened(self, tensor: StoredTensor) -> str:
        """Empty: every such weight has a packed form."""
        return ""

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The matrix as f32."""
        return self._packed(tensor).decode()

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The packed form."""
        return self._packed(tensor)

    def _packed(self, tensor: StoredTensor) -> Packed:
        n, k = tensor.shape
        groups = -(-k // self.group)
        words, zeros, scales = (tensor.parts[p] for p in ("qweight", "qzeros", "scales"))
        if self.version == "gemm":
            elements = packed_in_chunks(lambda a, b: _outputs(words[:, a // 8 : b // 8]), (n, k), 4, multiple=8)
            points, scale = _outputs(zeros), scales.T
        else:
            elements = packed_in_chunks(lambda a, b: fields(words[a:b], 4, k), (n, k), 4)
            points, scale = fields(zeros, 4, groups), scales[:, :groups]
        blocks = Blocks(1, self.group if groups > 1 else 0)
        zero = zero_points(points, DType.U4, blocks)
        return Packed(DType.U4, (n, k), elements, in_shape(scale, blocks, n), zero, None, blocks.columns)


def _outputs(words: np.ndarray) -> np.ndarray:
    """Words ``[k, m]`` of version gemm as codes ``u8[8 * m, k]``."""
    words = words.view(np.uint32).T
    codes = np.empty((8 * words.shape[0], words.shape[1]), np.uint8)
    for field, output in enumerate(OUTPUTS):
        codes[output::8] = words >> np.uint32(4 * field) & np.uint32(15)
    return codes


def read_awq(config: Mapping[str, Any], raw: Raw) -> dict[str, StoredTensor]:
    """The quantised layers among the tensors of a checkpoint, which are taken from ``raw``.

    ``config`` is ``quantization_config``. Raises ModelError where it contradicts shapes, UnsupportedError for bits and
    versions that are not read.
    """
    version = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
    bits, group = config.get("bits", config.get("w_bit", 4)), config.get("group_size", config.get("q_group_size"))
    if version not in ("gemm", "gemv"):
        raise UnsupportedError(f"an AWQ checkpoint of version {version[:80]!r}", hint="gemm and gemv are read")
    if bits != 4 or config.get("zero_point") is False:
        raise UnsupportedError(f"an AWQ checkpoint of {str(bits)[:20]} bits, zero points {config.get('zero_point')}",
                               hint="4 bits with zero points are read")  # fmt: skip
    if not isinstance(group, int) or group == 0:
        raise ModelError("the AWQ configuration does not say group_size", node="quantization_config",
                         hint="fetch config.json again")  # fmt: skip
    return {f"{layer}.weight": _layer(layer, raw, version, group) for layer in raw.layers("qweight")}


def _widths(groups: int, group: int) -> tuple[int, int]:
    """The words that hold so many zero points of version gemv: as few as can be, or padded to those of 128 inputs."""
    words, multiple = -(-groups // 8), max(1, 128 // group)
    return words, -(-words // multiple) * multiple


def _layer(layer: str, raw: Raw, version: str, group: int) -> StoredTensor:
    file, name = raw.files[f"{layer}.qweight"], f"{layer}.weight"
    words, zeros = (raw.take(layer, part, 2, "int32") for part in ("qweight", "qzeros"))
    scales = raw.take(layer, "scales", 2)
    if scales.dtype.kind != "f":
        raise contradiction(name, file, f"its scales are {scales.dtype}")
    k, n = (words.shape[0], words.shape[1] * 8) if version == "gemm" else (words.shape[1] * 8, words.shape[0])
    group = group if group > 0 else k
    groups = -(-k // max(1, group))
    if version == "gemm":
        fits = zeros.shape == (groups, n // 8) and scales.shape == (groups, n)
    else:
        width = zeros.shape[1]
        fits = zeros.shape[0] == n and scales.shape == (n, 8 * width) and width in _widths(groups, group)
    if not fits:
        raise contradiction(
            name, file, f"qzeros {list(zeros.shape)} and scales {list(scales.shape)} do not fit qweight "
            f"{list(words.shape)} of version {version} in groups of {group}",
        )  # fmt: skip
    parts = {"qweight": words, "qzeros": zeros, "scales": scales}
    return StoredTensor(name, (n, k), Awq(version, group), parts, file)
