"""``inspect`` and ``explain``: which operators a model has, what an engine holds, and why nodes were not fused."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from arcweld.cli.common import is_engine, megabytes, open_graph, out, print_json, print_table
from arcweld.cli.estimate import engine_sizes, estimates_of, print_kernels
from arcweld.cli.inputs import InOut, Values, precision_of
from arcweld.cli.shapes import parse_open_shapes, parse_values
from arcweld.cli.steps_report import print_steps, steps_report
from arcweld.cli.storage_report import print_products, quantised_products
from arcweld.compiler.cards import card as card_called
from arcweld.compiler.errors import UnsupportedError, UsageError
from arcweld.compiler.ir import Graph, merge_origins
from arcweld.compiler.options import Options
from arcweld.compiler.region import FusedGraph, Region
from arcweld.driver.build import in_regions, materialise_outputs
from arcweld.driver.estimate import Estimate, estimate_called
from arcweld.driver.stages import plain_graphs
from arcweld.driver.summary import host_text, kernels_text, verified_kernels
from arcweld.runtime.arena import aligned
from arcweld.runtime.engine_file import EngineData, read_engine
from arcweld.runtime.expressions import Expression
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan
from arcweld.runtime.program import Launch, Program
from arcweld.runtime.steps import sizes_given

Opt = typer.Option


def inspect(
    path: Annotated[str, typer.Argument(help="ONNX or engine file.")],
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
    shapes: Annotated[
        str, Opt("--shapes", "--input-shapes", help="Input shapes to compute exact bytes for: x:1x3x224x224.")
    ] = "",
    values: Values = "",
    card: Annotated[str, Opt("--card", help="Model the time of each launch on this card: h100, a100, l4.")] = "",
) -> None:
    """Describes a model (which nodes are supported) or an engine (kernels, nodes, bytes, evidence)."""
    if is_engine(path):
        data = read_engine(path)
        sizes = engine_sizes(data, shapes)
        report = engine_report(data, sizes)
        if card:
            _add_times(report, estimate_called(data, card, sizes))
        print_json(report) if as_json else _print_engine(data, report)
        return
    if card:
        raise UsageError("--card is for engines", hint="`onnx-to-engine estimate` takes models")
    report = model_report(path, shapes, values)
    print_json(report) if as_json else _print_model(report)
    if report["unsupported"]:
        raise UnsupportedError(f"{len(report['unsupported'])} of {report['nodes']} nodes cannot be compiled", node=path)


def _add_times(report: dict[str, Any], found: Estimate) -> None:
    """Adds modelled times to the launches that serve these sizes, and the whole estimate."""
    rows = found.report()
    report["modelled"] = {name: rows[name] for name in ("card", "title", "latency_ms", "share_of_roofline", "beside")}
    by_name = {k["name"]: k for k in rows["kernels"]}
    for x in (*report["launches"], *(x for own in report["ranges"].values() for x in own)):
        if x["name"] in by_name:
            own = by_name[x["name"]]
            x["modelled"] = {n: own[n] for n in ("us", "floor_us", "share_of_roofline", "bound", "gain_us")}


def model_report(path: str, shapes: str = "", values: str = "") -> dict[str, Any]:
    """The report on an ONNX file: inputs, operators with their counts, unsupported nodes with reason and hint.

    If all nodes are supported, it has outputs and the bytes of weights too.
    """
    from arcweld.compiler.onnx.importer import support_report

    given: Any = parse_open_shapes(shapes) if shapes else None
    rows = support_report(path, shapes=given, values=parse_values(values))
    bad = [{"node": r.node, "op": r.op, "reason": r.reason, "hint": r.hint} for r in rows if not r.supported]
    report: dict[str, Any] = {
        "model": path, "nodes": len(rows), "operators": dict(Counter(r.op for r in rows).most_common()),
        "unsupported": bad, "inputs": _declared_inputs(path),
    }  # fmt: skip
    if not bad:
        graph = open_graph(path, shapes, values=values)
        report["inputs"] = {v.name: str(v.type) for v in graph.inputs}
        report["outputs"] = {n: str(v.type) for n, v in zip(graph.labels(), graph.outputs)}
        report["weight_bytes"] = sum(w.data.nbytes for w in graph.weights.values() if w.data.dtype != object)
    return report


def _declared_inputs(path: str) -> dict[str, str]:
    """Element types and shapes of the inputs as the file declares them, by name."""
    from onnx import TensorProto

    from arcweld.compiler.onnx.proto import DTYPES, load_model
    from arcweld.compiler.onnx.signature import Declared
    from arcweld.compiler.onnx.symbols import declared_dims

    graph = load_model(path)[0].graph
    weights = {t.name for t in graph.initializer}
    names = {v: k.lower() for k, v in TensorProto.DataType.items()}
    found = {}
    for info in (i for i in graph.input if i.name not in weights):
        declared = Declared.of(info)
        if not declared.is_known:
            found[info.name] = "neither a tensor nor a sequence of tensors"
            continue
        info = declared.tensor(info.name)
        code, dims = info.type.tensor_type.elem_type, declared_dims(info)
        element = DTYPES[code].value if code in DTYPES else names.get(code, f"type {code}")
        shape = " of any rank" if dims is None else f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
        kind = "optional " * declared.optional + "sequence of " * declared.is_sequence
        found[info.name] = kind + element + shape
    return found


def _print_model(report: dict[str, Any]) -> None:
    out.print(f"{report['model']}: {report['nodes']} nodes")
    for kind in ("inputs", "outputs"):
        for name, text in report.get(kind, {}).items():
            out.print(f"  {kind[:-1]} {name}: {text}")
    if "weight_bytes" in report:
        out.print(f"  weights {megabytes(report['weight_bytes'])}")
    out.print("  operators " + ", ".join(f"{op} x{n}" for op, n in report["operators"].items()))
    for row in report["unsupported"]:
        out.print(f"  unsupported {row['node']} ({row['op']}): {row['reason']}")
        if row["hint"]:
            out.print(f"    hint: {row['hint']}")


def engine_report(data: EngineData, sizes: dict[str, int]) -> dict[str, Any]:
    """The report on an engine: inputs, outputs, launches with their nodes, architectures, bytes and evidence.

    ``ranges`` has the launches of each range of sizes that has launches of its own.

    If ``sizes`` has every symbol, it has the exact bytes of the launches and the lifetimes in the arena too.
    """
    program = data.program
    weights = sum(w.nbytes for w in data.weights.values())
    aliases = {a.name for a in program.aliases}
    report: dict[str, Any] = {
        "name": program.name, "archs": list(data.archs), "provenance": dict(data.provenance),
        "inputs": {t.name: f"{t.dtype}[{', '.join(t.shape)}]" for t in program.inputs},
        "sequences": {a.name: list(a.items) for a in (*program.takes, *program.gives) if a.kind != "tensor"},
        "outputs": {t.name: f"{t.dtype}[{', '.join(t.shape)}]" for t in program.outputs},
        "state": {s.output: {"input": s.input, "in_place": s.output in aliases, "owned": s.initial is not None}
                  for s in program.state},
        "symbols": {s.name: [s.lo, s.hi] for s in program.symbols}, "may_be_zero": _may_be_zero(program),
        "launches": _launches([*program.launches, *(x for stage in program.stages for x in stage.launches)]),
        "steps": steps_report(program),
        "ranges": _ranges(program),
        "kernels": len(data.sources), "weight_bytes": weights, "verify": data.verify,
        "quantised_products": quantised_products(data),
    }  # fmt: skip
    if not program.steps and all(s.name in sizes for s in program.symbols):
        symbols = {s.name: sizes[s.name] for s in program.symbols}
        plan = ExecutionPlan(program.at(symbols), data.archs[0] if data.archs else "sm_80")
        found = compute_sizes(plan, symbols)
        report["sizes"] = {s.name: sizes[s.name] for s in program.symbols}
        report["arena_bytes"] = found.arena_bytes
        report["memory_plan"] = [
            {
                "tensor": t.name, "bytes": found.nbytes[t.name], "offset": found.arena[t.name],
                "first_launch": t.first, "last_launch": t.last,
            }
            for t in plan.lifetimes
        ]  # fmt: skip
        serving = next((r.sizes.label for r in program.ranges if r.sizes.holds(symbols)), None)
        for x in report["launches"] if serving is None else report["ranges"][serving]:
            x["bytes"] = sum(found.nbytes[n] for n in dict.fromkeys((*x["reads"], *x["writes"])))
        report["input_bytes"] = sum(aligned(found.nbytes[t.name]) for t in program.inputs)
        report["output_bytes"] = sum(aligned(found.nbytes[t.name]) for t in program.outputs)
    return report


def _ranges(program: Program) -> dict[str, list[dict[str, Any]]]:
    """The launches of each range of sizes, by its name; a stage's ranges have its number before theirs."""
    own = {r.sizes.label: _launches(r.launches) for r in program.ranges}
    staged = {f"{k}/{n}": x for k, stage in enumerate(program.stages) for n, x in _ranges(stage).items()}
    return own | staged


