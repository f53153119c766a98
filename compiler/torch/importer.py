"""Imports PyTorch programs: an exported program, an FX graph of ATen operators, or a module that is exported first.

The graphs have the same operators as those of the ONNX importer. Parameters and buffers become weights that share
torch's memory.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.compiler.ir import Graph, TensorType, Value, Weight
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.text import sanitize
from arcweld.compiler.torch.context import Pair
from arcweld.compiler.torch.equalities import Offset, learn
from arcweld.compiler.torch.fx_reader import FxReader, Unavailable, target_name, written_input
from arcweld.compiler.torch.strided import rewrite_strided
from arcweld.compiler.torch.table import handled, more_decompositions, registered
from arcweld.compiler.torch.types import Sizes, as_array, value_range
from arcweld.compiler.torch.whole_layers import WholeLayers, has_projections

log = logging.getLogger("arcweld.torch")
Weights: TypeAlias = "Callable[[Emitter, str], Value | None]"


def import_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    weights: Weights | None = None,
) -> Graph:
    """A module as a graph, traced by ``torch.export`` with example arguments.

    ``dynamic_shapes`` is torch.export's argument of that name; its ``Dim`` names become the symbols' names.
    ``weights`` is that of ``import_exported``. Raises UsageError for layers in training mode, ModelError if torch
    cannot export it, UnsupportedError for operators that Arcweld lacks.
    """
    _refuse_training(module)
    try:
        with torch.no_grad(), WholeLayers():
            program = torch.export.export(
                module, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # torch raises many unrelated types here
        raise ModelError(
            f"torch.export refused {type(module).__name__}: {type(error).__name__}: {str(error).strip()}",
            hint='torch.compile(model, backend="arcweld") needs no export; a file of torch.onnx.export is compiled too',
        ) from error
    names = _symbol_names(module, program, (tuple(args), dict(kwargs or {})), dynamic_shapes)
    return import_exported(program, name=type(module).__name__, symbol_names=names, weights=weights)


def import_exported(
    program: torch.export.ExportedProgram, *, name: str = "module", symbol_names: Mapping[str, str] | None = None,
    weights: Weights | None = None,
) -> Graph:  # fmt: skip
    """An exported program as a graph; its inputs and outputs are the tensors among the program's, in order.

    What it writes to its inputs and buffers is state: further outputs take over the memory of inputs. A buffer that is
    written is an input with a first value. Sizes that an operator requires to be equal, and that torch holds for
    different ones, are made equal, and the program is read again. ``weights`` may give the value of a parameter by its
    name, None for one that it does not know. Raises UnsupportedError, listing every operator that Arcweld lacks.
    """
    program = _decomposed(program)
    rewrite_strided(program.graph)
    ranges = {str(s): value_range(r) for s, r in program.range_constraints.items()}
    same: dict[str, Offset] = {}
    while True:
        reader = FxReader(name, Sizes(ranges, symbol_names, same))
        outputs = _read_exported(reader, program, weights)
        learnt = learn((p.unequal for p in reader.problems if p.unequal is not None), reader.sizes.torch_names)
        if not learnt:
            break
        for symbol, (base, by) in learnt.items():
            log.info("%s: the size %s is %s, as its operators require", name, symbol, f"{base} + {by}" if by else base)
        same |= learnt
    reader.raise_problems()
    written = _state_names(program)
    returned = outputs[len(written) :]
    labels = _output_labels(program, len(returned))
    pairs = [(reader.argument(o), label) for o, label in zip(returned, labels) if isinstance(o, fx.Node)]
    tensors = [(v, label) for v, label in pairs if isinstance(v, Value | Pair)]
    tensors += [(reader.argument(o), f"{name}_out") for o, name in zip(outputs, written)]
    graph = reader.graph([reader.joined(v) for v, _ in tensors], [label for _, label in tensors])
    aliases = dict(zip(graph.labels()[len(tensors) - len(written) :], written))
    initial = _first_values(program)
    inputs = sorted(graph.inputs, key=lambda v: v.name in initial)  # the module's own come last
    return graph.replace(inputs=tuple(inputs), aliases=aliases, initial=initial)


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in the operators that have handlers. Raises ModelError if torch cannot decompose it."""
    try:
        return program.run_decompositions(kept_composites(_projected(program)))
    except AssertionError as error:  # constants that it writes to
        raise ModelError(
            f"torch cannot decompose the exported program: {error}",
            hint="make tensors that the module writes its buffers (register_buffer), or export with strict=True",
        ) from error


