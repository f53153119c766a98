"""Compares an engine with what this version makes of the graph that the engine file holds, without compiling anything.

A kernel may be any tactic of any implementation for its architecture: the build chooses among them by measured spills.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
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
from arcweld.driver.object_code import Planned, PlannedLaunch, in_order
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
    if not data.graph:
        return "it holds no graph"
    if data.program.steps:
        return "it is in stages, which are not made again"
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


def _difference(data: EngineData) -> str:
    """What differs, found in this process."""
    try:
        graph = parse_graph(data.graph)
        verify(graph, "reading the stored graph")
        _check_supported(graph)
        found = _compare(graph, data, frozenset())
        for name in REGION_PASSES:
            if found and not _compare(graph, data, frozenset({name})):
                return ""
        return found
    except ArcweldError as error:
        return f"its graph cannot be compiled: {error.message}"
    except MemoryError:
        raise
    except Exception as error:  # passes assume graphs of our own importers; whatever fails on another is no proof
        log.debug("the stored graph cannot be compiled", exc_info=True)
        return f"its graph cannot be compiled: {type(error).__name__}: {error}"


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


def _compare(graph: Graph, data: EngineData, disable: frozenset[str]) -> str:
    """What differs from the engine that the graph gives without the passes in ``disable``."""
    theirs = data.program.all_launches()
    ranges = (*(r.sizes for r in data.program.ranges), None)
    regions = [(r, in_regions(graph, disable, r)) for r in ranges]
    if sum(len(fused.regions) for _, fused in regions) > len(theirs):
        return "its program has too few launches"
    archs = sorted({v.arch for x in theirs for v in x.variants} & EXACT)
    parts = plan_parts(regions, archs)
    count = sum(len(in_order(part.launches)) for part in parts)
    if count != len(theirs):
        return f"its program has {len(theirs)} launches, not {count}"
    tactics = _Tactics({x.name: x.variants for x in theirs})
    chosen = []
    for part in parts:
        launches = []
        for p in part.launches:
            launches.append(tactics.of(p))
            if tactics.unknown:  # looking for further ones would only take time
                return f"launch {tactics.unknown} has a kernel that no tactic gives"
        chosen.append(replace(part, launches=tuple(launches)))
    return _compare_whole(chosen, data)


class _Tactics:
    """Finds the renderings that a file's variants name. ``unknown`` is the first launch that has another kernel."""

    def __init__(self, variants: Mapping[str, Sequence[Variant]]) -> None:
        self.variants = variants
        self.unknown = ""
        self._found: dict[tuple[KernelSource, str], KernelSource | None] = {}

    def of(self, planned: PlannedLaunch) -> PlannedLaunch:
        """The launch with the tactics of the file, in the file's order."""
        names = dict.fromkeys((v.arch, v.kernel) for v in self.variants.get(planned.name, ()))
        found = [self._one(planned, arch, entry) for arch, entry in names]
        if None in found and not self.unknown:
            self.unknown = planned.name
        sources = tuple(s for s in found if s is not None)
        return replace(planned, sources=sources, before=tuple(map(self.of, planned.before)))

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


def _compare_whole(parts: Sequence[Planned], data: EngineData) -> str:
    """What differs in the program and the sources that ``parts`` give."""
    program = make_program(parts, [t.name for t in data.program.outputs])
    if program != data.program:
        return _differing(program, data.program)
    sources = stored_sources(parts)
    if odd := sorted(sources.keys() ^ data.sources.keys()):
        return f"its kernels are others, such as {odd[0]}"
    if odd := sorted(n for n, text in sources.items() if text != data.sources[n]):
        return f"the source of {odd[0]} is another"
    return ""


def _differing(ours: Program, theirs: Program) -> str:
    for a, b in zip(ours.all_launches(), theirs.all_launches()):
        if a != b:
            return f"launch {b.name} is another"
    fields = [f for f in Program.__struct_fields__ if getattr(ours, f) != getattr(theirs, f)]
    return f"its program has other {fields[0]}"
