"""Cuts a graph with host nodes into stages: graphs without them, and the steps of the host between them.

A node belongs to the earliest stage in which all that it needs is there: its operands, and the sizes in its types and
attributes. So a model has as few stages as the longest chain of host nodes demands, and each is optimised as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from arcweld.compiler import dims, host_nodes
from arcweld.compiler.dims import Dim, IntExpr, Sym, to_text
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.compiler.ops.host import OF_SIZES
from arcweld.compiler.ops.host_strings import MAX_LITERAL_CHARACTERS, characters
from arcweld.driver.assemble import symbol_record, tensor_record
from arcweld.runtime import steps as step
from arcweld.runtime.steps import Block, Step, every_step

MAX_AXES = 31  # sizes that one input carries
CARRIER = "sizes"


@dataclass(frozen=True, slots=True)
class Stages:
    """A graph in stages. Outputs and inputs of stages are called as in the graph."""

    graph: Graph
    stages: tuple[Graph, ...]
    steps: tuple[Step, ...]

    def carriers(self) -> dict[int, str]:
        """By stage, the name of the input whose shape tells it sizes; empty where it has none."""
        return {s.stage: s.carrier for s in every_step(self.steps) if isinstance(s, step.Run)}


def has_host_nodes(graph: Graph) -> bool:
    """Whether the host takes part in a run of the graph."""
    return any(n.op in host_nodes.OPS for n in graph.nodes)


def refuse_fallbacks(graph: Graph) -> None:
    """Raises UnsupportedError that lists the operators which the host would compute for want of a kernel."""
    found = [n for n in every_node(graph.nodes) if n.op == host_nodes.CALL and n.attrs["op"] not in OF_SIZES]
    if found:
        lines = "".join(f"\n  {n.attrs['op']} [{n.name}]: there is no kernel, the host would compute it" for n in found)
        raise UnsupportedError(
            f"{len(found)} operator(s) would run on the host:{lines}", node=found[0].name, hint="leave out strict"
        )


def every_node(nodes: Sequence[Node]) -> Iterator[Node]:
    """Nodes and those in their bodies."""
    for n in nodes:
        yield n
        for body in host_nodes.bodies(n):
            yield from every_node(body.nodes)


def plain_graphs(graph: Graph) -> tuple[Graph, ...]:
    """The graphs without host nodes that are compiled: the stages, or the graph itself. Raises as ``in_stages``."""
    return in_stages(graph).stages if has_host_nodes(graph) else (graph,)


def in_stages(graph: Graph) -> Stages:
    """The graph in stages. Raises UnsupportedError for one whose outputs take over inputs."""
    if graph.aliases or graph.initial:
        raise UnsupportedError(
            "outputs take over inputs of a model whose shapes or control flow depend on data",
            hint="leave out inout, and pass the state as plain inputs and outputs",
        )
    cut = _Cut(graph)
    steps = cut.steps(graph.nodes, [o.name for o in graph.outputs])
    return Stages(graph, tuple(cut.stages), steps)


def of_known_sizes(graph: Graph) -> Graph:
    """The nodes alone whose types and attributes depend on the inputs' shapes only, for choices of sizes."""
    known = {s.name for s in graph.symbols()}
    kept = tuple(n for n in graph.nodes if n.op not in host_nodes.OPS and _sizes_used(n) <= known)
    return graph.replace(nodes=kept, outputs=(), output_labels=())


