"""Turns an ONNX model into an IR graph: the entry points ``import_onnx`` and ``support_report``.

Shape arithmetic is evaluated while importing, so that shape tensors become attributes. All nodes that cannot be
imported are collected and reported in one error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx

from arcweld.compiler import dims, host_nodes
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError, UsageError
from arcweld.compiler.ir import Graph, TensorType, Value
from arcweld.compiler.onnx import old_models
from arcweld.compiler.onnx.deduce import Bounds, Requirement
from arcweld.compiler.onnx.host import passed_strings
from arcweld.compiler.onnx.operands import (
    Builder,
    Growing,
    Items,
    Nothing,
    Operand,
    Rows,
    Unavailable,
    on_device,
    on_host,
)
from arcweld.compiler.onnx.proto import ModelSource, Source, element_type, load_model, tensor_array
from arcweld.compiler.onnx.scope import Finding, Scope, normal_domain
from arcweld.compiler.onnx.signature import Declared, outputs_of
from arcweld.compiler.onnx.symbols import DimTable, Range, Shapes, bind_overrides, declared_dims, input_shape
from arcweld.compiler.onnx.visitor import Visitor, opset_versions
from arcweld.compiler.ops.host_strings import is_strings
from arcweld.compiler.options import LOOP_LIMIT
from arcweld.compiler.signature import Argument, stated
from arcweld.compiler.text import sanitize

log = logging.getLogger("arcweld.import")
_MAX_ROUNDS = 64


class Support(NamedTuple):
    """One node of a model, whether it can be imported, and if not, why and what may help."""

    node: str
    op: str
    supported: bool
    reason: str
    hint: str | None = None


@dataclass(slots=True)
class _Import:
    """One round of an import: what the user said of the model, ``bounds`` from earlier rounds, and the inputs found.

    ``scope`` holds the operands of the model's inputs by name.
    """

    model: onnx.ModelProto
    source: Source
    shapes: Shapes
    ranges: Mapping[str, Range]
    values: Mapping[str, Any]
    shared: Collection[str]
    bounds: Mapping[str, Bounds]
    loop_limit: int = LOOP_LIMIT
    scope: dict[str, Any] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    takes: tuple[Argument, ...] = ()

    def visitor(self) -> Visitor:
        """Reads inputs and initializers, then visits every node."""
        graph = self.model.graph
        if not graph.output:
            raise ModelError("the model has no outputs")
        opsets = opset_table(self.model)
        weights = self._initializers()
        self._read_inputs(weights)
        name = graph.name or "model"
        builder = Builder.start(name, self.inputs, self.source, self.shared, self.bounds, self.loop_limit)
        functions = {(normal_domain(f.domain), f.name): f for f in self.model.functions}
        visitor = Visitor(builder, functions)
        visitor.visit_all(graph.node, Scope(self.scope | weights, opsets), [o.name for o in graph.output])
        return visitor

    def _initializers(self) -> dict[str, Operand | Unavailable]:
        found: dict[str, Operand | Unavailable] = {}
        for tensor in self.model.graph.initializer:
            if tensor.name in found:
                raise ModelError(f"initializer {tensor.name!r} occurs twice")
            try:
                data, dtype = tensor_array(tensor, self.source)
                found[tensor.name] = Operand(dtype, data.shape, known=data, source=sanitize(tensor.name))
            except UnsupportedError as error:
                found[tensor.name] = Unavailable(f"initializer {tensor.name}", str(error.message))
        for sparse in self.model.graph.sparse_initializer:
            name = sparse.values.name
            found[name] = Unavailable(f"initializer {name}", "sparse tensors are not supported")
        return found

    def _read_inputs(self, weights: Mapping[str, Any]) -> None:
        given = [Declared.of(i) for i in self.model.graph.input if i.name not in weights]
        tensors = {d.name: d.items(self.shapes) for d in given if d.is_known and d.name not in self.values}
        infos = [i for listed in tensors.values() for i in listed]
        own = [d.name for d in given]
        names = own + [i.name for d in given if d.is_sequence for i in tensors.get(d.name, ())]
        if len(set(names)) != len(names):
            raise ModelError("two inputs of the model have the same name")
        unknown = sorted((set(self.shapes) - {i.name for i in infos}) | set(self.values) - set(own))
        if unknown:
            raise UsageError(f"the model has no input {unknown[0]!r}", hint=f"its inputs are {', '.join(sorted(own))}")
        params = {d.dim_param for i in infos for d in i.type.tensor_type.shape.dim if d.dim_param}
        table = DimTable(self.ranges, params, self.bounds)
        shapes = self._input_shapes(infos, table)
        taken: set[str] = set()
        arguments = [self._read_argument(d, tensors.get(d.name, ()), shapes, taken) for d in given]
        self.takes = stated([a for a in arguments if a is not None])
        table.check_ranges()

    def _read_argument(
        self, d: Declared, tensors: Sequence[onnx.ValueInfoProto],
        shapes: Mapping[str, tuple[Dim, ...] | None], taken: set[str],
    ) -> Argument | None:  # fmt: skip
        """Gives an input its operand; returns what a caller passes for it, None for a constant."""
        if d.name in self.values:
            self.scope[d.name] = self._constant(d, self.values[d.name])
            return None
        start = len(self.inputs)
        items = [self._read_input(i, shapes[i.name], taken) for i in tensors]
        refused = next((i for i in items if isinstance(i, Unavailable)), None)
        if not d.is_known:
            self.scope[d.name] = Unavailable(f"input {d.name}", "it is no tensor, and no sequence of tensors")
        elif not d.is_sequence or refused is not None:
            self.scope[d.name] = items[0] if refused is None else refused
        elif not items:
            how = f"give the shapes of its items, {d.name}.0 and so on, with --shapes (inputs= in Python)"
            why = f"how many tensors the sequence has is not known: {how}"
            self.scope[d.name] = Unavailable(f"input {d.name}", why)
        else:
            self.scope[d.name] = Items(i for i in items if isinstance(i, Operand))
        names = tuple(v.name for v in self.inputs[start:])
        if isinstance(self.scope[d.name], Unavailable):
            return None
        return Argument(sanitize(d.name), "sequence", names) if d.is_sequence else Argument(names[0], "tensor", names)

    def _constant(self, d: Declared, value: Any) -> Operand | Items | Nothing:
        """The operand of an input that is a constant. Raises UsageError where the value does not fit."""
        if not d.is_known:
            raise UsageError(f"input {d.name!r} is no tensor: it has no value")
        found = d.constants(value)
        if found is None:
            return Nothing()
        arrays = [constant_input(d.tensor(d.name), a) for a in found]
        items = [on_host(a, DType.STR if a.dtype == object else from_numpy(a.dtype)) for a in arrays]
        return Items(items) if d.is_sequence else items[0]

    def _input_shapes(self, infos: Sequence[onnx.ValueInfoProto], table: DimTable) -> dict[str, tuple[Dim, ...] | None]:
        # overridden inputs first: the value that the user gives a dim_param counts for the other inputs too
        shapes: dict[str, tuple[Dim, ...] | None] = {}
        for info in infos:
            bind_overrides(table, info.name, declared_dims(info) or (), self.shapes.get(info.name) or ())
        for info in sorted(infos, key=lambda i: i.name not in self.shapes):
            override = self.shapes.get(info.name)
            declared = declared_dims(info)
            if declared is None and override is not None:
                declared = (None,) * len(override)
            if declared is None:
                shapes[info.name] = None
            else:
                shapes[info.name] = input_shape(table, info.name, declared, override)
        return shapes

    def _read_input(
        self, info: onnx.ValueInfoProto, shape: tuple[Dim, ...] | None, taken: set[str]
    ) -> Operand | Unavailable:
        if shape is None:
            why = "its rank is not known: give its shape with --shapes (inputs= in Python)"
            return Unavailable(f"input {info.name}", why)
        try:
            dtype = element_type(info.type.tensor_type.elem_type)
        except UnsupportedError as error:
            return Unavailable(f"input {info.name}", error.message)
        value = Value(_unique(sanitize(info.name), taken), TensorType(dtype, shape))
        self.inputs.append(value)
        return on_device(value)

    def graph(self, visitor: Visitor) -> Graph:
        """The finished graph. An output that is an input, a weight or listed twice gets an Identity node of its own."""
        outputs: dict[str, Value] = {}
        latest: dict[str, Value] = {}  # name of an operand's value -> the value that stands for it in the graph
        names: dict[str, Value] = {}
        rw = visitor.builder.rw
        own = {v.name for v in self.inputs}
        listed, gives = outputs_of([o.name for o in self.model.graph.output], visitor.results)
        for label, found in listed:
            origin = (f"output {label}",)
            before = visitor.builder.device(found, origin, f"{sanitize(label)}.const")
            value = latest.get(before.name, before)
            if value.name in own or value.name in rw.weights or value.name in outputs:
                if value.dtype.is_string:
                    value = passed_strings(visitor.builder, value, origin)
                else:
                    value = rw.emit("Identity", (value,), value.type, origin=origin, name="identity")
            if value.name != sanitize(label):
                names[value.name] = new = visitor.named(value, label)
                value = latest[before.name] = new
            outputs[value.name] = value
        visitor.builder.rename(names)
        used = {v.name for v in host_nodes.values_read(rw.nodes)}
        weights = {k: w for k, w in rw.weights.items() if k in used}
        return rw.graph.replace(
            nodes=tuple(rw.nodes), outputs=tuple(outputs.values()), weights=weights,
            output_labels=tuple(label for label, _ in listed), takes=self.takes, gives=gives,
        )  # fmt: skip


def constant_input(info: onnx.ValueInfoProto, value: Any) -> np.ndarray:
    """``value`` as an array of the input's declared type and rank. Raises UsageError where it does not fit them."""
    dtype = element_type(info.type.tensor_type.elem_type)
    given = np.asarray(value)
    unfit = "Sbiufc" if dtype.is_string else "OSUc" if dtype.is_float else "OSUcf"
    if given.dtype.kind in unfit:
        raise UsageError(f"the value of input {info.name!r} is {given.dtype}, not {dtype.value}")
    data = given.astype(dtype.numpy)
    if dtype.is_string and not is_strings(data):
        raise UsageError(f"the value of input {info.name!r} holds objects that are no strings")
    if not dtype.is_float and not np.array_equal(data, given):
        raise UsageError(f"the value of input {info.name!r} does not fit in {dtype.value}")
    declared = declared_dims(info)
    if declared is None:
        return data
    if data.size == 1:
        data = data.reshape((1,) * len(declared))
    if len(declared) != data.ndim or any(isinstance(d, int) and d != n for d, n in zip(declared, data.shape)):
        wanted = ", ".join("?" if d is None else str(d) for d in declared)
        raise UsageError(f"the value of input {info.name!r} has the shape {list(data.shape)}, not [{wanted}]")
    return data


