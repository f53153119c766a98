"""Takes a part of an ONNX model out of it: the nodes between some of its tensors, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from arcweld.compiler.dims import IntExpr, evaluate, free_symbols
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Value
from arcweld.compiler.text import sanitize


def tensor_names(model: onnx.ModelProto) -> dict[str, str]:
    """The names of the model's own tensors, without those of branches and bodies, by the names that values get."""
    graph = model.graph
    names = [v.name for v in graph.input] + [n for node in graph.node for n in node.output if n]
    return {sanitize(n): n for n in names}


def extract(
    model: onnx.ModelProto, inputs: Sequence[Value], outputs: Sequence[Value], sizes: Mapping[str, int],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:  # fmt: skip
    """The model of the nodes that make ``outputs`` from ``inputs``, both called as ``tensor_names`` has them.

    An open dimension keeps its name if it is a symbol; an expression becomes its value for ``sizes``. ``constants``
    gives inputs of the model that are not among ``inputs``, by the model's names. Raises ModelError for a tensor that
    the model does not have, or that nothing makes.
    """
    names = tensor_names(model)
    if unknown := [v.name for v in (*inputs, *outputs) if v.name not in names]:
        raise ModelError(f"the model has no tensor {unknown[0]}")
    nodes, read = _between(model.graph, {names[v.name] for v in inputs}, [names[v.name] for v in outputs])
    initializers = [t for t in model.graph.initializer if t.name in read]
    initializers += [numpy_helper.from_array(a, n) for n, a in constants.items() if n in read]
    known = {t.name for t in initializers} | {names[v.name] for v in inputs} | {o for n in nodes for o in n.output}
    if missing := sorted(n for n in read if n not in known):
        raise ModelError(f"nothing makes the tensor {missing[0]}")
    graph = helper.make_graph(
        nodes, model.graph.name or "reduced", [_info(names[v.name], v, sizes) for v in inputs],
        [_info(names[v.name], v, sizes) for v in outputs], initializers,
    )  # fmt: skip
    found = helper.make_model(graph, opset_imports=list(model.opset_import), functions=list(model.functions))
    found.ir_version = model.ir_version
    return found


def _between(
    graph: onnx.GraphProto, inputs: set[str], outputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that make ``outputs``, in the model's order, and all tensors of the model that they read."""
    makes = {o: k for k, node in enumerate(graph.node) for o in node.output if o}
    chosen, read = set[int](), set[str]()
    wanted = [n for n in outputs if n not in inputs]
    while wanted:
        at = makes.get(wanted.pop())
        if at is None or at in chosen:
            continue
        chosen.add(at)
        new = set(_reads(graph.node[at])) - read
        read |= new
        wanted += new - inputs
    return [graph.node[k] for k in sorted(chosen)], read


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, its branches and bodies too, which may read what is outside of them."""
    yield from (n for n in node.input if n)
    for a in node.attribute:
        for body in [a.g, *a.graphs] if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else ():
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {o for n in body.node for o in n.output}
            yield from (n for inner in body.node for n in _reads(inner) if n not in own)
            yield from (o.name for o in body.output if o.name not in own)


def _info(name: str, v: Value, sizes: Mapping[str, int]) -> onnx.ValueInfoProto:
    shape = [
        str(d) if isinstance(d, IntExpr) and str(d) in {s.name for s in free_symbols(d)} else evaluate(d, sizes)
        for d in v.shape
    ]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype.numpy)), shape)
