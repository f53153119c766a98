"""Fusion: groups nodes into regions, each of which becomes one kernel.

    x -> [ Transpose -> MatMul -> Add -> Relu ] -> y      one region: hero MatMul, prologue Transpose, epilogue the rest

1. Every hero (contract, conv, reduce, rowwise, window, attention, sort, scatter and others) opens a region.
2. Each region takes the pointwise nodes that follow its hero over the same elements: the epilogue.
3. Each region takes cheap nodes that feed its hero, the prologue: views always, pointwise nodes where the template
   reads each element once.
4. All others become pointwise regions, grown backwards from values that must be in memory: outputs, and what another
   region reads.

Nodes that no output needs are in no region. No region may need, through other regions, a value that it makes itself.
Every refusal is recorded with a code.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Limit
from arcweld.compiler.region import FusedGraph, Refusal, Region, index_cost, is_hero, template_of
from arcweld.passes.dce import remove_dead
from arcweld.passes.lookups import looks_up_runs, lookups_of
from arcweld.passes.places import (
    MAX_CODE,
    MAX_RECOMPUTE,
    Coords,
    code_of,
    computed_too_often,
    fan_out,
    indices,
    moved,
)
from arcweld.passes.repeatable import Repeatable

log = logging.getLogger("arcweld.fusion")

MAX_OPERANDS = 12  # tensors, weights aside, that one kernel reads
# Bounds of one kernel, so that NVRTC takes no more than about two seconds for it. Fusing more would gain nothing.
MAX_NODES = 160  # views included
MAX_INDEXED = 8  # index costs of one kernel: see ``index_cost``
# kinds of heroes that read each element of their operand once, and so can take any pointwise prologue
READ_ONCE = frozenset({Kind.REDUCE, Kind.ROWWISE, Kind.SCAN, Kind.SORT, Kind.SELECT, Kind.SUPPRESS})
WIDENING = READ_ONCE | {Kind.WINDOW}  # kinds of heroes that widen 8-bit values as they read them
# (kind, operand) of other operands that are also read once at each element: attention's mask, the data that a scatter
# copies, the terms of a linear recurrence
FREE_OPERANDS = {(Kind.ATTENTION, 3), (Kind.SCATTER, 0), (Kind.SCAN, 1)}
# (operator, operand) of scatters that store update by update, whose elements are read once
UPDATES = {("ScatterElements", 1), ("ScatterElements", 2), ("ScatterND", 2)}


class _Group:
    """A region that is being grown. Nodes are known by the name of their first output.

    nodes    name -> node
    made     names of the values that its nodes write
    outside  names of the values, weights aside, that its nodes read and don't write
    code     node name -> its scalar operations for one element
    indexed  the sum of the nodes' index costs
    first    the least position in the graph of a node that only this region may store
    last     the largest position in the graph of any of its nodes
    """

    def __init__(self, hero: Node | None, template: str) -> None:
        self.hero = hero
        self.template = template
        self.nodes: dict[str, Node] = {}
        self.made: set[str] = set()
        self.outside: set[str] = set()
        self.code: dict[str, int] = {}
        self.indexed = 0
        self.first = self.last = 0


class Fuser:
    """One run of the pass over one graph."""

    def __init__(self, graph: Graph, limit: Limit | None = None) -> None:
        self.graph, self.limit = graph, limit
        self.joined: list[tuple[str, str]] = []  # (producer, consumer) of the fusions, if a limit counts them
        self.producers = graph.producers()
        self.consumers = graph.consumers()
        self.position = {n.output.name: i for i, n in enumerate(graph.nodes)}
        self.outputs = graph.output_names()
        self.state = graph.state()
        self.groups: list[_Group] = []
        self.owner: dict[str, _Group] = {}  # node (by first output) -> the group that computes and may store it
        self.members: dict[str, list[_Group]] = {}  # node -> every group that computes it
        self.free = Repeatable(graph, self.producers)
        self.refusals: list[Refusal] = []

    # ----- driver

    def run(self, enabled: bool = True) -> FusedGraph:
        """The regions, in no particular order; one for each node unless ``enabled``."""
        if not enabled:
            for node in self.graph.nodes:
                self._open(node, template_of(node, self.state))
            return FusedGraph(self.graph, tuple(self._regions()), ())
        for node in self.graph.nodes:
            if is_hero(node):
                self._open(node, template_of(node, self.state))
            else:
                self.free.note(node)
        heroes = list(self.groups)
        for g in heroes:
            # a scatter in place has no epilogue: an element is final only after the last update
            if g.template != "scatter":
                self._grow_epilogue(g)
        for g in heroes:
            self._grow_prologue(g)
        self._cover_rest()
        return FusedGraph(self.graph, tuple(self._regions()), self._apart())

    def _apart(self) -> tuple[Refusal, ...]:
        """The refusals that still hold: no kernel computes both of their nodes."""
        where: dict[str, set[int]] = {}
        for k, g in enumerate(self.groups):
            for n in g.nodes.values():
                where.setdefault(n.name, set()).add(k)
        alone: set[int] = set()
        apart = (r for r in self.refusals if where.get(r.producer, alone).isdisjoint(where.get(r.consumer, alone)))
        return tuple(dict.fromkeys(apart))

    def _add(self, g: _Group, node: Node, reads: int = 1) -> None:
        """Lets ``g`` compute ``node``, ``reads`` times for each element of the region's result."""
        g.nodes[node.output.name] = node
        g.code[node.output.name] = reads * code_of(node)
        self.members.setdefault(node.output.name, []).append(g)
        self._note(g, node)

    def _own(self, g: _Group, node: Node) -> None:
        """Makes ``g`` the owner of ``node``: the one region that may store it."""
        self.owner[node.output.name] = g
        g.first = min(g.first, self.position[node.output.name])

    def _note(self, g: _Group, node: Node) -> None:
        g.made.update(o.name for o in node.outputs)
        g.outside.difference_update(o.name for o in node.outputs)
        g.outside |= self._foreign(g, node)
        g.indexed += index_cost(node)
        g.last = max(g.last, self.position[node.output.name])

    def _foreign(self, g: _Group, node: Node) -> set[str]:
        weights = self.graph.weights
        return {v.name for v in node.operands() if v.name not in g.made and v.name not in weights}

    def _remove(self, g: _Group, *names: str) -> None:
        for name in names:
            del g.nodes[name]
            del g.code[name]
            if self.owner.get(name) is g:
                del self.owner[name]
            self.members[name].remove(g)
        g.made, g.outside, g.indexed, g.last = set(), set(), 0, 0
        for node in g.nodes.values():
            g.made.update(o.name for o in node.outputs)
        for node in g.nodes.values():
            self._note(g, node)
        g.first = min((self.position[n] for n in g.nodes if self.owner.get(n) is g), default=len(self.position))

    def _open(self, node: Node, template: str) -> _Group:
        g = _Group(node if is_hero(node) else None, template)
        g.first = self.position[node.output.name]
        self._add(g, node)
        self._own(g, node)
        self.groups.append(g)
        return g

    # ----- epilogue

    def _grow_epilogue(self, g: _Group) -> None:
        assert g.hero is not None
        domain = {g.hero.output.name: indices(g.hero.output)}
        queue = deque([g.hero.output])
        while queue:
            v = queue.popleft()
            for c in self.consumers.get(v.name, ()):
                if c.output.name in self.owner or is_hero(c):
                    continue
                reason = self._epilogue_refusal(g, c, v, domain) or self._beyond(g.hero, c)
                if reason is not None:
                    self._refuse(g.hero, c, *reason)
                    continue
                self._add(g, c)
                self._own(g, c)
                domain[c.output.name] = moved(c, v, domain[v.name])
                queue.append(c.output)
        self._trim(g)

    def _epilogue_refusal(self, g: _Group, c: Node, v: Value, domain: Mapping[str, Coords]) -> tuple[str, str] | None:
        kind = opdef(c.op).kind
        if g.template in ("recurrence", "runs") and len(c.operands()) > 1:
            # the other operand may be a result that is known later, or of other elements
            return (g.template, f"{c.op} reads another value beside {v.name}")
        full = self._full(g, c, 1)
        if full is not None:
            return full
        if kind is Kind.MOVEMENT:
            if c.op == "Reshape" or (c.op == "Transpose" and c.attrs["perm"][-1:] == (len(c.attrs["perm"]) - 1,)):
                return self._cycle_refusal(g, c)
            return ("movement", f"{c.op} after {v.name} is read by index map, not stored")
        if v.shape != c.output.shape:
            return ("broadcast", f"{v.name} is broadcast by {c.op}: its elements would be computed many times")
        if c.output.dtype.is_packed:
            return ("packed", f"each thread makes whole bytes of {c.output.type}")
        for o in c.operands():
            if o.name in domain and (o.shape != c.output.shape or domain[o.name] != domain[v.name]):
                return ("broadcast", f"{o.name} is needed at other elements")
        if self._operands_with(g, c) > MAX_OPERANDS:
            return ("operands", f"more than {MAX_OPERANDS} operands in one kernel")
        return self._cycle_refusal(g, c)

    def _full(self, g: _Group, extra: Node, reads: int) -> tuple[str, str] | None:
        """The refusal (code, text) if ``g`` would be too large with ``extra``, else None."""
        if len(g.nodes) >= MAX_NODES:
            return ("size", f"more than {MAX_NODES} nodes in one kernel")
        if sum(g.code.values()) + reads * code_of(extra) > MAX_CODE:
            return ("size", f"more than {MAX_CODE} scalar operations for one element in one kernel")
        if index_cost(extra) and g.indexed >= MAX_INDEXED:
            return ("indices", f"more than {MAX_INDEXED} reads at computed places in one kernel")
        return None

    def _operands_with(self, g: _Group, extra: Node) -> int:
        """The number of tensors, weights aside, that ``g`` would read with another node."""
        return len((g.outside | self._foreign(g, extra)).difference(o.name for o in extra.outputs))

    def _feeds_products(self, name: str) -> bool:
        """True if the view is read by matrix products only, as their left operand."""
        readers = self.consumers.get(name, ())
        return bool(readers) and all(
            opdef(c.op).kind is Kind.CONTRACT and c.operands()[0].name == name for c in readers
        )

    def _trim(self, g: _Group) -> None:
        """Removes views from the end of the region: their readers can read through them, and can widen 8-bit values.

        Graph outputs stay. So do, behind attention, the views that merge its heads for a matrix product: storing the
        result in that order costs nothing.
        """
        merged = g.template == "attention"
        changed = True
        while changed:
            changed = False
            for name, n in list(g.nodes.items()):
                inside = any(c.output.name in g.nodes for c in self.consumers.get(name, ()))
                if (
                    n is not g.hero
                    and (opdef(n.op).kind is Kind.MOVEMENT or self.free.widened_by_readers(n, self.consumers, WIDENING))
                    and not inside
                    and name not in self.outputs
                    and not (merged and self._feeds_products(name))
                ):
                    self._remove(g, name)
                    changed = True

    # ----- cycles

    def _group_inputs(self, g: _Group) -> Iterable[str]:
        for n in g.nodes.values():
            for v in n.operands():
                if v.name not in g.nodes and v.name in self.producers:
                    yield self.producers[v.name].output.name

    def _reaches(self, start: Iterable[str], target: _Group) -> bool:
        """True if computing any of ``start`` needs a value that only ``target`` makes."""
        floor = target.first  # nodes in front of it need none
        seen: set[str] = set()
        stack = list(start)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            g = self.owner.get(name)
            if g is target:
                return True
            if g is None:
                if self.position[name] > floor:
                    stack += [
                        self.producers[v.name].output.name
                        for v in self.producers[name].operands()
                        if v.name in self.producers
                    ]
            elif g.last > floor:
                seen.update(g.nodes)
                stack += list(self._group_inputs(g))
        return False

    def _cycle_refusal(self, g: _Group, c: Node) -> tuple[str, str] | None:
        start = [
            self.producers[v.name].output.name
            for v in c.operands()
            if v.name in self.producers and self.producers[v.name].output.name not in g.nodes
        ]
        if self._reaches(start, g):
            return ("cycle", f"{c.op} also needs a value computed from this kernel's result by another kernel")
        return None

    # ----- prologue

    def _grow_prologue(self, g: _Group) -> None:
        hero = g.hero
        assert hero is not None
        kind = opdef(hero.op).kind
        own = set(g.nodes)
        epilogue = [n for n in g.nodes.values() if n is not hero]
        for i, v in enumerate(hero.inputs):
            if v is not None:
                free = (kind in READ_ONCE and i == 0) or (kind, i) in FREE_OPERANDS
                free = free or (g.template == "scatter" and (hero.op, i) in UPDATES)
                storable = kind is Kind.ROWWISE and i == 0
                lookups = lookups_of(hero, i, self.producers)
                self._inline(g, v, hero, pointwise=free, reads=1, storable=storable, lookups=lookups)
        for n in epilogue:
            for v in n.operands():
                if self._is_epilogue_operand(g, v):
                    self._inline(g, v, n, pointwise=True, reads=1)
        self._leave(g, own)

    def _is_epilogue_operand(self, g: _Group, v: Value) -> bool:
        return v.name in self.producers and self.producers[v.name].output.name not in g.nodes

    def _inline(
        self, g: _Group, v: Value, reader: Node, *, pointwise: bool, reads: int, storable: bool = False,
        lookups: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Takes the producer of ``v`` into ``g`` if it is a view or cheap to compute where it is read; then its own.

        pointwise  allow pointwise nodes, not only views and casts
        reads      how often each element of ``v`` is computed for one element of the result
        storable   the region computes each element of ``v`` exactly once, so it may store it for other regions
        lookups    operators that look rows up, through which ``v`` may be read
        """
        stack = [(v, reader, reads, storable)]
        while stack:
            v, reader, reads, storable = stack.pop()
            p = self.producers.get(v.name)
            if p is None or is_hero(p) or p.output.name in g.nodes:
                continue
            storable = storable and p not in self.free and self.owner.get(p.output.name) is None
            read_through = p.op in lookups and looks_up_runs(p) and self._full(g, p, reads) is None
            allowed = read_through or self._may_inline(g, p, reader, pointwise, reads, storable)
            if allowed and not self._beyond(p, reader):
                self._add(g, p, reads)
                if storable or not (p in self.free or self._wanted_elsewhere(p, g)):
                    self._own(g, p)
                stack += [(o, p, reads * fan_out(p), False) for o in reversed(p.operands())]

    def _may_inline(self, g: _Group, p: Node, reader: Node, pointwise: bool, reads: int, storable: bool) -> bool:
        if self.owner.get(p.output.name) is not None:
            return False  # it is in memory anyway: reading it is as good
        full = self._full(g, p, reads)
        if full is not None:
            return self._refuse(p, reader, *full)
        if p in self.free and (pointwise or not self.free.only_once(p)):
            return True
        widens = g.template in ("attention", "window") and self.free.widens_bytes(p)
        if not (pointwise or widens) and p.op != "Cast":
            return self._refuse(p, reader, "prologue", f"{reader.op} reads its operands more than once")
        if not (pointwise or widens) and self._narrows_a_result(p):
            return self._refuse(p, reader, "prologue", "its operand's kernel stores the narrower result")
        if self._wanted_elsewhere(p, g) and not storable:
            return self._refuse(p, reader, "shared", f"{p.output.name} is needed by other kernels too")
        if reads * opdef(p.op).cost > MAX_RECOMPUTE:
            return self._refuse(p, reader, "recompute", f"would be computed {reads} times for each element")
        if self._operands_with(g, p) > max(MAX_OPERANDS, len(g.outside)):  # a sum of more may cast each of them
            return self._refuse(p, reader, "operands", f"more than {MAX_OPERANDS} operands in one kernel")
        if self._cycle_refusal(g, p) is not None or (storable and self._feeds_back(g, p)):
            return self._refuse(p, reader, "cycle", "needs this kernel's own result")
        return True

    def _leave(self, g: _Group, own: Collection[str]) -> None:
        """Leaves what ``g`` would compute too often to other kernels; ``own``: the nodes that it was opened for.

        How often is known only now: a node that was taken for one reader may have got others.
        """
        nodes = sorted(g.nodes.values(), key=lambda n: self.position[n.output.name])
        left = computed_too_often(nodes, own, self.free.__contains__)
        for n in nodes:
            for v in n.operands() if n.output.name not in left else ():
                p = self.producers.get(v.name)
                if p is not None and p.output.name in left:
                    self._refuse(p, n, *left[p.output.name])
        if left:
            self._remove(g, *left)

    def _narrows_a_result(self, cast: Node) -> bool:
        """True if a Cast to a smaller type follows pointwise work of another kernel, which can do it as it stores."""
        v = cast.operands()[0]
        made_by = self.producers.get(v.name)
        if made_by is None or opdef(made_by.op).kind is not Kind.POINTWISE or made_by in self.free:
            return False
        return cast.output.dtype.bits < v.dtype.bits

    def _feeds_back(self, g: _Group, p: Node) -> bool:
        """True if ``g`` needs, through other kernels, a value computed from ``p``: then ``g`` can't store ``p``."""
        self._add(g, p)
        self._own(g, p)
        found = self._reaches(list(self._group_inputs(g)), g)
        self._remove(g, p.output.name)
        return found

    def _wanted_elsewhere(self, p: Node, g: _Group) -> bool:
        """True if ``p`` is an output or read outside of ``g``, directly or through nodes that each kernel computes."""
        seen: set[str] = set()
        stack = [p.output.name]
        while stack:
            name = stack.pop()
            if name in self.outputs:
                return True
            seen.add(name)
            for c in self.consumers.get(name, ()):
                if c.output.name not in g.nodes:
                    return True
                if c.output.name not in seen and c in self.free and not self._only_stored(c, g):
                    stack.append(c.output.name)
        return False

    def _only_stored(self, view: Node, g: _Group) -> bool:
        """True if ``g`` stores the view and no other region computes it: its readers then don't read its operand."""
        name = view.output.name
        return self.owner.get(name) is g and all(m is g for m in self.members[name])

    def _refuse(self, producer: Node, consumer: Node, code: str, detail: str) -> bool:
        self.refusals.append(Refusal(producer.name, consumer.name, code, detail))
        return False

    def _beyond(self, producer: Node, consumer: Node) -> tuple[str, str] | None:
        """The refusal of a fusion beyond the limit. Others are counted."""
        if self.limit is None or self.limit.fusions is None:
            return None
        if len(self.joined) == self.limit.fusions:
            return ("limit", f"no more than {self.limit.fusions} fusions were asked for")
        self.joined.append((producer.name, consumer.name))
        return None

    # ----- the rest

    def _cover_rest(self) -> None:
        """Opens pointwise regions for the values that must be in memory and have no owner, from the last one on."""
        for node in reversed(self.graph.nodes):
            name = node.output.name
            if name in self.owner or not self._needed_in_memory(node):
                continue
            g = self._open(node, "pointwise")
            for v in node.operands():
                self._inline(g, v, node, pointwise=True, reads=fan_out(node))
            self._leave(g, {name})

    def _needed_in_memory(self, node: Node) -> bool:
        if any(o.name in self.outputs for o in node.outputs):
            return True
        name = node.output.name
        readers = (
            g for o in node.outputs for c in self.consumers.get(o.name, ()) for g in self.members.get(c.output.name, ())
        )
        return any(name not in g.nodes for g in readers)

    # ----- result

    def _regions(self) -> list[Region]:
        regions = []
        for g in self.groups:
            nodes = tuple(sorted(g.nodes.values(), key=lambda n: self.position[n.output.name]))
            made = {o.name: o for n in nodes for o in n.outputs}
            inputs = {v.name: v for n in nodes for v in n.operands() if v.name not in made}
            outs = [o for o in made.values() if self._is_stored(g, o)]
            label = (g.hero or nodes[-1]).output.name
            regions.append(Region(label, g.template, g.hero, nodes, tuple(inputs.values()), tuple(outs)))
        return regions

    def _is_stored(self, g: _Group, o: Value) -> bool:
        owner = self.owner.get(self.producers[o.name].output.name)
        if owner is not g:
            return False
        if o.name in self.outputs:
            return True
        readers = (r for c in self.consumers.get(o.name, ()) for r in self.members.get(c.output.name, ()))
        return any(r is not g for r in readers)


def fuse(graph: Graph, enabled: bool = True, limit: Limit | None = None) -> FusedGraph:
    """The regions of a graph of decomposed operators. Unless ``enabled``, each node is a region of its own.

    They are in no particular order: ``schedule`` sorts them.
    """
    # a hero that no output needs would be a kernel that stores nothing
    fused = Fuser(remove_dead(graph), limit).run(enabled)
    for r in fused.regions:
        log.debug("%s: %s of %s", r.name, r.template, ", ".join(n.op for n in r.nodes))
    for x in fused.refusals:
        log.debug("%s and %s are apart (%s): %s", x.producer, x.consumer, x.code, x.detail)
    return fused
