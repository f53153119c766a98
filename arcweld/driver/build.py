"""Compiles an imported graph to an engine's data: passes, fusion, rendering, NVRTC, assembly. Nothing is verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.lowering.lower import lower_all
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.templates.select import sources
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Rewriter, Value
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Options
from arcweld.compiler.region import FusedGraph
from arcweld.driver.assemble import assemble
from arcweld.driver.object_code import ObjectCode, PlannedLaunch, compile_launches
from arcweld.passes.chain import chain
from arcweld.passes.fusion import fuse
from arcweld.passes.in_place import write_in_place
from arcweld.passes.pipeline import run_passes
from arcweld.passes.schedule import schedule
from arcweld.passes.siblings import siblings
from arcweld.runtime.engine_file import EngineData

DEFAULT_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120")
MOST_KERNELS = 2048  # different ones of a model, each of which is compiled: large networks have some hundred
Progress = Callable[[str, int, int], None]


@dataclass
class Build:
    """The result of a build and its intermediate results, for verification and reports.

    imported, fused  the graph before the passes, and after fusion
    planned          one launch for each region, in the order of ``fused.regions``
    seconds          wall time by stage: inputs, promotion, passes, fusion, codegen, nvrtc, assemble, verify, total
    sizes            the sizes of symbolic dimensions that it was verified with, or typical ones
    """

    imported: Graph
    fused: FusedGraph
    planned: tuple[PlannedLaunch, ...]
    data: EngineData
    precision: str
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


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
    optimised = run_passes(materialise_outputs(computed), options, dump=dump, verify_each=verify_each)
    clock.lap("passes")
    fused = in_regions(materialise_outputs(optimised), options.disable)
    clock.lap("fusion")
    planned = plan_launches(fused, archs, progress)
    clock.lap("codegen")
    code = ObjectCode({}, {})
    if compile_kernels:
        tell = None if progress is None else (lambda done, total, _: progress("nvrtc", done, total))
        planned, code = compile_launches(planned, archs, cache or DiskCache(), tell)
    clock.lap("nvrtc")
    data = assemble(fused, planned, code, graph.labels())
    if dump is not None:
        _dump_kernels(dump, data)
    clock.lap("assemble")
    return Build(graph, fused, planned, data, options.precision, clock.laps)


def in_regions(graph: Graph, disable: frozenset[str] = frozenset()) -> FusedGraph:
    """The graph's regions in launch order. State is in place where it can be.

    ``disable``: names of ``REGION_PASSES``. Without ``fusion`` each node has a region of its own.
    """
    fusing = "fusion" not in disable
    fused = write_in_place(fuse(graph, fusing))
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


def plan_launches(
    fused: FusedGraph, archs: Sequence[str], progress: Progress | None = None
) -> tuple[PlannedLaunch, ...]:
    """Lowers and renders every region, equal kernels only once; one planned launch for each region, in order.

    Raises UnsupportedError for more than ``MOST_KERNELS`` different kernels.
    """
    rendered: dict[object, tuple[KernelSource, ...]] = {}
    planned = []
    for i, region in enumerate(fused.regions):
        group: tuple[PlannedLaunch, ...] = ()
        for bound in lower_all(region, fused.graph):
            key = bound.kernel.key()
            if len(rendered) >= MOST_KERNELS and key not in rendered:
                raise UnsupportedError(f"the model needs more than {MOST_KERNELS} different kernels", node=region.name)
            if key not in rendered:
                rendered[key] = sources(bound.kernel, archs)
            group = (*group, PlannedLaunch(f"{region.name}:{len(group)}", bound, rendered[key]))
        planned.append(replace(group[-1], name=region.name, before=group[:-1], in_place=region.in_place))
        if progress is not None:
            progress("codegen", i + 1, len(fused.regions))
    return tuple(planned)


def _dump_kernels(folder: Path, data: EngineData) -> None:
    for name, text in data.sources.items():
        (folder / f"{name}.cu").write_text(text, encoding="utf-8")
    for (arch, name), code in data.cubins.items():
        (folder / f"{name}.{arch}.cubin").write_bytes(code)
