"""What the host does between the launches of an engine: it runs stages, reads sizes, calls operators, takes branches.

A model whose shapes or control flow depend on data is cut into stages, which are programs of their own. The steps are
plain data, as programs are. They name tensors: the engine's inputs, and what earlier steps have made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from arcweld.compiler.dtypes import DType


class Symbol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A symbolic dimension and the inclusive range that the engine was built for; ``hi`` None means unbounded."""

    name: str
    lo: int = 1
    hi: int | None = None
    multiple_of: int = 1


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named array: ``shape`` holds one expression text for each dimension, row-major and dense."""

    name: str
    dtype: str
    shape: tuple[str, ...]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="run"):
    """Runs a stage of the program on the tensors that its inputs name.

    A stage's input ``sizes`` has no elements: its shape is the ``sizes`` in their order and a 0, which tells the stage
    what they are.
    """

    stage: int
    carrier: str = ""
    sizes: tuple[str, ...] = ()


class Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="read"):
    """Reads the elements of an integer tensor, which are the values of the symbols. ``origin`` names the nodes.

    ``outputs`` are the beginnings of the tensors ``whole``, which they share the memory of: their first axes are
    symbols, the others those of ``whole``.
    """

    tensor: str
    symbols: tuple[Symbol, ...]
    whole: tuple[str, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    origin: tuple[str, ...] = ()


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="view"):
    """Gives a tensor another shape of as many elements, in its memory."""

    tensor: str
    output: Tensor
    origin: tuple[str, ...] = ()


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="check"):
    """Refuses sizes with which the expression ``zero`` is not 0; ``what`` says what is wrong then."""

    zero: str
    what: str
    origin: tuple[str, ...] = ()


class Literal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A small constant operand, at its place among the operands."""

    place: int
    dtype: str
    shape: tuple[int, ...]
    values: tuple[int | float | bool | str, ...]


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="call"):
    """Computes an operator on the host by its reference. Symbols in the shapes of ``outputs`` get their values.

    ``inputs`` are empty where an optional operand is missing, or is one of ``literals``. Where there are ``sizes``,
    expressions, their values are a last operand.
    """

    op: str
    attrs: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    symbols: tuple[Symbol, ...] = ()
    literals: tuple[Literal, ...] = ()
    sizes: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()

    def operands(self, value: Callable[[str], np.ndarray], size: Callable[[str], int]) -> list[np.ndarray | None]:
        """The operands; ``value`` gives those that are tensors, and ``size`` evaluates an expression."""
        found = [value(n) if n else None for n in self.inputs]
        for x in self.literals:
            found[x.place] = np.array(x.values, DType(x.dtype).numpy).reshape(x.shape)
        if self.sizes:
            found.append(np.array([size(text) for text in self.sizes], np.int64))
        return found


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps of a branch or a loop's body, and the tensors that are its results."""

    steps: tuple[Step, ...]
    results: tuple[str, ...]


class Choose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="choose"):
    """Runs one of two blocks, by a condition of one element. Symbols in the shapes of ``outputs`` get their values."""

    condition: str
    then: Block
    otherwise: Block
    outputs: tuple[Tensor, ...]
    symbols: tuple[Symbol, ...] = ()
    origin: tuple[str, ...] = ()


class Repeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="repeat"):
    """Runs a block again and again, as ONNX' Loop.

    trips, condition  tensors of one element: how often at most, and whether at all; empty: no such limit
    most              how often at most, if that is known before; None: it is not
    limit             how often at most in any case: beyond it, the loop is an error
    inputs            what the carried tensors are at first
    counter, going    the block's names for the iteration's number and for the condition; empty where it does not read
                      them
    formals           the block's names for the carried tensors
    body              its results are the condition, the carried tensors, and an item of each scanned output
    outputs           the carried tensors at last, and the scanned outputs: all items, stacked along a new first axis
    symbols           of the shapes of ``formals`` and ``outputs``
    """

    trips: str
    condition: str
    most: int | None
    limit: int
    inputs: tuple[str, ...]
    counter: str
    going: str
    formals: tuple[Tensor, ...]
    body: Block
    outputs: tuple[Tensor, ...]
    symbols: tuple[Symbol, ...] = ()
    origin: tuple[str, ...] = ()


Step: TypeAlias = Run | Read | View | Check | Call | Choose | Repeat


def blocks(step: Step) -> tuple[Block, ...]:
    """The blocks that a step holds."""
    match step:
        case Choose():
            return step.then, step.otherwise
        case Repeat():
            return (step.body,)
    return ()


def made_by(step: Step) -> tuple[Tensor, ...]:
    """The tensors that a step makes for those behind it; not those of the stage that it runs."""
    match step:
        case View():
            return (step.output,)
        case Read() | Call() | Choose() | Repeat():
            return step.outputs
    return ()


def given_to_block(step: Step) -> tuple[Tensor, ...]:
    """The tensors that a step gives to its block at each turn."""
    if not isinstance(step, Repeat):
        return ()
    counter = (Tensor(step.counter, DType.I64.value, ()),) if step.counter else ()
    going = (Tensor(step.going, DType.BOOL.value, ()),) if step.going else ()
    return (*counter, *going, *step.formals)


def every_step(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps, those of blocks after the step that holds them."""
    for step in steps:
        yield step
        for block in blocks(step):
            yield from every_step(block.steps)


def sizes_given(steps: Sequence[Step]) -> dict[str, Symbol]:
    """All symbols that steps give their values, by name."""
    return {s.name: s for step in every_step(steps) if not isinstance(step, Run | View | Check) for s in step.symbols}
