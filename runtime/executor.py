"""Runs a plan: one Context for each thread and stream holds the arena, the specialisations and the CUDA graphs.

The plan is specialised for a set of shapes on its first call, and replayed as a graph from its second on (where
the device can). Arrays that come back at the same addresses get a graph of their own, without any copy; others are
staged through memory that only one graph uses. Either way a result, once handed out, never changes again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arcweld.runtime.arena import aligned
from arcweld.runtime.arrays import Arrays, Element, Taken, result_kind
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.launch_list import Copy, LaunchListBuilder, Sizes, Step, compute_sizes, issue, prepare
from arcweld.runtime.plan import ExecutionPlan, Shape

MAX_SHAPES = 64
MAX_GRAPHS = 32  # of a context
MAX_DIRECT = 4  # graphs on callers' own arrays, of one set of shapes
MAX_REMEMBERED = 16  # addresses of earlier calls, of one set of shapes


@dataclass(slots=True)
class Shared:
    """What all contexts of an engine use and none changes.

    ``recorded`` are arenas in graphs of callers', who may replay those as long as the engine lives, even when the
    thread that recorded is gone.
    """

    plan: ExecutionPlan
    device: Device
    arrays: Arrays
    kernels: Sequence[Any]
    weights: Mapping[str, int]
    graphs: bool = True
    recorded: list[Memory] = field(default_factory=list)


@dataclass(slots=True)
class Staged:
    """A captured run with memory of its own for inputs and results (``addresses``, by slot)."""

    executable: Any
    memory: Memory
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Specialisation:
    """The plan for one set of shapes in one context. ``addresses`` are those that the steps were last prepared for.

    ``direct`` holds graphs by the addresses of all inputs and results; ``seen`` the addresses of earlier
    calls.
    """

    sizes: Sizes
    steps: list[Step]
    copies: list[Copy]
    moving: list[Step]
    outputs: list[Shape]
    output_bytes: list[int]
    addresses: tuple[int, ...] = ()
    calls: int = 0
    staged: Staged | None = None
    direct: dict[tuple[int, ...], Any] = field(default_factory=dict)
    seen: OrderedDict[tuple[int, ...], None] = field(default_factory=OrderedDict)

    @property
    def graphs(self) -> int:
        return len(self.direct) + (self.staged is not None)


class Context:
    """Mutable state of one thread on one stream. Not to be shared between threads."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._specialised: OrderedDict[tuple[Shape, ...], Specialisation] = OrderedDict()
        self._arena: Memory | None = None
        self._elements = [Element(shared.plan.tensors[t.name].dtype) for t in shared.plan.program.outputs]

    @property
    def arena_bytes(self) -> int:
        """Bytes of temporaries that this context holds now."""
        return self._arena.nbytes if self._arena is not None else 0

    def run(self, inputs: Sequence[Taken], stream: int) -> list[Any]:
        """Runs once. Results are fresh arrays of the inputs' kind, ready in the order of ``stream``."""
        shared = self.shared
        special = self._find(tuple([t.shape for t in inputs]))
        special.calls += 1
        results, targets, views = self._results(special, result_kind(inputs))
        if not (shared.graphs and special.steps and shared.device.can_capture) or self._recorded_by_caller(stream):
            self._launch(special, inputs, targets, views, stream)
            return results
        on_device = all(v is None for v in views) and all(t.host is None for t in inputs)
        addresses = (*[t.address for t in inputs], *targets) if on_device else None
        graph = self._direct_graph(special, addresses) if addresses is not None else None
        if graph is not None:
            shared.device.replay(graph, stream)
        elif special.calls == 1:
            self._launch(special, inputs, targets, views, stream)
        else:
            self._replay_staged(special, inputs, targets, views, stream)
        return results

    def _recorded_by_caller(self, stream: int) -> bool:
        """True while the caller records a graph, which then uses this arena for as long as it is replayed."""
        if not self.shared.device.is_capturing(stream):
            return False
        if self._arena is not None and all(self._arena is not m for m in self.shared.recorded):
            self.shared.recorded.append(self._arena)
        return True

    def release(self) -> None:
        """Gives back the arena, every specialisation and graph. The next call allocates again."""
        if self._specialised:
            self.shared.device.synchronize()
        self._specialised.clear()
        self._arena = None

    # ----------------------------------------------------------------------------------------- specialisations

    def _find(self, key: tuple[Shape, ...]) -> Specialisation:
        special = self._specialised.get(key)
        if special is None:
            return self._specialise(key)
        self._specialised.move_to_end(key)
        return special

    def _specialise(self, key: tuple[Shape, ...]) -> Specialisation:
        shared = self.shared
        sizes = compute_sizes(shared.plan, shared.plan.bind_symbols(key))
        if self._arena is None or self._arena.nbytes < sizes.arena_bytes:
            self.release()  # every specialisation points into the smaller arena
            self._arena = shared.device.allocate(sizes.arena_bytes)
        arena = self._arena.address
        builder = LaunchListBuilder(shared.plan, sizes, shared.device, shared.kernels, shared.weights, arena)
        steps = builder.steps()
        names = [t.name for t in shared.plan.program.outputs]
        special = Specialisation(
            sizes=sizes,
            steps=steps,
            copies=builder.copies(),
            moving=[s for s in steps if s.moves],
            outputs=[sizes.shapes[n] for n in names],
            output_bytes=[sizes.nbytes[n] for n in names],
        )
        self._specialised[key] = special
        while len(self._specialised) > MAX_SHAPES:
            self._drop(next(iter(self._specialised)))
        return special

    def _drop(self, key: tuple[Shape, ...]) -> None:
        self.shared.device.synchronize()
        del self._specialised[key]

    def _prepare_moving(self, special: Specialisation, addresses: tuple[int, ...]) -> None:
        if special.addresses != addresses:
            for step in special.moving:
                prepare(step, addresses, self.shared.device)
            special.addresses = addresses

    def _results(self, special: Specialisation, kind: str) -> tuple[list[Any], list[int], list[np.ndarray | None]]:
        """New results, their addresses, and the host view of each that must be downloaded."""
        results: list[Any] = []
        targets: list[int] = []
        views: list[np.ndarray | None] = []
        for shape, element in zip(special.outputs, self._elements):
            array, address, view = self.shared.arrays.empty(kind, shape, element)
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
        """Runs every step on the caller's arrays; those on the host get device memory for this call."""
        device = self.shared.device
        held: dict[int, Memory] = {}
        addresses = [*[t.address for t in inputs], *targets]
        sizes = [*[t.nbytes for t in inputs], *special.output_bytes]
        on_host = [t.host is not None for t in inputs] + [v is not None for v in views]
        for slot, size in enumerate(sizes):
            if on_host[slot]:
                held[slot] = device.allocate(max(size, 1))
                addresses[slot] = held[slot].address
        for taken, address in zip(inputs, addresses):
            if taken.host is not None:
                device.upload(address, taken.host, stream)
        self._prepare_moving(special, tuple(addresses))
        issue(special.steps, addresses, device, stream)
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
        """The graph on exactly these arrays; made when the same addresses come a second time."""
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
            issue(special.steps, addresses, device, stream)
            self._copy_outputs(special, addresses, stream)
        finally:
            executable = device.end_capture()
        return executable

    def _forget_oldest(self) -> None:
        """Drops the graphs of the shapes that were not used for longest."""
        self.shared.device.synchronize()
        oldest = next(b for b in self._specialised.values() if b.graphs)
        oldest.direct.clear()
        oldest.seen.clear()
        oldest.staged = None

    def _stage(self, special: Specialisation) -> Staged:
        nbytes = special.sizes.nbytes
        sizes = [*[nbytes[t.name] for t in self.shared.plan.program.inputs], *special.output_bytes]
        memory = self.shared.device.allocate(sum(aligned(s) for s in sizes))
        addresses: list[int] = []
        at = memory.address
        for size in sizes:
            addresses.append(at)
            at += aligned(size)
        return Staged(self._capture(special, tuple(addresses)), memory, tuple(addresses))

    def _replay_staged(
        self,
        special: Specialisation,
        inputs: Sequence[Taken],
        targets: Sequence[int],
        views: Sequence[np.ndarray | None],
        stream: int,
    ) -> None:
        device = self.shared.device
        staged = special.staged
        if staged is None:
            staged = special.staged = self._stage(special)
        in_use = False  # pinned memory of the caller's is read until the stream has come so far
        for taken, address in zip(inputs, staged.addresses):
            if taken.host is not None:
                device.upload(address, taken.host, stream)
                in_use = True
            elif taken.nbytes:
                device.copy(address, taken.address, taken.nbytes, stream)
        device.replay(staged.executable, stream)
        made = staged.addresses[len(inputs) :]
        for view, target, nbytes, address in zip(views, targets, special.output_bytes, made):
            if view is not None:
                device.download(view, address, stream)  # which waits
                in_use = False
            elif nbytes:
                device.copy(target, address, nbytes, stream)
        if in_use:
            device.synchronize(stream)
