"""The program of an engine: which kernels are launched, in which order, on which tensors.

It is plain data, whose form is checked when it is decoded (``validate.py`` checks the meaning). Whatever depends on a
symbolic dimension is the text of an integer expression (``arcweld.compiler.dims``), evaluated for each set of shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from arcweld.compiler.parameters import Parameter
from arcweld.compiler.signature import Argument as Argument
from arcweld.compiler.size_ranges import SizeRange as Bounds
from arcweld.compiler.tiling import Tiling
from arcweld.runtime.steps import Step
from arcweld.runtime.steps import Symbol as Symbol
from arcweld.runtime.steps import Tensor as Tensor

SCHEMA = 8


class WeightEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight of the engine. ``name`` is its key in weights.safetensors.

    ``source`` is the model's own name for the array. ``transform`` lists the steps that made the stored array from the
    model's arrays, as (name, arguments) pairs (``arcweld.compiler.records``). It is empty for an unchanged array.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str = ""
    transform: tuple[tuple[str, tuple[int | str, ...]], ...] = ()


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the kernels that can serve a launch, with its launch configuration.

    arch          the least architecture that runs it (``sm_80``), or an exact one that ends in ``a`` (``sm_90a``)
    kernel        the name of a source in kernels/, without ``.cu``
    entry         the kernel's extern "C" symbol
    grid, block   blocks of the grid (expressions) and threads of a block, along x, y and z
    shared_bytes  bytes of dynamic shared memory of a block
    params        the members of the kernel's ``Params`` struct, in the order of declaration
    cluster       blocks of a thread block cluster, along x
    pdl           whether programmatic dependent launch is allowed
    cooperative   whether its blocks wait for each other, so that all of them have to be on the GPU at once
    workspace     temporaries of its own, which nothing else reads or writes
    counters      arrays of its own that a context keeps: zeros before each launch, and after it again
    tiling        what a tiled kernel does in a step; None for others
    """

    arch: str
    kernel: str
    entry: str
    grid: tuple[str, str, str]
    block: tuple[int, int, int]
    shared_bytes: int
    params: tuple[Parameter[str], ...]
    cluster: int = 1
    pdl: bool = True
    workspace: tuple[Tensor, ...] = ()
    counters: tuple[Tensor, ...] = ()
    cooperative: bool = False
    tiling: Tiling[str] | None = None

    def own(self) -> tuple[Tensor, ...]:
        """The workspace and the counters."""
        return (*self.workspace, *self.counters)


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel launch, in one variant or more for different architectures.

    ``reads`` and ``writes`` name tensors. ``origin`` names the model's nodes that the launch computes. ``zero`` names
    those of ``writes`` that must hold zeros before the launch (split reductions). ``flops`` is an expression, and so is
    ``iterations``: how often the loop nest is run through.
    """

    name: str
    template: str
    variants: tuple[Variant, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    origin: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    flops: str = "0"
    iterations: str = "0"


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor without memory of its own: its bytes are those of the tensor ``of``, from ``offset`` bytes on."""

    name: str
    of: str
    offset: str = "0"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input that lives between calls: after a call, its memory holds the output ``output``.

    ``initial`` says what it holds before the first call of a session: nothing but what the caller gives (None), zeros
    (an empty text), or the weight of that name.
    """

    input: str
    output: str
    initial: str | None = None


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Elements of an integer input that are indices: of an axis of ``extent`` elements, after each number from
    ``least`` to ``most`` has been added. All are expressions. An index from ``-extent`` to -1 counts from the end.
    """

    input: str
    extent: str
    least: str = "0"
    most: str = "0"


class SizeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes for which a program has launches of its own: where the ``symbols`` are within these narrower ranges.

    The other members are as in ``Program``.
    """

    symbols: tuple[Symbol, ...]
    temps: tuple[Tensor, ...]
    aliases: tuple[Alias, ...]
    launches: tuple[Launch, ...]

    @property
    def sizes(self) -> Bounds:
        """The range alone. Its symbols have upper bounds, as ``validate.py`` sees to."""
        return Bounds(tuple((s.name, s.lo, s.lo if s.hi is None else s.hi) for s in self.symbols))


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that the executor needs.

    ``launches`` are in the order of execution. ``temps`` are temporaries: each is in the arena from the first launch
    that writes it to the last one that reads it. ``fixed`` names the model's weights that kernels hold as literals.
    Outputs in ``state`` that are aliases of their inputs are written there by launches; the others are copied there
    after the last launch. Sizes in one of ``ranges`` have the launches of the first one that holds them instead.
    A call whose inputs exceed ``limits`` is refused where these are on the host; else a kernel finds the index.

    A program with ``steps`` has no launches of its own: the host runs its ``stages`` as the steps say. All weights are
    the program's, and a stage's are some of them. ``results`` are the tensors of the steps that are the outputs.

    ``takes`` and ``gives`` say which inputs and outputs are lists for a caller; empty where each is a tensor by itself.
    """

    schema: int
    name: str
    symbols: tuple[Symbol, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[WeightEntry, ...]
    temps: tuple[Tensor, ...]
    aliases: tuple[Alias, ...]
    launches: tuple[Launch, ...]
    fixed: tuple[str, ...] = ()
    state: tuple[State, ...] = ()
    ranges: tuple[SizeRange, ...] = ()
    limits: tuple[Limit, ...] = ()
    steps: tuple[Step, ...] = ()
    stages: tuple[Program, ...] = ()
    results: tuple[str, ...] = ()
    takes: tuple[Argument, ...] = ()
    gives: tuple[Argument, ...] = ()

    def parts(self) -> tuple[Program, ...]:
        """A program without ranges for each range, and at last that for all other sizes."""
        return (*(self._within(r) for r in self.ranges), replace(self, ranges=()) if self.ranges else self)

    def at(self, sizes: Mapping[str, int]) -> Program:
        """The part that serves these sizes."""
        return next(p for p, r in zip(self.parts(), (*self.ranges, None)) if r is None or r.sizes.holds(sizes))

    def all_launches(self) -> tuple[Launch, ...]:
        """The launches of all parts and stages, in their order."""
        staged = (x for stage in self.stages for x in stage.all_launches())
        return (*(x for r in self.ranges for x in r.launches), *self.launches, *staged)

    def _within(self, r: SizeRange) -> Program:
        narrower = {s.name: s for s in r.symbols}
        symbols = tuple(narrower.get(s.name, s) for s in self.symbols)
        return replace(self, symbols=symbols, temps=r.temps, aliases=r.aliases, launches=r.launches, ranges=())
