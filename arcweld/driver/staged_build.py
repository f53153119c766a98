"""Builds a graph with host nodes: each of its stages like a model of its own, and one engine of all of them.

A stage is verified with what the references give it for the model's inputs, or, where they do not reach it, with random
inputs. A stage that takes sizes from the host, which others may limit, is then not verified, and the build says so.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import bind_symbols
from arcweld.compiler.text import parse_graph
from arcweld.driver.assemble import provenance, symbol_record, tensor_record
from arcweld.driver.build import Build
from arcweld.driver.draws import TRIES
from arcweld.driver.samples import Draw, sample_inputs, sample_sizes, smaller
from arcweld.driver.staged_reference import StagedReference
from arcweld.driver.stages import Stages, in_stages, of_known_sizes
from arcweld.runtime import program as prog
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData

log = logging.getLogger("arcweld")
BETWEEN = "\n# the next stage\n"  # the stored graphs of two stages
BuildStage = Callable[..., tuple[Build, Device, Engine | None]]


def build_stages(
    graph: Graph, build: BuildStage, device: Device, feeds: Mapping[str, np.ndarray] | None,
    sizes: Mapping[str, int] | None, keep_f32: Collection[str], options: Mapping[str, Any],
) -> tuple[Build, Device, Engine | None]:  # fmt: skip
    """The build of the whole graph; ``build`` builds a stage with ``options``. Raises as ``compile`` does."""
    cut = in_stages(graph)
    verified = options["verify"] != "off"
    fed = _fed(cut, feeds, sizes) if verified else {}
    options = {**options, "verify_budget": options["verify_budget"] / max(1, len(cut.stages))}
    carriers = cut.carriers()
    builds = []
    for k, stage in enumerate(cut.stages):
        log.debug("stage %d of %d: %d nodes", k + 1, len(cut.stages), len(stage.nodes))
        known = {o for n in stage.nodes for o in n.origin}
        own = {s.name for s in stage.symbols()}
        given = {n: size for n, size in (sizes or {}).items() if n in own}
        if k in fed:
            given |= bind_symbols(stage.inputs, fed[k], None)
        told = any(v.name == carriers.get(k) for v in stage.inputs)  # sizes, which others may limit
        own_options = {**options, "keep_f32": [n for n in keep_f32 if n in known], "device": device}
        if told:
            own_options |= {"ranges": [], "other_sizes": False}
            if verified and k not in fed:
                log.warning("stage %d is not verified: no inputs that were tried reach it (give some: feeds=)", k)
                own_options["verify"] = "off"
        builds.append(build(stage, feeds=fed.get(k), sizes=given or None, **own_options)[0])
    data = merged(cut, [b.data for b in builds])
    seconds: dict[str, float] = {}
    for b in builds:
        for name, lap in b.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + lap
    parts = tuple(p for b in builds for p in b.parts)
    done = Build(graph, parts, data, options["precision"], seconds, sample_sizes(of_known_sizes(graph), sizes))
    return done, device, Engine(data, device, borrow=True) if verified else None


def _fed(
    cut: Stages, feeds: Mapping[str, np.ndarray] | None, sizes: Mapping[str, int] | None
) -> dict[int, dict[str, np.ndarray]]:
    """The inputs of those stages that runs of the references reach, tensors with elements where that is possible.

    Which stages are reached depends on the model's inputs: several ones are drawn.
    """
    known = sample_sizes(of_known_sizes(cut.graph), sizes)
    found: dict[int, dict[str, np.ndarray]] = {}
    full: set[int] = set()
    carriers = cut.carriers()
    for seed in range(TRIES if feeds is None else 1):
        here = smaller(cut.graph, known, sizes, seed // 2)
        values = dict(feeds) if feeds is not None else _drawn(cut, here, seed)
        reference = StagedReference(cut, values, {**here, **bind_symbols(cut.graph.inputs, values, None)})
        try:
            reference.run()
        except ArcweldError as error:
            log.debug("the references do not reach all stages: %s", error)
        for k, fed in reference.fed.items():
            whole = all(0 not in (a.shape[:-1] if n == carriers.get(k) else a.shape) for n, a in fed.items())
            if k not in found or (whole and k not in full):
                found[k] = fed
            full |= {k} if whole else set()
        if len(full) == len(cut.stages):
            break
    return found


def _drawn(cut: Stages, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Random inputs of the model, each as the first stage that reads it needs it."""
    values: dict[str, np.ndarray] = {}
    wanted = {v.name for v in cut.graph.inputs}
    for stage in (*cut.stages, Graph("inputs", cut.graph.inputs, (), ())):
        if any(v.name in wanted - values.keys() for v in stage.inputs):
            own = {s.name for s in stage.symbols()}
            every = sample_sizes(stage, {n: size for n, size in sizes.items() if n in own})
            draw = Draw.UNIT if seed % 2 else Draw.SIGNED
            feeds = sample_inputs(stage, every, seed=seed, draw=draw)
            values |= {n: a for n, a in feeds.items() if n in wanted and n not in values}
    return values


# ------------------------------------------------------------------------------------------------------ one engine


