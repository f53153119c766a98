"""The tensors of safetensors files by the names that they have there, before a method's parts are put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from arcweld.compiler.checkpoints.tensors import Plain, StoredTensor
from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.errors import ModelError


@dataclass(slots=True)
class Raw:
    """``arrays``: views of the mapped files by name; ``files``: the file that each is in. ``take`` removes a tensor."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, file: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds a file's tensors. Raises ModelError for a name that another file has."""
        for name, array in arrays.items():
            if name in self.arrays:
                raise ModelError(f"tensor {name[:200]!r} is in {self.files[name]!r} too", node=file,
                                 hint="one of the files is left from another version of the checkpoint: fetch it again",
                                 )  # fmt: skip
            self.arrays[name], self.files[name] = array, file

    def layers(self, part: str) -> Iterator[str]:
        """The names of the layers that have a tensor ``.part``."""
        ending = f".{part}"
        for name in [n for n in self.arrays if n.endswith(ending)]:
            yield name.removesuffix(ending)

    def take(self, layer: str, part: str, rank: int | None = None, dtype: str = "") -> np.ndarray:
        """A part that the layer must have, of that rank and numpy type if they are given."""
        found = self.take_if(layer, part)
        if found is None:
            raise ModelError(f"layer {layer[:200]!r} has no {part}", node=next(iter(self.files.values()), None),
                             hint="a part of the checkpoint is missing: fetch it again")  # fmt: skip
        if (rank is not None and found.ndim != rank) or (dtype and found.dtype != dtype):
            raise ModelError(
                f"layer {layer[:200]!r}: {part} should be {dtype or found.dtype} of rank {rank}, and is {found.dtype} "
                f"of shape {list(found.shape)}", node=self.files[f"{layer}.{part}"],
                hint="the quantisation's method or version is another one than the configuration says",
            )  # fmt: skip
        return found

    def take_if(self, layer: str, part: str) -> np.ndarray | None:
        """A part of a layer, or None."""
        return self.arrays.pop(f"{layer}.{part}", None)

    def rest(self) -> dict[str, StoredTensor]:
        """All tensors that are left, as they are."""
        return {
            name: StoredTensor(name, array.shape, Plain(from_numpy(array.dtype)), {"data": array}, self.files[name])
            for name, array in self.arrays.items()
        }