def _launches(launches: Sequence[Launch]) -> list[dict[str, Any]]:
    return [
        {
            "name": x.name, "template": x.template, "kernel": x.variants[0].kernel, "nodes": list(x.origin),
            "reads": list(x.reads), "writes": list(x.writes), "variants": [v.arch for v in x.variants],
        }
        for x in launches
    ]  # fmt: skip


def _may_be_zero(program: Program) -> list[str]:
    """The symbols whose range begins at 1 and that may be 0 too, because no output has an element then."""
    least = {s.name: s.lo for s in (*program.symbols, *sizes_given(program.steps).values())}
    shapes = [[Expression(d) for d in t.shape] for t in program.outputs]
    return [
        s.name for s in program.symbols
        if s.lo == 1 and all(any(d({**least, s.name: 0}) == 0 for d in shape) for shape in shapes)
    ]  # fmt: skip


def _print_engine(data: EngineData, report: dict[str, Any]) -> None:
    out.print(f"{report['name']}: {kernels_text(data)}")
    out.print(f"  architectures {', '.join(report['archs']) or 'none (sim only)'}")
    for kind in ("inputs", "outputs"):
        for name, text in report[kind].items():
            out.print(f"  {kind[:-1]} {name}: {text}{_taken_over(report, name)}")
    for name, items in report["sequences"].items():
        out.print(f"  sequence {name}: {', '.join(items) or 'empty'}")
    for name, (low, high) in report["symbols"].items():
        empty = ", and 0 with empty results" if name in report["may_be_zero"] else ""
        out.print(f"  dimension {name}: from {low}{'' if high is None else f' to {high}'}{empty}")
    out.print(f"  weights {megabytes(report['weight_bytes'])}")
    if "modelled" in report:
        m = report["modelled"]
        share = f"{100 * m['share_of_roofline']:.0f} % of its roofline"
        out.print(f"  modelled on {m['title']}: {m['latency_ms']:.3g} ms, {share}")
    if "arena_bytes" in report:
        sizes = ", ".join(f"{k}={v}" for k, v in report["sizes"].items())
        out.print(f"  workspace {megabytes(report['arena_bytes'])} at {sizes or 'the fixed shapes'}")
    elif report["steps"]:
        out.print(f"  {host_text(data)}")
        print_steps(report["steps"])
    else:
        out.print(f"  workspace depends on {', '.join(report['symbols'])}: give --shapes")
    for label, launches in report["ranges"].items():
        out.print(f"at {label}: {len(launches)} launches")
        _print_launches(launches)
    if report["ranges"]:
        out.print(f"at all other sizes: {len(report['launches'])} launches")
    _print_launches(report["launches"])
    print_products(report["quantised_products"])
    _print_memory(report.get("memory_plan", []))
    evidence = report["verify"] or {"level": "off", "kernels": [], "outputs": []}
    where, checked = evidence.get("device", "no device"), len(verified_kernels(data))
    out.print(f"verified ({evidence['level']}) on {where}: {checked} of {report['kernels']} kernels")
    for o in evidence["outputs"]:
        detail = f"error {o['error']:.2e}" if o.get("error") is not None else o.get("reason", "")
        out.print(f"  output {o['output']}: {o['status']}, {detail}")
    if evidence.get("replaced"):
        out.print(f"  weights replaced since: {', '.join(evidence['replaced'])}")


