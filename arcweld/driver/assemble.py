"""Assembles an engine's data from planned launches: the program, weights, sources and object code."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.codegen.kernel import Buffer, KernelSource
from arcweld.codegen.nvrtc.compiler import headers
from arcweld.codegen.nvrtc.compiler import version as nvrtc_version
from arcweld.compiler.bulk import contiguous
from arcweld.compiler.dims import Sym, product, to_text
from arcweld.compiler.dtypes import from_numpy, pack
from arcweld.compiler.ir import Graph, TensorType, Value, Weight
from arcweld.compiler.mapped import give_back, make_constant
from arcweld.compiler.records import sources
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.text import print_graph
from arcweld.driver.limits import index_limits
from arcweld.driver.object_code import ObjectCode, Planned, PlannedLaunch, in_order
from arcweld.runtime import program as prog
from arcweld.runtime.engine_file import EngineData

TITLE_LAUNCHES, TITLE_NODES = 8, 12  # how many the comment above a stored source lists at most


def assemble(parts: Sequence[Planned], code: ObjectCode, order: Sequence[str]) -> EngineData:
    """The engine's data. ``order`` lists the labels of the model's outputs, including outputs that are inputs."""
    names, graph = Names.of(parts), parts[-1].fused.graph
    weights = _weights_read(graph, _launched(parts))
    return EngineData(
        program=make_program(parts, order),
        sources=stored_sources(parts),
        weights={names(n): _stored(w.data) for n, w in weights.items()}
        | {n: _stored(w.data) for n, w in _initial_weights(graph).items()},
        headers=dict(headers()),
        cubins=dict(code.cubins),
        ptx=dict(code.ptx),
        graph=print_graph(graph, data_of=_literals(graph, weights)),
        provenance=provenance(),
    )


def _launched(parts: Sequence[Planned]) -> list[PlannedLaunch]:
    """The launches of all parts in the order of execution."""
    return [x for part in parts for x in in_order(part.launches)]


@dataclass(frozen=True, slots=True)
class Names:
    """Maps the graph's names to the program's.

    Outputs have the user's labels in the program. A temporary or weight whose name is one of these labels gets a
    suffix.
    """

    changed: Mapping[str, str]

    def __call__(self, tensor: str) -> str:
        """The program's name of the graph's ``tensor``."""
        return self.changed.get(tensor, tensor)

    @classmethod
    def of(cls, parts: Sequence[Planned]) -> Names:
        """The names for the tensors of all parts."""
        graph = parts[-1].fused.graph
        changed = dict(zip((o.name for o in graph.outputs), graph.labels()))
        internal = {*(v.name for part in parts for v in _temporaries(part.fused)), *graph.weights}
        taken = {*changed.values(), *internal, *(v.name for v in graph.inputs)}
        for n in sorted((set(changed.values()) & internal) - graph.output_names()):
            changed[n] = _free(n, taken)
        return cls(changed)


def _temporaries(fused: FusedGraph) -> list[Value]:
    """The values that regions store and that are no outputs of the graph, each once."""
    made = {o.name: o for r in fused.regions for o in r.outputs}
    outputs = fused.graph.output_names()
    return [v for n, v in made.items() if n not in outputs]


def _weights_read(graph: Graph, launches: Sequence[PlannedLaunch]) -> dict[str, Weight]:
    """The weights that at least one kernel reads from memory, by the graph's names."""
    read = {t for p in launches for t in p.bound.tensors.values()}
    return {n: w for n, w in graph.weights.items() if n in read}


def _literals(graph: Graph, stored: Mapping[str, Weight]) -> set[str]:
    """The scalars that kernels hold as literals. The stored graph shows their values, so that it gives the kernels."""
    return {n for n, w in graph.weights.items() if w.data.size == 1 and n not in stored}


# ----------------------------------------------------------------------------------------------------- the program


