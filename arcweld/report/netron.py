"""A copy of an ONNX model for Netron: the ``metadata_props`` of its nodes say which kernels compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arcweld.compiler.errors import ModelError, UsageError
from arcweld.compiler.logs import printable
from arcweld.report.timeline import Slice, Timeline

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

PREFIX = "arcweld."  # of the keys


def read_model(path: str) -> ModelProto:
    """The model in a file; external data stays where it is. Raises ModelError for a file that is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", node=path) from None
    except (DecodeError, ValueError) as error:
        raise ModelError(f"not an ONNX model: {printable(str(error))}", node=path) from None
    if not model.HasField("graph"):
        raise ModelError("not an ONNX model: it holds no graph", node=path)
    return model


def check_place(model: ModelProto, source: Path, target: Path) -> None:
    """Raises UsageError for a copy in another folder than that which its external data is looked for in."""
    if source.resolve().parent == target.resolve().parent:
        return
    if any(t.data_location == t.EXTERNAL for t in _tensors(model.graph)):
        raise UsageError(
            f"{target} cannot be written there: the model's weights are in files beside {source}, which are not copied",
            hint=f"write it to the folder {source.resolve().parent}",
        )


def annotate(model: ModelProto, timeline: Timeline) -> tuple[int, int]:
    """Adds to the nodes of the model's graph what is known of their kernels; returns how many have some, and how many
    launches have none of the nodes.

    Keys are ``arcweld.kernel``, ``arcweld.launch``, ``arcweld.nodes``, ``arcweld.precision``, ``arcweld.modelled_us``
    or ``arcweld.measured_us``, ``arcweld.times``, ``arcweld.bound``. Times are those of whole kernels, which nodes
    share. A node with a body, or of a function, has the kernels of all nodes in it. Nothing else changes.
    """
    names = {_name(n): k for k, n in enumerate(model.graph.node)}
    found: dict[int, list[Slice]] = {}
    strays = 0
    for s in timeline.slices:
        if s.launch is None:
            continue
        places = dict.fromkeys(p for o in s.launch.origin if (p := _place(o, names)) is not None)
        strays += not places
        for p in places:
            found.setdefault(p, []).append(s)
    for k, node in enumerate(model.graph.node):
        _write(node, found.get(k, ()), timeline)
    return len(found), strays


def _name(node: NodeProto) -> str:
    """The name that a node has in origins: its own, or its operator with its first output."""
    return node.name or f"{node.op_type}_{next((o for o in node.output if o), '')}"


def _place(origin: str, names: dict[str, int]) -> int | None:
    """The position of the node that an origin names, or that it is inside of."""
    while origin not in names and "/" in origin:
        origin = origin.rpartition("/")[0]
    return names.get(origin)


def _write(node: NodeProto, slices: Sequence[Slice], timeline: Timeline) -> None:
    kept = [p for p in node.metadata_props if not p.key.startswith(PREFIX)]
    if len(kept) < len(node.metadata_props):  # of an earlier annotation
        copies = [(p.key, p.value) for p in kept]
        del node.metadata_props[:]
        for key, value in copies:
            node.metadata_props.add(key=key, value=value)
    launches = [s.launch for s in slices if s.launch is not None]
    if not launches:
        return
    time = "measured_us" if timeline.count else "modelled_us"
    entries = {
        "kernel": ", ".join(dict.fromkeys(printable(x.kernel) for x in launches)),
        "launch": ", ".join(s.name for s in slices),
        "nodes": ", ".join(dict.fromkeys(printable(o) for x in launches for o in x.origin)),
        "precision": "; ".join(dict.fromkeys(x.multiplies or ", ".join(x.types) for x in launches)),
        time: f"{sum(s.us for s in slices):.4g}", "times": timeline.times,
        "bound": ", ".join(dict.fromkeys(x.modelled.bound for x in launches)),
    }  # fmt: skip
    for key, value in entries.items():
        node.metadata_props.add(key=PREFIX + key, value=value)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The tensors of a graph and of the subgraphs in it."""
    yield from graph.initializer
    for s in graph.sparse_initializer:
        yield from (s.values, s.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)


def _of_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for g in (attribute.g, *attribute.graphs):
        yield from _tensors(g)
