"""The statistics of rows as hooks: what the rowwise template prints, and a chain in front of its product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcweld.codegen.kernel import Axis, Stage
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


Variables = Mapping[str, tuple[str, DType, bool]]


def print_stages(
    hooks: Hooks, stages: Sequence[Stage], of_element: Sequence[tuple[str, Sym]], of_row: Sequence[tuple[str, Sym]],
    variables: Variables, *, lane: Sym | None = None, width: int = 1, prefix: str = "",
) -> tuple[list[str], list[PrintedStage], dict[str, tuple[str, DType, bool]]]:  # fmt: skip
    """The texts of all statistics' hooks, the printed stages, and the variables that later hooks may use.

    of_element, of_row  arguments of hooks for an element, and for a whole row
    variables           what the expressions may use beside the statistics (as of ``Hooks.store``)
    prefix              of the names of hooks and statistics
    """
    functions: list[str] = []
    printed: list[PrintedStage] = []
    known = dict(variables)
    for s in stages:
        name, raw, done = prefix + s.name, s.value.dtype, (s.finish or s.value).dtype
        own = f"row_{name}"
        functions.append(hooks.load(f"{name}_value", s.value, of_element, lane=lane, width=width, variables=known))
        if s.finish is not None:
            scalars = {k: v for k, v in known.items() if k not in variables} | {s.name: (own, raw, False)}
            functions.append(hooks.load(f"{name}_finish", s.finish, of_row, variables=scalars))
        printed.append(
            PrintedStage(
                name, COMBINERS[s.combine], identity(s.combine, raw), raw.cuda, done.cuda, s.finish is not None
            )
        )
        known[s.name] = (own, done, False)
    return functions, printed, known