def make_program(parts: Sequence[Planned], order: Sequence[str]) -> prog.Program:
    """The program of ``parts``; ``order`` as in ``assemble``."""
    *narrower, general = parts
    graph, names = general.fused.graph, Names.of(parts)
    weights = _weights_read(graph, _launched(parts))
    results = {names(o.name): o for o in graph.outputs} | {v.name: v for v in graph.inputs if v.name in order}
    taken = {*results, *(v.name for v in graph.inputs)}
    taken |= {names(v.name) for part in parts for v in _temporaries(part.fused)}
    taken |= {*map(names, weights), *_initial_weights(graph)}
    ranges = tuple(_size_range(part, graph, names, taken) for part in narrower)
    return prog.Program(
        schema=prog.SCHEMA,
        name=graph.name,
        symbols=tuple(symbol_record(s) for s in graph.symbols()),
        inputs=tuple(tensor_record(v.name, v) for v in graph.inputs),
        outputs=tuple(tensor_record(label, results[label]) for label in order),
        weights=(
            *(_weight(n, names(n), w) for n, w in weights.items()),
            *(_weight(n, n, w) for n, w in _initial_weights(graph).items()),
        ),
        temps=tuple(tensor_record(names(v.name), v) for v in _temporaries(general.fused)),
        aliases=_aliases(general.launches, names),
        launches=tuple(_launch(p, names, taken) for p in in_order(general.launches)),
        fixed=_fixed(graph, weights),
        state=tuple(prog.State(name, label, _initial(graph, name)) for label, name in graph.aliases.items()),
        ranges=ranges,
        limits=index_limits(graph),
        takes=graph.takes,
        gives=graph.gives,
    )


def _size_range(part: Planned, graph: Graph, names: Names, taken: set[str]) -> prog.SizeRange:
    """The program's entry of a part for a range of sizes."""
    assert part.sizes is not None
    own = {s.name: s for s in graph.symbols()}
    return prog.SizeRange(
        symbols=tuple(prog.Symbol(n, lo, hi, own[n].multiple_of) for n, lo, hi in part.sizes.bounds),
        temps=tuple(tensor_record(names(v.name), v) for v in _temporaries(part.fused)),
        aliases=_aliases(part.launches, names),
        launches=tuple(_launch(p, names, taken) for p in in_order(part.launches)),
    )


def _aliases(launches: Sequence[PlannedLaunch], names: Names) -> tuple[prog.Alias, ...]:
    """The state that launches write in place."""
    return tuple(prog.Alias(names(output), state) for p in launches for output, state in p.in_place.items())


def _initial(graph: Graph, state: str) -> str | None:
    """What the state begins with, as ``prog.State`` says it."""
    first = graph.initial.get(state)
    if first is None:
        return None
    return "" if first.is_zero else f"{state}.initial"


def symbol_record(s: Sym) -> prog.Symbol:
    """The program's entry of a symbol."""
    hi = s.hi if isinstance(s.hi, int) else None
    return prog.Symbol(s.name, s.lo, hi, s.multiple_of)


def tensor_record(name: str, v: Value | Buffer) -> prog.Tensor:
    """The program's entry of a tensor."""
    return prog.Tensor(name, v.dtype.value, tuple(to_text(d) for d in v.shape))


def _initial_weights(graph: Graph) -> dict[str, Weight]:
    """The first values of state that are not zeros, by the program's names."""
    return {name: w for s, w in graph.initial.items() if (name := _initial(graph, s))}


def _weight(name: str, label: str, w: Weight) -> prog.WeightEntry:
    """The entry of a weight that the graph calls ``name``. A weight made from several arrays has no source."""
    source = w.source or ("" if w.transform else name)
    return prog.WeightEntry(label, from_numpy(w.data.dtype).value, tuple(map(int, w.data.shape)), source, w.transform)


def _fixed(graph: Graph, stored: Mapping[str, Weight]) -> tuple[str, ...]:
    """The model's weights that nodes use and no kernel reads from memory: scalars, which kernels hold as literals."""
    used = {v.name for n in graph.nodes for v in n.operands()} & set(graph.weights)
    return tuple(sorted({s for n in used - stored.keys() for s in sources(graph.weights[n])}))


