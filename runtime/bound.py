"""A plan bound to one set of shapes and one arena: sizes known, every launch packed but for the addresses
of inputs and outputs, which may change from call to call.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arcweld.compiler.errors import InputError
from arcweld.runtime.arena import Interval, pack
from arcweld.runtime.device import Device, LaunchSpec, TensorMapSpec
from arcweld.runtime.plan import FieldPlan, LaunchPlan, Plan, Shape

MAX_BYTES = 1 << 47
MAX_ELEMENTS = 2**31 - 1  # that kernels index with 32 bits, as they do where a dimension has no upper bound
MAX_GRID = (2**31 - 1, 65_535, 65_535)
FIXED = -1


@dataclass(frozen=True, slots=True)
class Place:
    """An address: ``offset`` itself when ``slot`` is FIXED, else ``offset`` bytes into input or output
    ``slot``.

    Slots number the inputs first, then the outputs.
    """

    slot: int
    offset: int

    def at(self, addresses: Sequence[int]) -> int:
        return self.offset if self.slot == FIXED else addresses[self.slot] + self.offset


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that follows from the shapes alone. ``arena`` holds each temporary's offset.

    ``idle``: no output has an element, so that nothing need run.
    """

    env: dict[str, int]
    shapes: dict[str, Shape]
    nbytes: dict[str, int]
    arena: dict[str, int]
    arena_bytes: int
    idle: bool


@dataclass(slots=True)
class Step:
    """One launch. ``prepared`` fits ``spec``; both are renewed when an address in ``pointers`` changes."""

    spec: LaunchSpec
    prepared: Any
    pointers: tuple[tuple[int, Place], ...]
    maps: tuple[tuple[int, Place, TensorMapSpec], ...]
    buffers: tuple[tuple[Place, int, bool], ...]
    zero: tuple[tuple[Place, int], ...]
    moves: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """An output whose bytes are another tensor's: copied after the last launch."""

    destination: Place
    source: Place
    nbytes: int


def measure(plan: Plan, env: dict[str, int]) -> Sizes:
    """Shapes, sizes and the arena for one set of symbol values.

    Raises InputError for a dimension outside its range, by which kernels and indices were simplified: a table that
    was read up to ``min(512, n)`` is read up to n. It raises too for tensors beyond what kernels can count.
    """
    idle = all(0 in (d(env) for d in plan.tensors[t.name].shape) for t in plan.program.outputs)
    for symbol in plan.out_of_range(env):
        if idle and env[symbol.name] == 0 and symbol.lo == 1:
            continue  # an empty batch has empty results
        upper = f"to {symbol.hi}" if symbol.hi is not None else "or more"
        raise InputError(
            f"dimension {symbol.name} is {env[symbol.name]}; the engine serves {symbol.lo} {upper}",
            hint="build with a wider range (inputs=, --minShapes and --maxShapes), or none, if the model allows it",
        )
    shapes: dict[str, Shape] = {}
    nbytes: dict[str, int] = {}
    unbounded = {s.name for s in plan.program.symbols if s.hi is None}
    for name, tensor in plan.tensors.items():
        shape = tuple(d(env) for d in tensor.shape)
        size = math.prod(shape) * tensor.dtype.size
        if min(shape, default=0) < 0 or size > MAX_BYTES:
            raise InputError(f"with {_show(env)} tensor {name} has the impossible shape {list(shape)}")
        if math.prod(shape) > MAX_ELEMENTS and any(d.names & unbounded for d in tensor.shape):
            raise InputError(
                f"with {_show(env)} tensor {name} has {math.prod(shape)} elements, beyond 32-bit indices",
                hint="build with upper bounds for the dimensions: kernels then count in 64 bits where they must",
            )
        shapes[name], nbytes[name] = shape, size
    intervals = [Interval(nbytes[t.name], t.first, t.last) for t in plan.lifetimes]
    offsets, total = pack(intervals)
    arena = {t.name: offset for t, offset in zip(plan.lifetimes, offsets)}
    return Sizes(env, shapes, nbytes, arena, total, idle)


