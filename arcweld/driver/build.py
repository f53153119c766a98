"""Compiles an imported graph to an engine's data: passes, fusion, rendering, NVRTC, assembly. Nothing is verified."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.lowering.lower import lower_all
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.pool import Progress as PoolProgress
from arcweld.codegen.templates.select import sources
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Rewriter, Value
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Limit, Options
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.size_ranges import SizeRange
from arcweld.driver.assemble import assemble
from arcweld.driver.object_code import ObjectCode, Planned, PlannedLaunch, compile_launches
from arcweld.passes.chain import chain
from arcweld.passes.fusion import fuse
from arcweld.passes.in_place import write_in_place
from arcweld.passes.pipeline import SIZE_RANGES, beyond, run_passes
from arcweld.passes.ranges import ranges as exclude_sizes
from arcweld.passes.schedule import schedule
from arcweld.passes.siblings import siblings
from arcweld.passes.size_ranges import size_ranges
from arcweld.runtime.engine_file import EngineData

DEFAULT_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120")
MOST_KERNELS = 2048  # different ones of a model, each of which is compiled: large networks have some hundred
Progress = Callable[[str, int, int], None]


@dataclass
class Build:
    """The result of a build and its intermediate results, for verification and reports.

    imported  the graph before the passes
    parts     what is planned for each range of sizes, and at last what serves all others
    seconds          wall time by stage: inputs, promotion, passes, fusion, codegen, nvrtc, assemble, verify, total
    sizes            the sizes of symbolic dimensions that it was verified with, or typical ones
    """

    imported: Graph
    parts: tuple[Planned, ...]
    data: EngineData
    precision: str
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def fused(self) -> FusedGraph:
        """The graph after the passes, in the regions that serve all sizes."""
        return self.parts[-1].fused

    @property
    def planned(self) -> tuple[PlannedLaunch, ...]:
        """One launch for each region that serves all sizes, in the order of ``fused.regions``."""
        return self.parts[-1].launches

    def all_planned(self) -> tuple[PlannedLaunch, ...]:
        """The launches of all parts, in their order."""
        return tuple(p for part in self.parts for p in part.launches)

    def part_at(self, sizes: Mapping[str, int]) -> Planned:
        """The part that serves these sizes."""
        return next(p for p in self.parts if p.holds(sizes))


def build_graph(
    graph: Graph, options: Options, *, progress: Progress | None = None, dump: Path | None = None,
    verify_each: bool = False, cache: DiskCache | None = None, compile_kernels: bool = True,
) -> Build:  # fmt: skip
    """Compiles a graph for ``options.arch``, or for ``DEFAULT_ARCHS`` if that is empty.

    progress         called with (stage, done, total)
    dump             an existing folder for the graph after each pass, every kernel and every cubin
    verify_each      whether the graph is checked after each pass
    compile_kernels  False for an engine without object code, which only the sim device can run

    Raises UnsupportedError for operators that can't be compiled, CompileError for kernels that NVRTC refuses.
    """
    archs = options.arch or DEFAULT_ARCHS
    clock = _Clock()
    graph = graph.replace(output_labels=graph.labels())  # passes may rename values
    computed = without_passed_on(graph)
    if options.ranges is None:
        off = SIZE_RANGES in options.disable | beyond(options.limit)
        options = replace(options, ranges=() if off else size_ranges(exclude_sizes(computed, options), options))
    optimised = run_passes(materialise_outputs(computed), options, dump=dump, verify_each=verify_each)
    optimised = materialise_outputs(optimised)
    clock.lap("passes")
    parts = [(r, in_regions(optimised, options.disable, r, options.limit)) for r in (*(options.ranges or ()), None)]
    clock.lap("fusion")
    planned = plan_parts(parts, archs, progress)
    clock.lap("codegen")
    code = ObjectCode({}, {})
    if compile_kernels:
        tell = None if progress is None else (lambda done, total, _: progress("nvrtc", done, total))
        planned, code = _compiled(planned, archs, cache or DiskCache(), tell)
    clock.lap("nvrtc")
    data = assemble(planned, code, graph.labels())
    if dump is not None:
        _dump_kernels(dump, data)
    clock.lap("assemble")
    return Build(graph, planned, data, options.precision, clock.laps)


def _compiled(
    parts: Sequence[Planned], archs: Sequence[str], cache: DiskCache, progress: PoolProgress | None
) -> tuple[tuple[Planned, ...], ObjectCode]:
    """All parts' kernels compiled, as ``compile_launches`` does."""
    compiled, code = compile_launches([p for part in parts for p in part.launches], archs, cache, progress)
    rest = iter(compiled)
    return tuple(replace(part, launches=tuple(itertools.islice(rest, len(part.launches)))) for part in parts), code


