"""The launch list: an execution plan with all sizes of one set of shapes and all addresses of one arena filled in.

Only the addresses of inputs and outputs stay open, because they may change from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError
from arcweld.compiler.parameters import Integer, Parameter, Pointer, TensorMap, pack
from arcweld.runtime.arena import Interval, aligned, pack_intervals
from arcweld.runtime.device import Device, LaunchSpec, TensorMapSpec
from arcweld.runtime.expressions import Expression
from arcweld.runtime.plan import ExecutionPlan, LaunchPlan, Shape

MAX_BYTES = 1 << 47  # of a tensor
MAX_ELEMENTS = 2**31 - 1  # of a tensor with an unbounded dimension: kernels index it with 32 bits
MAX_GRID = (2**31 - 1, 65_535, 65_535)
ABSOLUTE = -1  # the slot of a place that is an address


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor begins: at the address ``offset`` if ``slot`` is ABSOLUTE, else ``offset`` bytes into a slot.

    Slots are the inputs, followed by the outputs, in calling order.
    """

    slot: int
    offset: int

    def at(self, addresses: Sequence[int]) -> int:
        """The address, given the addresses of all slots."""
        return self.offset if self.slot == ABSOLUTE else addresses[self.slot] + self.offset


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that follows from the shapes alone.

    env             the value of each symbol
    shapes, nbytes  of each tensor, by name
    arena           each temporary's offset in the arena, in bytes
    arena_bytes     size of the arena
    counters        offset of each array of counters among a context's counters, in bytes
    counter_bytes   size of all counters
    idle            whether no output has an element, so that nothing has to run
    """

    env: dict[str, int]
    shapes: dict[str, Shape]
    nbytes: dict[str, int]
    arena: dict[str, int]
    arena_bytes: int
    idle: bool
    counters: dict[str, int]
    counter_bytes: int


@dataclass(frozen=True, slots=True)
class Operand:
    """A whole tensor that a launch reads or writes."""

    place: Place
    nbytes: int
    dtype: DType
    written: bool


@dataclass(slots=True)
class Step:
    """One launch of the list, and the memory that is cleared before it.

    spec      the launch with every number known; its kernel is None if the grid is empty and only memory is cleared
    params    the parameters, still without addresses
    operands  the tensors of ``params``, by name
    zero      (place, bytes) of what is cleared
    moves     whether an operand is an input or output, so that ``spec`` changes with the caller's addresses
    prepared  what the device has made of ``spec``; None until ``prepare``
    """

    spec: LaunchSpec
    params: tuple[Parameter[int], ...]
    operands: Mapping[str, Operand]
    zero: tuple[tuple[Place, int], ...]
    moves: bool
    prepared: Any = None


@dataclass(frozen=True, slots=True)
class Copy:
    """An output that no launch writes where it belongs: its bytes are copied there after the last launch."""

    destination: Place
    source: Place
    nbytes: int


def compute_sizes(plan: ExecutionPlan, env: dict[str, int]) -> Sizes:
    """Shapes, sizes and the arena for one set of symbol values.

    Raises InputError for a dimension outside its range and for tensors that kernels cannot index. The range is binding
    because kernels were simplified by it: with n at most 512, ``min(512, n)`` has become n.
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
        size = tensor.dtype.nbytes(math.prod(shape))
        if min(shape, default=0) < 0 or size > MAX_BYTES:
            raise InputError(f"with {_show(env)} tensor {name} has the impossible shape {list(shape)}")
        if math.prod(shape) > MAX_ELEMENTS and any(d.names & unbounded for d in tensor.shape):
            raise InputError(
                f"with {_show(env)} tensor {name} has {math.prod(shape)} elements, beyond 32-bit indices",
                hint="build with upper bounds for the dimensions: kernels then count in 64 bits where they must",
            )
        shapes[name], nbytes[name] = shape, size
    intervals = [Interval(nbytes[t.name], t.first, t.last) for t in plan.lifetimes]
    offsets, total = pack_intervals(intervals)
    arena = {t.name: offset for t, offset in zip(plan.lifetimes, offsets)}
    counters, counted = dict[str, int](), 0
    for name in plan.counters:
        counters[name] = counted
        counted += aligned(nbytes[name])
    return Sizes(env, shapes, nbytes, arena, total, idle, counters, counted)


