"""Checks the steps of a program before it is used; everything that is wrong with them is an EngineFileError.

Valid steps name tensors that the inputs or earlier steps have made, of the types that their readers take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EngineFileError
from arcweld.compiler.ops import host
from arcweld.compiler.ops.host_strings import MAX_LITERAL_CHARACTERS
from arcweld.runtime.expressions import Expression
from arcweld.runtime.steps import Block, Call, Check, Choose, Read, Repeat, Run, Step, Symbol, Tensor, View

if TYPE_CHECKING:
    from arcweld.runtime.program import Program

MAX_DEPTH = 32
MAX_STEPS = 100_000
Types = Mapping[str, tuple[str, int]]  # element type and rank by name

_DTYPES = {d.value: d for d in DType}


def refuse(message: str) -> EngineFileError:
    """The error to raise for a program that is not valid."""
    return EngineFileError(f"the program is damaged: {message}")


def check_steps(program: Program) -> None:
    """Checks the steps of a program whose stages are valid by themselves. Raises EngineFileError."""
    if program.launches or program.temps or program.ranges or program.state or not program.steps:
        raise refuse("a program of stages has launches, temporaries, ranges or state of its own")
    entries = {w.name: w for w in program.weights}
    for stage in program.stages:
        if stage.steps or stage.stages or stage.state or stage.schema != program.schema:
            raise refuse("a stage has steps, state or another schema")
        for w in stage.weights:
            if entries.get(w.name) != w:
                raise refuse(f"weight {w.name[:80]!r} of a stage is not one of the program")
    types = {t.name: (t.dtype, len(t.shape)) for t in program.inputs}
    checker = _Steps(program)
    made = checker.run(program.steps, types, 0)
    if [made.get(n) for n in program.results] != [(t.dtype, len(t.shape)) for t in program.outputs]:
        raise refuse("an output is never made, or of another type")


class _Steps:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.count = 0
        self.sizes = {s.name for s in program.symbols}  # whose values are known by now

    def run(self, steps: Sequence[Step], types: Types, depth: int) -> Types:
        """The tensors after the steps, given those before. Sizes that a block tells are known inside of it only."""
        if depth > MAX_DEPTH:
            raise refuse("its steps are nested too deeply")
        now, outside = dict(types), set(self.sizes)
        for step in steps:
            self.count += 1
            if self.count > MAX_STEPS:
                raise refuse("it has too many steps")
            self.check(step, now, depth)
        self.sizes = outside
        return now

    def check(self, step: Step, now: dict[str, tuple[str, int]], depth: int) -> None:
        if not isinstance(step, Run | View | Check):
            _check_symbols(step.symbols)
        match step:
            case Run():
                self.check_run(step, now)
            case Read():
                if not _DTYPES[_known(step.tensor, now)[0]].is_int:
                    raise refuse(f"sizes are read from {step.tensor[:80]!r}, which holds no integers")
                if len(step.whole) != len(step.outputs):
                    raise refuse("a step makes beginnings of other tensors than it takes")
                for name, tensor in zip(step.whole, step.outputs):
                    if _known(name, now) != (tensor.dtype, len(tensor.shape)) or not tensor.shape:
                        raise refuse(f"the beginning of {name[:80]!r} is of another type")
                    if _DTYPES[tensor.dtype].is_packed or _DTYPES[tensor.dtype].is_string:
                        raise refuse(f"the beginning of {name[:80]!r} may end inside of a byte, or is strings")
                self.sizes |= {s.name for s in step.symbols}
                self.put(step.outputs, now)
            case View():
                if _known(step.tensor, now)[0] != step.output.dtype:
                    raise refuse(f"a view of {step.tensor[:80]!r} is of another type")
                self.put([step.output], now)
            case Check():
                self.known_sizes(step.zero)
            case Call():
                if step.op not in host.OPERATORS:
                    raise refuse(f"the host has no operator {step.op[:80]!r}")
                for name in step.inputs:
                    if name:
                        _known(name, now)
                for text in step.sizes:
                    self.known_sizes(text)
                _check_literals(step)
                self.sizes |= {s.name for s in step.symbols}
                self.put(step.outputs, now)
            case Choose():
                _known_number(step.condition, now)
                for block in (step.then, step.otherwise):
                    self.check_results(block, now, step.outputs, depth)
                self.sizes |= {s.name for s in step.symbols}
                self.put(step.outputs, now)
            case Repeat():
                self.check_repeat(step, now, depth)

    def check_run(self, step: Run, now: dict[str, tuple[str, int]]) -> None:
        if not 0 <= step.stage < len(self.program.stages):
            raise refuse(f"there is no stage {step.stage}")
        stage = self.program.stages[step.stage]
        if not set(step.sizes) <= self.sizes:
            raise refuse(f"stage {step.stage} takes sizes that no earlier step tells")
        for tensor in stage.inputs:
            if tensor.name == step.carrier:
                if len(tensor.shape) != len(step.sizes) + 1 or tensor.shape[-1] != "0":
                    raise refuse(f"stage {step.stage} takes other sizes than it is given")
            elif _known(tensor.name, now) != (tensor.dtype, len(tensor.shape)):
                raise refuse(f"stage {step.stage} takes {tensor.name[:80]!r} as another type")
        for t in stage.outputs:
            self.add(t, now)

    def check_repeat(self, step: Repeat, now: dict[str, tuple[str, int]], depth: int) -> None:
        for name in (step.trips, step.condition):
            if name:
                _known_number(name, now)
        if len(step.inputs) != len(step.formals) or step.limit < 0:
            raise refuse("a loop carries other tensors than it takes")
        for name, formal in zip(step.inputs, step.formals):
            if _known(name, now) != (formal.dtype, len(formal.shape)):
                raise refuse(f"a loop carries {name[:80]!r} as another type")
        inner = dict(now)
        if step.counter:
            inner[step.counter] = (DType.I64.value, 0)
        if step.going:
            inner[step.going] = (DType.BOOL.value, 0)
        self.sizes |= {s.name for s in step.symbols}
        self.put(step.formals, inner)
        carried, scanned = step.outputs[: len(step.inputs)], step.outputs[len(step.inputs) :]
        items = tuple(Tensor(t.name, t.dtype, t.shape[1:]) for t in scanned)
        if len(step.body.results) != 1 + len(carried) + len(items) or any(not t.shape for t in scanned):
            raise refuse("a loop's body has other results than the loop")
        _known_number(step.body.results[0], self.run(step.body.steps, inner, depth + 1))
        rest = Block(step.body.steps, step.body.results[1:])
        self.check_results(rest, inner, (*step.formals, *items), depth)
        if [(t.dtype, len(t.shape)) for t in carried] != [(t.dtype, len(t.shape)) for t in step.formals]:
            raise refuse("a loop's results are not what it carries")
        self.put(step.outputs, now)

    def check_results(
        self, block: Block, now: dict[str, tuple[str, int]], outputs: Sequence[Tensor], depth: int
    ) -> None:
        made = self.run(block.steps, now, depth + 1)
        found = [_known(n, made) for n in block.results]
        if found != [(t.dtype, len(t.shape)) for t in outputs]:
            raise refuse("a block's results are not of the types of its step's outputs")

    def put(self, tensors: Sequence[Tensor], now: dict[str, tuple[str, int]]) -> None:
        for t in tensors:
            if t.dtype not in _DTYPES:
                raise refuse(f"tensor {t.name[:80]!r} has an unknown element type")
            for text in t.shape:
                self.known_sizes(text)
            self.add(t, now)

    def add(self, tensor: Tensor, now: dict[str, tuple[str, int]]) -> None:
        """Raises EngineFileError for a name that stands for another tensor already."""
        if tensor.name in now:
            raise refuse(f"two steps make {tensor.name[:80]!r}")
        now[tensor.name] = (tensor.dtype, len(tensor.shape))

    def known_sizes(self, text: str) -> None:
        """Raises EngineFileError for an expression of sizes that no earlier step tells."""
        if not Expression(text).names <= self.sizes:
            raise refuse("a step uses a size that no earlier step tells")


def _known(name: str, now: Types) -> tuple[str, int]:
    found = now.get(name)
    if found is None:
        raise refuse(f"a step reads {name[:80]!r}, which no earlier step makes")
    return found


def _known_number(name: str, now: Types) -> None:
    if _DTYPES[_known(name, now)[0]].is_string:
        raise refuse(f"a step decides by {name[:80]!r}, which is strings")


def _check_literals(step: Call) -> None:
    """Raises EngineFileError for constants of no type or shape, or for more text than a step may have."""
    size = 0
    for literal in step.literals:
        typed = literal.dtype in _DTYPES and 0 <= literal.place < len(step.inputs)
        shaped = min(literal.shape, default=0) >= 0 and math.prod(literal.shape) == len(literal.values)
        if not typed or not shaped:
            raise refuse("a constant of a step is of no type or shape")
        texts = [v for v in literal.values if isinstance(v, str)]
        if len(texts) != (len(literal.values) if _DTYPES[literal.dtype].is_string else 0):
            raise refuse("a constant of a step has strings for numbers, or numbers for strings")
        size += sum(map(len, texts))
    if size > MAX_LITERAL_CHARACTERS:
        raise refuse(f"the constants of a step have {size} characters (up to {MAX_LITERAL_CHARACTERS})")


def _check_symbols(symbols: Sequence[Symbol]) -> None:
    for s in symbols:
        if s.multiple_of < 1 or s.lo < 0 or (s.hi is not None and s.hi < s.lo):
            raise refuse(f"symbol {s.name[:80]} has an impossible range")
