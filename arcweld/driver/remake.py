"""Compares an engine with what this version makes of the graph that the engine file holds, without compiling anything.

A kernel may be any tactic of any implementation for its architecture: the build chooses among them by measured spills.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.nvrtc.compiler import headers
from arcweld.codegen.templates.select import IMPLEMENTATIONS, alternatives
from arcweld.compiler.dims import IntExpr
from arcweld.compiler.errors import ArcweldError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.ops.registry import unsupported_reason
from arcweld.compiler.text import all_symbols, parse_graph
from arcweld.compiler.verifier import verify
from arcweld.driver.assemble import make_program, stored_sources
from arcweld.driver.build import in_regions, plan_parts
from arcweld.driver.isolation import Notes, in_child
from arcweld.driver.object_code import PlannedLaunch, in_order
from arcweld.driver.staged_build import shared_sources, stage_prefix, stored_graphs, with_names
from arcweld.passes.pipeline import REGION_PASSES
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import Program, Variant

log = logging.getLogger("arcweld")

# architectures that have implementations of their own
EXACT = {i.arch for group in IMPLEMENTATIONS.values() for i in group if i.arch.endswith("a")}
# What the comparison may take: processor seconds and bytes of memory. A model of 100,000 nodes takes less.
SECONDS, MEMORY = 120, 4 << 30


def difference(data: EngineData) -> str:
    """What in the program, the sources and the headers differs from what this version makes; "" if nothing does.

    Weights are data, and are not compared. Object code is not either: only GPUs run it. A stranger's graph may take any
    time and memory, so all work on it is done in a child process with limits of both.
    """
    if data.program.steps and not data.program.stages:
        return ""  # nothing is launched
    if not data.graph:
        return "it holds no graph"
    if dict(data.headers) != dict(headers()):
        return "its headers are those of another version"

    def work(note: Notes) -> str:
        note("the comparison with its graph", SECONDS)
        return _difference(data)

    try:
        return in_child(work, memory=MEMORY, lost=_Lost)
    except _Lost as lost:
        return str(lost)
    except MemoryError:
        return f"comparing it with its graph takes more than {MEMORY >> 20} MiB of memory"


class _Lost(Exception):
    """A comparison that ended its process. The text says why."""

    def __init__(self, code: int, doing: str, seconds: float) -> None:
        what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        late = f"takes more than {seconds:.0f} s of processor time"
        super().__init__(f"comparing it with its graph {late if code == -signal.SIGXCPU else f'ended with {what}'}")


class _Other(Exception):
    """What an engine has is not what its graph gives. The text says what."""


def _difference(data: EngineData) -> str:
    """What differs, found in this process."""
    try:
        whole = data.program
        sources = _sources_of_stages(data) if whole.steps else _sources(parse_graph(data.graph), whole)
        _compare_sources(sources, data)
    except _Other as other:
        return str(other)
    except ArcweldError as error:
        return f"its graph cannot be compiled: {error.message}"
    except MemoryError:
        raise
    except Exception as error:  # passes assume graphs of our own importers; whatever fails on another is no proof
        log.debug("the stored graph cannot be compiled", exc_info=True)
        return f"its graph cannot be compiled: {type(error).__name__}: {error}"
    return ""


def _sources_of_stages(data: EngineData) -> dict[str, str]:
    """The sources that the stages' graphs give. Raises _Other for a stage that is another program than they give.

    The steps between stages are data, as sizes and tensors are: they are checked when a file is read, and not compared.
    """
    graphs = stored_graphs(data)
    if len(graphs) != len(data.program.stages):
        raise _Other(f"it has {len(data.program.stages)} stages and {len(graphs)} graphs")
    found = []
    for k, (graph, program) in enumerate(zip(graphs, data.program.stages)):
        prefix = stage_prefix(k)
        if odd := [x.name for x in program.all_launches() if not x.name.startswith(prefix)]:
            raise _Other(f"launch {odd[0]} of stage {k} is called otherwise")
        try:
            found.append(_sources(graph, with_names(program, lambda name: name[len(prefix) :], lambda name: name)))  # noqa: B023
        except _Other as other:
            raise _Other(f"stage {k}: {other}") from None
    return shared_sources(found)


def _sources(graph: Graph, program: Program) -> dict[str, str]:
    """The sources that a stored graph gives. Raises _Other where it gives another program."""
    verify(graph, "reading the stored graph")
    _check_supported(graph)
    try:
        return _made(graph, program, frozenset())
    except _Other:
        for name in REGION_PASSES:
            with suppress(_Other):
                return _made(graph, program, frozenset({name}))
        raise


def _check_supported(graph: Graph) -> None:
    """Raises UnsupportedError for a node that no kernel computes, and for a size that no input's shape determines."""
    for node in graph.nodes:
        if reason := unsupported_reason(node):
            raise UnsupportedError(reason, node=node.name)
    for s in set(all_symbols(graph)) - set(graph.symbols()):
        raise UnsupportedError(f"no input's shape determines {s.name}")
    for s in graph.symbols():
        if isinstance(s.hi, IntExpr):  # launches are checked against constant ranges only
            raise UnsupportedError(f"the range of {s.name} depends on other sizes")


