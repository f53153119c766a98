"""What templates of rows share: rows and columns as two axes, which sizes they take, and the arguments of hooks."""

from __future__ import annotations

from arcweld.codegen.kernel import Axis, Kernel
from arcweld.codegen.printing.nest import flatten_roles
from arcweld.codegen.printing.printer import INDEX_LIMIT
from arcweld.compiler import dims


def flat_rows(kernel: Kernel) -> Kernel:
    """The kernel with one axis ``row`` and one axis ``col``; other roles stay."""
    return flatten_roles(kernel, {"row": "row", "col": "col"})


def too_many(kernel: Kernel) -> str | None:
    """The reason why there are more rows or columns than 32 bits count, or None."""
    flat = flat_rows(kernel)
    for role in ("row", "col"):
        if (dims.bounds(flat.axes[role][0].extent)[0] or 0) >= INDEX_LIMIT:
            return f"more than 2**31 iterations over the {role} axes"
    return None


def argument(a: Axis) -> tuple[str, dims.Sym]:
    """An axis as an argument of a hook: its name in C, and its symbol."""
    return a.sym.name, a.sym
