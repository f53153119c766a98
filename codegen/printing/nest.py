"""Flattening of loop axes: several axes become one flat index, in terms of which the kernel is rewritten.

The quotients and remainders that recover the old indices cancel in addresses where the axes are contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arcweld.codegen.kernel import Axis, Kernel, Store, axis
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.expr import Expr, substitute_index


def collapse(axes: Sequence[Axis], name: str) -> tuple[Axis, dict[dims.Atom, Dim]]:
    """One axis over all points of ``axes`` in row-major order, and each old index as an expression of the new one."""
    flat = axis(name, dims.product(a.extent for a in axes))
    table: dict[dims.Atom, Dim] = {}
    inner: Dim = 1
    for k, a in reversed(list(enumerate(axes))):
        whole = dims.floordiv(flat.index, inner)
        extent = 1 if a.extent == 0 else a.extent  # nothing runs then, and nothing divides by zero
        table[a.sym] = whole if k == 0 else dims.mod(whole, extent)
        inner = inner * extent
    return flat, table


def rewrite(kernel: Kernel, axes: Mapping[str, tuple[Axis, ...]], table: Mapping[Any, Dim]) -> Kernel:
    """The kernel over other axes: ``table`` gives the old indices in terms of the new ones."""

    def expr(e: Expr) -> Expr:
        return substitute_index(e, table)

    return replace(
        kernel,
        axes=dict(axes),
        loads={role: expr(e) for role, e in kernel.loads.items()},
        stores=tuple(
            Store(s.buffer, tuple(dims.substitute(c, table) for c in s.coords), expr(s.value)) for s in kernel.stores
        ),
        attrs={k: tuple(s.mapped(expr) for s in v) if k == "stages" else v for k, v in kernel.attrs.items()},
    )


def flatten_roles(kernel: Kernel, names: Mapping[str, str]) -> Kernel:
    """The kernel with the axes of each role in ``names`` collapsed to one axis of that name; other roles stay."""
    axes = dict(kernel.axes)
    table: dict[dims.Atom, Dim] = {}
    for role, name in names.items():
        flat, part = collapse(kernel.axes.get(role, ()), name)
        axes[role] = (flat,)
        table |= part
    return rewrite(kernel, axes, table)


def least(extent: Dim) -> int:
    """A lower bound of a dimension, 0 if none is known."""
    return dims.bounds(extent)[0] or 0


def most(extent: Dim, otherwise: int) -> int:
    """An upper bound of a dimension, or ``otherwise`` if none is known."""
    hi = dims.bounds(extent)[1]
    return otherwise if hi is None else hi


def power_of_two_at_least(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, (n - 1).bit_length())