def _print_launches(launches: list[dict[str, Any]]) -> None:
    """Prints one row for each launch, in order."""
    timed = any("modelled" in x for x in launches)
    times = ("modelled us", "% of roofline", "bound by") if timed else ()
    columns = ("#", "kernel", "template", "bytes", *times, "nodes")
    rows = [
        (str(i), x["kernel"], x["template"], f"{x['bytes']:,}" if "bytes" in x else "", *_times(x, timed),
         ", ".join(x["nodes"]))
        for i, x in enumerate(launches)
    ]  # fmt: skip
    print_table(columns, rows, ("#", "bytes", "modelled us", "% of roofline"))


def _times(launch: dict[str, Any], timed: bool) -> tuple[str, ...]:
    """The cells of a launch's modelled time; empty ones where it serves other sizes."""
    if not timed:
        return ()
    m = launch.get("modelled")
    return (f"{m['us']:.2f}", f"{100 * m['share_of_roofline']:.0f}", m["bound"]) if m else ("", "", "")


def _taken_over(report: dict[str, Any], name: str) -> str:
    """What an output's line says of the input whose memory it takes over, and an input's of who owns it."""
    for output, state in report["state"].items():
        if output == name:
            return f", {'written' if state['in_place'] else 'copied'} into {state['input']}"
        if state["input"] == name and state["owned"]:
            return ", the model's own: a session holds it"
    return ""