def _launch(p: PlannedLaunch, names: Names, taken: set[str]) -> prog.Launch:
    """The launch. The names of its kernels' own arrays are added to ``taken``, which holds all names so far."""
    kernel, tensors = p.bound.kernel, {k: names(t) for k, t in p.bound.tensors.items()}
    zero = {b for s in p.sources for b in s.zero}
    return prog.Launch(
        name=p.name,
        template=kernel.template,
        variants=tuple(_variant(s, tensors, p.name, taken) for s in p.sources),
        reads=tuple(tensors[b.name] for b in kernel.buffers if not b.written),
        writes=tuple(tensors[b.name] for b in kernel.buffers if b.written),
        origin=p.bound.origin,
        zero=tuple(tensors[b] for b in sorted(zero)),
        flops=to_text(p.bound.flops),
        iterations=to_text(product(a.extent for axes in kernel.axes.values() for a in axes)),
    )


def _variant(s: KernelSource, tensors: Mapping[str, str], launch: str, taken: set[str]) -> prog.Variant:
    grid = (to_text(s.grid[0]), to_text(s.grid[1]), to_text(s.grid[2]))
    own = {b.name: _free(f"{launch}.{b.name}", taken) for b in (*s.workspace, *s.counters)}
    params = tuple(p.convert(to_text, {**tensors, **own}.__getitem__) for p in s.params)
    return prog.Variant(
        s.arch, s.entry, s.entry, grid, s.block, s.shared_bytes, params, s.cluster, s.pdl,
        workspace=tuple(tensor_record(own[b.name], b) for b in s.workspace),
        counters=tuple(tensor_record(own[b.name], b) for b in s.counters), cooperative=s.cooperative,
        tiling=None if s.tiling is None else s.tiling.convert(to_text),
    )  # fmt: skip


def _free(name: str, taken: set[str]) -> str:
    """``name``, or ``name`` with the first number that makes another one of it; ``taken`` then holds it."""
    found = next(n for n in itertools.chain([name], (f"{name}.{k}" for k in itertools.count(1))) if n not in taken)
    taken.add(found)
    return found


# ----------------------------------------------------------------------------------------------------- what is stored


def _stored(data: np.ndarray) -> np.ndarray:
    """The array in C order, packed. A copy is constant, and what it was made of leaves this process' memory."""
    ordered = data if data.flags.c_contiguous else contiguous(data)
    packed = pack(ordered)
    if packed is data:
        return data
    give_back(data)
    return make_constant(packed)


def stored_sources(parts: Sequence[Planned]) -> dict[str, str]:
    """Every kernel's source by its entry, below a comment that lists its launches."""
    names = Names.of(parts)
    kernels: dict[str, KernelSource] = {}
    users: dict[str, list[PlannedLaunch]] = {}
    for p in _launched(parts):
        for s in p.sources:
            kernels[s.entry] = s
            users.setdefault(s.entry, []).append(p)
    return {entry: _titled(s, users[entry], names) for entry, s in kernels.items()}


def _titled(s: KernelSource, users: Sequence[PlannedLaunch], names: Names) -> str:
    """The source below a comment: the launches that use it with their nodes, and the first launch's tensors."""
    lines = [f"// {s.entry} ({s.arch}), generated by Arcweld."]
    for n, p in enumerate(users[:TITLE_LAUNCHES]):
        lines.append(f"//   {p.name}: {', '.join(p.bound.origin[:TITLE_NODES])}")
        for b in p.bound.kernel.buffers if n == 0 else ():
            lines.append(f"//     {b.name} = {names(p.bound.tensors[b.name])}: {TensorType(b.dtype, b.shape)}")
    if len(users) > TITLE_LAUNCHES:
        lines.append(f"//   … and {len(users) - TITLE_LAUNCHES} more launches of the same kernel")
    # no character of a model's names may end the comment
    plain = ["".join(c if c.isprintable() and c != "\\" else "/" for c in line) for line in lines]
    return "\n".join(plain) + "\n" + s.source


def provenance() -> dict[str, str]:
    """What an engine was built with."""
    from importlib.metadata import version

    return {"arcweld": version("arcweld"), "nvrtc": nvrtc_version(), "python": platform.python_version()}