class Binder:
    """Makes the steps of one set of shapes."""

    def __init__(
        self,
        plan: Plan,
        sizes: Sizes,
        device: Device,
        kernels: Sequence[Any],
        weights: Mapping[str, int],
        arena: int,
    ) -> None:
        self.plan = plan
        self.sizes = sizes
        self.device = device
        self.kernels = kernels
        self.weights = weights
        self.arena = arena

    def steps(self) -> list[Step]:
        """The launches with non-empty grids, in order; those that touch inputs or outputs are still
        unprepared.
        """
        made: list[Step] = []
        if self.sizes.idle:
            return made
        for launch, kernel in zip(self.plan.launches, self.kernels, strict=True):
            after_kernel = bool(made) and made[-1].spec.kernel is not None
            step = self._step(launch, kernel, first=not after_kernel)
            if step is not None:
                made.append(step)
        return made

    def copies(self) -> list[Copy]:
        """Outputs that no launch writes directly: aliases of others, and inputs or weights handed out."""
        out: list[Copy] = []
        for index, tensor in enumerate(self.plan.program.outputs):
            if tensor.name not in self.plan.direct_outputs:
                slot = len(self.plan.inputs) + index
                out.append(Copy(Place(slot, 0), self.place(tensor.name), self.sizes.nbytes[tensor.name]))
        return out

    def place(self, name: str) -> Place:
        """Where a tensor's bytes begin. Raises InputError where an alias reaches outside its root."""
        tensor = self.plan.tensors[name]
        offset = sum(o(self.sizes.env) for o in tensor.offsets)
        if offset < 0 or offset + self.sizes.nbytes[name] > self.sizes.nbytes[tensor.root]:
            raise InputError(f"with {_show(self.sizes.env)} tensor {name} reaches outside {tensor.root}")
        root = tensor.root
        if root in self.weights:
            return Place(FIXED, self.weights[root] + offset)
        if root in self.plan.inputs:
            return Place(self.plan.inputs[root], offset)
        if root in self.plan.direct_outputs:
            return Place(len(self.plan.inputs) + self.plan.outputs[root], offset)
        return Place(FIXED, self.arena + self.sizes.arena.get(root, 0) + offset)

    def _step(self, launch: LaunchPlan, kernel: Any, first: bool) -> Step | None:
        x, y, z = (g(self.sizes.env) for g in launch.grid)
        zero = tuple((self.place(n), self.sizes.nbytes[n]) for n in launch.launch.zero)
        if min(x, y, z) <= 0 and not any(size for _, size in zero):
            return None
        self._check_grid(launch, (x, y, z))
        params = bytearray(launch.params_size)
        pointers: list[tuple[int, Place]] = []
        maps: list[tuple[int, Place, TensorMapSpec]] = []
        buffers: dict[str, tuple[Place, int, bool]] = {}
        empty = min(x, y, z) <= 0
        for field in launch.fields if not empty else ():
            if field.tensor:
                place = self._tensor_place(launch, field)
                whole = self.place(field.tensor)
                written = field.tensor in launch.launch.writes
                buffers[field.tensor] = (whole, self.sizes.nbytes[field.tensor], written)
                if field.kind == "buffer":
                    pointers.append((field.place, place))
                else:
                    maps.append((field.place, place, self._map_spec(launch, field)))
            else:
                self._pack_scalar(launch, field, params)
        spec = LaunchSpec(
            name=launch.launch.name,
            kernel=None if empty else kernel,
            grid=(x, y, z),
            block=launch.variant.block,
            shared_bytes=launch.variant.shared_bytes,
            cluster=launch.variant.cluster,
            # Programmatic launch is between kernels: there is none before the first, nor right after a clear.
            pdl=launch.variant.pdl and not first and not zero,
            params=bytes(params),
            buffers=(),
        )
        places = [p for _, p in pointers] + [p for _, p, _ in maps] + [p for p, _ in zero]
        moves = any(p.slot != FIXED for p in places)
        step = Step(spec, None, tuple(pointers), tuple(maps), tuple(buffers.values()), zero, moves)
        if not moves:
            prepare(step, (), self.device)
        return step

    def _check_grid(self, launch: LaunchPlan, grid: tuple[int, int, int]) -> None:
        if any(g > m for g, m in zip(grid, MAX_GRID)) or grid[0] % launch.variant.cluster:
            raise InputError(
                f"with {_show(self.sizes.env)} launch {launch.launch.name} would need the grid {grid}"
                + (f" in clusters of {launch.variant.cluster}" if launch.variant.cluster > 1 else ""),
                node=launch.launch.name,
            )

    def _tensor_place(self, launch: LaunchPlan, field: FieldPlan) -> Place:
        place = self.place(field.tensor)
        offset = field.offset(self.sizes.env)
        if not 0 <= offset <= self.sizes.nbytes[field.tensor]:
            raise InputError(
                f"with {_show(self.sizes.env)} launch {launch.launch.name} would start outside {field.tensor}"
            )
        return Place(place.slot, place.offset + offset)

    def _map_spec(self, launch: LaunchPlan, field: FieldPlan) -> TensorMapSpec:
        env, source = self.sizes.env, field.source
        tensor = self.plan.tensors[field.tensor]
        dims = tuple(d(env) for d in field.dims)
        strides = tuple(s(env) for s in field.strides)
        room = self.sizes.nbytes[field.tensor] - field.offset(env)
        reach = tensor.dtype.size * dims[0] + sum((d - 1) * s for d, s in zip(dims[1:], strides))
        if min(dims) < 1 or any(s < 0 or s % 16 for s in strides) or reach > room:
            raise InputError(
                f"with {_show(env)} launch {launch.launch.name} would need the impossible view {dims} "
                f"with strides {strides} of {field.tensor}",
                node=launch.launch.name,
            )
        return TensorMapSpec(
            dtype=tensor.dtype.value,
            address=0,
            dims=dims,
            strides=strides,
            box=source.box,
            element_strides=source.element_strides or (1,) * len(dims),
            swizzle=source.swizzle,
        )

    def _pack_scalar(self, launch: LaunchPlan, field: FieldPlan, params: bytearray) -> None:
        if field.value is None:
            struct.pack_into("<f", params, field.place, field.literal)
            return
        value = field.value(self.sizes.env)
        if field.kind == "f32":
            struct.pack_into("<f", params, field.place, float(value))
        elif field.kind == "i64":
            struct.pack_into("<q", params, field.place, value)
        elif -(1 << 31) <= value < 1 << 31:
            struct.pack_into("<i", params, field.place, value)
        else:
            raise InputError(
                f"with {_show(self.sizes.env)} launch {launch.launch.name} would need "
                f"{field.value.text} = {value} in 32 bits",
                node=launch.launch.name,
                hint="split the input into smaller batches",
            )


def prepare(step: Step, addresses: Sequence[int], device: Device) -> None:
    """Puts the addresses of inputs and outputs into a step and prepares its launch."""
    if step.spec.kernel is None:
        return
    params = bytearray(step.spec.params)
    for at, place in step.pointers:
        struct.pack_into("<Q", params, at, place.at(addresses))
    for at, place, spec in step.maps:
        params[at : at + 128] = device.encode_tensor_map(replace(spec, address=place.at(addresses)))
    buffers = tuple((p.at(addresses), size, written) for p, size, written in step.buffers)
    step.spec = replace(step.spec, params=bytes(params), buffers=buffers)
    step.prepared = device.prepare(step.spec)


def issue(steps: Sequence[Step], addresses: Sequence[int], device: Device, stream: int) -> None:
    """Launches every step in order on ``stream``."""
    launch = device.launch
    for step in steps:
        for place, nbytes in step.zero:
            if nbytes:
                device.fill_zero(place.at(addresses), nbytes, stream)
        if step.prepared is not None:
            launch(step.prepared, stream)


def _show(env: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in env.items()) or "these shapes"
