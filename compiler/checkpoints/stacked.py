"""Parameters that a checkpoint stores in parts: the rows of several tensors, such as those of a layer's experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.checkpoints.scales import contradiction
from arcweld.compiler.checkpoints.tensors import Packed, StoredTensor, TwoLevel
from arcweld.compiler.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Sources:
    """The names of the tensors whose rows a parameter has, in order; ``count`` matrices of equal size, 0 for one."""

    names: tuple[str, ...]
    count: int = 0

    def tensor(self, name: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
        """The parameter ``name`` as one tensor; None if any part of it is missing.

        Raises ModelError for parts whose rows have different lengths.
        """
        members = [tensors[n] for n in self.names if n in tensors]
        if len(members) != len(self.names):
            return None
        if len(members) == 1 and not self.count:
            return members[0]
        first = members[0]
        for m in members:
            if len(m.shape) != 2 or m.shape[1] != first.shape[1]:
                raise contradiction(m.name, m.file, f"{list(m.shape)} should have rows as {list(first.shape)} has, "
                                                    f"with which it makes {name!r}")  # fmt: skip
        rows = sum(m.shape[0] for m in members)
        if self.count and rows % self.count:
            raise contradiction(first.name, first.file, f"{rows} rows are not those of {self.count} matrices")
        shape = (self.count, rows // self.count, first.shape[1]) if self.count else (rows, first.shape[1])
        parts = {f"{m.name}:{part}": array for m in members for part, array in m.parts.items()}
        return StoredTensor(name, shape, Stacked(tuple(members)), parts, first.file)


@dataclass(frozen=True, slots=True)
class Stacked:
    """The layout of a parameter that has the rows of ``members``, one after another."""

    members: tuple[StoredTensor, ...]

    @property
    def kind(self) -> str:
        """The members' layout."""
        return self.members[0].layout.kind

    def widened(self, tensor: StoredTensor) -> str:
        """As the first member that is widened says, or that they are stored in different ways."""
        reasons = [m.widened for m in self.members if m.widened]
        same = all(m.layout == self.members[0].layout for m in self.members)
        return reasons[0] if reasons else "" if same else "parts of one parameter are stored in different ways"

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """All rows as f32."""
        return np.concatenate([m.decode() for m in self.members]).reshape(tensor.shape)

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """All rows in the members' form, in memory.

        Raises UnsupportedError for members whose columns are in orders of their own.
        """
        found = [m.layout.stored(m) for m in self.members]
        arrays = [f for f in found if isinstance(f, np.ndarray)]
        if arrays:
            return np.concatenate(arrays).reshape(tensor.shape)
        return _joined(tensor, [f for f in found if isinstance(f, Packed)])


def _joined(tensor: StoredTensor, members: Sequence[Packed]) -> Packed:
    first = members[0]
    for m in members:
        own = None if m.order is None else m.order.tobytes()
        if own != (None if first.order is None else first.order.tobytes()):
            raise UnsupportedError(
                f"the parts of {tensor.name!r} have their columns in different orders", node=tensor.file,
                hint="use a checkpoint without act-order, or a dense one",
            )  # fmt: skip
    rows, block = sum(m.shape[0] for m in members), max(m.block for m in members)
    levels, offsets = ([a for a in given if isinstance(a, TwoLevel)] for given in (
        [m.scale for m in members], [m.offset for m in members]))  # fmt: skip
    whole = replace(
        first, shape=(rows, first.shape[1]), elements=np.concatenate([m.elements for m in members]), block=block,
        zero=_side([m.zero for m in members], members, block),
        high=None if first.high is None else np.concatenate([m.high for m in members if m.high is not None]),
    )  # fmt: skip
    if levels:  # of all members, as they have one layout
        return replace(whole, scale=_two_levels(levels), offset=_two_levels(offsets) if offsets else None)
    plain = [_spread(m.scale, m, block) for m in members if isinstance(m.scale, np.ndarray)]
    sides = [None if isinstance(m.offset, TwoLevel) else m.offset for m in members]
    return replace(whole, scale=np.concatenate(plain), offset=_side(sides, members, block))


def _two_levels(parts: Sequence[TwoLevel]) -> TwoLevel:
    """The scales or offsets of all rows."""
    codes, unit = np.concatenate([p.codes for p in parts]), np.concatenate([p.unit for p in parts])
    return TwoLevel(codes, unit, parts[0].block)


def _side(arrays: Sequence[np.ndarray | None], members: Sequence[Packed], block: int) -> np.ndarray | None:
    """Zero points or offsets of all rows, 0 where a member has none; None if none has any."""
    given = [a for a in arrays if a is not None]
    if not given:
        return None
    if len(given) == len(arrays) and all(a.ndim == 0 and a == given[0] for a in given):
        return given[0]
    none = np.zeros((), given[0].dtype)
    return np.concatenate([_spread(none if a is None else a, m, block) for a, m in zip(arrays, members)])


def _spread(operand: np.ndarray, member: Packed, block: int) -> np.ndarray:
    """A scale, a zero point or an offset for each row of a member, and for each block where there are any."""
    n, k = member.shape
    shape = (n, -(-k // block)) if block else (n,)
    return np.broadcast_to(operand[:, None] if block and operand.ndim == 1 else operand, shape)
