"""``inspect`` and ``explain``: what a model needs, what an engine holds, and why nodes were not fused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer
from arcweld.compiler.build import materialise_outputs
from arcweld.compiler.cli.common import interface, is_engine, megabytes, open_graph, out
from arcweld.compiler.cli.shapes import parse_shapes, sizes_of
from arcweld.compiler.errors import UnsupportedError, UsageError
from arcweld.compiler.ir import merge_origins
from arcweld.compiler.options import Options
from arcweld.runtime.arena import aligned
from arcweld.runtime.bound import measure
from arcweld.runtime.engine_file import EngineData, read_engine
from arcweld.runtime.plan import Plan
from rich.markup import escape
from rich.table import Table

Opt = typer.Option


def inspect(
    path: Annotated[str, typer.Argument(help="ONNX or engine file.")],
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
    shapes: Annotated[str, Opt("--shapes", help="Input shapes to compute exact bytes for: x:1x3x224x224.")] = "",
) -> None:
    """Describes a model (which nodes are supported) or an engine (kernels, nodes, bytes, evidence)."""
    if is_engine(path):
        data = read_engine(path)
        sizes = sizes_of(interface(data), parse_shapes(shapes)) if shapes else {}
        report = engine_report(data, sizes)
        out.print_json(json.dumps(report)) if as_json else _print_engine(report)
        return
    report = model_report(path, shapes)
    out.print_json(json.dumps(report)) if as_json else _print_model(report)
    if report["unsupported"]:
        raise UnsupportedError(f"{len(report['unsupported'])} of {report['nodes']} nodes cannot be compiled", node=path)


def model_report(path: str, shapes: str) -> dict[str, Any]:
    """Operators, how many of each, and every unsupported node with the reason."""
    from arcweld.compiler.onnx.importer import support_report

    rows = support_report(path, shapes=parse_shapes(shapes) if shapes else None)  # type: ignore[arg-type]
    bad = [{"node": r.node, "op": r.op, "reason": r.reason} for r in rows if not r.supported]
    report: dict[str, Any] = {
        "model": path, "nodes": len(rows), "operators": dict(Counter(r.op for r in rows).most_common()),
        "unsupported": bad,
    }  # fmt: skip
    if not bad:
        graph = open_graph(path, parse_shapes(shapes) if shapes else None)
        report["inputs"] = {v.name: str(v.type) for v in graph.inputs}
        report["outputs"] = {n: str(v.type) for n, v in zip(graph.labels(), graph.outputs)}
        report["weight_bytes"] = sum(w.data.nbytes for w in graph.weights.values())
    return report


def _print_model(report: dict[str, Any]) -> None:
    out.print(f"{report['model']}: {report['nodes']} nodes")
    for kind in ("inputs", "outputs"):
        for name, text in report.get(kind, {}).items():
            out.print(f"  {kind[:-1]} {escape(name)}: {escape(text)}")
    if "weight_bytes" in report:
        out.print(f"  weights {megabytes(report['weight_bytes'])}")
    out.print("  operators " + ", ".join(f"{op} x{n}" for op, n in report["operators"].items()))
    for row in report["unsupported"]:
        out.print(f"  unsupported {escape(row['node'])} ({row['op']}): {escape(row['reason'])}")


def engine_report(data: EngineData, sizes: dict[str, int]) -> dict[str, Any]:
    """Kernels with their nodes, exact bytes (where every dimension is known), architectures and evidence."""
    program = data.program
    launches = [
        {
            "name": x.name, "template": x.template, "kernel": x.variants[0].kernel, "nodes": list(x.origin),
            "reads": list(x.reads), "writes": list(x.writes), "variants": [v.arch for v in x.variants],
        }
        for x in program.launches
    ]  # fmt: skip
    weights = sum(w.nbytes for w in data.weights.values())
    report: dict[str, Any] = {
        "name": program.name, "archs": list(data.archs), "provenance": dict(data.provenance),
        "inputs": {t.name: f"{t.dtype}[{', '.join(t.shape)}]" for t in program.inputs},
        "outputs": {t.name: f"{t.dtype}[{', '.join(t.shape)}]" for t in program.outputs},
        "symbols": {s.name: [s.lo, s.hi] for s in program.symbols},
        "launches": launches, "kernels": len(data.sources), "weight_bytes": weights, "verify": data.verify,
    }  # fmt: skip
    if all(s.name in sizes for s in program.symbols):
        found = measure(Plan(program, data.archs[0] if data.archs else "sm_80"), sizes)
        report["sizes"] = sizes
        report["arena_bytes"] = found.arena_bytes
        report["input_bytes"] = sum(aligned(found.nbytes[t.name]) for t in program.inputs)
        report["output_bytes"] = sum(aligned(found.nbytes[t.name]) for t in program.outputs)
    return report


def _print_engine(report: dict[str, Any]) -> None:
    out.print(f"{report['name']}: {len(report['launches'])} launches of {report['kernels']} kernels")
    out.print(f"  architectures {', '.join(report['archs']) or 'none (sim only)'}")
    for kind in ("inputs", "outputs"):
        for name, text in report[kind].items():
            out.print(f"  {kind[:-1]} {escape(name)}: {escape(text)}")
    out.print(f"  weights {megabytes(report['weight_bytes'])}")
    if "arena_bytes" in report:
        out.print(f"  workspace {megabytes(report['arena_bytes'])} at {report['sizes'] or 'the fixed shapes'}")
    else:
        open_ = [n for n in report["symbols"] if n not in report.get("sizes", {})]
        out.print(f"  workspace depends on {', '.join(open_)}: give --shapes")
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "template", "nodes"):
        table.add_column(column, overflow="fold")
    for x in report["launches"]:
        table.add_row(escape(x["kernel"]), x["template"], escape(", ".join(x["nodes"])))
    out.print(table)
    evidence = report["verify"] or {"level": "off", "kernels": [], "outputs": []}
    checked = [k for k in evidence["kernels"] if k["status"] == "verified"]
    where = evidence.get("device", "no device")
    out.print(f"verified ({evidence['level']}) on {where}: {len(checked)} of {len(evidence['kernels'])} kernels")
    for o in evidence["outputs"]:
        detail = f"error {o['error']:.2e}" if o["status"] == "verified" else o["reason"]
        out.print(f"  output {escape(o['output'])}: {o['status']}, {detail}")


def explain(
    model: Annotated[str, typer.Argument(help="ONNX file.")],
    nodes: Annotated[list[str] | None, typer.Argument(help="Names (or parts of names) of one or two nodes.")] = None,
    fp16: Annotated[bool, Opt("--fp16")] = False,
    shapes: Annotated[str, Opt("--shapes")] = "",
) -> None:
    """Says which nodes share a kernel, and for each pair of neighbours that don't, why."""
    from arcweld.passes.fusion import fuse
    from arcweld.passes.pipeline import run_passes

    words = nodes or []
    if len(words) > 2:
        raise UsageError("explain takes one or two node names")
    graph = open_graph(model, parse_shapes(shapes) if shapes else None)
    fused = fuse(materialise_outputs(run_passes(graph, Options(precision="fp16" if fp16 else "fp32"))))
    shown = 0
    for r in fused.regions:
        names = merge_origins(r.nodes)
        if all(any(w in n for n in names) for w in words):
            out.print(f"one {r.template} kernel: {escape(', '.join(names))}")
            shown += 1
    for refusal in fused.refusals:
        pair = (refusal.producer, refusal.consumer)
        if all(any(w in n for n in pair) for w in words):
            out.print(f"{pair[0]} -> {pair[1]}: [{refusal.code}] {refusal.detail}", markup=False)
            shown += 1
    if not shown:
        out.print("nothing was refused" if not words else f"no kernel and no refusal concerns {' and '.join(words)}")