def in_regions(
    graph: Graph, disable: frozenset[str] = frozenset(), sizes: SizeRange | None = None, limit: Limit | None = None
) -> FusedGraph:
    """The graph's regions in launch order, for a range of sizes or for all. State is in place where it can be.

    ``disable``: names of ``REGION_PASSES``. Without ``fusion`` each node has a region of its own. Names of regions for
    a range end in ``@`` and its bounds. What is beyond ``limit`` is left out.
    """
    if sizes is not None:
        fused = in_regions(sizes.narrowed(graph), disable, None, limit)
        return replace(fused, regions=tuple(replace(r, name=f"{r.name}@{sizes.label}") for r in fused.regions))
    disable = disable | beyond(limit)
    fusing = "fusion" not in disable
    fused = write_in_place(fuse(graph, fusing, limit))
    if fusing and "chain" not in disable:
        fused = chain(fused)
    return schedule(siblings(fused) if fusing and "siblings" not in disable else fused)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def without_passed_on(graph: Graph) -> Graph:
    """The graph without those outputs that are an input of the same name. The runtime copies them."""
    inputs, made = {v.name for v in graph.inputs}, graph.producers()

    def source(o: Value) -> str:
        copy = made.get(o.name)
        while copy is not None and copy.op == "Identity":
            o = copy.operands()[0]
            copy = made.get(o.name)
        return o.name

    kept = [(o, label) for o, label in zip(graph.outputs, graph.labels()) if label not in inputs or source(o) != label]
    if len(kept) == len(graph.outputs):
        return graph
    labels = tuple(label for _, label in kept)
    aliases = {label: name for label, name in graph.aliases.items() if label in labels}
    return graph.replace(outputs=tuple(o for o, _ in kept), output_labels=labels, aliases=aliases)


def materialise_outputs(graph: Graph) -> Graph:
    """The graph in which every output has a node of its own: ``Identity`` for inputs, weights and repeated outputs."""
    made = graph.producers()
    seen: set[str] = set()
    if all(o.name in made and not (o.name in seen or seen.add(o.name)) for o in graph.outputs):  # type: ignore[func-returns-value]
        return graph
    rw = Rewriter(graph)
    for n in graph.nodes:
        rw.keep(n)
    outputs: list[Value] = []
    taken: set[str] = set()
    for o in graph.outputs:
        copy = o.name not in made or o.name in taken
        outputs.append(make(rw, "Identity", [o], {}, hint=f"{o.name}.out") if copy else o)
        taken.add(outputs[-1].name)
    return graph.replace(nodes=tuple(rw.nodes), outputs=tuple(outputs), output_labels=graph.labels())


def plan_parts(
    parts: Sequence[tuple[SizeRange | None, FusedGraph]], archs: Sequence[str], progress: Progress | None = None
) -> tuple[Planned, ...]:
    """Lowers and renders every region of every part, equal kernels only once.

    Raises UnsupportedError for more than ``MOST_KERNELS`` different kernels.
    """
    rendered: dict[object, tuple[KernelSource, ...]] = {}
    total, done = sum(len(fused.regions) for _, fused in parts), itertools.count(1)

    def tell() -> None:
        if progress is not None:
            progress("codegen", next(done), total)

    return tuple(Planned(sizes, fused, _plan(fused, archs, rendered, tell)) for sizes, fused in parts)


def _plan(
    fused: FusedGraph, archs: Sequence[str], rendered: dict[object, tuple[KernelSource, ...]], tell: Callable[[], None]
) -> tuple[PlannedLaunch, ...]:
    """One planned launch for each region, in order. ``tell`` is called after each."""
    planned = []
    for region in fused.regions:
        group: tuple[PlannedLaunch, ...] = ()
        for bound in lower_all(region, fused.graph):
            key = bound.kernel.key()
            if len(rendered) >= MOST_KERNELS and key not in rendered:
                raise UnsupportedError(f"the model needs more than {MOST_KERNELS} different kernels", node=region.name)
            if key not in rendered:
                rendered[key] = sources(bound.kernel, archs)
            group = (*group, PlannedLaunch(f"{region.name}:{len(group)}", bound, rendered[key]))
        planned.append(replace(group[-1], name=region.name, before=group[:-1], in_place=region.in_place))
        tell()
    return tuple(planned)


def _dump_kernels(folder: Path, data: EngineData) -> None:
    for name, text in data.sources.items():
        (folder / f"{name}.cu").write_text(text, encoding="utf-8")
    for (arch, name), code in data.cubins.items():
        (folder / f"{name}.{arch}.cubin").write_bytes(code)