def _read_exported(
    reader: FxReader, program: torch.export.ExportedProgram, weights: Weights | None
) -> Sequence[Any]:
    """Reads all nodes of an exported program; returns its outputs. Nodes that are refused are the reader's problems."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    outputs: Sequence[Any] = ()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            reader.env[node] = _exported_placeholder(reader, program, node, specs[node.name], weights)
        elif node.op == "output":
            outputs = node.args[0]
        else:
            reader.read(node)
    return outputs


def import_fx(
    module: fx.GraphModule,
    example_inputs: Sequence[Any] | None = None,
    *,
    name: str = "fx",
    weights: Mapping[str, torch.Tensor] | None = None,
    input_orders: Mapping[str, Sequence[int]] | None = None,
    output_orders: Mapping[int, Sequence[int]] | None = None,
    carried: Sequence[str] | None = None,
) -> Graph:
    """A graph module of ATen operators as a graph.

    Placeholders that it writes by ``copy_`` are state: their new values are further outputs, before the module's own.

    example_inputs  inputs from which types are propagated where nodes have no fake tensors in ``meta["val"]``
    weights         placeholder -> tensor: it becomes a constant
    input_orders    placeholder -> permutation: with (0, 2, 3, 1) the graph's input is ``x.permute(0, 2, 3, 1)``; the
                    parts of a complex tensor are a last axis behind these
    output_orders   index of an output -> permutation, in which it is returned
    carried         placeholders that are sizes and do not follow from the shapes of tensors: they become the shape of
                    an additional last input without elements; None: there is no such input
    """
    if example_inputs is not None and any("val" not in n.meta for n in module.graph.nodes if n.op == "placeholder"):
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        FakeTensorProp(module).propagate(*example_inputs)
    reader = FxReader(name, Sizes())
    outputs: Sequence[Any] = ()
    names: dict[str, str] = {}  # of the graph's inputs, by placeholder
    written: dict[str, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            before = len(reader.inputs)
            reader.env[node] = _fx_placeholder(reader, node, weights or {}, input_orders or {})
            names.update((node.name, v.name) for v in reader.inputs[before:])
        elif node.op == "output":
            outputs = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
        else:
            reader.read(node)
            target = written_input(node)
            if target is not None:
                written[target.name] = node
    reader.raise_problems()
    if carried is not None:
        sizes = [reader.env[n] for n in module.graph.nodes if n.name in set(carried)]
        reader.input("sizes", TensorType(DType.U8, (*sizes, 0)))
    results = [reader.argument(o) for o in outputs if isinstance(o, fx.Node)]
    tensors = [_ordered(reader, reader.env[n], (input_orders or {}).get(state)) for state, n in written.items()]
    tensors += [_ordered(reader, v, (output_orders or {}).get(k)) for k, v in enumerate(results)]
    graph = reader.graph(tensors)
    return graph.replace(aliases={o: names[state] for o, state in zip(graph.labels(), written)})


def _projected(program: torch.export.ExportedProgram) -> frozenset[str]:
    """The LSTM, if one of the program's projects its hidden states, which its handler doesn't take."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == "aten.lstm.input":
            _, _, params, has_biases, layers, _, _, bidirectional, _ = node.args
            if has_projections(len(params), has_biases, layers, bidirectional):
                return frozenset({"aten.lstm.input"})
    return frozenset()


def kept_composites(but: frozenset[str] = frozenset()) -> dict[Any, Any]:
    """Torch's decompositions to core ATen, except those of operators that have a handler, ``but`` aside."""
    return dict(_decompositions_but(handled() - but, registered()))


@lru_cache(maxsize=2)
def _decompositions_but(keep: frozenset[str], operators: int) -> dict[Any, Any]:
    """Torch's decompositions and ours without those of ``keep``, while ``operators`` are registered."""
    table = torch.export.default_decompositions()
    return {op: fn for op, fn in table.items() if str(op) not in keep} | more_decompositions()


# -------------------------------------------------------------------------------------------------- placeholders


def _exported_placeholder(
    reader: FxReader, program: Any, node: fx.Node, spec: Any, weights: Weights | None
) -> Any:
    kind = spec.kind.name
    if kind == "BUFFER" and spec.target in program.graph_signature.buffers_to_mutate.values():
        return reader.tensor_input(sanitize(spec.target), node.meta["val"])
    if kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
        given = None if weights is None else weights(Emitter(reader.rw, (spec.target,)), spec.target)
        return reader.weight(spec.target, _stored(program, spec.target)) if given is None else given
    value = node.meta.get("val")
    if kind != "USER_INPUT":
        return Unavailable(f"an argument of kind {kind.lower()}")
    if isinstance(value, torch.Tensor):
        return reader.tensor_input(node.name, value)
    if isinstance(value, torch.SymInt):
        return reader.sizes.dim(value)
    return value


def _stored(program: Any, name: str) -> torch.Tensor:
    """A parameter, buffer or constant of an exported program."""
    found = program.state_dict.get(name, program.constants.get(name))
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"the exported program has no tensor {name}")
    return found


def _fx_placeholder(
    reader: FxReader, node: fx.Node, weights: Mapping[str, torch.Tensor], orders: Mapping[str, Sequence[int]]
) -> Any:
    if node.name in weights:
        return reader.weight(node.name, weights[node.name])
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return reader.sizes.dim(value) if isinstance(value, int | torch.SymInt) else value
    return reader.tensor_input(node.name, value, orders.get(node.name))