@dataclass
class _Cut:
    graph: Graph
    stages: list[Graph] = field(default_factory=list)

    def steps(self, nodes: Sequence[Node], needed: Sequence[str]) -> tuple[Step, ...]:
        """The steps that make the values called ``needed``."""
        live = _live(nodes, needed)
        levels = _levels(live)
        read = [_reads(n) for n in live]
        found: list[Step] = []
        for level in range(max(levels, default=-1) + 1):
            here = [n for n, at in zip(live, levels) if at == level]
            inside = [n for n in here if n.op not in host_nodes.OPS]
            later = {
                name for n, at, names in zip(live, levels, read)
                for name in names if at > level or n.op in host_nodes.OPS
            } | set(needed)  # fmt: skip
            if inside:
                found.append(self.stage(inside, later))
            found += [self.host_step(n) for n in here if n.op in host_nodes.OPS]
        return tuple(found)

    def stage(self, nodes: Sequence[Node], later: set[str]) -> Step:
        """Appends a stage of these nodes, whose outputs are what is read later."""
        made = {o.name: o for n in nodes for o in n.outputs}
        operands = {v.name: v for n in nodes for v in n.operands() if v.name not in made}
        weights: dict[str, Weight] = {n: w for n, w in self.graph.weights.items() if n in operands}
        inputs = [v for n, v in operands.items() if n not in weights]
        outputs = tuple(o for n, o in made.items() if n in later)
        plain = {d for v in inputs for d in v.shape}
        missing = [s for s in _symbols(nodes, inputs) if dims.var(s) not in plain]
        carrier = ""
        if missing:
            if len(missing) > MAX_AXES:
                raise UnsupportedError(f"a stage needs {len(missing)} sizes that are computed from data")
            carrier = next(n for n in _names(CARRIER) if n not in made and n not in operands)
            shape: tuple[Dim, ...] = (*(dims.var(s) for s in missing), 0)
            inputs.append(Value(carrier, TensorType(DType.U8, shape)))
        name = f"{self.graph.name}.{len(self.stages)}"
        self.stages.append(Graph(name, tuple(inputs), outputs, tuple(nodes), weights))
        return step.Run(len(self.stages) - 1, carrier, tuple(s.name for s in missing))

    def host_step(self, n: Node) -> Step:
        """The step of a host node."""
        symbols = tuple(symbol_record(s) for s in _told(n))
        weights = self.graph.weights
        names = tuple("" if v is None or v.name in weights else v.name for v in n.inputs)
        outputs = tuple(tensor_record(o.name, o) for o in n.outputs)
        if n.op == host_nodes.READ:
            return step.Read(names[0], symbols, names[1:], outputs, n.origin)
        if n.op == host_nodes.VIEW:
            return step.View(names[0], outputs[0], n.origin)
        if n.op == host_nodes.CHECK:
            return step.Check(to_text(n.attrs["zero"]), n.attrs["what"], n.origin)
        if n.op == host_nodes.CALL:
            sizes = tuple(to_text(d) for d in n.attrs.get("sizes", ()))
            told, attrs = self.literals(n), dict(n.attrs["attrs"])
            return step.Call(n.attrs["op"], attrs, names, outputs, symbols, told, sizes, n.origin)
        if n.op == host_nodes.CHOOSE:
            then, otherwise = (self.block(n.attrs[k]) for k in ("then", "otherwise"))
            return step.Choose(names[0], then, otherwise, outputs, symbols, n.origin)
        body: host_nodes.Body = n.attrs["body"]
        counter, going, *formals = body.formals
        block = self.block(body)
        used = _captured([n])
        return step.Repeat(
            names[0], names[1], n.attrs["most"], n.attrs["limit"], names[2:],
            counter.name if counter.name in used else "", going.name if going.name in used else "",
            tuple(tensor_record(v.name, v) for v in formals), block, outputs, symbols, n.origin,
        )  # fmt: skip

    def literals(self, n: Node) -> tuple[step.Literal, ...]:
        """The constants among a host operator's operands."""
        found = {k: v for k, v in enumerate(n.inputs) if v is not None and v.name in self.graph.weights}
        data = {k: self.graph.weights[v.name].data for k, v in found.items()}
        size = characters(*(data[k] for k, v in found.items() if v.dtype.is_string))
        if size > MAX_LITERAL_CHARACTERS:
            raise UnsupportedError(
                f"the constants of {n.attrs['op']} have {size} characters (up to {MAX_LITERAL_CHARACTERS})",
                node=n.name,
                hint="give them as an input",
            )
        return tuple(
            step.Literal(k, v.dtype.value, tuple(map(int, data[k].shape)), tuple(data[k].reshape(-1).tolist()))
            for k, v in found.items()
        )

    def block(self, body: host_nodes.Body) -> Block:
        results = [v.name for v in body.results]
        return Block(self.steps(body.nodes, results), tuple(results))