def _print_memory(rows: list[dict[str, Any]]) -> None:
    """Prints offset, bytes and lifetime (first and last launch) of each tensor in the arena."""
    if not rows:
        return
    cells = [
        (r["tensor"], f"{r['offset']:,}", f"{r['bytes']:,}", f"{r['first_launch']}-{r['last_launch']}") for r in rows
    ]
    print_table(("arena tensor", "offset", "bytes", "launches"), cells, ("offset", "bytes", "launches"))


def explain(
    model: Annotated[str, typer.Argument(help="ONNX file.")],
    nodes: Annotated[list[str] | None, typer.Argument(help="Names (or parts of names) of one or two nodes.")] = None,
    fp16: Annotated[bool, Opt("--fp16", help="As a half-precision build fuses.")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="As a bfloat16 build fuses.")] = False,
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")] = "",
    card: Annotated[str, Opt("--card", help="Model the time of the kernels on this card: h100, a100, l4.")] = "",
    values: Values = "", inout: InOut = "",
) -> None:
    """Says which nodes share a kernel, and for each pair of neighbours that don't, why."""
    on = card_called(card) if card else None
    words = nodes or []
    if len(words) > 2:
        raise UsageError("explain takes one or two node names")
    whole = open_graph(model, shapes, values=values, inout=inout)
    stages = plain_graphs(whole)
    wanted = [_nodes_called(w, [o for graph in stages for n in graph.nodes for o in n.origin]) for w in words]
    for k, graph in enumerate(stages):
        if not all(any(w & set(n.origin) for n in graph.nodes) for w in wanted):
            continue
        if len(stages) > 1:
            out.print(f"stage {k}:")
        for label, fused in _fused(graph, Options(precision=precision_of(fp16, bf16))):
            if label:
                out.print(f"{label}:")
            for line in _explained(fused, words, wanted):
                out.print(line)
    if on is not None:
        (found,) = estimates_of(whole, [on], precision_of(fp16, bf16))
        sizes = "".join(f", {name}={size}" for name, size in found.sizes.items())
        out.print(f"modelled for {on.title}, not measured{sizes}:")
        print_kernels(found, frozenset().union(*wanted))


def refused_fusions(whole: Graph, options: Options) -> list[str]:
    """One line for each pair of neighbouring nodes of a model that do not share a kernel, with the reason.

    Lines of a stage, or of a range of sizes, begin with its name where there are several.
    """
    stages = plain_graphs(whole)
    lines = []
    for k, graph in enumerate(stages):
        for label, fused in _fused(graph, options):
            place = ", ".join(([f"stage {k}"] if len(stages) > 1 else []) + ([label] if label else []))
            lines += [f"{place}: {line}" if place else line for line in _refused(fused, [])]
    return lines


def _fused(graph: Graph, options: Options) -> Iterator[tuple[str, FusedGraph]]:
    """The regions of a graph for each range of sizes, with the range's name; an empty name where there are none."""
    from arcweld.passes.pipeline import run_passes
    from arcweld.passes.size_ranges import size_ranges

    ranges = size_ranges(graph, options)
    options = replace(options, ranges=ranges)
    optimised = materialise_outputs(run_passes(graph, options))
    for r in (*ranges, None):
        label = "" if not ranges else f"at {r.label}" if r is not None else "at all other sizes"
        yield label, in_regions(optimised, sizes=r)


