"""Imports nodes that hold other nodes: If, Loop and Scan, functions.

Where the course is known, their nodes are imported in place: the branch that is taken, each turn of a short loop, a
function's body. Where it depends on data, the host decides at run time (``branches.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, NodeProto

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import branches
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.operands import (
    Form,
    Growing,
    Items,
    Operand,
    Rows,
    Unavailable,
    flattened,
    formed,
    on_device,
    on_host,
)
from arcweld.compiler.onnx.proto import DTYPES, Source, attribute_value, tensor_array
from arcweld.compiler.onnx.remedies import ImportRefusal, remedy_of
from arcweld.compiler.onnx.scope import BodyRefused, Scope, Walker
from arcweld.compiler.text import sanitize

MAX_DEPTH = 32
MAX_ITERATIONS = 256

Control = Callable[[Walker, NodeContext, Scope], Sequence[Any]]


def check_depth(scope: Scope, label: str) -> None:
    """Raises ModelError, which names the node ``label``, for nesting deeper than ``MAX_DEPTH``."""
    if scope.depth >= MAX_DEPTH:
        raise ModelError(f"functions and subgraphs nest more than {MAX_DEPTH} levels deep", node=label)


def graph_constants(visitor: Walker, graph: GraphProto) -> dict[str, Operand]:
    """The operands of a subgraph's initializers, by name."""
    found: dict[str, Operand] = {}
    for tensor in graph.initializer:
        data, dtype = tensor_array(tensor, visitor.builder.source)
        found[tensor.name] = Operand(dtype, data.shape, known=data, source=sanitize(tensor.name))
    return found


def run_graph(
    visitor: Walker,
    graph: GraphProto,
    scope: Scope,
    prefix: str,
    names: Mapping[str, Any],
    used: Set[str] | None = None,
) -> list[Operand]:
    """Imports a subgraph in place and returns its outputs; ``names`` are its formal inputs and its initializers.

    Raises BodyRefused where one of its nodes cannot be imported.
    """
    start = len(visitor.findings)
    outputs = [o.name for o in graph.output]
    results = visitor.visit_all(graph.node, scope.inside(dict(names), prefix), outputs, used)
    refused = [r.node for r in results if isinstance(r, Unavailable)]
    refused += [f.node for f in visitor.findings[start:] if f.reason]
    if refused:
        raise BodyRefused(f"{refused[0]} cannot be imported")
    return results