def _told(n: Node) -> list[Sym]:
    """The symbols whose values a host node tells."""
    return [s for d in n.attrs.get("symbols", ()) for s in dims.free_symbols(d)]


def _names(hint: str) -> Iterator[str]:
    yield hint
    k = 0
    while True:
        k += 1
        yield f"{hint}.{k}"


def _live(nodes: Sequence[Node], needed: Sequence[str]) -> list[Node]:
    """The nodes that make what is needed, and those that give the sizes in their types, in order."""
    wanted, sizes = set(needed), set[str]()
    kept: list[Node] = []
    for n in reversed(nodes):
        given = {s.name for s in _told(n)}
        made = any(o.name in wanted for o in n.outputs)
        if made or n.op == host_nodes.CHECK or (n.op in host_nodes.OPS and given & sizes):
            kept.append(n)
            wanted |= _reads(n)
            sizes |= _sizes_used(n)
    return kept[::-1]


def _levels(nodes: Sequence[Node]) -> list[int]:
    """For each node the stage in which it runs; a host node runs after the device's nodes of its stage."""
    ready: dict[str, int] = {}  # the first stage that can use a value
    known: dict[str, int] = {}  # and a symbol
    found = []
    for n in nodes:
        level = max((ready.get(name, 0) for name in _reads(n)), default=0)
        own = {s.name for s in _told(n)}
        level = max([level, *(known.get(s, 0) for s in _sizes_used(n) - own)])
        after = level + 1 if n.op in host_nodes.OPS else level
        ready.update((o.name, after) for o in n.outputs)
        known.update((s, after) for s in own)
        found.append(level)
    return found


def _reads(n: Node) -> set[str]:
    """The names of the values that a node reads, those that its bodies capture among them."""
    own = {v.name for v in n.operands()}
    return own | _captured([n]) if n.op in host_nodes.OPS else own


def _captured(nodes: Sequence[Node]) -> set[str]:
    """The names that the bodies of nodes read, among them the bodies' own formal inputs."""
    found: set[str] = set()
    for n in nodes:
        for body in host_nodes.bodies(n):
            made = {o.name for m in body.nodes for o in m.outputs}
            inner = {v.name for m in body.nodes for v in m.operands()} | _captured(body.nodes)
            found |= (inner | {v.name for v in body.results}) - made
    return found


def _sizes_used(n: Node) -> set[str]:
    """The names of the symbols in a node's types and attributes, those inside of its bodies among them."""
    found = {s.name for s in _in_node(n)}
    for body in host_nodes.bodies(n):
        given = {s.name for m in body.nodes for s in _told(m)}
        inner = {name for m in body.nodes for name in _sizes_used(m)}
        found |= inner - given
    return found


def _in_node(n: Node) -> Iterator[Sym]:
    for v in (*n.operands(), *n.outputs):
        for d in v.shape:
            yield from dims.free_symbols(d)
    for value in n.attrs.values():
        yield from _in_attr(value)


def _in_attr(value: Any) -> Iterator[Sym]:
    if isinstance(value, IntExpr):
        yield from dims.free_symbols(value)
    elif isinstance(value, tuple):
        for item in value:
            yield from _in_attr(item)


def _symbols(nodes: Sequence[Node], inputs: Sequence[Value]) -> list[Sym]:
    """The symbols of nodes and inputs, sorted by name."""
    found = {s.name: s for n in nodes for s in _in_node(n)}
    found |= {s.name: s for v in inputs for d in v.shape for s in dims.free_symbols(d)}
    return [found[k] for k in sorted(found)]

