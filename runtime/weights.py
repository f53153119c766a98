"""An engine's constants on the device, and their replacement by new values in the model's own layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EngineFileError, InputError
from arcweld.runtime.arena import aligned
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.program import Weight

Step = Callable[[np.ndarray, tuple[Any, ...]], np.ndarray]


def _pad(array: np.ndarray, args: tuple[Any, ...]) -> np.ndarray:
    """Zeros after the end of each axis: one count an axis."""
    return np.pad(array, [(0, int(n)) for n in args])


# The steps that a build may record in ``Weight.transform``. Each is a pure function of the array and its
# arguments.
STEPS: dict[str, Step] = {
    "reshape": lambda array, args: array.reshape(args),
    "transpose": lambda array, args: array.transpose(args),
    "cast": lambda array, args: array.astype(DType(args[0]).numpy),
    "pad": _pad,
    "slice": lambda array, args: array[tuple(slice(b, e) for b, e in zip(args[::2], args[1::2]))],
}


def replay(weight: Weight, source: np.ndarray) -> np.ndarray:
    """What the kernels read, from the model's own array. Raises InputError where the steps do not fit it."""
    array = source
    try:
        for name, args in weight.transform:
            if name not in STEPS:
                raise EngineFileError(f"weight {weight.name!r} was packed by the unknown step {name!r}")
            array = STEPS[name](array, args)
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"the new value of weight {weight.source!r} cannot be packed: {error}") from None
    dtype = DType(weight.dtype).numpy
    if array.shape != weight.shape or array.dtype != dtype:
        raise InputError(
            f"the new value of weight {weight.source or weight.name!r} packs to {array.dtype}{list(array.shape)}, "
            f"the engine holds {dtype}{list(weight.shape)}"
        )
    return np.ascontiguousarray(array).reshape(weight.shape)


class DeviceWeights:
    """All constants in one allocation, uploaded once and shared by every context."""

    def __init__(self, weights: tuple[Weight, ...], arrays: Mapping[str, np.ndarray], device: Device) -> None:
        self._weights = weights
        self._device = device
        sizes = {w.name: arrays[w.name].nbytes for w in weights}
        self.nbytes = sum(map(aligned, sizes.values()))
        self._memory: Memory = device.allocate(max(self.nbytes, 256))
        self.addresses: dict[str, int] = {}
        at = self._memory.address
        for name, size in sizes.items():
            self.addresses[name] = at
            if size:
                device.upload(at, np.ascontiguousarray(arrays[name]))
            at += aligned(size)
        device.synchronize()

    def pack(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Packed arrays by weight name, for new values by the model's names (or the engine's own).

        Raises InputError for a name that the engine does not have or a value that does not fit.
        """
        packed: dict[str, np.ndarray] = {}
        used: set[str] = set()
        for weight in self._weights:
            key = weight.source if weight.source in values else weight.name
            if key in values:
                used.add(key)
                array = values[key]
                stored = key == weight.name and key != weight.source
                packed[weight.name] = replay(_stored(weight) if stored else weight, array)
        unknown = sorted(set(values) - used)
        if unknown:
            names = ", ".join(sorted({w.source or w.name for w in self._weights})[:8])
            raise InputError(f"the engine has no weight {unknown[0]!r}", hint=f"its weights are {names}, …")
        return packed

    def store(self, packed: Mapping[str, np.ndarray]) -> None:
        """Overwrites weights on the device, when nothing runs."""
        self._device.synchronize()
        for name, array in packed.items():
            if array.nbytes:
                self._device.upload(self.addresses[name], array)
        self._device.synchronize()


def _stored(weight: Weight) -> Weight:
    """The same weight as an array already packed."""
    return Weight(weight.name, weight.dtype, weight.shape)
