"""Device memory of tensors between the stages of an engine, lent again as soon as nobody holds it.

All work that touches it is enqueued on one stream, so that what reads it at first is done before what writes it next.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from arcweld.compiler.errors import DeviceError
from arcweld.runtime.device import Device, Memory

POISON = 0xFF  # of each byte


@dataclass(slots=True)
class _Block:
    """An allocation, and the number of the call that used it last."""

    memory: Memory
    call: int


class Lent:
    """Memory of a pool, given back with the object."""

    __slots__ = ("_block", "_pool", "address", "nbytes")

    def __init__(self, pool: Pool, block: _Block, nbytes: int) -> None:
        self._pool = pool
        self._block = block
        self.address = block.memory.address
        self.nbytes = nbytes

    def __del__(self) -> None:
        self._pool.take_back(self._block)


class Pool:
    """Memory for one thread and one stream. A loop whose shapes do not change allocates nothing after some turns."""

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._free: defaultdict[int, list[_Block]] = defaultdict(list)
        self._call = 0

    def allocate(self, nbytes: int) -> Lent:
        """``nbytes`` bytes of undefined content. Raises DeviceError or MemoryError where there are not as many."""
        size = _rounded(nbytes)
        free = self._free[size]
        if free:
            block = free.pop()
            block.call = self._call
            if self._device.poisons_memory:
                self._device.fill(block.memory.address, size, POISON, self._stream)
            return Lent(self, block, nbytes)
        return Lent(self, _Block(self._new(size), self._call), nbytes)

    def _new(self, size: int) -> Memory:
        try:
            return self._device.allocate(size)
        except (DeviceError, MemoryError):
            if not any(self._free.values()):
                raise
        self.release()  # blocks of other sizes
        return self._device.allocate(size)

    def take_back(self, block: _Block) -> None:
        """Keeps the block for whoever needs as much next."""
        self._free[_rounded(block.memory.nbytes)].append(block)

    def end_call(self) -> None:
        """Frees what the call, whose work is done, has not used: the pool never keeps more than one call needs."""
        for size, blocks in self._free.items():
            self._free[size] = [b for b in blocks if b.call == self._call]
        self._call += 1

    def release(self) -> None:
        """Frees all that is not lent, after the work that may use it."""
        self._device.synchronize(self._stream)
        self._free.clear()


def _rounded(nbytes: int) -> int:
    """At most an eighth more, so that tensors which grow a little at each turn find the memory of earlier turns."""
    step = max(512, 1 << max(0, nbytes.bit_length() - 4))
    return max(step, -(-nbytes // step) * step)
