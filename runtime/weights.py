"""An engine's weights on the device, and their replacement by new values in the model's own shapes and types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from arcweld.compiler.dtypes import DType, stored_form
from arcweld.compiler.dtypes import pack as pack_bits
from arcweld.compiler.errors import EngineFileError, InputError, ModelError, UnsupportedError
from arcweld.compiler.mapped import give_back, is_constant
from arcweld.compiler.records import sources
from arcweld.runtime.arena import aligned
from arcweld.runtime.arrays import ALIGNMENT
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.program import Program, WeightEntry


def model_names(weight: WeightEntry) -> tuple[str, ...]:
    """The names under which a caller gives new values for ``weight``: the model's, or else the engine's own."""
    return sources(weight) or (weight.name,)


def pack(weight: WeightEntry, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array that kernels read, made from the model's arrays ``values`` by replaying the weight's record.

    Raises InputError for values that do not fit, EngineFileError for a damaged record.
    """
    if not weight.transform:
        return _fitting(weight, values[weight.source or weight.name])
    from arcweld.compiler.weights import replay  # the operators' references are needed here only

    try:
        array = replay(weight.transform, values)
    except (ModelError, UnsupportedError) as error:
        raise EngineFileError(f"the record of weight {weight.name!r} is damaged: {error.message}") from error
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
        raise EngineFileError(f"the record of weight {weight.name!r} is damaged: {error}") from error
    return _fitting(weight, array)


def _fitting(weight: WeightEntry, array: np.ndarray) -> np.ndarray:
    """``array`` as the engine holds it; of a packed type, its bytes are taken too.

    Raises InputError for another shape or element type.
    """
    dtype = DType(weight.dtype)
    stored, shape = stored_form(dtype, weight.shape)
    if (array.dtype, array.shape) == (dtype.numpy, weight.shape):
        return pack_bits(np.ascontiguousarray(array).reshape(weight.shape))
    if not dtype.is_packed or (array.dtype, array.shape) != (stored, shape):
        raise InputError(
            f"the new value of weight {weight.source or weight.name!r} packs to {array.dtype}{list(array.shape)}, "
            f"the engine holds {dtype.numpy}{list(weight.shape)}"
        )
    return np.ascontiguousarray(array)


class DeviceWeights:
    """All weights on the device, shared by all contexts: ``nbytes`` bytes. ``addresses`` are by name.

    A device that reads the host's memory gets no copy of an array that nobody can write, and with ``borrow`` of none:
    the caller then leaves the arrays as they are. A mapped file is only borrowed, as others can write to it.
    """

    def __init__(
        self, program: Program, arrays: Mapping[str, np.ndarray], device: Device, borrow: bool = False
    ) -> None:
        self._weights = program.weights
        self._fixed = frozenset(program.fixed)
        self._device = device
        self.nbytes = sum(aligned(arrays[w.name].nbytes) for w in program.weights)
        self.addresses: dict[str, int] = {}
        self._memory: list[Memory] = []
        self._in_place: dict[str, np.ndarray] = {}
        for w in program.weights:
            array = arrays[w.name]
            usable = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0 and array.size
            address = device.host_address(array) if usable and (borrow or is_constant(array)) else None
            if address is not None:
                self.addresses[w.name], self._in_place[w.name] = address, array
        self._copy({w.name: arrays[w.name] for w in program.weights if w.name not in self._in_place})
        device.synchronize()

    def own(self) -> bool:
        """Copies what was borrowed. True if addresses have changed."""
        return self.store({name: array for name, array in self._in_place.items() if not is_constant(array)})

    def _copy(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copies arrays into an allocation of their own. Pages of a mapped file that were read for it go back."""
        if not arrays:
            return
        memory = self._device.allocate(sum(aligned(a.nbytes) for a in arrays.values()))
        self._memory.append(memory)
        at = memory.address
        for name, array in arrays.items():
            self.addresses[name] = at
            if array.nbytes:
                self._device.upload(at, np.ascontiguousarray(array))
                give_back(array)
            at += aligned(array.nbytes)

    def pack(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stored arrays by weight name, made from new values.

        Values under the model's names are packed; values under the engine's own names are taken as they are. Raises
        InputError for an unknown name, a value that does not fit, a weight that kernels hold as a literal, or a weight
        made from several arrays of which only some are given.
        """
        fixed = sorted(self._fixed & set(values))
        if fixed:
            raise InputError(f"weight {fixed[0]!r} is a constant inside the kernels", hint="compile the model again")
        packed: dict[str, np.ndarray] = {}
        used: set[str] = set()
        for weight in self._weights:
            needed = model_names(weight)
            given = [n for n in needed if n in values]
            if given:
                _check_complete(weight, needed, given)
                packed[weight.name] = pack(weight, values)
                used.update(given)
            elif weight.name in values:
                packed[weight.name] = _fitting(weight, values[weight.name])
                used.add(weight.name)
        unknown = sorted(set(values) - used)
        if unknown:
            names = sorted({n for w in self._weights for n in model_names(w)})
            listed = ", ".join(names[:8]) + ", …" * (len(names) > 8)
            raise InputError(f"the engine has no weight {unknown[0]!r}", hint=f"its weights are {listed or 'none'}")
        return packed

    def store(self, packed: Mapping[str, np.ndarray]) -> bool:
        """Replaces weights, after waiting for all work on the device. True if addresses have changed.

        Arrays that kernels read where they are get memory on the device instead, and are never written.
        """
        self._device.synchronize()
        moved = {name: array for name, array in packed.items() if name in self._in_place}
        self._copy(moved)
        for name in moved:
            del self._in_place[name]
        for name, array in packed.items():
            if array.nbytes and name not in moved:
                self._device.upload(self.addresses[name], array)
        self._device.synchronize()
        return bool(moved)


def _check_complete(weight: WeightEntry, needed: tuple[str, ...], given: list[str]) -> None:
    missing = [n for n in needed if n not in given]
    if missing:
        raise InputError(
            f"weight {given[0]!r} is stored joined with {', '.join(map(repr, missing))}",
            node=weight.name,
            hint="give new values for all of them in one call (those that stay as they are too)",
        )
