"""What ``inspect`` says of the host's part in a call: which tensors it reads, what it computes, where it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcweld.cli.common import out
from arcweld.runtime.steps import Block, Call, Check, Choose, Read, Repeat, Run, Step, Tensor, View


def steps_report(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """One entry for each step, in order. ``copied`` lists what goes from the device to the host; blocks have steps."""
    return [_entry(step) for step in steps]


def _entry(step: Step) -> dict[str, Any]:
    match step:
        case Run():
            return {"step": "run", "stage": step.stage}
        case Read():
            sizes = [{"name": s.name, "range": [s.lo, s.hi]} for s in step.symbols]
            return {"step": "read", "copied": [step.tensor], "sizes": sizes, "nodes": list(step.origin)}
        case View():
            return {"step": "view", "of": step.tensor, "as": _text(step.output), "nodes": list(step.origin)}
        case Check():
            return {"step": "check", "zero": step.zero, "nodes": list(step.origin)}
        case Call():
            copied = [n for n in step.inputs if n]
            made = [_text(t) for t in step.outputs]
            return {"step": "call", "operator": step.op, "copied": copied, "made": made, "nodes": list(step.origin)}
        case Choose():
            return {
                "step": "choose", "copied": [step.condition], "then": _block(step.then),
                "otherwise": _block(step.otherwise), "nodes": list(step.origin),
            }  # fmt: skip
        case Repeat():
            copied = [n for n in (step.trips, step.condition, step.body.results[0]) if n]
            return {
                "step": "repeat", "copied": copied, "most": step.most, "limit": step.limit, "body": _block(step.body),
                "nodes": list(step.origin),
            }  # fmt: skip


def _block(block: Block) -> list[dict[str, Any]]:
    return steps_report(block.steps)


def _text(t: Tensor) -> str:
    return f"{t.name}: {t.dtype}[{', '.join(t.shape)}]"


def print_steps(rows: Sequence[dict[str, Any]], indent: str = "  ") -> None:
    """Prints the steps, those of blocks below them."""
    for row in rows:
        out.print(indent + _line(row))
        for name in ("then", "otherwise", "body"):
            if name in row:
                out.print(f"{indent}  {name}:")
                print_steps(row[name], indent + "    ")


def _line(row: dict[str, Any]) -> str:
    nodes = f" ({', '.join(row['nodes'])})" if row.get("nodes") else ""
    match row["step"]:
        case "run":
            return f"run stage {row['stage']}"
        case "read":
            return f"read {row['copied'][0]}: {', '.join(map(_range, row['sizes']))}{nodes}"
        case "view":
            return f"view {row['of']} as {row['as']}{nodes}"
        case "check":
            return f"check that {row['zero']} is 0{nodes}"
        case "call":
            return f"on the host: {row['operator']} of {', '.join(row['copied'])} gives {', '.join(row['made'])}{nodes}"
        case "choose":
            return f"if {row['copied'][0]}{nodes}"
        case _:
            most = f"at most {row['most'] if row['most'] is not None else row['limit']} times"
            return f"repeat {most}{nodes}"


def _range(size: dict[str, Any]) -> str:
    low, high = size["range"]
    return f"{size['name']} from {low}" + ("" if high is None else f" to {high}")
