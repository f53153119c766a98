"""Runs an execution plan: a Context for each thread and stream holds the arena, specialisations and CUDA graphs.

The first call with a set of shapes specialises the plan for them; from the second call on a CUDA graph is replayed, if
the device can. Arrays at the addresses of an earlier call get a direct graph, which needs no copies. Other arrays are
copied through a staged graph's own memory. Results are new arrays, which later calls do not overwrite, except state: an
input on the device that an output takes over is changed where it is, and is itself the result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType, unpack
from arcweld.compiler.errors import DeviceError, InputError
from arcweld.runtime.arena import aligned
from arcweld.runtime.arrays import Arrays, Element, Taken, result_kind
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.launch_list import Copy, Issue, LaunchListBuilder, Sizes, Step, compute_sizes, issue, prepare
from arcweld.runtime.limits import Bounds, bounds_of, check_indices
from arcweld.runtime.plan import ExecutionPlan, Shape
from arcweld.runtime.pool import POISON

MAX_SHAPES = 64  # specialisations of a context
MAX_GRAPHS = 32  # of a context
MAX_DIRECT = 4  # direct graphs of a specialisation
_BYTES = Element(DType.U8)
MAX_REMEMBERED = 16  # sets of addresses that a specialisation remembers from earlier calls


@dataclass(frozen=True, slots=True)
class Part:
    """The plan for some sizes, and the device's handles of its kernels, one for each launch."""

    plan: ExecutionPlan
    kernels: Sequence[Any]


@dataclass(slots=True)
class Shared:
    """What all contexts of an engine share. Nothing changes it but ``recorded``, and weights that move.

    ``poison``: every run begins with all bits of the arena and of the results set (NaN in floats), so that what a
    kernel does not store is seen; such an engine replays no graphs.

    ``parts`` are the plans for ranges of sizes and, at last, ``plan``, which serves all sizes; inputs, outputs and
    state are alike in all. ``weights`` are device addresses by name, and ``moved`` counts how often some of them have
    changed: specialisations hold them. ``recorded`` keeps the arenas that callers' own CUDA graphs use: these may be
    replayed as long as the engine lives, even after the recording thread has ended. ``issue`` enqueues launches.
    """

    parts: Sequence[Part]
    device: Device
    arrays: Arrays
    weights: Mapping[str, int]
    graphs: bool = True
    poison: bool = False
    recorded: list[Any] = field(default_factory=list)
    issue: Issue = issue
    moved: int = 0

    @property
    def plan(self) -> ExecutionPlan:
        """The plan that serves all sizes."""
        return self.parts[-1].plan

    def serving(self, env: Mapping[str, int]) -> Part:
        """The first part whose range holds these sizes."""
        return next((p for p in self.parts if not p.plan.out_of_range(env)), self.parts[-1])


@dataclass(slots=True)
class Staged:
    """A captured run with device memory of its own for inputs and results, except state that is on the device.

    ``addresses`` are those of its slots.
    """

    executable: Any
    memory: Memory
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Specialisation:
    """The plan specialised for one set of shapes, in one context.

    moving                 the steps whose launches depend on the slots' addresses
    outputs, output_bytes  shape and bytes of each output
    bounds                 of inputs that hold indices
    addresses              the slots' addresses that the moving steps were last prepared for
    direct                 CUDA graphs by the slots' addresses
    staged                 CUDA graphs by the addresses of the state on the device
    seen                   the slots' addresses of earlier calls, the latest last
    """

    sizes: Sizes
    steps: list[Step]
    copies: list[Copy]
    moving: list[Step]
    outputs: list[Shape]
    output_bytes: list[int]
    bounds: tuple[Bounds, ...] = ()
    addresses: tuple[int, ...] = ()
    calls: int = 0
    staged: OrderedDict[tuple[int, ...], Staged] = field(default_factory=OrderedDict)
    direct: dict[tuple[int, ...], Any] = field(default_factory=dict)
    seen: OrderedDict[tuple[int, ...], None] = field(default_factory=OrderedDict)

    @property
    def graphs(self) -> int:
        """Number of CUDA graphs that it holds."""
        return len(self.direct) + len(self.staged)