def import_if(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of the branch that is taken, or of both where the condition depends on data."""
    check_depth(scope, c.name)
    try:
        taken = bool(c.number(0))
    except UnsupportedError as error:
        found = len(visitor.findings)
        try:
            return branches.choose(visitor, c, _importing(visitor, scope))
        except ModelError as invalid:  # for these shapes: the branch may be for others
            del visitor.findings[found:]
            why = f"which branch runs is not known: {error.message}; and one of them is invalid here: {invalid.message}"
            raise ImportRefusal(why, remedy=remedy_of(error)) from invalid
    graph = c.graph_attr("then_branch" if taken else "else_branch")
    if len(graph.output) != len(c.outputs):
        c.broken(f"a branch has {len(graph.output)} outputs, the node {len(c.outputs)}")
    return run_graph(visitor, graph, scope, f"{c.name}/", graph_constants(visitor, graph))


def _importing(visitor: Walker, scope: Scope) -> branches.Import:
    """Imports a body's graph in the scope."""

    def run(graph: GraphProto, prefix: str, names: Mapping[str, Any]) -> list[Operand]:
        return run_graph(visitor, graph, scope, prefix, {**graph_constants(visitor, graph), **names})

    return run


def _attempt(visitor: Walker, first: Callable[[], Sequence[Any]], then: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """What ``first`` imports, or ``then`` where that is refused, of which nothing is left."""
    nodes, findings = len(visitor.builder.rw.nodes), len(visitor.findings)
    try:
        return first()
    except UnsupportedError as error:
        if visitor.builder.requirements or isinstance(error, BodyRefused):
            raise
        visitor.builder.drop(nodes)
        del visitor.findings[findings:]
        return then()


def import_loop(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of a Loop: unrolled where the host knows how often it runs, and that is not often."""
    check_depth(scope, c.name)
    body = c.graph_attr("body")
    carried = len(c.operands) - 2
    if len(body.input) != 2 + carried or not carried + 1 <= len(body.output) or len(c.outputs) > len(body.output) - 1:
        c.broken("the body's inputs and outputs do not match the node's")
    return _attempt(visitor, lambda: _unrolled_loop(visitor, c, scope), lambda: _repeated_loop(visitor, c, scope))


def _repeated_loop(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of a Loop that the host repeats.

    A sequence that is empty at first may get an item at each turn: that is a scanned output.
    """
    body, importing = c.graph_attr("body"), _importing(visitor, scope)
    trips, condition = (c.operands[k] if c.has(k) else None for k in (0, 1))
    known = None if trips is None or trips.known is None or trips.is_symbolic else c.integer(0)
    if condition is not None and condition.known is not None:
        if not bool(c.number(1)):
            known = 0
        condition = None
    first, form = flattened([c.present(k) for k in range(2, len(c.operands))])
    growing: set[int] = set()
    loop = branches.Loop(
        c.value(0) if trips is not None and known is None else None, known,
        c.value(1) if condition is not None else None,
        [c.builder.device(o, c.origin, f"{c.hint}.first") for o in first], known,
    )  # fmt: skip

    def turn(counter: Value, going: Value, carried: Sequence[Value]) -> Sequence[Operand]:
        inside: list[Any] = list(formed(map(on_device, carried), form))
        inside = [Growing() if n == 0 else o for o, n in zip(inside, form)]
        names = {i.name: o for i, o in zip(body.input, [on_device(counter), on_device(going), *inside])}
        results, added = _appended(importing(body, f"{c.name}/", names), form)
        growing.clear()
        growing.update(added)
        tensors, found = flattened(branches.settled(c, results))
        plain = found == (None, *form, *(None for _ in results[1 + len(form) :]))
        if not plain or any(len(items) != 1 for items in added.values()):
            c.unsupported("a turn changes the length of a sequence, and how often the loop runs depends on the data")
        return [*tensors, *(items[0] for items in added.values())]

    values = branches.repeat(c, loop, turn)
    whole = len(values) - len(growing)
    done: list[Any] = formed(map(on_device, values[:whole]), (*form, *(None for _ in values[len(first) : whole])))
    for k, v in zip(sorted(growing), values[whole:]):
        done[k] = Rows(v)
    return done


def _appended(given: Sequence[Any], form: Form) -> tuple[list[Any], dict[int, tuple[Operand, ...]]]:
    """A turn's results with lists that grow left empty, and what it has appended to those, by their place."""
    results, added = list(given), {}
    for k, n in enumerate(form):
        grown = results[1 + k]
        if n == 0 and isinstance(grown, Growing):
            results[1 + k] = Items()
            if grown.items:
                added[k] = grown.items
    return results, added


def _unrolled_loop(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of a Loop, unrolled. Raises UnsupportedError where the host does not know how often it runs."""
    body = c.graph_attr("body")
    trips = MAX_ITERATIONS + 1 if not c.has(0) else c.integer(0)
    going = bool(c.number(1)) if c.has(1) else True
    carried: list[Any] = [c.present(i) for i in range(2, len(c.operands))]
    scans = len(body.output) - 1 - len(carried)
    columns: list[list[Operand]] = [[] for _ in range(scans)]
    constants, used = graph_constants(visitor, body), visitor.names_used(body)
    done = 0
    while going and done < trips:
        if done >= MAX_ITERATIONS:
            length = f"{trips}" if c.has(0) else f"more than {MAX_ITERATIONS}"
            c.unsupported(f"a loop of {length} iterations (at most {MAX_ITERATIONS} are unrolled)")
        formal = [on_host(done, DType.I64), on_host(going, DType.BOOL), *carried]
        names = constants | {i.name: o for i, o in zip(body.input, formal)}
        results = run_graph(visitor, body, scope, f"{c.name}/{done}/", names, used)
        if not isinstance(results[0], Operand):
            c.broken("the body's condition is a sequence")
        if results[0].known is None or results[0].is_symbolic:
            c.unsupported("how often the loop runs depends on the data")
        going = bool(results[0].known.reshape(-1)[0])
        carried = results[1 : 1 + len(carried)]
        for column, item in zip(columns, results[1 + len(carried) :]):
            column.append(item)
        done += 1
    if scans and not done:
        c.unsupported("a loop that never runs")
    return [*carried, *(_stack(c, column, 0) for column in columns)]


@dataclass(frozen=True, slots=True)
class _Scan:
    """A Scan's body, and for each scanned input and output its axis and whether it runs from the end."""

    body: GraphProto
    in_axes: Sequence[int]
    in_back: Sequence[int]
    out_axes: Sequence[int]
    out_back: Sequence[int]


def import_scan(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of a Scan: unrolled where it is short, of a length that is known."""
    body = c.graph_attr("body")
    check_depth(scope, c.name)
    count, batched = c.int_attr("num_scan_inputs"), c.opset < 9
    if batched and c.has(0):
        c.unsupported("Scan with the lengths of sequences")
    operands = range(int(batched), len(c.operands))  # before operator set 9 the lengths come first
    states = len(operands) - count
    outputs = len(body.output) - states
    if not 0 < count <= len(operands) or len(body.input) != len(operands) or outputs < 0:
        c.broken("the body's inputs and outputs do not match the node's")
    carried: list[Any] = [c.operand(i) for i in operands[:states]]
    values = [c.value(i) for i in operands[states:]]
    in_back = c.ints_attr("directions" if batched else "scan_input_directions") or (0,) * count
    out_axes = c.ints_attr("scan_output_axes") or (0,) * outputs
    out_back = c.ints_attr("scan_output_directions") or (0,) * outputs
    given = c.ints_attr("scan_input_axes") or (0,) * count
    if not len(given) == len(in_back) == count or not len(out_axes) == len(out_back) == outputs:
        c.broken("the axes and directions do not match the scanned inputs and outputs")
    if batched:
        return _batched(visitor, c, scope, _Scan(body, given, in_back, out_axes, out_back), carried, values)
    in_axes = [c.axis(a, v.type.rank) for a, v in zip(given, values)]
    scan = _Scan(body, in_axes, in_back, out_axes, out_back)
    return _attempt(
        visitor, lambda: _unrolled(visitor, c, scope, scan, carried, values, c.name),
        lambda: _repeated_scan(visitor, c, scope, scan, carried, values),
    )  # fmt: skip


def _repeated_scan(
    visitor: Walker, c: NodeContext, scope: Scope, scan: _Scan, carried: Sequence[Operand], values: Sequence[Value]
) -> list[Operand]:
    """The results of a Scan that the host repeats: each turn takes its items out of the scanned inputs."""
    importing, length = _importing(visitor, scope), values[0].shape[scan.in_axes[0]]
    states = [c.builder.device(o, c.origin, f"{c.hint}.state") for o in carried]
    most = length if isinstance(length, int) else None
    loop = branches.Loop(None if most is not None else c.dim_value(length), most, None, states, length)

    def turn(counter: Value, going: Value, state: Sequence[Value]) -> list[Operand]:
        items = []
        for v, axis, back in zip(values, scan.in_axes, scan.in_back):
            place = c.emit("Sub", c.dim_value(length - 1), counter) if back else counter
            items.append(c.emit("Gather", v, place, axis=axis))
        names = {i.name: on_device(v) for i, v in zip(scan.body.input, [*state, *items])}
        return [on_host(True, DType.BOOL), *importing(scan.body, f"{c.name}/", names)]

    found = branches.repeat(c, loop, turn)
    stacked = []
    for v, axis, back in zip(found[len(states) :], scan.out_axes, scan.out_back):
        if back:
            last = v.shape[0] - 1
            order = c.emit("Range", start=last, step=-1, length=v.shape[0], dtype=DType.I64)
            v = c.emit("Gather", v, order, axis=0)
        at = c.axis(axis, v.type.rank)
        stacked.append(c.transpose(v, [*range(1, at + 1), 0, *range(at + 1, v.type.rank)]))
    return [on_device(v) for v in (*found[: len(states)], *stacked)]


def _batched(
    visitor: Walker, c: NodeContext, scope: Scope, scan: _Scan, carried: Sequence[Operand], values: Sequence[Value]
) -> list[Any]:
    """The results of a Scan before operator set 9: of each element of a batch by itself."""
    if any(not o.shape for o in carried) or any(len(v.shape) < 2 for v in values):
        c.broken("a state has no batch, or a scanned input no steps")
    batch = c.concrete(values[0].shape[0], "the batch of the scan")
    if not 1 <= batch <= MAX_ITERATIONS:
        c.unsupported(f"a scan of {batch} batches (1 to {MAX_ITERATIONS} are unrolled)")
    states = [c.builder.device(o, c.origin, f"{c.hint}.state") for o in carried]
    found: list[list[Operand]] = []
    for b in range(batch):
        own = [c.reshape(c.slice(v, 0, b, 1), v.shape[1:]) for v in [*states, *values]]
        first = [on_device(v) for v in own[: len(states)]]
        found.append(_unrolled(visitor, c, scope, scan, first, own[len(states) :], f"{c.name}/{b}"))
    return [_stack(c, column, 0) for column in zip(*found)]


def _unrolled(
    visitor: Walker, c: NodeContext, scope: Scope, scan: _Scan, carried: Sequence[Any], values: Sequence[Value],
    name: str,
) -> list[Any]:  # fmt: skip
    """The last states and the scanned outputs; ``name`` is what the names of steps begin with."""
    body, states = scan.body, len(carried)
    length = c.concrete(values[0].shape[scan.in_axes[0]], "the length of the scan")
    if not 1 <= length <= MAX_ITERATIONS:
        c.unsupported(f"a scan over {length} steps (1 to {MAX_ITERATIONS} are unrolled)")
    visitor.reserve(body.node, scope.depth + 1, length)
    constants, used = graph_constants(visitor, body), visitor.names_used(body)
    columns: list[list[Operand]] = [[] for _ in scan.out_axes]
    for t in range(length):
        slices = []
        for v, axis, back in zip(values, scan.in_axes, scan.in_back):
            part = c.slice(v, axis, length - 1 - t if back else t, 1)
            slices.append(on_device(c.reshape(part, v.shape[:axis] + v.shape[axis + 1 :])))
        names = constants | {i.name: o for i, o in zip(body.input, [*carried, *slices])}
        results = run_graph(visitor, body, scope, f"{name}/{t}/", names, used)
        carried = results[:states]
        for column, item in zip(columns, results[states:]):
            column.append(item)
    turned = [column[::-1] if back else column for column, back in zip(columns, scan.out_back)]
    return [*carried, *(_stack(c, column, axis) for column, axis in zip(turned, scan.out_axes))]


def _stack(c: NodeContext, items: Sequence[Operand], axis: int) -> Operand:
    """``items``, which have equal shapes, joined along a new axis."""
    if not all(isinstance(i, Operand) for i in items):
        c.broken("a scanned output is a sequence")
    rank = items[0].rank + 1
    at = c.axis(axis, rank)
    values = [c.builder.device(i, c.origin, f"{c.hint}.item") for i in items]
    wide = [c.reshape(v, (*v.shape[:at], 1, *v.shape[at:])) for v in values]
    return on_device(c.concat(wide, at))


def import_map(visitor: Walker, c: NodeContext, scope: Scope) -> Sequence[Any]:
    """The results of a SequenceMap: its body for each item of the sequences; tensors are the same for all items."""
    check_depth(scope, c.name)
    body, given = c.graph_attr("body"), [c.present(i) for i in range(len(c.operands))]
    lengths = {len(o) for o in given if isinstance(o, Items)}
    if not given or not isinstance(given[0], Items) or len(lengths) != 1:
        c.broken(f"it maps sequences of {sorted(lengths)} items")
    if len(body.input) != len(given) or len(body.output) != len(c.outputs):
        c.broken("the body's inputs and outputs do not match the node's")
    visitor.reserve(body.node, scope.depth + 1, len(given[0]))
    constants, used = graph_constants(visitor, body), visitor.names_used(body)
    rows = []
    for k in range(len(given[0])):
        names = constants | {i.name: o[k] if isinstance(o, Items) else o for i, o in zip(body.input, given)}
        rows.append(run_graph(visitor, body, scope, f"{c.name}/{k}/", names, used))
        if not all(isinstance(r, Operand) for r in rows[-1]):
            c.broken("the body gives a sequence")
    return [Items(row[k] for row in rows) for k in range(len(body.output))]


CONTROL: dict[str, Control] = {
    "If": import_if, "Loop": import_loop, "Scan": import_scan, "SequenceMap": import_map,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- functions


def call_function(
    visitor: Walker, fn: FunctionProto, c: NodeContext, scope: Scope, opsets: Mapping[str, int]
) -> Sequence[Any]:
    """The results of a call of a function, whose body is imported in place with operator sets ``opsets``."""
    check_depth(scope, c.name)
    if len(c.operands) > len(fn.input) or len(c.outputs) > len(fn.output):
        c.broken(f"the function takes {len(fn.input)} inputs and gives {len(fn.output)} outputs")
    visitor.reserve(fn.node, scope.depth + 1)
    names = {n: o for n, o in zip(fn.input, c.operands) if o is not None}
    given = {a.name: attribute_value(a, visitor.builder.source) for a in fn.attribute_proto} | dict(c.attrs)
    inner = scope.function(names, opsets, f"{c.name}/", given)
    return visitor.visit_all(fn.node, inner, list(fn.output)[: len(c.outputs)])


def standard_function(
    node: NodeProto, c: NodeContext, domain: str = ""
) -> tuple[FunctionProto, dict[str, Any]] | None:
    """An operator's function body in the ONNX standard, and its default attributes; None for one without a body."""
    try:
        schema = onnx.defs.get_schema(c.op, c.opset, domain)
    except onnx.defs.SchemaError:
        return None
    defaults = {
        a.name: attribute_value(a.default_value, Source())
        for a in schema.attributes.values()
        if a.default_value is not None and a.default_value.name
    }
    versions = [v for v in schema.function_opset_versions if v <= c.opset]
    if versions:
        return FunctionProto.FromString(schema.get_function_with_opset_version(max(versions))), defaults
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= c.opset]
    if not versions:
        return None
    codes = {v: k for k, v in DTYPES.items()}
    types = [_type_bytes(codes, o) for o in c.operands]
    plain = _resolved(node, c.attrs).SerializeToString()
    body = schema.get_context_dependent_function_with_opset_version(max(versions), plain, types)
    return (FunctionProto.FromString(body), defaults) if body else None


def has_body(op: str) -> bool:
    """Whether the ONNX standard defines an operator by a body of others."""
    if not onnx.defs.has(op):
        return False
    schema = onnx.defs.get_schema(op)
    return bool(schema.has_function or schema.has_context_dependent_function)


def takes_types(c: NodeContext, domain: str) -> bool:
    """Whether the ONNX standard lets the node's operator have operands of these element types."""
    try:
        schema = onnx.defs.get_schema(c.op, c.opset, domain)
    except onnx.defs.SchemaError:
        return False
    codes = {v: k for k, v in DTYPES.items()}
    names = [None if o is None else onnx.TensorProto.DataType.Name(codes[o.dtype]).lower() for o in c.operands]
    variadic = list(schema.inputs) + [schema.inputs[-1]] * len(names) if schema.inputs else []
    return all(n is None or f"tensor({n})" in i.types for n, i in zip(names, variadic))


def _resolved(node: NodeProto, attrs: Mapping[str, Any]) -> NodeProto:
    """The node with attributes that refer to an enclosing function's replaced by their values."""
    out = NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for attr in node.attribute:
        if not attr.ref_attr_name:
            out.attribute.append(attr)
        elif isinstance(attrs.get(attr.name), int | float | str | tuple):
            out.attribute.append(onnx.helper.make_attribute(attr.name, attrs[attr.name]))
    return out


def _type_bytes(codes: Mapping[DType, int], operand: Operand | None) -> bytes:
    if operand is None:
        return bytes(onnx.TypeProto().SerializeToString())
    shape = [d if isinstance(d, int) else None for d in operand.shape]
    return bytes(onnx.helper.make_tensor_type_proto(codes[operand.dtype], shape).SerializeToString())
