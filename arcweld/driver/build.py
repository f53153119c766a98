"""The driver's middle: a graph goes in, all of an engine comes out. Passes, fusion, rendering, NVRTC, the program."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from arcweld.codegen.kernel import KernelSource, ParamField
from arcweld.codegen.lowering.lower import lower_all
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.compiler import headers
from arcweld.codegen.nvrtc.compiler import version as nvrtc_version
from arcweld.codegen.templates.select import sources
from arcweld.compiler.dims import Sym, to_text
from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value, Weight
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Options
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.text import print_graph
from arcweld.compiler.weights import sources as sources_of
from arcweld.driver.object_code import ObjectCode, Planned, compile_planned, in_order
from arcweld.passes.fusion import fuse
from arcweld.passes.pipeline import run_passes
from arcweld.passes.schedule import schedule
from arcweld.runtime import program as prog
from arcweld.runtime.engine_file import EngineData

DEFAULT_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120")
TITLE_LAUNCHES, TITLE_NODES = 8, 12  # that the comment above a stored kernel names
Progress = Callable[[str, int, int], None]


@dataclass
class Build:
    """Everything that a build made, kept for reports: the graphs, the plan, the engine's parts, how long it took.

    ``sizes`` are typical ones of the symbolic dimensions: those that it was verified with.
    """

    imported: Graph
    fused: FusedGraph
    planned: tuple[Planned, ...]
    data: EngineData
    precision: str
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def build_graph(
    graph: Graph, options: Options, *, progress: Progress | None = None, dump: Path | None = None,
    verify_each: bool = False, cache: DiskCache | None = None, compile_kernels: bool = True,
) -> Build:  # fmt: skip
    """Compiles a graph for ``options.arch``. ``progress(stage, done, total)`` is told how far it is.

    With ``compile_kernels`` False no object code is made (an engine for the sim device). Raises UnsupportedError for
    operators that can't be compiled, CompileError for kernels that NVRTC refuses.
    """
    archs = options.arch or DEFAULT_ARCHS
    clock = _Clock()
    graph = graph.replace(output_labels=graph.labels())  # passes may rename values
    computed = without_passed_on(graph)
    optimised = run_passes(materialise_outputs(computed), options, dump=dump, verify_each=verify_each)
    clock.lap("passes")
    fused = schedule(fuse(materialise_outputs(optimised), "fusion" not in options.disable))
    clock.lap("fusion")
    planned = plan_launches(fused, archs, progress)
    clock.lap("codegen")
    code = ObjectCode({}, {})
    if compile_kernels:
        tell = None if progress is None else (lambda done, total, _: progress("nvrtc", done, total))
        planned, code = compile_planned(planned, archs, cache or DiskCache(), tell)
    clock.lap("nvrtc")
    data = assemble(fused, planned, code, graph.labels())
    if dump is not None:
        _dump_kernels(dump, data)
    return Build(graph, fused, planned, data, options.precision, clock.laps)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def without_passed_on(graph: Graph) -> Graph:
    """The graph without outputs that are an input under its own name: the runtime copies those."""
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
    return graph.replace(outputs=tuple(o for o, _ in kept), output_labels=tuple(label for _, label in kept))


def materialise_outputs(graph: Graph) -> Graph:
    """Gives every output a node of its own: an output that is an input, a weight or another output is copied."""
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


def plan_launches(fused: FusedGraph, archs: Sequence[str], progress: Progress | None = None) -> tuple[Planned, ...]:
    """Lowers and renders every region; equal kernels are rendered once."""
    rendered: dict[object, tuple[KernelSource, ...]] = {}
    planned = []
    for i, region in enumerate(fused.regions):
        group: tuple[Planned, ...] = ()
        for bound in lower_all(region, fused.graph):
            key = bound.kernel.key()
            if key not in rendered:
                rendered[key] = sources(bound.kernel, archs)
            group = (*group, Planned(f"{region.name}:{len(group)}", bound, rendered[key]))
        planned.append(replace(group[-1], name=region.name, before=group[:-1]))
        if progress is not None:
            progress("codegen", i + 1, len(fused.regions))
    return tuple(planned)


# ----------------------------------------------------------------------------------------------------- the program


def assemble(fused: FusedGraph, planned: Sequence[Planned], code: ObjectCode, order: Sequence[str]) -> EngineData:
    """The engine's data: tensors, launches, weights, sources and object code. ``order`` names the model's outputs."""
    graph, planned = fused.graph, in_order(planned)
    made = {o.name: o for r in fused.regions for o in r.outputs}
    read = {t for p in planned for t in p.bound.tensors.values()}
    outputs = {o.name for o in graph.outputs}
    temps = {n: v for n, v in made.items() if n not in outputs}
    labels = _program_names(graph, {*temps, *graph.weights})
    weights = {labels.get(n, n): w for n, w in graph.weights.items() if n in read}
    origins = {labels.get(n, n): _source(n, w) for n, w in graph.weights.items()}
    results = {labels[o.name]: o for o in graph.outputs} | {v.name: v for v in graph.inputs if v.name in order}
    program = prog.Program(
        schema=prog.SCHEMA,
        name=graph.name,
        symbols=tuple(_symbol(s) for s in graph.symbols()),
        inputs=tuple(_tensor(v.name, v) for v in graph.inputs),
        outputs=tuple(_tensor(label, results[label]) for label in order),
        weights=tuple(
            prog.Weight(n, from_numpy(w.data.dtype).value, tuple(int(d) for d in w.data.shape), origins[n], w.transform)
            for n, w in weights.items()
        ),
        temps=tuple(_tensor(labels.get(n, n), v) for n, v in temps.items()),
        aliases=(),
        launches=tuple(_launch(p, labels) for p in planned),
        fixed=_fixed(graph, read),
    )
    sources = {s.entry: s for p in planned for s in p.sources}
    users: dict[str, list[Planned]] = {entry: [] for entry in sources}
    for p in planned:
        for s in p.sources:
            users[s.entry].append(p)
    texts = {entry: _titled(s, users[entry], labels) for entry, s in sources.items()}
    return EngineData(
        program, texts, {n: _plain_array(w.data) for n, w in weights.items()}, dict(headers()), dict(code.cubins),
        dict(code.ptx), print_graph(graph), _provenance(),
    )  # fmt: skip


def _program_names(graph: Graph, internal: set[str]) -> dict[str, str]:
    """What the program calls tensors: outputs by their labels, and ``internal`` ones of such a name by another."""
    names = dict(zip((o.name for o in graph.outputs), graph.labels()))
    taken = {*names.values(), *internal, *(v.name for v in graph.inputs)}
    for n in sorted((set(names.values()) & internal) - {o.name for o in graph.outputs}):
        names[n] = next(f"{n}.{k}" for k in itertools.count(1) if f"{n}.{k}" not in taken)
        taken.add(names[n])
    return names


def _plain_array(data: np.ndarray) -> np.ndarray:
    return data if data.flags.c_contiguous else np.ascontiguousarray(data)


def _source(name: str, w: Weight) -> str:
    """The model's name for a weight; none for one that was made from several."""
    return w.source or ("" if w.transform else name)