def _made(graph: Graph, program: Program, disable: frozenset[str]) -> dict[str, str]:
    """The sources that the graph gives without the passes in ``disable``. Raises _Other for another program."""
    theirs = program.all_launches()
    ranges = (*(r.sizes for r in program.ranges), None)
    regions = [(r, in_regions(graph, disable, r)) for r in ranges]
    if sum(len(fused.regions) for _, fused in regions) > len(theirs):
        raise _Other("its program has too few launches")
    archs = sorted({v.arch for x in theirs for v in x.variants} & EXACT)
    parts = plan_parts(regions, archs)
    count = sum(len(in_order(part.launches)) for part in parts)
    if count != len(theirs):
        raise _Other(f"its program has {len(theirs)} launches, not {count}")
    tactics = _Tactics({x.name: x.variants for x in theirs})
    chosen = [replace(part, launches=tuple(tactics.of(p) for p in part.launches)) for part in parts]
    made = make_program(chosen, [t.name for t in program.outputs])
    if len(made.weights) == len(program.weights):  # a stage may call its weights otherwise
        names = dict(zip((w.name for w in program.weights), (w.name for w in made.weights)))
        program = with_names(program, lambda name: name, lambda name: names.get(name, name))
    if made != program:
        raise _Other(_differing(made, program))
    return stored_sources(chosen)


class _Tactics:
    """Finds the renderings that a file's variants name."""

    def __init__(self, variants: Mapping[str, Sequence[Variant]]) -> None:
        self.variants = variants
        self._found: dict[tuple[KernelSource, str], KernelSource | None] = {}

    def of(self, planned: PlannedLaunch) -> PlannedLaunch:
        """The launch with the tactics of the file, in the file's order. Raises _Other where it has another kernel."""
        names = dict.fromkeys((v.arch, v.kernel) for v in self.variants.get(planned.name, ()))
        sources = []
        for arch, entry in names:
            source = self._one(planned, arch, entry)
            if source is None:
                raise _Other(f"launch {planned.name} has a kernel that no tactic gives")
            sources.append(source)
        return replace(planned, sources=tuple(sources), before=tuple(map(self.of, planned.before)))

    def _one(self, planned: PlannedLaunch, arch: str, entry: str) -> KernelSource | None:
        """The rendering for ``arch`` whose name is ``entry``: the default tactic, else one of the alternatives."""
        default = next((s for s in planned.sources if s.arch == arch), None)
        if default is None or default.entry == entry:
            return default
        key = (default, entry)
        if key not in self._found:
            others = (s for group in alternatives(planned.bound.kernel, default) for s in group)
            self._found[key] = next((s for s in others if s.entry == entry), None)
        return self._found[key]


def _compare_sources(sources: Mapping[str, str], data: EngineData) -> None:
    if odd := sorted(sources.keys() ^ data.sources.keys()):
        raise _Other(f"its kernels are others, such as {odd[0]}")
    if odd := sorted(n for n, text in sources.items() if text != data.sources[n]):
        raise _Other(f"the source of {odd[0]} is another")


def _differing(ours: Program, theirs: Program) -> str:
    for a, b in zip(ours.all_launches(), theirs.all_launches()):
        if a != b:
            return f"launch {b.name} is another"
    fields = [f for f in Program.__struct_fields__ if getattr(ours, f) != getattr(theirs, f)]
    return f"its program has other {fields[0]}"
