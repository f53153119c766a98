"""A lowered region: the loop axes, what the hero reads and what is stored, all as expressions over canonical buffers.

Buffers are called ``in0, in1, …, out0, …`` so that two layers of a model that do the same thing give equal kernels,
which are then rendered and compiled once. Which tensors they stand for is kept beside the kernel, in ``BoundKernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arcweld.compiler.dims import Dim, Sym, product, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.parameters import Parameter
from arcweld.compiler.tiling import Tiling


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop axis: the index symbol and its extent."""

    sym: Sym
    extent: Dim

    @property
    def index(self) -> Dim:
        """The index as an expression; the constant 0 when there is only one iteration."""
        return 0 if self.extent == 1 else var(self.sym)


def axis(name: str, extent: Dim) -> Axis:
    """An axis whose index runs over ``[0, extent)``."""
    return Axis(Sym(name, 0, extent - 1), extent)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A dense row-major array in device memory that the kernel reads or writes."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    written: bool = False

    def strides(self) -> tuple[Dim, ...]:
        """Elements between neighbours along each axis."""
        return tuple(product(self.shape[i + 1 :]) for i in range(len(self.shape)))

    def offset(self, coords: tuple[Dim, ...]) -> Dim:
        """The flat element index of ``coords``."""
        total: Dim = 0
        for c, s in zip(coords, self.strides(), strict=True):
            total = total + c * s
        return total


@dataclass(frozen=True, slots=True)
class Store:
    """``buffer[coords] = value``, rounded to the buffer's type, for every point of the template's output axes.

    Three things are for the pointwise template alone: coordinates that are read at run time; ``mask``, a bool
    expression (nothing is stored where it is false); and ``reduction``, ``add``, ``max`` or ``min`` (an atomic that
    combines the value with the stored one; ``none`` overwrites it).
    """

    buffer: str
    coords: tuple[Dim, ...]
    value: Expr
    mask: Expr | None = None
    reduction: str = "none"


@dataclass(frozen=True, slots=True)
class Stage:
    """One statistic of a row, for the rowwise template.

    name     the variable that holds the statistic in later expressions; inside ``finish``, the combined value
    combine  sum, prod, max or min
    value    what is combined: an expression over the row's element ``x``, earlier statistics and loads
    finish   what the combined value becomes; None keeps it
    """

    name: str
    combine: str
    value: Expr
    finish: Expr | None = None

    def exprs(self) -> tuple[Expr, ...]:
        """``value``, and ``finish`` if there is one."""
        return (self.value,) if self.finish is None else (self.value, self.finish)

    def mapped(self, change: Callable[[Expr], Expr]) -> Stage:
        """The stage with each of its expressions changed."""
        return Stage(self.name, self.combine, change(self.value), None if self.finish is None else change(self.finish))


@dataclass(frozen=True)
class Kernel:
    """What a template renders.

    axes    role -> axes; each template documents its roles (``out``; ``out`` and ``reduce``; ``batch m n k``; …)
    loads   role -> the hero's operand as an expression over the axes
    stores  what is written, over the output axes and the template's variables (``acc``, ``x``, …)
    attrs   what the template needs beside expressions (combiner, strides, stages, …): hashable values only
    scratch arrays in shared memory that expressions read: what a template puts there before
    memo    cached analyses of this kernel (its normal form as a matrix product); no part of its identity
    stem    readable name: the template and the operators it fuses
    """

    template: str
    stem: str
    axes: Mapping[str, tuple[Axis, ...]]
    loads: Mapping[str, Expr]
    stores: tuple[Store, ...]
    buffers: tuple[Buffer, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    scratch: tuple[Buffer, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def buffer(self, name: str) -> Buffer:
        """The buffer, or the array in shared memory, of the given name. Raises KeyError if there is none."""
        for b in (*self.buffers, *self.scratch):
            if b.name == name:
                return b
        raise KeyError(name)

    def key(self) -> tuple[Any, ...]:
        """A hashable value that is equal for kernels which render to the same source.

        It holds the expressions themselves: equal expressions are one object.
        """
        return (
            self.template,
            self.stem,
            tuple(sorted(self.axes.items())),
            tuple((k, self.loads[k]) for k in sorted(self.loads)),
            tuple((s.buffer, s.coords, s.value, s.mask, s.reduction) for s in self.stores),
            self.buffers,
            self.scratch,
            tuple(sorted((k, repr(v)) for k, v in self.attrs.items())),
        )


@dataclass(frozen=True)
class BoundKernel:
    """A kernel and the tensors that its buffers stand for.

    tensors  canonical buffer name -> tensor name
    origin   the user's names for what it computes
    flops    floating-point operations of one launch, about; a multiply-add counts as two
    """

    kernel: Kernel
    tensors: Mapping[str, str]
    origin: tuple[str, ...]
    flops: Dim = 0


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A rendered kernel: CUDA text and everything needed to launch it.

    entry         name of the ``extern "C"`` function
    arch          the least architecture (``sm_80``), or an exact one (``sm_90a``)
    grid, block   blocks, which may depend on dimensions, and threads of a block
    shared_bytes  dynamic shared memory of a block
    params        the members of the ``Params`` struct, in order; pointers name canonical buffers
    cluster       blocks of a thread block cluster along x; 1: no clusters
    pdl           the kernel may be launched before its predecessor ends: it waits for the latter's writes itself
                  (programmatic dependent launch, CUDA Programming Guide)
    cooperative   its blocks wait for each other: all of them have to be on the GPU at once
    zero          canonical buffers that must be zeroed before the launch
    workspace     arrays of its own that hold nothing before the launch and nothing after it
    counters      arrays of its own that hold zeros before each launch, and after it again
    tiled         the symbolic numbers of elements that it divides among blocks or loop turns, each with how many make a
                  full round (a tile, or the tiles of a group or of a pipeline); verification goes beyond each of them
    tiling        what a tiled kernel does in a step; None for others
    """

    entry: str
    source: str
    arch: str
    grid: tuple[Dim, Dim, Dim]
    block: tuple[int, int, int]
    shared_bytes: int
    params: tuple[Parameter[Dim], ...]
    cluster: int = 1
    pdl: bool = True
    zero: tuple[str, ...] = ()
    tiled: tuple[tuple[Dim, int], ...] = ()
    workspace: tuple[Buffer, ...] = ()
    counters: tuple[Buffer, ...] = ()
    cooperative: bool = False
    tiling: Tiling[Dim] | None = None