class LaunchListBuilder:
    """Makes the launch list for the sizes of one set of shapes.

    ``kernels`` are the device's handles, one for each launch of the plan. ``weights`` are device addresses by name,
    ``arena`` is the arena's address and ``counters`` that of the counters.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        sizes: Sizes,
        device: Device,
        kernels: Sequence[Any],
        weights: Mapping[str, int],
        arena: int,
        counters: int,
    ) -> None:
        self.plan = plan
        self.sizes = sizes
        self.device = device
        self.kernels = kernels
        self.weights = weights
        self.arena = arena
        self.counters = counters

    def steps(self) -> list[Step]:
        """The steps in order, without those that have nothing to do. Steps that move are not prepared yet.

        Raises InputError for a grid, a parameter or a tensor map that is impossible with these shapes.
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
        """A copy for each output that no launch writes where it belongs.

        These are aliases, outputs that are inputs or weights, and state that is not written in place: the last ones,
        since their copies overwrite inputs.
        """
        found: dict[bool, list[Copy]] = {False: [], True: []}
        for index, tensor in enumerate(self.plan.program.outputs):
            into = self.plan.state.get(index)
            slot = len(self.plan.inputs) + index if into is None else into
            source, destination = self.place(tensor.name), Place(slot, 0)
            if tensor.name not in self.plan.direct_outputs and source != destination:
                found[into is not None].append(Copy(destination, source, self.sizes.nbytes[tensor.name]))
        return [*found[False], *found[True]]

    def place(self, name: str) -> Place:
        """Where a tensor begins. Raises InputError if an alias reaches outside the tensor that owns the bytes."""
        tensor = self.plan.tensors[name]
        offset = sum(o(self.sizes.env) for o in tensor.offsets)
        if offset < 0 or offset + self.sizes.nbytes[name] > self.sizes.nbytes[tensor.root]:
            raise InputError(f"with {_show(self.sizes.env)} tensor {name} reaches outside {tensor.root}")
        root = tensor.root
        if root in self.weights:
            return Place(ABSOLUTE, self.weights[root] + offset)
        if root in self.plan.inputs:
            return Place(self.plan.inputs[root], offset)
        if root in self.plan.direct_outputs:
            return Place(len(self.plan.inputs) + self.plan.outputs[root], offset)
        if root in self.sizes.counters:
            return Place(ABSOLUTE, self.counters + self.sizes.counters[root] + offset)
        return Place(ABSOLUTE, self.arena + self.sizes.arena.get(root, 0) + offset)

    def _step(self, launch: LaunchPlan, kernel: Any, first: bool) -> Step | None:
        x, y, z = (g(self.sizes.env) for g in launch.grid)
        zero = tuple((self.place(n), self.sizes.nbytes[n]) for n in launch.launch.zero)
        empty = min(x, y, z) <= 0
        if empty and not any(size for _, size in zero):
            return None
        self._check_grid(launch, (x, y, z))
        params = () if empty else tuple(self._parameter(launch, p) for p in launch.params)
        tensors = [p.tensor for p in params if isinstance(p, Pointer | TensorMap)]
        operands = {n: self._operand(launch, n) for n in tensors}
        spec = LaunchSpec(
            name=launch.launch.name,
            kernel=None if empty else kernel,
            grid=(x, y, z),
            block=launch.variant.block,
            shared_bytes=launch.variant.shared_bytes,
            cluster=launch.variant.cluster,
            # Programmatic dependent launch overlaps two kernels: the step before this one must be a kernel.
            pdl=launch.variant.pdl and not first and not zero,
            params=b"",
            buffers=(),
            cooperative=launch.variant.cooperative,
        )
        moves = any(p.slot != ABSOLUTE for p in (*(o.place for o in operands.values()), *(p for p, _ in zero)))
        step = Step(spec, params, operands, zero, moves)
        if not moves:
            prepare(step, (), self.device)
        return step

    def _operand(self, launch: LaunchPlan, name: str) -> Operand:
        written = name in launch.written()
        return Operand(self.place(name), self.sizes.nbytes[name], self.plan.tensors[name].dtype, written)

    def _check_grid(self, launch: LaunchPlan, grid: tuple[int, int, int]) -> None:
        if any(g > m for g, m in zip(grid, MAX_GRID)) or grid[0] % launch.variant.cluster:
            raise InputError(
                f"with {_show(self.sizes.env)} launch {launch.launch.name} would need the grid {grid}"
                + (f" in clusters of {launch.variant.cluster}" if launch.variant.cluster > 1 else ""),
                node=launch.launch.name,
            )

    def _parameter(self, launch: LaunchPlan, parameter: Parameter[Expression]) -> Parameter[int]:
        """The parameter with its expressions evaluated. Raises InputError for values that it cannot have."""
        found = parameter.convert(lambda e: e(self.sizes.env))
        if isinstance(found, TensorMap):
            self._check_view(launch, found)
        elif isinstance(parameter, Integer) and isinstance(found, Integer):
            self._check_integer(launch, parameter.value.text, found)
        return found

    def _check_integer(self, launch: LaunchPlan, text: str, integer: Integer[int]) -> None:
        if integer.bits == 32 and not -(1 << 31) <= integer.value < 1 << 31:
            raise InputError(
                f"with {_show(self.sizes.env)} launch {launch.launch.name} would need "
                f"{text} = {integer.value} in 32 bits",
                node=launch.launch.name,
                hint="split the input into smaller batches",
            )

    def _check_view(self, launch: LaunchPlan, view: TensorMap[int]) -> None:
        """Raises InputError for a view that reaches outside its tensor, or that a TMA descriptor cannot express."""
        env, dtype = self.sizes.env, self.plan.tensors[view.tensor].dtype
        size = 1 if dtype.is_packed else dtype.size
        room = self.sizes.nbytes[view.tensor] - view.offset
        if view.offset < 0 or room < 0:
            raise InputError(f"with {_show(env)} launch {launch.launch.name} would start outside {view.tensor}")
        reach = size * view.dims[0] + sum((d - 1) * s for d, s in zip(view.dims[1:], view.strides))
        if min(view.dims) < 1 or any(s < 0 or s % 16 for s in view.strides) or reach > room:
            raise InputError(
                f"with {_show(env)} launch {launch.launch.name} would need the impossible view {view.dims} "
                f"with strides {view.strides} of {view.tensor}",
                node=launch.launch.name,
            )


