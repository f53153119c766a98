"""``Engine``: a compiled model on a device, ready to be called. Only its weights can change; it is thread-safe."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import DeviceError, EngineFileError, EnvironmentError_, InputError, UsageError
from arcweld.compiler.signature import described, gathered, plain, spread
from arcweld.runtime import injected, nvtx, trust
from arcweld.runtime.arrays import Arrays, Element, Taken, check_state, host_array, result_kind
from arcweld.runtime.device import Device
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine_file import EngineData, check_data, parse_engine, read_engine, write_engine
from arcweld.runtime.executor import Context, Part, Shared
from arcweld.runtime.kernels import KernelLoader
from arcweld.runtime.locks import SharedLock
from arcweld.runtime.memory_report import MemoryReport, memory_report
from arcweld.runtime.plan import ExecutionPlan, describe
from arcweld.runtime.program import Argument, Program, Tensor
from arcweld.runtime.stages import StagedContext, StagedProgram
from arcweld.runtime.state import Session
from arcweld.runtime.steps import sizes_given
from arcweld.runtime.weights import DeviceWeights

log = logging.getLogger("arcweld.runtime")

MAX_CONTEXTS = 4  # of one thread, one for each stream it uses


class Engine:
    """A compiled model on a device.

    ``engine(x, y)`` or ``engine(x=..., y=...)`` returns one result, or a tuple in the order of ``outputs``. Results are
    arrays of the inputs' kind (numpy, torch, CuPy), computed on torch's or CuPy's current stream. Later calls do not
    overwrite them. A sequence of ONNX is a list of arrays, an optional output that is empty None (``arguments``,
    ``results``). Where an output takes over an input's memory (``program.state``), an array on the device is changed
    in place and is itself the result.
    """

    def __init__(
        self, data: EngineData, device: Device | str | None = None, *, graphs: bool = True, trusted: bool = False,
        poison: bool = False, borrow: bool = False,
    ) -> None:  # fmt: skip
        """Loads every kernel and uploads the weights, so that no call compiles anything.

        ``graphs`` and ``trusted`` as in ``load``; ``poison``: as in ``poisoned``, always; ``borrow``: a device that
        reads the host's memory need not copy the weights, which nobody changes before ``own_weights``. Raises
        EngineFileError for inconsistent data, UntrustedError for data of a file that ``load`` would refuse, DeviceError
        for kernels that cannot be loaded, EnvironmentError_ for an unusable device, UsageError for wrong arguments.
        With ``ARCWELD_NVTX=1``, kernels are launched one by one, in ranges with their names (``nvtx.py``).
        """
        if not isinstance(data, EngineData):
            raise UsageError(f"a {type(data).__name__} is no engine's data", hint="arcweld.load opens an engine file")
        check_data(data)
        self.device: Device = open_device(device)
        self.data = data = trust.accepted(data, self.device, trusted)
        token = self.device.enter()
        try:
            programs = data.program.stages if data.program.steps else (data.program,)
            plans = [[ExecutionPlan(part, self.device.arch) for part in p.parts()] for p in programs]
            self._loader = KernelLoader(data, self.device, injected.rebuild)
            self._loader.prepare([x.variant for own in plans for plan in own for x in plan.launches])
            handles = self._loader.load
            parts = [[Part(plan, handles([x.variant for x in plan.launches])) for plan in own] for own in plans]
            self._weights = DeviceWeights(data.program, data.weights, self.device, borrow)
        finally:
            self.device.leave(token)
        self._loaded = self._loader.loaded
        self._arrays = arrays = Arrays(self.device.gpu_index, self.device.allocate)
        named = nvtx.asked()
        addresses, replayed = self._weights.addresses, graphs and not poison and not named
        self._lock = SharedLock()
        self._stages = [Shared(own, self.device, arrays, addresses, replayed, poison) for own in parts]
        if named:
            for shared, own in zip(self._stages, plans):
                shared.issue = nvtx.in_ranges(data.program.name, own)
        self.staged = StagedProgram(data.program, self._stages, self.device) if data.program.steps else None
        self._names = tuple(t.name for t in data.program.inputs)
        self._elements = tuple(Element(DType(t.dtype)) for t in data.program.inputs)
        self._state = () if self.staged else tuple(self._stages[0].plan.state.values())
        self._local = threading.local()

    # --------------------------------------------------------------------------------------------- what it is

    @property
    def loaded_late(self) -> int:
        """How many kernels were compiled or loaded since the engine was made: 0, or a call has waited for that."""
        return self._loader.loaded - self._loaded

    @property
    def shared(self) -> Shared:
        """The plan, kernels and weights that all contexts use; for the profiler.

        Raises UsageError for an engine of several stages.
        """
        if self.staged is not None:
            raise UsageError("the host takes part in a call of this engine: it has no single list of launches")
        return self._stages[0]

    @property
    def program(self) -> Program:
        """The program: launches, tensors and symbols."""
        return self.data.program

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Names, element types and shapes (expression texts) of the inputs, in calling order."""
        return self.data.program.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Names, element types and shapes (expression texts) of the outputs, in the order of results."""
        return self.data.program.outputs

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """What a call takes, in its order: tensors, and lists of them, made of ``inputs``."""
        return self.program.takes or plain(t.name for t in self.inputs)

    @property
    def results(self) -> tuple[Argument, ...]:
        """What a call gives, in its order: tensors, and lists of them, made of ``outputs``."""
        return self.program.gives or plain(t.name for t in self.outputs)

    @property
    def kernel_origins(self) -> dict[str, str]:
        """What was loaded for each kernel: ``cubin sm_90a``, ``ptx``, ``rebuilt from source`` or ``source`` (sim)."""
        return dict(self._loader.loaded_from)

    def memory(self, **symbols: int) -> MemoryReport:
        """The exact device memory for the given values of the symbolic dimensions, without running anything.

        Raises InputError for an unknown or missing dimension, or a value outside its range.
        """
        names = [s.name for s in self.program.symbols]
        missing = [n for n in names if n not in symbols]
        if missing:
            raise InputError(f"memory() needs a value for dimension {missing[0]!r}")
        known = [*names, *sizes_given(self.program.steps)]
        for name, value in symbols.items():
            if name not in known:
                raise InputError(f"the engine has no dimension {name!r}; it has {', '.join(known) or 'none'}")
            if not isinstance(value, int | np.integer):
                raise InputError(f"dimension {name!r} is a whole number, not {value!r}")
        env = {n: int(value) for n, value in symbols.items()}
        plans = [shared.parts for shared in self._stages]
        return memory_report(self.program, plans, env, self._weights.nbytes)

    def estimate(self, card: str, **symbols: int) -> Any:
        """What a call takes on a card, modelled (``arcweld.driver.estimate.Estimate``). Nothing is run.

        ``card``: a name such as ``h100``, or the path of a description (``.json``). ``symbols`` are the values of the
        symbolic dimensions. Raises UsageError for an unknown card, or one that the engine has no kernels for,
        InputError for a missing dimension or a value outside its range, EnvironmentError_ without the compiler.
        """
        if injected.estimate is None:
            raise EnvironmentError_("estimates need Arcweld's code generator", hint="import arcweld")
        return injected.estimate(self.data, card, symbols)

    def __repr__(self) -> str:
        takes, gives = (
            ", ".join(described(a, {t.name: describe(t) for t in tensors}) for a in arguments)
            for arguments, tensors in ((self.arguments, self.inputs), (self.results, self.outputs))
        )
        return f"<Engine {self.program.name}({takes}) -> ({gives}) on {self.device.name}>"

    # ------------------------------------------------------------------------------------------------ calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model. Raises InputError for inputs that do not fit, DeviceError if the device fails."""
        if kwargs or len(args) != len(self._names) or self.program.takes:
            args = self._arrange(args, kwargs)
        results = self._run(args)
        if self.program.gives:
            results = list(gathered(self.program.gives, {t.name: r for t, r in zip(self.outputs, results)}).values())
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model on inputs by name; returns results by name. Raises as ``__call__`` does."""
        found = self.run_tensors(feeds)
        return gathered(self.program.gives, found) if self.program.gives else found

    def run_tensors(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Like ``run``, with the items of lists as results of their own, by the names in ``outputs``."""
        if not isinstance(feeds, Mapping):
            raise InputError(f"inputs are given by name, not as a {type(feeds).__name__}", hint="pass {name: array}")
        results = self._run(self._arrange((), feeds))
        return {t.name: r for t, r in zip(self.outputs, results)}

    def session(self) -> Session:
        """A new session: buffers for the state that the model owns, with their first values.

        Raises UsageError for a model that owns none, DeviceError where the device has no memory left.
        """
        return Session(self)

    def run_with_state(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: Mapping[str, Taken]) -> list[Any]:
        """All results of a run whose inputs named in ``state`` are a session's. Raises as ``__call__`` does."""
        return self._run(self._arrange(args, {**kwargs, **state}))

    def run_on_device(self, feeds: Mapping[str, Any], state: Mapping[str, Taken]) -> list[Taken]:
        """As ``run_with_state``, with results that stay in the device's memory.

        If no input has to be copied from the host, it returns before they are computed. Work that is enqueued later on
        the default stream finds them. Raises as ``__call__`` does.
        """
        return self._run(self._arrange((), {**feeds, **state}), "device")

    def take(self, feeds: Mapping[str, Any]) -> list[Taken]:
        """Inputs by name as kernels can read them, in the program's order.

        Raises InputError for those that do not fit.
        """
        given = self._arrange((), feeds)
        return [self._arrays.take(n, a, d) for n, a, d in zip(self._names, given, self._elements)]

    def _run(self, args: tuple[Any, ...], wanted: str = "") -> list[Any]:
        """All results, as arrays of the kind that is ``wanted``, or else of the inputs'."""
        device, arrays = self.device, self._arrays
        token = device.enter()
        try:
            take = arrays.take
            taken = [take(n, a, d) for n, a, d in zip(self._names, args, self._elements)]
            if self._state:
                check_state(taken, args, self._state, self._names)
            kind = result_kind(taken)
            stream = arrays.stream(kind)
            if kind == "torch-gpu" and "cupy" in {t.kind for t in taken}:
                other = arrays.stream("cupy")
                if other != stream:  # kernels that write the CuPy arrays may still be running there
                    device.synchronize(other)
            self._lock.acquire_read()
            try:
                return self._context(stream).run(taken, stream, wanted or kind)
            finally:
                self._lock.release_read()
        except MemoryError as error:
            raise DeviceError(
                f"not enough memory for this call: {error}", hint="engine.memory() tells the bytes before a run"
            ) from error
        finally:
            device.leave(token)

    def _context(self, stream: int) -> Context | StagedContext:
        """The calling thread's context for a stream."""
        known: OrderedDict[int, Context | StagedContext] | None = getattr(self._local, "contexts", None)
        if known is None:
            known = self._local.contexts = OrderedDict()
        context = known.get(stream)
        if context is None:
            context = StagedContext(self.staged, stream) if self.staged else Context(self._stages[0])
            known[stream] = context
            while len(known) > MAX_CONTEXTS:
                known.popitem(last=False)[1].release()
        return context

    def _arrange(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Positional and named inputs in the program's order."""
        if self.program.takes:
            args, kwargs = (), self._spread(args, kwargs)
        names = self._names
        wanted = ", ".join(f"{t.name}: {describe(t)}" for t in self.inputs)
        if len(args) > len(names):
            raise InputError(f"{len(args)} inputs were given, the engine takes {len(names)}: {wanted}")
        unknown = [k for k in kwargs if k not in names]
        if unknown:
            raise InputError(f"the engine has no input {unknown[0]!r}; it takes {wanted}")
        twice = [n for n in names[: len(args)] if n in kwargs]
        if twice:
            raise InputError(f"input {twice[0]!r} was given twice")
        missing = [n for n in names[len(args) :] if n not in kwargs]
        if missing:
            owned = [s.input for s in self.program.state if s.initial is not None]
            hint = "the model owns it: session = engine.session() holds it between calls"
            what = f"input {missing[0]!r} is missing; the engine takes {wanted}"
            raise InputError(what, hint=hint if missing[0] in owned else None)
        return (*args, *(kwargs[n] for n in names[len(args) :]))

    def _spread(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All inputs by the names of their tensors, where some are lists."""
        takes = self.program.takes
        if len(args) > len(takes):
            raise InputError(f"{len(args)} inputs were given, the engine takes {', '.join(a.name for a in takes)}")
        given = {a.name: value for a, value in zip(takes, args)}
        twice = next((n for n in given if n in kwargs), None)
        if twice is not None:
            raise InputError(f"input {twice!r} was given twice")
        missing = [a for a in takes if a.name not in given and a.name not in kwargs and not set(a.items) & set(kwargs)]
        if missing:
            what = f"a list of {len(missing[0].items)} arrays" if missing[0].kind == "sequence" else "an array"
            raise InputError(f"input {missing[0].name!r}, {what}, is missing")
        return spread(takes, {**given, **kwargs})

    # ------------------------------------------------------------------------------------------------ keeping

    def update_weights(self, values: Mapping[str, Any]) -> None:
        """Replaces weights by arrays given under the model's own names, in the model's own shapes and types.

        Waits for calls that are under way and for the device. Every call, in whatever thread, sees all of the old
        values or all of the new ones. So does a graph that the caller has recorded, unless it is replayed meanwhile.
        The evidence lists the names of replaced weights. Raises InputError, before anything changes, for a name or a
        value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"weights are given by name, not as a {type(values).__name__}", hint="pass {name: array}")
        packed = self._weights.pack({name: host_array(value) for name, value in values.items()})
        with self._lock:
            token = self.device.enter()
            try:
                self._weights_moved(self._weights.store(packed))
            finally:
                self.device.leave(token)
            evidence = self.data.verify
            if evidence is not None:  # the verification was done with the old values
                evidence = {**evidence, "replaced": sorted({*evidence.get("replaced", ()), *values})}
            self.data = replace(self.data, weights={**self.data.weights, **packed}, verify=evidence)

    def own_weights(self) -> None:
        """Copies the weights that ``borrow`` left where they were: others may change those from now on."""
        with self._lock:
            self._weights_moved(self._weights.own())

    def _weights_moved(self, moved: bool) -> None:
        for shared in self._stages:
            shared.moved += moved

    @contextmanager
    def poisoned(self) -> Iterator[None]:
        """Within it, every run begins with all bits of temporaries and results set: NaN in floats.

        What a kernel does not store is then seen. It is for verification, while no other thread runs the engine.
        """
        before = [(shared.poison, shared.graphs) for shared in self._stages]
        for shared in self._stages:
            shared.poison, shared.graphs = True, False
        try:
            yield
        finally:
            for shared, (poison, graphs) in zip(self._stages, before):
                shared.poison, shared.graphs = poison, graphs

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the engine file. Raises EnvironmentError_ if it cannot be written."""
        write_engine(path, self.data)

    def __reduce__(self) -> Any:
        raise TypeError("an Engine holds a device: save it to a file, and load that in the other process")

    def release(self) -> None:
        """Frees the arenas and graphs of the calling thread. Its next call allocates them again."""
        known: OrderedDict[int, Context | StagedContext] | None = getattr(self._local, "contexts", None)
        if known is None:
            return
        for context in known.values():
            context.release()
        known.clear()


def load(
    path: str | os.PathLike[str] | bytes,
    device: Device | str | None = None,
    *,
    graphs: bool = True,
    verify_weights: bool = True,
    trusted: bool = False,
) -> Engine:
    """Opens an engine file, given by path or as bytes, on a device.

    device          ``cuda``, ``cuda:N`` or ``sim``; None takes ARCWELD_DEVICE, else a GPU if there is one, else sim
    graphs          replay CUDA graphs if the device can
    verify_weights  compare the weights with their hash too
    trusted         run the file's kernels on ``sim``, where they are host code, whatever they are. Without it, only a
                    file that this user built here runs there, or one that is what this version makes of its graph

    Raises EngineFileError for anything but an intact engine file, UntrustedError for one that must not run on ``sim``,
    DeviceError for kernels that cannot be loaded,
    EnvironmentError_ for a device that cannot be used, UsageError for an unknown device.
    """
    if isinstance(path, bytes):
        data = parse_engine(memoryview(path), verify_weights=verify_weights)
    elif os.fspath(path).endswith(".onnx") and os.path.exists(path):
        raise EngineFileError(f"{os.fspath(path)} is a model, not an engine", hint="arcweld.compile makes an engine")
    else:
        data = read_engine(path, verify_weights=verify_weights)
    engine = Engine(data, device, graphs=graphs, trusted=trusted)
    log.info("loaded %s on %s (%s)", data.program.name, engine.device.name, engine.device.arch)
    return engine