def _explained(fused: FusedGraph, words: list[str], wanted: list[set[str]]) -> list[str]:
    """What the regions say of the wanted nodes, line by line."""
    names = {r.name: merge_origins(r.nodes) for r in fused.regions}
    lines = [
        f"one {r.template} kernel: {', '.join(names[r.name])}"
        for r in fused.regions
        if all(w & set(names[r.name]) for w in wanted)
    ]
    lines += _refused(fused, wanted)
    lines += _state(fused, wanted)
    return lines or [_strangers(words, wanted, names)]


def _nodes_called(word: str, known: list[str]) -> set[str]:
    """The nodes of that name, or else those whose names contain it. Raises UsageError if there are none."""
    found = {n for n in known if n == word} or {n for n in known if word in n}
    if not found:
        near = difflib.get_close_matches(word, known, 3, 0.3)
        raise UsageError(f"the model has no node called {word!r}", hint=f"close: {', '.join(near)}" if near else None)
    return found


def _refused(fused: FusedGraph, wanted: list[set[str]]) -> list[str]:
    """One line for each pair of neighbouring nodes that do not share a kernel, with the reason.

    A pair of neighbouring kernels counts as a pair of neighbouring nodes.
    """
    made = {n.name: n for n in fused.graph.nodes}
    shown = {
        x: f"{x.producer} -> {x.consumer}: [{x.code}] {x.detail}"
        for x in fused.refusals
        if _concerns(wanted, made[x.producer].origin, made[x.consumer].origin)
    }
    lines = list(shown.values())
    for a, b in itertools.permutations(fused.regions, 2):
        if not _passed(a, b) or not _concerns(wanted, merge_origins(a.nodes), merge_origins(b.nodes)):
            continue
        ends = {n.name for n in a.nodes}, {n.name for n in b.nodes}
        found = [x for x in fused.refusals if x.producer in ends[0] and x.consumer in ends[1]]
        if not found:
            lines.append(_unasked(fused, a, b))
        elif not any(x in shown for x in found):
            lines += [f"{x.producer} -> {x.consumer}: [{x.code}] {x.detail}" for x in found]
    return lines


def _state(fused: FusedGraph, wanted: list[set[str]]) -> list[str]:
    """One line for each input that an output takes over: which kernel writes it in place, or why it is copied."""
    written = {state: r for r in fused.regions for state in r.in_place.values()}
    lines = [
        f"{state} is written in place by {(r.hero or r.nodes[-1]).name}"
        for state, r in written.items()
        if all(w & set(merge_origins(r.nodes)) for w in wanted)
    ]
    return lines + [f"{state} is copied: {reason}" for state, reason in fused.copied.items() if not wanted]


def _passed(a: Region, b: Region) -> list[str]:
    """The values that the kernel of ``a`` stores and that of ``b`` reads."""
    return [v.name for v in a.outputs if any(v.name == w.name for w in b.inputs)]


def _unasked(fused: FusedGraph, a: Region, b: Region) -> str:
    """Why two neighbouring regions were not fused, if fusion did not consider them and so recorded no refusal."""
    heroes = [r.hero for r in (a, b) if r.hero is not None]
    if len(heroes) == 2:
        reason, reader = f"[heroes] a kernel has one of {heroes[0].op} and {heroes[1].op}, not both", heroes[1]
    else:
        value, reader = _passed(a, b)[0], b.nodes[0]
        readers = sum(value in {v.name for v in r.inputs} for r in fused.regions)
        reason = f"[stored] {value} lies in memory, read by {readers} kernel{'s' * (readers > 1)}"
    return f"{a.nodes[-1].name} -> {reader.name}: {reason}"


def _concerns(wanted: list[set[str]], producer: tuple[str, ...], consumer: tuple[str, ...]) -> bool:
    """True if the pair matches the user's names: one of its nodes for one name, both for two names in any order."""
    p, c = set(producer), set(consumer)
    if len(wanted) < 2:
        return all(w & (p | c) for w in wanted)
    first, second = wanted
    return bool((first & p and second & c) or (first & c and second & p))


def _strangers(words: list[str], wanted: list[set[str]], names: dict[str, tuple[str, ...]]) -> str:
    """The reason why no kernel and no refusal concerns the user's nodes."""
    for word, nodes in zip(words, wanted):
        if not any(nodes & set(origins) for origins in names.values()):
            return f"{word} is in no kernel: it was computed while compiling, or is not needed"
    if len(words) == 2:
        return f"{words[0]} and {words[1]} are not neighbours: no kernel of one reads what a kernel of the other makes"
    return "nothing was refused"