def prepare(step: Step, addresses: Sequence[int], device: Device) -> None:
    """Packs a step's parameters for the slots' ``addresses``, and has the device prepare its launch."""
    if step.spec.kernel is None:
        return
    at = {name: o.place.at(addresses) for name, o in step.operands.items()}

    def encode(view: TensorMap[int], address: int) -> bytes:
        dtype = step.operands[view.tensor].dtype.value
        spec = TensorMapSpec(
            dtype, address, view.dims, view.strides, view.box, view.element_strides, view.swizzle
        )
        return device.encode_tensor_map(spec)

    buffers = tuple((at[name], o.nbytes, o.written) for name, o in step.operands.items())
    step.spec = replace(step.spec, params=pack(step.params, at, encode), buffers=buffers)
    step.prepared = device.prepare(step.spec)


def issue(steps: Sequence[Step], addresses: Sequence[int], device: Device, stream: int) -> None:
    """Enqueues every step on ``stream``, in order: first the clearing of memory, then the launch."""
    launch = device.launch
    for step in steps:
        for place, nbytes in step.zero:
            if nbytes:
                device.fill(place.at(addresses), nbytes, 0, stream)
        if step.prepared is not None:
            launch(step.prepared, stream)


# what enqueues steps: `issue`, or a function that does so and more
Issue = Callable[[Sequence[Step], Sequence[int], Device, int], None]


def _show(env: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in env.items()) or "these shapes"
