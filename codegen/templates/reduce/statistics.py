"""The statistics of rows as hooks: what the rowwise template prints, and a chain in front of its product."""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Axis
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.templates.reduce.combiners import COMBINERS, identity
from arcweld.compiler.dims import Sym
from arcweld.compiler.dtypes import DType


@dataclass(frozen=True, slots=True)
class PrintedStage:
    """A statistic as the template prints it.

    ctype       C type of the combined value
    ctype_done  C type after ``finish``
    finished    whether there is a ``finish``
    """

    name: str
    combine: str
    identity: str
    ctype: str
    ctype_done: str
    finished: bool


def index_args(*axes: Axis) -> list[tuple[str, Sym]]:
    """The indices of axes as a hook's arguments, by the names of their symbols."""
    return [(a.sym.name, a.sym) for a in axes]


def print_stages(
    hooks: Hooks, row: Axis, col: Axis, width: int
) -> tuple[list[str], list[PrintedStage], dict[str, tuple[str, DType, bool]]]:
    """The texts of all statistics' hooks, the printed stages, and the variables that later hooks may use.

    The kernel has the load ``x`` over ``row`` and ``col``, and the attribute ``stages``.
    """
    functions: list[str] = []
    stages: list[PrintedStage] = []
    known: dict[str, tuple[str, DType, bool]] = {"x": ("x", hooks.kernel.loads["x"].dtype, True)}
    for s in hooks.kernel.attrs["stages"]:
        own, raw, done = f"row_{s.name}", s.value.dtype, (s.finish or s.value).dtype
        functions.append(
            hooks.load(f"{s.name}_value", s.value, index_args(row, col), lane=col.sym, width=width, variables=known)
        )
        if s.finish is not None:
            scalars = {k: v for k, v in known.items() if k != "x"} | {s.name: (own, raw, False)}
            functions.append(hooks.load(f"{s.name}_finish", s.finish, index_args(row), variables=scalars))
        stages.append(
            PrintedStage(
                s.name, COMBINERS[s.combine], identity(s.combine, raw), raw.cuda, done.cuda, s.finish is not None
            )
        )
        known[s.name] = (own, done, False)
    return functions, stages, known
