"""Runs a plan: one Context for each thread and stream holds the arena, the bound shapes and the CUDA graphs.

A set of shapes is bound on its first call, captured on its second (where the device can), and replayed from
then on. Inputs are staged into and results copied out of memory that only the graph uses: a result never
changes again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from arcweld.runtime.arena import aligned
from arcweld.runtime.arrays import Arrays, Element, Taken, result_kind
from arcweld.runtime.bound import Binder, Copy, Sizes, Step, issue, measure, prepare
from arcweld.runtime.device import Device, Memory
from arcweld.runtime.plan import Plan, Shape

MAX_SHAPES = 64
MAX_GRAPHS = 16


@dataclass(slots=True)
class Shared:
    """What all contexts of an engine use and none changes."""

    plan: Plan
    device: Device
    arrays: Arrays
    kernels: Sequence[Any]
    weights: Mapping[str, int]
    graphs: bool = True


@dataclass(slots=True)
class Graph:
    """A captured run: its executable, and the memory of its inputs and results (``addresses``, by slot)."""

    executable: Any
    memory: Memory
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Bound:
    """A set of shapes in one context. ``addresses`` are those that the steps were last prepared for."""

    sizes: Sizes
    steps: list[Step]
    copies: list[Copy]
    moving: list[Step]
    outputs: list[Shape]
    output_bytes: list[int]
    addresses: tuple[int, ...] = ()
    calls: int = 0
    graph: Graph | None = None


class Context:
    """Mutable state of one thread on one stream. Not to be shared between threads."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._bound: OrderedDict[tuple[Shape, ...], Bound] = OrderedDict()
        self._arena: Memory | None = None
        self._recorded: list[Memory] = []  # arenas in graphs of the caller's, which live as long as this context
        self._elements = [Element(shared.plan.tensors[t.name].dtype) for t in shared.plan.program.outputs]

    @property
    def arena_bytes(self) -> int:
        """Bytes of temporaries that this context holds now."""
        return self._arena.nbytes if self._arena is not None else 0

    def run(self, inputs: Sequence[Taken], stream: int) -> list[Any]:
        """Runs once. Results are fresh arrays of the inputs' kind, ready in the order of ``stream``."""
        key = tuple(t.shape for t in inputs)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(key)
        else:
            self._bound.move_to_end(key)
        if bound.graph is None and self._may_capture(bound, stream):
            self._capture(bound)
        bound.calls += 1
        recording = self.shared.device.is_capturing(stream)
        if recording and self._arena is not None and self._arena not in self._recorded:
            self._recorded.append(self._arena)
        if bound.graph is not None and not recording:
            return self._replay(bound, bound.graph, inputs, stream)
        return self._launch(bound, inputs, stream)

    def release(self) -> None:
        """Gives back the arena and every bound shape and graph. The next call allocates again."""
        if self._bound:
            self.shared.device.synchronize()
        self._bound.clear()
        self._arena = None

    # ------------------------------------------------------------------------------------------------ binding

    def _bind(self, key: tuple[Shape, ...]) -> Bound:
        shared = self.shared
        sizes = measure(shared.plan, shared.plan.bind_symbols(key))
        if self._arena is None or self._arena.nbytes < sizes.arena_bytes:
            self.release()  # everything bound points into the smaller arena
            self._arena = shared.device.allocate(max(sizes.arena_bytes, 256))
        binder = Binder(shared.plan, sizes, shared.device, shared.kernels, shared.weights, self._arena.address)
        steps = binder.steps()
        names = [t.name for t in shared.plan.program.outputs]
        bound = Bound(
            sizes=sizes,
            steps=steps,
            copies=binder.copies(),
            moving=[s for s in steps if s.moves],
            outputs=[sizes.shapes[n] for n in names],
            output_bytes=[sizes.nbytes[n] for n in names],
        )
        self._bound[key] = bound
        while len(self._bound) > MAX_SHAPES:
            self._drop(next(iter(self._bound)))
        return bound

    def _drop(self, key: tuple[Shape, ...]) -> None:
        self.shared.device.synchronize()
        del self._bound[key]

    def _place(self, bound: Bound, addresses: tuple[int, ...]) -> None:
        if bound.addresses != addresses:
            for step in bound.moving:
                prepare(step, addresses, self.shared.device)
            bound.addresses = addresses

    # ------------------------------------------------------------------------------------------- one by one

    def _launch(self, bound: Bound, inputs: Sequence[Taken], stream: int) -> list[Any]:
        device = self.shared.device
        uploads = [device.allocate(max(t.nbytes, 1)) if t.host is not None else None for t in inputs]
        for taken, memory in zip(inputs, uploads):
            if memory is not None and taken.host is not None:
                device.upload(memory.address, taken.host, stream)
        results, targets, downloads = self._results(bound, inputs)
        sources = tuple(m.address if m is not None else t.address for t, m in zip(inputs, uploads))
        addresses = sources + targets
        self._place(bound, addresses)
        issue(bound.steps, addresses, device, stream)
        self._copy_outputs(bound, addresses, stream)
        for host, memory in downloads:
            device.download(host, memory.address, stream)
        if any(m is not None for m in uploads) and not downloads:
            device.synchronize(stream)
        return results

    def _results(
        self, bound: Bound, inputs: Sequence[Taken]
    ) -> tuple[list[Any], tuple[int, ...], list[tuple[np.ndarray, Memory]]]:
        """New results, where kernels write them, and which device memory to download into which of them."""
        kind = result_kind(inputs)
        results: list[Any] = []
        targets: list[int] = []
        downloads: list[tuple[np.ndarray, Memory]] = []
        for shape, nbytes, element in zip(bound.outputs, bound.output_bytes, self._elements):
            array, address, host = self.shared.arrays.empty(kind, shape, element)
            if host is not None:
                memory = self.shared.device.allocate(max(nbytes, 1))
                address = memory.address
                downloads.append((host, memory))
            results.append(array)
            targets.append(address)
        return results, tuple(targets), downloads

    def _copy_outputs(self, bound: Bound, addresses: Sequence[int], stream: int) -> None:
        for copy in bound.copies:
            if copy.nbytes:
                source, destination = copy.source.at(addresses), copy.destination.at(addresses)
                self.shared.device.copy(destination, source, copy.nbytes, stream)

    # ------------------------------------------------------------------------------------------------ graphs

    def _may_capture(self, bound: Bound, stream: int) -> bool:
        """A shape is captured when it comes a second time, and never while the caller is recording."""
        shared = self.shared
        return (
            bound.calls > 0
            and shared.graphs
            and bool(bound.steps)
            and shared.device.can_capture
            and not shared.device.is_capturing(stream)
        )

    def _capture(self, bound: Bound) -> None:
        shared, device = self.shared, self.shared.device
        names = [*shared.plan.inputs, *shared.plan.outputs]
        inputs = [bound.sizes.nbytes[t.name] for t in shared.plan.program.inputs]
        sizes = [*inputs, *bound.output_bytes]
        assert len(sizes) == len(names)
        memory = device.allocate(max(sum(aligned(s) for s in sizes), 256))
        addresses: list[int] = []
        at = memory.address
        for size in sizes:
            addresses.append(at)
            at += aligned(size)
        fixed = tuple(addresses)
        self._place(bound, fixed)
        stream = device.begin_capture()
        try:
            issue(bound.steps, fixed, device, stream)
            self._copy_outputs(bound, fixed, stream)
        finally:
            executable = device.end_capture()
        bound.graph = Graph(executable, memory, fixed)
        captured = [b for b in self._bound.values() if b.graph is not None]
        if len(captured) > MAX_GRAPHS:
            device.synchronize()
            captured[0].graph = None

    def _replay(self, bound: Bound, graph: Graph, inputs: Sequence[Taken], stream: int) -> list[Any]:
        device, addresses = self.shared.device, graph.addresses
        for taken, address in zip(inputs, addresses):
            if taken.host is not None:
                device.upload(address, taken.host, stream)
            elif taken.nbytes:
                device.copy(address, taken.address, taken.nbytes, stream)
        device.replay(graph.executable, stream)
        kind = result_kind(inputs)
        results: list[Any] = []
        for index, (shape, nbytes, element) in enumerate(zip(bound.outputs, bound.output_bytes, self._elements)):
            array, target, host = self.shared.arrays.empty(kind, shape, element)
            if host is not None:
                device.download(host, addresses[len(inputs) + index], stream)
            elif nbytes:
                device.copy(target, addresses[len(inputs) + index], nbytes, stream)
            results.append(array)
        return results
