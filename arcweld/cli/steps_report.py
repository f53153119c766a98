"""What ``inspect`` says of the host's part in a call: which tensors it reads, what it computes, where it decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from arcweld.cli.common import out
from arcweld.compiler.dtypes import DType
from arcweld.runtime.program import Program
from arcweld.runtime.steps import (
    Call,
    Check,
    Choose,
    Read,
    Repeat,
    Run,
    Step,
    Tensor,
    View,
    every_step,
    given_to_block,
    made_by,
)


def steps_report(program: Program) -> list[dict[str, Any]]:
    """One entry for each step, in order; blocks have steps of their own.

    ``copied`` lists what goes from the device to the host, and ``bytes`` how many bytes, as numbers or as formulas.
    """
    return _Report(program).rows(program.steps)


class _Report:
    def __init__(self, program: Program) -> None:
        self.tensors = {t.name: t for t in program.inputs}
        self.tensors |= {t.name: t for stage in program.stages for t in stage.outputs}
        for step in every_step(program.steps):
            self.tensors |= {t.name: t for t in (*made_by(step), *given_to_block(step))}

    def rows(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        return [self.row(step) for step in steps]

    def copied(self, *names: str) -> dict[str, Any]:
        tensors = [(n, self.tensors[n]) for n in names if n]
        return {"copied": [n for n, _ in tensors], "bytes": [_nbytes(t) for _, t in tensors]}

    def row(self, step: Step) -> dict[str, Any]:
        match step:
            case Run():
                return {"step": "run", "stage": step.stage}
            case Read():
                sizes = [{"name": s.name, "range": [s.lo, s.hi]} for s in step.symbols]
                return {"step": "read", **self.copied(step.tensor), "sizes": sizes, "nodes": list(step.origin)}
            case View():
                return {"step": "view", "of": step.tensor, "as": _text(step.output), "nodes": list(step.origin)}
            case Check():
                return {"step": "check", "zero": step.zero, "nodes": list(step.origin)}
            case Call():
                made = [_text(t) for t in step.outputs]
                return {
                    "step": "call", "operator": step.op, **self.copied(*step.inputs), "made": made,
                    "made_bytes": [_nbytes(t) for t in step.outputs], "nodes": list(step.origin),
                }  # fmt: skip
            case Choose():
                return {
                    "step": "choose", **self.copied(step.condition), "then": self.rows(step.then.steps),
                    "otherwise": self.rows(step.otherwise.steps), "nodes": list(step.origin),
                }  # fmt: skip
            case Repeat():
                return {
                    "step": "repeat", **self.copied(step.trips, step.condition, step.body.results[0]),
                    "most": step.most, "limit": step.limit, "body": self.rows(step.body.steps),
                    "nodes": list(step.origin),
                }  # fmt: skip


def _nbytes(t: Tensor) -> int | str | None:
    """The bytes of a tensor, as a formula where its sizes are open; None for strings, which nothing copies."""
    dtype = DType(t.dtype)
    if dtype.is_string:
        return None
    if all(d.isdigit() for d in t.shape):
        return dtype.nbytes(math.prod(map(int, t.shape)))
    count = " * ".join(d if d.isidentifier() or d.isdigit() else f"({d})" for d in t.shape)
    return f"{count} * {dtype.size}" if not dtype.is_packed else f"{count} * {dtype.bits}/8"


def _text(t: Tensor) -> str:
    return f"{t.name}: {t.dtype}[{', '.join(t.shape)}]"


def print_steps(rows: Sequence[dict[str, Any]], indent: str = "  ") -> None:
    """Prints the steps, those of blocks below them."""
    for line in step_lines(rows, indent):
        out.print(line)


def step_lines(rows: Sequence[dict[str, Any]], indent: str = "") -> Iterator[str]:
    """The steps as lines of text, those of blocks below them and further indented."""
    for row in rows:
        yield indent + _line(row)
        for name in ("then", "otherwise", "body"):
            if name in row:
                yield f"{indent}  {name}:"
                yield from step_lines(row[name], indent + "    ")


def _line(row: dict[str, Any]) -> str:
    nodes = f" ({', '.join(row['nodes'])})" if row.get("nodes") else ""
    match row["step"]:
        case "run":
            return f"run stage {row['stage']}"
        case "read":
            return f"read {_copied(row)}: {', '.join(map(_range, row['sizes']))}{nodes}"
        case "view":
            return f"view {row['of']} as {row['as']}{nodes}"
        case "check":
            return f"check that {row['zero']} is 0{nodes}"
        case "call":
            made = ", ".join(map(_sized, row["made"], row["made_bytes"]))
            return f"on the host: {row['operator']} of {_copied(row)} gives {made}{nodes}"
        case "choose":
            return f"if {_copied(row)}{nodes}"
        case _:
            most = f"at most {row['most'] if row['most'] is not None else row['limit']} times"
            return f"repeat {most}, reading {_copied(row)}{nodes}"


def _copied(row: dict[str, Any]) -> str:
    return ", ".join(map(_sized, row["copied"], row["bytes"]))


def _sized(name: str, nbytes: int | str | None) -> str:
    return name if nbytes is None else f"{name} ({nbytes} bytes)"


def _range(size: dict[str, Any]) -> str:
    low, high = size["range"]
    return f"{size['name']} from {low}" + ("" if high is None else f" to {high}")
