"""After which step a tensor between the stages of an engine is not needed any more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from arcweld.runtime.program import Program
from arcweld.runtime.steps import Block, Call, Choose, Read, Repeat, Run, Step, View, blocks, given_to_block, made_by


class StepLives:
    """For each sequence of steps of a program, blocks' included, the tensors that are let go after each step.

    A block lets go what is made inside of it, and its results once it has handed them on. What it takes from outside
    lives as long as the step that holds the block needs it.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._after: dict[int, tuple[frozenset[str], ...]] = {}
        self._own: dict[int, frozenset[str]] = {}
        self._walk(program.steps, program.results, {t.name for t in program.inputs})

    def after(self, steps: Sequence[Step]) -> tuple[frozenset[str], ...]:
        """The names to let go after each of ``steps``, which are the program's or a block's."""
        return self._after[id(steps)]

    def own(self, block: Block) -> frozenset[str]:
        """The names that a block makes."""
        return self._own[id(block.steps)]

    def _walk(self, steps: Sequence[Step], results: Collection[str], given: Collection[str]) -> None:
        own = {*given, *(name for step in steps for name in self._made(step))}
        last: dict[str, int] = {}
        for k, step in enumerate(steps):
            for name in (*self._read(step), *self._made(step)):
                last[name] = k
            for block in blocks(step):
                self._walk(block.steps, block.results, [t.name for t in given_to_block(step)])
        dying: dict[int, set[str]] = {}
        for name, k in last.items():
            if name in own and name not in results:
                dying.setdefault(k, set()).add(name)
        self._after[id(steps)] = tuple(frozenset(dying.get(k, ())) for k in range(len(steps)))
        self._own[id(steps)] = frozenset(own)

    def _read(self, step: Step) -> Iterator[str]:
        """The tensors that a step takes from outside of it."""
        match step:
            case Run():
                yield from (t.name for t in self._program.stages[step.stage].inputs if t.name != step.carrier)
            case Read():
                yield from (step.tensor, *step.whole)
            case View():
                yield step.tensor
            case Call():
                yield from filter(None, step.inputs)
            case Choose():
                yield step.condition
            case Repeat():
                yield from filter(None, (step.trips, step.condition, *step.inputs))
        for block in blocks(step):
            inside = {n for s in block.steps for n in self._made(s)}
            inside |= {t.name for t in given_to_block(step)}
            read = [n for s in block.steps for n in self._read(s)]
            yield from (n for n in (*read, *block.results) if n not in inside)

    def _made(self, step: Step) -> Iterator[str]:
        """The tensors that a step makes for those behind it."""
        made = self._program.stages[step.stage].outputs if isinstance(step, Run) else made_by(step)
        yield from (t.name for t in made)
