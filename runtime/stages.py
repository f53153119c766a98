"""Runs an engine of several stages: the host carries tensors and sizes from step to step (``steps.py``).

Tensors stay on the device between stages, until nothing needs them any more. What the host reads, it waits for: the
sizes, conditions and operands that ``inspect`` lists. A call returns when its work is done.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType, stored_form, unpack
from arcweld.compiler.errors import DeviceError, EngineFileError, InputError
from arcweld.compiler.ops import host
from arcweld.runtime.arrays import Arrays, Element, Taken, take_strings
from arcweld.runtime.device import Device
from arcweld.runtime.executor import Context, Shared
from arcweld.runtime.expressions import Expression
from arcweld.runtime.plan import ExecutionPlan, Shape
from arcweld.runtime.pool import Pool
from arcweld.runtime.program import Program
from arcweld.runtime.step_lives import StepLives
from arcweld.runtime.steps import Block, Call, Check, Choose, Read, Repeat, Run, Step, Symbol, Tensor, View

_expression = functools.lru_cache(maxsize=4096)(Expression)  # a loop's body evaluates the same ones at each turn


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor between two steps: in the device's memory, or on the host, where strings are always."""

    taken: Taken
    dtype: DType


class StagedProgram:
    """The steps of a program, ready to be run. It holds no state of a call, so that threads share it."""

    def __init__(self, program: Program, stages: Sequence[Shared], device: Device) -> None:
        self.program = program
        self.stages = stages
        self.device = device
        self.plan = ExecutionPlan(program, device.arch)  # of the inputs' symbols
        self.lives = StepLives(program)


class StagedContext:
    """What calls of one thread and stream share: a context of each stage, and the memory of tensors between them."""

    def __init__(self, staged: StagedProgram, stream: int) -> None:
        self.staged = staged
        self.stream = stream
        self.pool = Pool(staged.device, stream)
        self.arrays = Arrays(staged.device.gpu_index, self.pool.allocate)
        self.stages = [Context(shared, self.arrays) for shared in staged.stages]

    def run(self, inputs: Sequence[Taken], stream: int, kind: str) -> list[Any]:
        """The results of a call, as arrays of ``kind``; ``stream`` is the context's own.

        Raises InputError for sizes that the engine does not serve, of the inputs or of what is computed from them;
        DeviceError if the device fails, or for a call that is being recorded as a graph.
        """
        device = self.staged.device
        if device.can_capture and device.is_capturing(stream):
            raise DeviceError(
                "the host takes part in a call of this engine: no graph can record it",
                hint="call the engine outside of the recording",
            )
        results = StagedCall(self, kind).results(inputs)
        self.pool.end_call()
        return results

    def release(self) -> None:
        """Frees all device memory. The next call allocates it again."""
        for context in self.stages:
            context.release()
        self.pool.release()


