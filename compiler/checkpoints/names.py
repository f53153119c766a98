"""Finds the stored tensor of each parameter of a module of transformers.

Hugging Face folders have the module's own names. GGUF files have names of their own, by architecture; the package
``gguf`` maps them. Some architectures are stored otherwise than the module has them (``ARCHITECTURES``): the rows of
queries and keys are interleaved for rotary embeddings, or the weights of norms are 1 larger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.stacked import Sources, Stacked
from arcweld.compiler.checkpoints.tensors import Layout, Packed, StoredTensor, rows_of
from arcweld.compiler.errors import EnvironmentError_, ModelError, UnsupportedError

MOST_NAMED = 5  # parameters that an error lists
_INTERLEAVED, _LARGER_NORMS, _SAME = "interleaved heads", "norms less 1", ""
ARCHITECTURES: Mapping[str, str] = {
    "llama": _INTERLEAVED, "qwen2": _SAME, "qwen3": _SAME, "phi3": _SAME, "gemma": _LARGER_NORMS,
    "gemma2": _LARGER_NORMS, "gemma3": _LARGER_NORMS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bound:
    """``tensors``: the stored tensor of each parameter; ``unused``: names of the checkpoint that none has."""

    tensors: Mapping[str, StoredTensor]
    unused: tuple[str, ...]


def bind(
    checkpoint: Checkpoint, parameters: Mapping[str, tuple[int, ...]], tied: Mapping[str, str] | None = None,
    sources: Mapping[str, Sources] | None = None,
) -> Bound:  # fmt: skip
    """The stored tensors of ``parameters``, shapes by the module's names for them.

    ``tied``: parameters that are another one where the checkpoint lacks them, such as ``lm_head.weight``.
    ``sources``: what parameters are made of that a folder does not have by their names.

    Raises ModelError for parameters that the checkpoint lacks or has in another shape, UnsupportedError for a GGUF
    architecture whose names are not known, EnvironmentError_ without the package ``gguf``, where it is needed.
    """
    tied = tied or {}
    if checkpoint.form == "GGUF":
        find = _by_gguf(checkpoint, [n for p in parameters for n in (p, tied.get(p, p))])
    else:
        find = _by_name(checkpoint, sources or {})
    found, missing = {}, []
    for name, shape in parameters.items():
        tensor = find(name) or (find(tied[name]) if name in tied else None)
        if tensor is None:
            missing.append(name)
            continue
        if tensor.shape != shape:
            raise ModelError(f"tensor {tensor.name[:200]!r} is {list(tensor.shape)}, and the module's {name!r} is "
                             f"{list(shape)}", node=tensor.file,
                             hint="the configuration belongs to another checkpoint: fetch both again")  # fmt: skip
        found[name] = tensor
    if missing:
        listed = ", ".join(missing[:MOST_NAMED]) + (f" and {len(missing) - MOST_NAMED} more"
                                                    if len(missing) > MOST_NAMED else "")  # fmt: skip
        raise ModelError(f"the checkpoint has no tensors for {listed}", node=str(checkpoint.path),
                         hint="a part of the checkpoint is missing, or it is of another architecture")  # fmt: skip
    used = {name for t in found.values() for name in _names_of(t)}
    return Bound(found, tuple(n for n in checkpoint.tensors if n not in used))


def _names_of(tensor: StoredTensor) -> list[str]:
    """The names that a tensor has in its checkpoint: its own, or those of its parts."""
    return [m.name for m in tensor.layout.members] if isinstance(tensor.layout, Stacked) else [tensor.name]


def _by_name(checkpoint: Checkpoint, sources: Mapping[str, Sources]) -> Callable[[str], StoredTensor | None]:
    """Looks for names as they are or, in a checkpoint of the inner model alone, without their first part.

    What has no such name is made of its ``sources``.
    """
    firsts = {n.partition(".")[0] for n in checkpoint.tensors}

    def find(name: str) -> StoredTensor | None:
        first, _, rest = name.partition(".")
        found = checkpoint.tensors.get(name if name in checkpoint.tensors or first in firsts else rest)
        if found is None and name in sources:
            return sources[name].tensor(name, checkpoint.tensors)
        return found

    return find


# ---------------------------------------------------------------------------------------------------------------- GGUF


def _by_gguf(checkpoint: Checkpoint, names: list[str]) -> Callable[[str], StoredTensor | None]:
    try:
        import gguf
    except ImportError:
        raise EnvironmentError_("the names of tensors in GGUF files are in the package gguf", node=str(checkpoint.path),
                                hint='pip install gguf, or ".[llm]"') from None  # fmt: skip
    arch = str(checkpoint.config.get("general.architecture", ""))
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in ARCHITECTURES or arch not in known:
        raise UnsupportedError(f"a GGUF file of the architecture {arch[:80]!r}: it is not known how its tensors differ "
                               "from the module's", node=str(checkpoint.path),
                               hint=f"{', '.join(ARCHITECTURES)} are known; or use a Hugging Face folder")  # fmt: skip
    layers = 1 + max((int(m[1]) for m in (re.search(r"\.(\d{1,4})\.", n) for n in names) if m), default=0)
    mapped = gguf.get_tensor_name_map(known[arch], layers)

    def find(name: str) -> StoredTensor | None:
        tensor = checkpoint.tensors.get(mapped.get_name(name, try_suffixes=(".weight", ".bias")) or name)
        return None if tensor is None else _as_module(tensor, arch, checkpoint.config)

    return find


def _as_module(tensor: StoredTensor, arch: str, config: Mapping[str, Any]) -> StoredTensor:
    """The tensor as the module has it."""
    differs = ARCHITECTURES[arch]
    if differs == _LARGER_NORMS and tensor.name.endswith("norm.weight"):
        return replace(tensor, layout=Less1(tensor.layout))
    part = re.fullmatch(r"blk\.(\d{1,9})\.attn_([qk])\.(?:weight|bias)", tensor.name)
    if differs != _INTERLEAVED or part is None:
        return tensor
    heads = config.get(f"{arch}.attention.head_count")
    if part[2] == "k":
        heads = config.get(f"{arch}.attention.head_count_kv", heads)
    if isinstance(heads, np.ndarray) and heads.ndim == 1 and int(part[1]) < len(heads):
        heads = int(heads[int(part[1])])
    if not isinstance(heads, int) or heads < 1 or tensor.shape[0] % (2 * heads):
        raise ModelError(f"tensor {tensor.name!r} has {tensor.shape[0]} rows, which are no {str(heads)[:80]} heads",
                         node=tensor.file, hint="the file is damaged: fetch it again")  # fmt: skip
    return replace(tensor, layout=Interleaved(tensor.layout, heads))


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A layout whose rows are stored with the two halves of each of ``heads`` heads interleaved."""

    inner: Layout
    heads: int

    @property
    def kind(self) -> str:
        """The inner layout's name."""
        return self.inner.kind

    def widened(self, tensor: StoredTensor) -> str:
        """As the inner layout says."""
        return self.inner.widened(tensor)

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The rows in the module's order, as f32."""
        wide: np.ndarray = self.inner.decode(tensor)[self._rows(tensor.shape[0])]
        return wide

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The inner layout's form with its rows in the module's order, in memory: both forms are there at once."""
        found, rows = self.inner.stored(tensor), self._rows(tensor.shape[0])
        if isinstance(found, np.ndarray):
            moved: np.ndarray = found[rows]
            return moved
        zero = found.zero if found.zero is None or not found.zero.ndim else found.zero[rows]
        offset = None if found.offset is None else rows_of(found.offset, rows)
        high = None if found.high is None else found.high[rows]
        scale = rows_of(found.scale, rows)
        return replace(found, elements=found.elements[rows], scale=scale, zero=zero, offset=offset, high=high)

    def _rows(self, n: int) -> np.ndarray:
        """The stored row of each of the module's."""
        return np.arange(n).reshape(self.heads, n // self.heads // 2, 2).swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class Less1:
    """A layout whose numbers are stored 1 larger: vectors of norms, which are f32 in GGUF files."""

    inner: Layout

    @property
    def kind(self) -> str:
        """The inner layout's name."""
        return self.inner.kind

    def widened(self, tensor: StoredTensor) -> str:
        """As the inner layout says."""
        return self.inner.widened(tensor)

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The module's numbers as f32."""
        return self.inner.decode(tensor) - np.float32(1)

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """As ``decode``: f32."""
        return self.decode(tensor)