def input_names(model: ModelSource) -> list[str]:
    """The names of a model's inputs as the graph has them. Raises as ``import_onnx`` does for a damaged model."""
    try:
        proto, _ = load_model(model)
        weights, taken = {t.name for t in proto.graph.initializer}, set[str]()
        return [_unique(sanitize(i.name), taken) for i in proto.graph.input if i.name not in weights]
    except (UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the model is damaged: {error}") from error


def _unique(name: str, taken: set[str]) -> str:
    out, n = name, 1
    while out in taken:
        out, n = f"{name}.{n}", n + 1
    taken.add(out)
    return out


def opset_table(model: onnx.ModelProto) -> dict[str, int]:
    """The operator set versions that a model imports, by domain. Raises UnsupportedError for one too new."""
    table = opset_versions(model)
    version, newest = table.get("", old_models.OLDEST_OPSET), onnx.defs.onnx_opset_version()
    if version > newest:
        raise UnsupportedError(
            f"the model uses ONNX operator set {version}; the installed onnx package knows {newest}",
            hint="upgrade the onnx package",
        )
    return table


def import_onnx(
    model: ModelSource,
    *,
    shapes: Shapes | None = None,
    ranges: Mapping[str, Range] | None = None,
    values: Mapping[str, Any] | None = None,
    shared: Collection[str] = (),
    loop_limit: int = LOOP_LIMIT,
) -> Graph:
    """Imports an ONNX model.

    model   a path, the file's bytes, or a ModelProto; external data needs a path
    shapes  input name -> dimensions that replace the declared ones: ints, names, expressions such as "32*h", or Dims
    ranges  dim_param -> (lowest, highest or None, multiple_of), both inclusive; without one a dimension is at least 1
            for a sequence ``x``, those of its items: ``x.0``, ``x.1`` and so on, which say how many there are
    values  input name -> array or number: the input becomes a constant, for example a mode switch; a list of arrays for
            a sequence, None for an optional value that is empty
    shared  names of inputs whose memory an output takes over: operators that may append to a cache or write into it
            do the latter
    loop_limit  how often at most a loop runs whose end depends on data; a call that goes beyond it is refused

    Raises ModelError for a damaged or inconsistent model, UnsupportedError that lists every node that cannot be
    imported, UsageError for arguments that contradict the model.
    """
    run, visitor = _run(model, shapes or {}, ranges or {}, values or {}, shared, loop_limit)
    failed = [f for f in visitor.findings if f.reason]
    for info in run.model.graph.output:
        found = visitor.results.get(info.name)
        if isinstance(found, Unavailable) and found.reason:
            failed.append(Finding(info.name, "output", f"{found.node}: {found.reason}"))
        elif isinstance(found, Growing | Rows):
            failed.append(Finding(info.name, "output", "it is a sequence whose length depends on the data"))
    if failed:
        lines = "".join(f"\n  {f.op} [{f.node}]: {f.reason}" for f in failed)
        raise UnsupportedError(
            f"{len(failed)} node(s) of the model cannot be imported:{lines}",
            node=failed[0].node,
            hint=next((f.remedy.text(run.inputs) for f in failed if f.remedy), None),
        )
    return run.graph(visitor)


def support_report(
    model: ModelSource, *, shapes: Shapes | None = None, values: Mapping[str, Any] | None = None
) -> list[Support]:
    """Every node of the model in order, with whether it can be imported, and why not.

    A node that reads the result of an unsupported one counts as supported if its operator has a handler. Raises
    ModelError for a damaged or inconsistent model.
    """
    run, visitor = _run(model, shapes or {}, {}, values or {})
    return [
        Support(f.node, f.op, not f.reason, f.reason, f.remedy.text(run.inputs) if f.remedy else None)
        for f in visitor.findings
    ]


def _run(
    model: ModelSource,
    shapes: Shapes,
    ranges: Mapping[str, Range],
    values: Mapping[str, Any],
    shared: Collection[str] = (),
    loop_limit: int = LOOP_LIMIT,
) -> tuple[_Import, Visitor]:
    try:
        proto, source = old_models.load(model)
        return _import_in_rounds(proto, source, shapes, ranges, values, shared, loop_limit)
    except ArcweldError:
        raise
    except (UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the model is damaged: {error}") from error


def _import_in_rounds(
    proto: onnx.ModelProto,
    source: Source,
    shapes: Shapes,
    ranges: Mapping[str, Range],
    values: Mapping[str, Any],
    shared: Collection[str],
    loop_limit: int,
) -> tuple[_Import, Visitor]:
    """Imports the model again and again, until a round finds no requirement of its open dimensions.

    The requirements of a round narrow the ranges of symbols, or make them multiples, for the next one. Each round
    builds its graph from the start, so that all of it has the narrowed dimensions. Raises ModelError where the
    requirements of a round change nothing, and after ``_MAX_ROUNDS``.
    """
    bounds: dict[str, Bounds] = {}
    multiples: list[Requirement] = []
    for _ in range(_MAX_ROUNDS):
        run = _Import(proto, source, shapes, ranges, values, shared, bounds, loop_limit)
        visitor = run.visitor()
        found = visitor.builder.requirements
        if not found:
            for line in _left_out(run.inputs, multiples):
                log.warning("%s", line)
            return run, visitor
        multiples += [r for r in found if r.bounds.multiple > 1]
        before, bounds = bounds, dict(bounds)
        for r in found:
            bounds[r.symbol] = bounds.get(r.symbol, Bounds()).within(r.bounds)
        if bounds == before:
            break
    raise ModelError(f"{found[0]} does not settle the model's dimensions")


def _left_out(inputs: Sequence[Value], multiples: Sequence[Requirement]) -> Iterator[str]:
    """One line for each input axis that takes only multiples of a number, with the nodes that require it."""
    for v in inputs:
        for axis, d in enumerate(v.shape):
            for s in dims.free_symbols(d):
                nodes = [r.node for r in multiples if s.name.startswith(f"{r.symbol}_by{r.bounds.multiple}")]
                if nodes:
                    factor = dims.coefficient(d, s)
                    where = f"axis {axis} of input {v.name}: only multiples of {factor}"
                    yield f"{where}, so that the operands of {' and '.join(nodes)} agree"


__all__ = ["DType", "Support", "import_onnx", "input_names", "support_report"]