def _ordered(reader: FxReader, v: Any, order: Sequence[int] | None) -> Value:
    if not isinstance(v, Value | Pair):
        raise UnsupportedError("an output that is not a tensor")
    found: Value = reader.joined(v if order is None else reader.ordered(v, order))
    return found


# ------------------------------------------------------------------------------------------ signatures and names


def _refuse_training(module: torch.nn.Module) -> None:
    """Raises UsageError for dropout and batch normalisation in training mode, where they compute something else."""
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.dropout import _DropoutNd

    for name, m in _submodules(module):
        if m.training and (isinstance(m, _NormBase) or (isinstance(m, _DropoutNd) and m.p > 0)):
            raise UsageError(
                f"the layer {name or type(m).__name__} is in training mode", hint="call module.eval() first"
            )


def _state_names(program: Any) -> list[str]:
    """The inputs of the graph whose new values are the program's first outputs, in order."""
    kinds = ("BUFFER_MUTATION", "USER_INPUT_MUTATION")
    written = [s for s in program.graph_signature.output_specs if s.kind.name in kinds]
    return [sanitize(s.target) if s.kind.name == "BUFFER_MUTATION" else s.target for s in written]


def _first_values(program: Any) -> dict[str, Weight]:
    """What the buffers that the program writes hold now: copies, because the module may write to them as well."""
    names = program.graph_signature.buffers_to_mutate.values()
    arrays = {n: as_array(_stored(program, n)) for n in names}
    zeros = {n: np.broadcast_to(np.zeros((), a.dtype), a.shape) for n, a in arrays.items() if not np.any(a)}
    return {sanitize(n): Weight(zeros[n] if n in zeros else a.copy(), source=n) for n, a in arrays.items()}


def _submodules(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Like ``named_modules``, but without recursion: thousands of nested modules are for torch.export to refuse."""
    waiting = [("", module)]
    seen = {module}
    while waiting:
        path, m = waiting.pop()
        yield path, m
        inner = [(f"{path}.{name}" if path else name, c) for name, c in m.named_children() if c not in seen]
        seen.update(c for _, c in inner)
        waiting += reversed(inner)


def _output_labels(program: Any, count: int) -> list[str]:
    """Names for the outputs: the keys of a dict or dataclass result, else ``output``, or ``output_0`` and so on."""
    plain = ["output"] if count == 1 else [f"output_{k}" for k in range(count)]
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != count:
        return plain
    tree = pytree.tree_unflatten(list(range(count)), spec)
    labels = list(plain)
    for path, position in pytree.tree_flatten_with_path(tree)[0]:
        keys = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
        if keys and all(keys):
            labels[position] = ".".join(keys)
        elif keys and keys[0]:
            labels[position] = ".".join(str(getattr(k, "key", getattr(k, "idx", ""))) for k in path)
    return labels if len(set(labels)) == count else plain


def _symbol_names(module: torch.nn.Module, program: Any, given: tuple[Any, Any], dynamic_shapes: Any) -> dict[str, str]:
    """Torch's symbol (``s77``) -> the name of the user's ``Dim`` object. ``given`` are the arguments of the export."""
    if dynamic_shapes is None:
        return {}
    parameters = list(inspect.signature(module.forward).parameters)
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(parameters, dynamic_shapes))
    kinds = {s.arg.name: s.kind.name for s in program.graph_signature.input_specs}
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and kinds[n.name] == "USER_INPUT"]
    names: dict[str, str] = {}
    for node, (path, _) in zip(inputs, pytree.tree_flatten_with_path(given)[0]):
        spec = _spec_at(dynamic_shapes, path, parameters)
        entries = spec.items() if isinstance(spec, Mapping) else enumerate(spec if isinstance(spec, Sequence) else ())
        for axis, dim in entries:
            label = getattr(getattr(dim, "root", dim), "__name__", None)  # the root of a derived 2*batch is batch
            size = node.meta["val"].shape[axis] if isinstance(node.meta.get("val"), torch.Tensor) else None
            free = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else ()
            if label is not None and len(free) == 1 and label not in names.values():
                names[str(next(iter(free)))] = label
    return names


def _spec_at(spec: Any, path: Sequence[Any], parameters: Sequence[str]) -> Any:
    """The part of ``dynamic_shapes``, by parameter, for the argument at a path; None where it says nothing of it."""
    _, first, *rest = (getattr(k, "idx", getattr(k, "key", getattr(k, "name", None))) for k in path)
    if isinstance(first, int):
        first = parameters[first] if first < len(parameters) else None  # further ones are those of *args
    spec = spec.get(first)
    for key in rest:
        if isinstance(spec, Mapping):
            spec = spec.get(key)
        elif isinstance(spec, Sequence) and isinstance(key, int) and key < len(spec):
            spec = spec[key]
        else:
            spec = getattr(spec, str(key), None)
    return spec


__all__ = ["import_exported", "import_fx", "import_module", "kept_composites", "target_name"]
