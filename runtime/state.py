"""``Session``: the state of one sequence of calls, which is what the model's own buffers hold between them.

    session = engine.session()
    for token in tokens:
        logits = session(token)       # a KV cache that the module owns grows in place
    session.reset()
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from arcweld.compiler.errors import InputError, UsageError
from arcweld.runtime.arrays import Taken
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.executor import Shared
from arcweld.runtime.program import Program, Tensor


class Runs(Protocol):
    """What a session needs of an engine."""

    device: Device

    @property
    def shared(self) -> Shared:
        """The plan and the addresses of weights."""

    @property
    def program(self) -> Program:
        """The state, and the tensors in calling order."""

    def run_with_state(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: Mapping[str, Taken]) -> list[Any]:
        """All results of a run whose inputs named in ``state`` are the session's."""


class Session:
    """Buffers of an engine on its device. It is called like the engine, and returns what the model returns.

    Sessions share nothing but the engine, so that each may have a thread of its own. One session is for one thread at a
    time.
    """

    def __init__(self, engine: Runs) -> None:
        """Allocates ``engine.memory().state`` bytes and sets the first values. ``Engine.session`` makes one.

        Raises UsageError for a model that owns no state, DeviceError where the device has no memory left.
        """
        self.engine = engine
        plan = engine.shared.plan
        self._owned = {s.input: s for s in engine.program.state if s.initial is not None}
        if not self._owned:
            raise UsageError(
                "the model owns no state: nothing lives between its calls",
                hint="inputs that outputs take over are the caller's own arrays",
            )
        self._shapes = {n: tuple(d({}) for d in plan.tensors[n].shape) for n in self._owned}
        self._dtypes = {n: plan.tensors[n].dtype.numpy for n in self._owned}
        self._bytes = {n: math.prod(self._shapes[n]) * plan.tensors[n].dtype.size for n in self._owned}
        self._kept = {s.output for s in self._owned.values()}  # outputs that stay in the session
        self._memory: dict[str, Memory] = {}
        self._busy = threading.Lock()
        with self._alone("opened"):
            self._memory = {n: engine.device.allocate(max(size, 1)) for n, size in self._bytes.items()}
        self.reset()

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers on the device."""
        return sum(self._bytes.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model on its inputs. Raises as ``Engine.__call__`` does, and UsageError for two threads at once."""
        results = self._run(args, kwargs)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model on inputs by name; returns results by name. Raises as ``__call__`` does."""
        if not isinstance(feeds, Mapping):
            raise InputError(f"inputs are given by name, not as a {type(feeds).__name__}", hint="pass {name: array}")
        return dict(zip((t.name for t in self._outputs()), self._run((), feeds)))

    def _outputs(self) -> list[Tensor]:
        return [t for t in self.engine.program.outputs if t.name not in self._kept]

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        if given := sorted(set(kwargs) & set(self._owned)):
            raise InputError(f"the session holds {given[0]!r} itself", hint="session.write sets it")
        with self._alone("called"):
            results = self.engine.run_with_state(args, kwargs, self._taken())
        return [r for t, r in zip(self.engine.program.outputs, results) if t.name not in self._kept]

    def _taken(self) -> dict[str, Taken]:
        return {
            n: Taken("numpy", m.address, self._shapes[n], self._bytes[n], m) for n, m in self._memory.items()
        }

    # ------------------------------------------------------------------------------------------------ the buffers

    def reset(self) -> None:
        """Sets every buffer to what it held when the model was compiled. Waits for the device."""
        device, weights = self.engine.device, self.engine.shared.weights
        with self._alone("reset"):
            device.synchronize()
            for name, memory in self._memory.items():
                first = self._owned[name].initial
                if first:
                    device.copy(memory.address, weights[first], self._bytes[name], 0)
                else:
                    device.fill(memory.address, self._bytes[name], 0, 0)
            device.synchronize()

    def copy(self) -> Session:
        """Another session whose buffers hold the same now. Waits for the device."""
        other = Session(self.engine)
        with self._alone("copied"):
            for name, memory in self._memory.items():
                self.engine.device.copy(other._memory[name].address, memory.address, self._bytes[name], 0)
            self.engine.device.synchronize()
        return other

    def read(self, name: str) -> np.ndarray:
        """A buffer's content, as a new array on the host. Raises InputError for an unknown name."""
        self._check(name)
        found = np.empty(self._shapes[name], self._dtypes[name])
        with self._alone("read"):
            self.engine.device.synchronize()
            self.engine.device.download(found, self._memory[name].address, 0)
            self.engine.device.synchronize()
        return found

    def write(self, name: str, value: np.ndarray) -> None:
        """Sets a buffer. Raises InputError for an unknown name, or another shape or element type."""
        self._check(name)
        array = np.ascontiguousarray(value)
        if array.shape != self._shapes[name] or array.dtype != self._dtypes[name]:
            raise InputError(
                f"the buffer {name!r} is {self._dtypes[name]}{list(self._shapes[name])}, got "
                f"{array.dtype}{list(array.shape)}"
            )
        with self._alone("written"):
            self.engine.device.synchronize()
            self.engine.device.upload(self._memory[name].address, array, 0)
            self.engine.device.synchronize()

    def _check(self, name: str) -> None:
        if name not in self._owned:
            raise InputError(f"the session has no buffer {name!r}; it has {', '.join(self._owned)}")

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Within it, the engine's device is the current one. Raises UsageError if another thread uses the session."""
        if not self._busy.acquire(blocking=False):
            hint = "give each thread a session of its own: engine.session()"
            raise UsageError(f"the session is {what} while another thread uses it", hint=hint)
        try:
            token = self.engine.device.enter()
            try:
                yield
            finally:
                self.engine.device.leave(token)
        finally:
            self._busy.release()
