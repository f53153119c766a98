"""Copies between the host and the device's memory, with a count of the bytes that came back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from arcweld.runtime.arrays import Taken
from arcweld.runtime.device import Device


class Transfers:
    """Copies for one device.

    bytes_read  how many bytes have come to the host
    """

    def __init__(self, device: Device) -> None:
        self.device, self.bytes_read = device, 0

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device the current one, of which memory is."""
        token = self.device.enter()
        try:
            yield
        finally:
            self.device.leave(token)

    def copy(self, target: Taken, source: Taken, places: Sequence[int], size: int) -> None:
        """Lets the device copy the elements of ``source`` at ``places``, of ``size`` bytes each, to ``target``.

        Neighbours are copied together: each copy costs the host some microseconds.
        """
        with self.current():
            first = 0
            for end in range(1, len(places) + 1):
                if end == len(places) or places[end] != places[end - 1] + 1:
                    from_, to = source.address + size * places[first], target.address + size * first
                    self.device.copy(to, from_, size * (end - first))
                    first = end

    def upload(self, array: np.ndarray) -> Taken:
        """A copy of an array in the device's memory."""
        source = np.ascontiguousarray(array)
        with self.current():
            memory = self.device.allocate(max(source.nbytes, 1))
            self.device.upload(memory.address, source)
        return Taken("device", memory.address, source.shape, source.nbytes, (memory, source))

    def later(self, array: Taken, dtype: np.dtype | type) -> Callable[[], np.ndarray]:
        """Begins to copy an array to the host; the result waits for it, and not for work that is enqueued later."""
        with self.current():
            copy = self.device.download_later(array.address, array.nbytes)
        self.bytes_read += array.nbytes
        return lambda: copy.wait().view(dtype).reshape(array.shape)

    def download(self, array: Taken, dtype: np.dtype | type, first: int = 0, count: int | None = None) -> np.ndarray:
        """``count`` rows of an array from row ``first`` on, with elements of ``dtype``; None: all that follow.

        Waits until they are computed.
        """
        count = array.shape[0] - first if count is None else count
        found: np.ndarray = np.empty((count, *array.shape[1:]), dtype)
        with self.current():
            self.device.download(found, array.address + first * math.prod(array.shape[1:]) * found.itemsize)
        self.bytes_read += found.nbytes
        return found