class Context:
    """The mutable state of an engine for one thread and one stream. Not thread-safe.

    ``arrays`` makes the results, if not the engine's own.
    """

    def __init__(self, shared: Shared, arrays: Arrays | None = None) -> None:
        self.shared = shared
        self._arrays = arrays or shared.arrays
        self._specialised: OrderedDict[tuple[Shape, ...], Specialisation] = OrderedDict()
        self._arena: Memory | None = None
        self._counters: Memory | None = None  # zeros between launches
        # by output: the position of the input that it takes over, or None
        self._taken_over = [shared.plan.state.get(k) for k in range(len(shared.plan.outputs))]
        self._moved = shared.moved
        self._elements = [Element(shared.plan.tensors[t.name].dtype) for t in shared.plan.program.outputs]
        self._packed = [(k, e) for k, e in enumerate(self._elements) if e.packed]

    @property
    def arena_bytes(self) -> int:
        """Size in bytes of the arena that this context holds now."""
        return self._arena.nbytes if self._arena is not None else 0

    def run(self, inputs: Sequence[Taken], stream: int, kind: str = "") -> list[Any]:
        """Runs once and returns new arrays of ``kind``, or else of the inputs', whose content is valid in stream order.

        Raises InputError for shapes that do not fit, DeviceError if the device fails.
        """
        shared = self.shared
        kind = kind or result_kind(inputs)
        if shared.device.can_capture and shared.device.is_capturing(stream):
            return self._record(inputs, kind, stream)
        special = self._find(tuple([t.shape for t in inputs]), stream)
        if special.bounds:
            check_indices(special.bounds, inputs)
        special.calls += 1
        results, targets, views = self._results(special, inputs, kind)
        if not (shared.graphs and special.steps and shared.device.can_capture):
            self._launch(special, inputs, targets, views, stream)
            return self._finished(results, special, kind) if self._packed else results
        on_device = all(v is None for v in views) and all(t.host is None for t in inputs)
        addresses = (*[t.address for t in inputs], *targets) if on_device else None
        graph = self._direct_graph(special, addresses) if addresses is not None else None
        if graph is not None:
            shared.device.replay(graph, stream)
        elif special.calls == 1:
            self._launch(special, inputs, targets, views, stream)
        else:
            self._replay_staged(special, inputs, targets, views, stream)
        return self._finished(results, special, kind) if self._packed else results

    def _finished(self, results: list[Any], special: Specialisation, kind: str) -> list[Any]:
        """The results, of which those of packed types are bytes until now, as arrays of their elements."""
        for k, element in self._packed if kind != "device" else ():
            results[k] = unpack(results[k], element.dtype, special.outputs[k])
        return results

    def _record(self, inputs: Sequence[Taken], kind: str, stream: int) -> list[Any]:
        """Adds a run to a graph that the caller is recording.

        Its temporaries are its own: the graph may be replayed while other graphs and calls are under way. torch
        allocates them itself, because only its allocator may ask for memory while it records.
        """
        shared = self.shared
        if self._packed:
            output = shared.plan.program.outputs[self._packed[0][0]]
            raise InputError(
                f"output {output.name!r} is {output.dtype}, whose arrays the host makes: no graph can record that",
                hint="call the engine outside of the recording",
            )
        env = shared.plan.bind_symbols([t.shape for t in inputs])
        part = shared.serving(env)
        sizes = compute_sizes(part.plan, env)
        counters_at = aligned(sizes.arena_bytes)
        nbytes = counters_at + sizes.counter_bytes
        if kind == "torch-gpu":
            memory, arena, _ = shared.arrays.empty(kind, (max(nbytes, 1),), _BYTES)
        else:
            memory = shared.device.allocate(nbytes)
            arena = memory.address
        shared.recorded.append(memory)
        shared.device.fill(arena + counters_at, sizes.counter_bytes, 0, stream)
        special = self._build(part, sizes, arena, arena + counters_at)
        results, targets, views = self._results(special, inputs, kind)
        self._launch(special, inputs, targets, views, stream)
        return results

    def release(self) -> None:
        """Frees the arena, counters, all specialisations and all graphs. The next call allocates them again."""
        if self._specialised:
            self.shared.device.synchronize()
        self._specialised.clear()
        self._arena = self._counters = None

    # ----------------------------------------------------------------------------------------- specialisations

    def _find(self, key: tuple[Shape, ...], stream: int) -> Specialisation:
        if self._moved != self.shared.moved:  # all specialisations hold addresses of weights
            self.release()
            self._moved = self.shared.moved
        special = self._specialised.get(key)
        if special is None:
            return self._specialise(key, stream)
        self._specialised.move_to_end(key)
        return special

    def _specialise(self, key: tuple[Shape, ...], stream: int) -> Specialisation:
        shared = self.shared
        env = shared.plan.bind_symbols(key)
        part = shared.serving(env)
        sizes = compute_sizes(part.plan, env)
        small = self._counters is None or self._counters.nbytes < sizes.counter_bytes
        if self._arena is None or self._arena.nbytes < sizes.arena_bytes or small:
            self.release()  # all specialisations hold addresses in the smaller arena
            self._arena = shared.device.allocate(sizes.arena_bytes)
            self._counters = shared.device.allocate(sizes.counter_bytes)
            shared.device.fill(self._counters.address, sizes.counter_bytes, 0, stream)
        assert self._counters is not None
        special = self._specialised[key] = self._build(part, sizes, self._arena.address, self._counters.address)
        while len(self._specialised) > MAX_SHAPES:
            self._drop(next(iter(self._specialised)))
        return special

    def _build(self, part: Part, sizes: Sizes, arena: int, counters: int) -> Specialisation:
        """A part's plan with the given sizes; temporaries begin at the address ``arena``, counters at ``counters``."""
        shared = self.shared
        builder = LaunchListBuilder(part.plan, sizes, shared.device, part.kernels, shared.weights, arena, counters)
        steps = builder.steps()
        names = [t.name for t in shared.plan.program.outputs]
        return Specialisation(
            sizes=sizes,
            steps=steps,
            copies=builder.copies(),
            moving=[s for s in steps if s.moves],
            outputs=[sizes.shapes[n] for n in names],
            output_bytes=[sizes.nbytes[n] for n in names],
            bounds=bounds_of(shared.plan.program, sizes.env),
        )

    def _drop(self, key: tuple[Shape, ...]) -> None:
        self.shared.device.synchronize()
        del self._specialised[key]

    def _prepare_moving(self, special: Specialisation, addresses: tuple[int, ...]) -> None:
        if special.addresses != addresses:
            for step in special.moving:
                prepare(step, addresses, self.shared.device)
            special.addresses = addresses

    def _results(
        self, special: Specialisation, inputs: Sequence[Taken], kind: str
    ) -> tuple[list[Any], list[int], list[np.ndarray | None]]:
        """The result arrays, their addresses, and for each the host view to download into (None: on the device).

        They are new, except state on the device: the caller's own arrays.

        Raises DeviceError for one for which there is not enough memory.
        """
        results: list[Any] = []
        targets: list[int] = []
        views: list[np.ndarray | None] = []
        for shape, element, slot in zip(special.outputs, self._elements, self._taken_over):
            if slot is not None and inputs[slot].host is None:
                results.append(inputs[slot].given)
                targets.append(inputs[slot].address)
                views.append(None)
                continue
            try:
                form = (kind, shape, element)
                if element.packed and kind != "device":  # bytes until they are there
                    form = ("numpy", (special.output_bytes[len(results)],), _BYTES)
                array, address, view = self._arrays.empty(*form)
            except MemoryError:
                output = self.shared.plan.program.outputs[len(results)]
                raise DeviceError(
                    f"there is not enough memory for output {output.name!r} of shape {list(shape)}: "
                    f"{special.output_bytes[len(results)]} bytes",
                    hint="give smaller inputs; engine.memory() tells the bytes before a run",
                ) from None
            results.append(array)
            targets.append(address)
            views.append(view)
        return results, targets, views

    # --------------------------------------------------------------------------------------- launch by launch

    def _launch(
        self,
        special: Specialisation,
        inputs: Sequence[Taken],
        targets: Sequence[int],
        views: Sequence[np.ndarray | None],
        stream: int,
    ) -> None:
        """Runs step by step on the caller's arrays. Arrays on the host get device memory for this call."""
        device = self.shared.device
        held: dict[int, Memory] = {}
        addresses = [*[t.address for t in inputs], *targets]
        sizes = [*[t.nbytes for t in inputs], *special.output_bytes]
        state = {len(inputs) + output: slot for output, slot in self.shared.plan.state.items()}
        on_host = [t.host is not None for t in inputs] + [v is not None for v in views]
        for slot, size in enumerate(sizes):
            if slot in state:
                addresses[slot] = addresses[state[slot]]
            elif on_host[slot]:
                held[slot] = device.allocate(max(size, 1))
                addresses[slot] = held[slot].address
        for taken, address in zip(inputs, addresses):
            if taken.host is not None:
                device.upload(address, taken.host, stream)
        if self.shared.poison and self._arena is not None:
            device.fill(self._arena.address, self._arena.nbytes, POISON, stream)
            for slot in range(len(inputs), len(addresses)):
                if slot not in state:
                    device.fill(addresses[slot], sizes[slot], POISON, stream)
        self._prepare_moving(special, tuple(addresses))
        try:
            self.shared.issue(special.steps, addresses, device, stream)
        except DeviceError:
            if special.sizes.counter_bytes:  # they may have been left in the middle of counting
                self.release()
            raise
        self._copy_outputs(special, addresses, stream)
        for view, address in zip(views, addresses[len(inputs) :]):
            if view is not None:
                device.download(view, address, stream)
        if held:
            device.synchronize(stream)

    def _copy_outputs(self, special: Specialisation, addresses: Sequence[int], stream: int) -> None:
        for copy in special.copies:
            if copy.nbytes:
                source, destination = copy.source.at(addresses), copy.destination.at(addresses)
                self.shared.device.copy(destination, source, copy.nbytes, stream)

    # ------------------------------------------------------------------------------------------------ graphs

    def _direct_graph(self, special: Specialisation, addresses: tuple[int, ...]) -> Any | None:
        """The graph for exactly these addresses, captured when they come for the second time; else None."""
        graph = special.direct.get(addresses)
        if graph is not None:
            return graph
        if addresses in special.seen and len(special.direct) < MAX_DIRECT:
            graph = special.direct[addresses] = self._capture(special, addresses)
            return graph
        special.seen[addresses] = None
        if len(special.seen) > MAX_REMEMBERED:
            special.seen.popitem(last=False)
        return None

    def _capture(self, special: Specialisation, addresses: tuple[int, ...]) -> Any:
        device = self.shared.device
        if sum(b.graphs for b in self._specialised.values()) >= MAX_GRAPHS:
            self._forget_oldest()
        self._prepare_moving(special, addresses)
        stream = device.begin_capture()
        try:
            self.shared.issue(special.steps, addresses, device, stream)
            self._copy_outputs(special, addresses, stream)
        finally:
            executable = device.end_capture()
        return executable

    def _forget_oldest(self) -> None:
        """Drops the graphs of the least recently used specialisation that has any."""
        self.shared.device.synchronize()
        oldest = next(b for b in self._specialised.values() if b.graphs)
        oldest.direct.clear()
        oldest.seen.clear()
        oldest.staged.clear()

    def _staged(self, special: Specialisation, inputs: Sequence[Taken]) -> Staged:
        """The graph that leaves the caller's state on the device where it is, captured if it is the first such call."""
        fixed: dict[int, int] = {}
        key: tuple[int, ...] = ()
        if self.shared.plan.state:
            fixed = {s: inputs[s].address for s in self.shared.plan.state.values() if inputs[s].host is None}
            key = tuple(fixed.values())
        found = special.staged.get(key)
        if found is None:
            found = self._stage(special, fixed)
            special.staged[key] = found
            if len(special.staged) > MAX_DIRECT:
                self.shared.device.synchronize()
                special.staged.popitem(last=False)
        return found

    def _stage(self, special: Specialisation, fixed: Mapping[int, int]) -> Staged:
        """A captured run with memory of its own for every slot that is neither ``fixed`` nor state."""
        nbytes, inputs = special.sizes.nbytes, self.shared.plan.program.inputs
        sizes = [*[nbytes[t.name] for t in inputs], *special.output_bytes]
        shared = {len(inputs) + output: slot for output, slot in self.shared.plan.state.items()}
        own = [slot for slot in range(len(sizes)) if slot not in fixed and slot not in shared]
        memory = self.shared.device.allocate(sum(aligned(sizes[slot]) for slot in own))
        places, at = dict(fixed), memory.address
        for slot in own:
            places[slot] = at
            at += aligned(sizes[slot])
        addresses = tuple(places[shared.get(slot, slot)] for slot in range(len(sizes)))
        return Staged(self._capture(special, addresses), memory, addresses)

    def _replay_staged(
        self,
        special: Specialisation,
        inputs: Sequence[Taken],
        targets: Sequence[int],
        views: Sequence[np.ndarray | None],
        stream: int,
    ) -> None:
        device = self.shared.device
        staged = self._staged(special, inputs)
        in_use = False  # whether the device may still be reading the caller's pinned host memory
        for taken, address in zip(inputs, staged.addresses):
            if taken.host is not None:
                device.upload(address, taken.host, stream)
                in_use = True
            elif taken.nbytes and taken.address != address:
                device.copy(address, taken.address, taken.nbytes, stream)
        device.replay(staged.executable, stream)
        made = staged.addresses[len(inputs) :]
        for view, target, nbytes, address in zip(views, targets, special.output_bytes, made):
            if view is not None:
                device.download(view, address, stream)  # which waits
                in_use = False
            elif nbytes and target != address:
                device.copy(target, address, nbytes, stream)
        if in_use:
            device.synchronize(stream)