def _fixed(graph: Graph, read: set[str]) -> tuple[str, ...]:
    """The model's weights that nodes use and no kernel reads from memory: single elements, printed as literals."""
    used = {v.name for n in graph.nodes for v in n.operands()} & set(graph.weights)
    return tuple(sorted({s for n in used - read for s in sources_of(graph.weights[n])}))


def _symbol(s: Sym) -> prog.Symbol:
    hi = s.hi if isinstance(s.hi, int) else None
    return prog.Symbol(s.name, s.lo, hi, s.multiple_of)


def _tensor(name: str, v: Value) -> prog.Tensor:
    return prog.Tensor(name, v.dtype.value, tuple(to_text(d) for d in v.shape))


def _launch(p: Planned, labels: Mapping[str, str]) -> prog.Launch:
    tensors = {k: labels.get(t, t) for k, t in p.bound.tensors.items()}
    kernel = p.bound.kernel
    zero = {b for s in p.sources for b in s.zero}
    return prog.Launch(
        name=p.name,
        template=kernel.template,
        variants=tuple(_variant(s, tensors) for s in p.sources),
        reads=tuple(tensors[b.name] for b in kernel.buffers if not b.written),
        writes=tuple(tensors[b.name] for b in kernel.buffers if b.written),
        origin=p.bound.origin,
        zero=tuple(tensors[b] for b in sorted(zero)),
        flops=to_text(p.bound.flops),
    )


def _variant(s: KernelSource, tensors: Mapping[str, str]) -> prog.Variant:
    grid = (to_text(s.grid[0]), to_text(s.grid[1]), to_text(s.grid[2]))
    fields = tuple(_field(f, tensors) for f in s.fields)
    return prog.Variant(s.arch, s.entry, s.entry, grid, s.block, s.shared_bytes, fields, s.cluster, s.pdl)


def _field(f: ParamField, tensors: Mapping[str, str]) -> prog.Field:
    if f.kind in ("buffer", "tensor_map"):
        return prog.Field(
            f.kind, tensors[f.value], to_text(f.offset), tuple(to_text(d) for d in f.dims),
            tuple(to_text(d) for d in f.strides), f.box, f.element_strides, f.swizzle,
        )  # fmt: skip
    return prog.Field(f.kind, repr(float(f.value)) if f.kind == "f32" else to_text(f.value))


def _titled(s: KernelSource, users: Sequence[Planned], labels: Mapping[str, str]) -> str:
    """The stored source: above the text that was compiled, for which nodes it is launched, and on what at first."""
    lines = [f"// {s.entry} ({s.arch}), generated by Arcweld."]
    for n, p in enumerate(users[:TITLE_LAUNCHES]):
        lines.append(f"//   {p.name}: {', '.join(p.bound.origin[:TITLE_NODES])}")
        for b in p.bound.kernel.buffers if n == 0 else ():
            tensor = p.bound.tensors[b.name]
            lines.append(f"//     {b.name} = {labels.get(tensor, tensor)}: {TensorType(b.dtype, b.shape)}")
    if len(users) > TITLE_LAUNCHES:
        lines.append(f"//   … and {len(users) - TITLE_LAUNCHES} more launches of the same kernel")
    # whatever characters the model's names hold, they stay inside their comment
    plain = ["".join(c if c.isprintable() and c != "\\" else "/" for c in line) for line in lines]
    return "\n".join(plain) + "\n" + s.source


def _provenance() -> dict[str, str]:
    from importlib.metadata import version

    return {"arcweld": version("arcweld"), "nvrtc": nvrtc_version(), "python": platform.python_version()}


def _dump_kernels(folder: Path, data: EngineData) -> None:
    for name, text in data.sources.items():
        (folder / f"{name}.cu").write_text(text, encoding="utf-8")
    for (arch, name), code in data.cubins.items():
        (folder / f"{name}.{arch}.cubin").write_bytes(code)