def merged(cut: Stages, stages: Sequence[EngineData]) -> EngineData:
    """One engine's data of the stages'. Launches are called by their stage, weights that stages share are kept once."""
    weights, entries, programs = dict[str, np.ndarray](), dict[str, prog.WeightEntry](), list[prog.Program]()
    for k, data in enumerate(stages):
        program, own = _renamed(data.program, data.weights, stage_prefix(k), entries, weights)
        programs.append(program)
        weights |= own
        entries |= {w.name: w for w in program.weights}
    graph = cut.graph
    fixed = tuple(sorted({n for p in programs for n in p.fixed}))
    outer = prog.Program(
        schema=prog.SCHEMA, name=graph.name, symbols=tuple(map(symbol_record, graph.symbols())),
        inputs=tuple(tensor_record(v.name, v) for v in graph.inputs),
        outputs=tuple(tensor_record(label, o) for label, o in zip(graph.labels(), graph.outputs)),
        weights=tuple(entries.values()), temps=(), aliases=(), launches=(), fixed=fixed,
        steps=cut.steps, stages=tuple(programs), results=tuple(o.name for o in graph.outputs),
        takes=graph.takes, gives=graph.gives,
    )  # fmt: skip
    first = stages[0] if stages else EngineData(outer, {}, {}, provenance=provenance())
    return replace(
        first, program=outer, weights=weights,
        sources=shared_sources([d.sources for d in stages]),
        cubins={n: c for d in stages for n, c in d.cubins.items()},
        ptx={n: c for d in stages for n, c in d.ptx.items()},
        graph=BETWEEN.join(d.graph for d in stages), verify=_evidence(cut, [d.verify for d in stages]),
    )  # fmt: skip


def stored_graphs(data: EngineData) -> list[Graph]:
    """The graphs that an engine holds, one for each stage. Raises ModelError for a text that cannot be parsed."""
    return [parse_graph(text) for text in data.graph.split(BETWEEN)] if data.graph else []


def shared_sources(stages: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The sources of all stages; of a kernel that several have, the first one's, whose launches its title lists."""
    return {name: text for sources in reversed(stages) for name, text in sources.items()}


def stage_prefix(stage: int) -> str:
    """What the names of a stage's launches begin with, and those of weights that another stage has by this name."""
    return f"{stage}/"


def _renamed(
    program: prog.Program, arrays: Mapping[str, np.ndarray], prefix: str, entries: Mapping[str, prog.WeightEntry],
    known: Mapping[str, np.ndarray],
) -> tuple[prog.Program, dict[str, np.ndarray]]:  # fmt: skip
    """A stage's program and weights: launches begin with ``prefix``, and so do weights that differ from known ones."""
    names: dict[str, str] = {}
    for w in program.weights:
        same = entries.get(w.name) == w and _equal(known[w.name], arrays[w.name])
        if w.name in entries and not same:
            names[w.name] = next(n for n in _numbered(prefix + w.name) if n not in entries)

    def name(tensor: str) -> str:
        return names.get(tensor, tensor)

    return with_names(program, prefix.__add__, name), {name(n): a for n, a in arrays.items()}


def with_names(program: prog.Program, launch: Callable[[str], str], tensor: Callable[[str], str]) -> prog.Program:
    """The program with other names of its launches, and of those tensors that are weights."""

    def launched(x: prog.Launch) -> prog.Launch:
        return prog.Launch(
            launch(x.name), x.template,
            tuple(_with_params(v, tensor) for v in x.variants), tuple(map(tensor, x.reads)),
            tuple(map(tensor, x.writes)), x.origin, tuple(map(tensor, x.zero)), x.flops, x.iterations,
        )  # fmt: skip

    def ranges(r: prog.SizeRange) -> prog.SizeRange:
        return prog.SizeRange(r.symbols, r.temps, r.aliases, tuple(map(launched, r.launches)))

    return msgspec.structs.replace(
        program, launches=tuple(map(launched, program.launches)), ranges=tuple(map(ranges, program.ranges)),
        weights=tuple(msgspec.structs.replace(w, name=tensor(w.name)) for w in program.weights),
    )  # fmt: skip


def _with_params(v: prog.Variant, name: Callable[[str], str]) -> prog.Variant:
    """A variant whose parameters name tensors anew."""
    return msgspec.structs.replace(v, params=tuple(p.convert(lambda text: text, name) for p in v.params))


def _numbered(name: str) -> Any:
    return itertools.chain([name], (f"{name}.{k}" for k in itertools.count(1)))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two weights of one name and one record hold the same."""
    return a is b or np.shares_memory(a, b) or bool(np.array_equal(a.view(np.uint8), b.view(np.uint8)))


def _evidence(cut: Stages, stages: Sequence[Any]) -> Any:
    """The evidence of all stages as one, or None where none was made."""
    made = {k: e for k, e in enumerate(stages) if e is not None}
    if not made:
        return None
    reason = "no inputs that were tried reach this stage"
    for k in range(len(stages)):
        skipped = [{"output": o.name, "status": "skipped", "reason": reason} for o in cut.stages[k].outputs]
        made.setdefault(k, {"kernels": [], "outputs": skipped})
    found = dict(sorted(made.items()))
    given = {v.name for v in cut.graph.inputs}
    return {
        **next(e for e in stages if e is not None),
        "kernels": [
            {**row, "launch": stage_prefix(k) + row["launch"]} for k, e in found.items() for row in e["kernels"]
        ],
        "outputs": [{**row, "stage": k} for k, e in found.items() for row in e["outputs"]],
        "points": [{**row, "stage": k} for k, e in found.items() for row in e.get("points", ())],
        "shapes": {n: s for e in reversed(found.values()) for n, s in e.get("shapes", {}).items() if n in given},
    }