class StagedCall:
    """One call: the tensors and the symbols' values so far, by name."""

    def __init__(self, context: StagedContext, kind: str) -> None:
        self.program = context.staged.program
        self.plan = context.staged.plan
        self.lives = context.staged.lives
        self.device = context.staged.device
        self.arrays = context.arrays
        self.stages = context.stages
        self.kind = kind
        self.stream = context.stream
        self.sizes: dict[str, int] = {}
        self.tensors: dict[str, Held] = {}

    def results(self, inputs: Sequence[Taken]) -> list[Any]:
        """The results for the inputs, in their order."""
        self.sizes.update(self.plan.bind_symbols([t.shape for t in inputs]))
        for symbol in self.program.symbols:
            self._check(symbol, f"the shapes of the inputs make dimension {symbol.name}")
        for tensor, taken in zip(self.program.inputs, inputs):
            self.tensors[tensor.name] = Held(taken, DType(tensor.dtype))
        self._steps(self.program.steps)
        made = [self._result(t, self.tensors[n]) for t, n in zip(self.program.outputs, self.program.results)]
        self.device.synchronize(self.stream)  # before memory that kernels may still read is given back
        return made

    def _result(self, tensor: Tensor, held: Held) -> Any:
        """An output as a new array of the caller's kind."""
        element = Element(held.dtype)
        shape, taken = held.taken.shape, held.taken
        if held.dtype.is_string:
            return np.array(self._strings(taken), object)
        if element.packed:
            return unpack(self._bytes(taken), element.dtype, shape)
        try:
            array, address, view = self.arrays.empty(self.kind, shape, element)
        except MemoryError:
            raise DeviceError(f"there is not enough memory for output {tensor.name!r} of {list(shape)}") from None
        if taken.host is not None:
            if view is not None:
                view[...] = taken.host.reshape(shape)
            else:
                self.device.upload(address, taken.host, self.stream)
        elif view is not None:
            self.device.download(view, taken.address, self.stream)
        elif taken.nbytes:
            self.device.copy(address, taken.address, taken.nbytes, self.stream)
        return array

    # ------------------------------------------------------------------------------------------------------ steps

    def _steps(self, steps: Sequence[Step]) -> None:
        for step, unneeded in zip(steps, self.lives.after(steps)):
            self.step(step)
            for name in unneeded:
                self.tensors.pop(name, None)  # of a Choose, what only the other block reads is still there

    def step(self, step: Step) -> None:
        """Runs one step."""
        match step:
            case Run():
                self._run(step)
            case Read():
                self._read(step)
            case View():
                self._view(step)
            case Check():
                if _expression(step.zero)(self.sizes) != 0:
                    raise InputError(f"{', '.join(step.origin)}: {step.what}")
            case Call():
                self._call(step)
            case Choose():
                self._choose(step)
            case Repeat():
                self._repeat(step)

    def _results_of(self, block: Block) -> list[Held]:
        """A block's results, after which nothing that it has made is kept under its name."""
        found = [self.tensors[n] for n in block.results]
        for name in self.lives.own(block):
            self.tensors.pop(name, None)
        return found

    def _run(self, step: Run) -> None:
        stage = self.program.stages[step.stage]
        found = []
        for tensor in stage.inputs:
            if tensor.name == step.carrier:
                found.append(Taken("device", 0, (*(self.sizes[n] for n in step.sizes), 0), 0, None))
            else:
                found.append(self.tensors[tensor.name].taken)
        for tensor, taken in zip(stage.outputs, self.run_stage(step.stage, found)):
            self.tensors[tensor.name] = Held(taken, DType(tensor.dtype))

    def run_stage(self, stage: int, inputs: Sequence[Taken]) -> list[Taken]:
        """A stage's outputs, in memory of the pool."""
        return self.stages[stage].run(inputs, self.stream, "device")

    def _read(self, step: Read) -> None:
        values = self.array(step.tensor).reshape(-1)
        if len(values) != len(step.symbols):
            raise InputError(f"{step.tensor!r} has {len(values)} elements, {len(step.symbols)} sizes are read from it")
        for symbol, value in zip(step.symbols, values):
            self.sizes[symbol.name] = int(value)
            self._check(symbol, f"{', '.join(step.origin) or step.tensor}: the data make dimension {symbol.name}")
        for name, tensor in zip(step.whole, step.outputs):
            self.tensors[tensor.name] = self._beginning(self.tensors[name], _expression(tensor.shape[0])(self.sizes))

    def _beginning(self, held: Held, count: int) -> Held:
        """The first ``count`` rows of a tensor, in its memory. Raises InputError where it has fewer."""
        whole = held.taken
        if not 0 <= count <= whole.shape[0]:
            raise InputError(f"the data tell {count} rows of {whole.shape[0]}")
        nbytes = whole.nbytes // max(1, whole.shape[0]) * count
        host_part = None if whole.host is None else whole.host.reshape(-1).view(np.uint8)[:nbytes]
        kept = whole if host_part is None else host_part
        part = Taken("device", whole.address, (count, *whole.shape[1:]), nbytes, kept, host_part)
        return Held(part, held.dtype)

    def _view(self, step: View) -> None:
        held = self.tensors[step.tensor]
        shape = tuple(_expression(d)(self.sizes) for d in step.output.shape)
        if min(shape, default=0) < 0 or math.prod(shape) != math.prod(held.taken.shape):
            raise InputError(f"{', '.join(step.origin)}: {list(held.taken.shape)} cannot become {list(shape)}")
        self.tensors[step.output.name] = Held(replace(held.taken, shape=shape, given=None), held.dtype)

    def _call(self, step: Call) -> None:
        operands = step.operands(self.array, lambda text: _expression(text)(self.sizes))
        found = host.compute(step.op, operands, step.attrs, step.origin)
        if len(found) != len(step.outputs):
            raise EngineFileError(f"the program is damaged: {step.op} gives {len(found)} results")
        for tensor, array in zip(step.outputs, found, strict=True):
            self._keep(tensor.name, array, DType(tensor.dtype))
        self._bind(step.outputs, step.symbols, step.origin)

    def _choose(self, step: Choose) -> None:
        chosen = step.then if self.decide(step.condition, step.origin) else step.otherwise
        self._steps(chosen.steps)
        for tensor, held in zip(step.outputs, self._results_of(chosen), strict=True):
            self.tensors[tensor.name] = held
        self._bind(step.outputs, step.symbols, step.origin)

    def _repeat(self, step: Repeat) -> None:
        trips = int(self.decide(step.trips, step.origin)) if step.trips else step.most
        going = bool(self.decide(step.condition, step.origin)) if step.condition else True
        carried = [self.tensors[n] for n in step.inputs]
        columns: list[list[Held]] = [[] for _ in step.outputs[len(step.formals) :]]
        done = 0
        while going and (trips is None or done < trips):
            if done >= step.limit:
                raise InputError(
                    f"{', '.join(step.origin)}: the loop has not ended after {step.limit} iterations",
                    hint="build with a higher loop_limit (--loopLimit) if it should run longer",
                )
            if step.counter:
                self._keep(step.counter, np.array(done, np.int64), DType.I64)
            if step.going:
                self._keep(step.going, np.array(True), DType.BOOL)
            self.tensors.update((t.name, held) for t, held in zip(step.formals, carried, strict=True))
            carried = []  # what the body does not need any more is then free
            self._bind(step.formals, step.symbols, step.origin)
            self._steps(step.body.steps)
            going = bool(self.decide(step.body.results[0], step.origin))
            _, *results = self._results_of(step.body)
            carried = results[: len(step.formals)]
            for column, item in zip(columns, results[len(step.formals) :], strict=True):
                column.append(item)
            done += 1
        for tensor, held in zip(step.outputs, carried):
            self.tensors[tensor.name] = held
        for tensor, column in zip(step.outputs[len(step.formals) :], columns):
            self.tensors[tensor.name] = self._stacked(tensor, column, step.origin)
        self._bind(step.outputs, step.symbols, step.origin)

    def _stacked(self, tensor: Tensor, items: Sequence[Held], origin: Sequence[str]) -> Held:
        """All items along a new first axis, in memory of their own."""
        dtype = DType(tensor.dtype)
        if not items:  # sizes that only an item would tell are 0
            rest = tuple(self._size_or_zero(d) for d in tensor.shape[1:])
            if dtype.is_string:
                return Held(take_strings(tensor.name, np.empty((0, *rest), object)), dtype)
            return Held(self._empty((0, *rest), dtype), dtype)
        first = items[0].taken.shape
        if any(i.taken.shape != first for i in items):
            raise InputError(f"{', '.join(origin)}: the items of the scanned output {tensor.name!r} differ in shape")
        if dtype.is_string:
            rows = np.stack([self._strings(i.taken) for i in items])
            return Held(take_strings(tensor.name, rows), dtype)
        whole = self._empty((len(items), *first), dtype)
        size = whole.nbytes // len(items)
        for k, item in enumerate(items):
            if item.taken.host is not None:
                self.device.upload(whole.address + k * size, item.taken.host, self.stream)
            elif size:
                self.device.copy(whole.address + k * size, item.taken.address, size, self.stream)
        return Held(whole, dtype)

    def _size_or_zero(self, text: str) -> int:
        expression = _expression(text)
        return expression(self.sizes) if expression.names <= self.sizes.keys() else 0

    # ---------------------------------------------------------------------------------------------------- tensors

    def _empty(self, shape: Shape, dtype: DType) -> Taken:
        taken: Taken = self.arrays.empty("device", shape, Element(dtype))[0]
        return taken

    def _keep(self, name: str, array: np.ndarray, dtype: DType) -> None:
        self.tensors[name] = Held(self.arrays.take(name, array, Element(dtype)), dtype)

    def _bytes(self, taken: Taken) -> np.ndarray:
        """The bytes of a tensor of a packed type."""
        if taken.host is not None:
            return taken.host
        found = np.empty(taken.nbytes, np.uint8)
        self.device.download(found, taken.address, self.stream)
        return found

    @staticmethod
    def _strings(taken: Taken) -> np.ndarray:
        """The elements of a tensor of strings, which is nowhere but on the host."""
        assert taken.readable is not None
        return taken.readable.reshape(taken.shape)

    def array(self, name: str) -> np.ndarray:
        """A tensor's elements on the host, which waits for them."""
        held = self.tensors[name]
        taken = held.taken
        if held.dtype.is_string:
            return self._strings(taken)
        if held.dtype.is_packed:
            return unpack(self._bytes(taken), held.dtype, taken.shape)
        if taken.readable is not None:
            if taken.host is None:
                self.device.synchronize(self.stream)
            return taken.readable.reshape(taken.shape)
        found = np.empty(taken.shape, stored_form(held.dtype, taken.shape)[0])
        self.device.download(found, taken.address, self.stream)
        return found

    def decide(self, name: str, origin: Sequence[str]) -> np.generic:
        """The element of a condition, or of a number of turns. Raises InputError where there is not exactly one."""
        found = self.array(name).reshape(-1)
        if found.size != 1:
            raise InputError(f"{', '.join(origin)}: {name!r} has {found.size} elements, not one")
        first: np.generic = found[0]
        return first

    # ------------------------------------------------------------------------------------------------------ sizes

    def _bind(self, tensors: Sequence[Tensor], symbols: Sequence[Symbol], origin: Sequence[str]) -> None:
        """Sets symbols that are dimensions of tensors, and checks the other dimensions."""
        own = {s.name: s for s in symbols}
        for tensor in tensors:
            for text, size in zip(tensor.shape, self.tensors[tensor.name].taken.shape):
                if text in own:
                    self.sizes[text] = size
                    self._check(own[text], f"{', '.join(origin)}: the data make dimension {text}")
        for tensor in tensors:
            shape = self.tensors[tensor.name].taken.shape
            wanted = tuple(_expression(d)(self.sizes) for d in tensor.shape)
            if shape != wanted and 0 not in shape:
                raise InputError(f"{', '.join(origin)}: {tensor.name!r} is {list(shape)}, not {list(wanted)}")

    def _check(self, symbol: Symbol, what: str) -> None:
        value = self.sizes[symbol.name]
        if value < symbol.lo or (symbol.hi is not None and value > symbol.hi) or value % symbol.multiple_of:
            upper = f"to {symbol.hi}" if symbol.hi is not None else "or more"
            raise InputError(
                f"{what} {value}; the engine serves {symbol.lo} {upper}",
                hint=f"build with another range of {symbol.name}: inputs=, --minShapes and --maxShapes",
            )
