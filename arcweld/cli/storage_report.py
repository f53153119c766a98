"""What ``inspect`` says of quantised weights: how they are stored, what products of them compute in, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from arcweld.cli.common import out, print_table
from arcweld.codegen.templates.contract.mma import float8_computes, instructions_of
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value, Weight
from arcweld.compiler.ops.float8 import is_float8_product
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.records import Transform
from arcweld.compiler.region import is_view
from arcweld.compiler.text import parse_fields, parse_type
from arcweld.driver.staged_build import stored_graphs
from arcweld.passes.storage import compare_sizes, is_product, least_rows
from arcweld.passes.stored import HIGH, planes
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.kernels import choose_variant


def quantised_products(data: EngineData) -> list[dict[str, Any]]:
    """One entry for each product or convolution by weights of 8 bits or fewer, or by weights that were widened.

    ``stored``: the type in the engine, of integers of 5 and 6 bits both planes' as ``u4 + u2``; ``from``: the model's,
    if it is another one; ``computes``: the type of the operands as they are multiplied, or both types of two that are
    multiplied as they are stored; ``by``: for each architecture the instructions that multiply; ``reads``: bytes of
    the weight with its scales and zero points.
    ``modelled``: for each architecture the seconds with the weight packed and widened; None where nothing was to be
    chosen.
    """
    return [
        entry
        for graph in stored_graphs(data)
        for producers in [graph.producers()]
        for n in graph.nodes
        if opdef(n.op).kind in (Kind.CONTRACT, Kind.CONV) and len(n.operands()) > 1
        for entry in _entry(graph, producers, n, data)
    ]


def _entry(
    graph: Graph, producers: dict[str, Node], node: Node, data: EngineData
) -> Iterator[dict[str, Any]]:
    x, w = node.operands()[:2]
    found, parts = _stored(producers, w)
    source = found[0]
    if source.name not in graph.weights:
        return
    stored = tuple(v.dtype for v in found)
    model = _before(graph.weights[source.name]) if source.dtype.bits > 8 else stored
    bits = sum(d.bits for d in model)
    if not 0 < bits <= 8:
        return
    count = source.type.numel
    assert isinstance(count, int)
    as_stored = x.dtype.is_int or is_float8_product(node)  # nothing is unpacked
    options = Options(arch=data.archs)
    times = {} if as_stored else compare_sizes(
        count, least_rows(node), bits, w.dtype, options, is_product(node)
    )
    yield {
        "node": node.name, "stored": _named(stored), "from": _named(model),
        "computes": _multiplied(data, node) if as_stored else w.dtype.value,
        "by": _instructions(data, node),
        "reads": sum(int(str(v.type.nbytes)) for v in parts if v.name in graph.weights and v.shape),
        "modelled": {a: {"packed": t.packed, "widened": t.widened} for a, t in times.items()} or None,
    }  # fmt: skip


def _named(types: Sequence[DType]) -> str:
    return " + ".join(str(d.value) for d in types)


def _stored(producers: dict[str, Node], w: Value) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The weights whose elements ``w`` is made of, one or two planes, and all that it is made of."""
    node = producers.get(w.name)
    while node is not None and (is_view(node) or node.op == "Cast"):
        w = node.operands()[0]
        node = producers.get(w.name)
    if node is not None and node.op == "DequantizeLinear":
        made = [producers.get(v.name) for v in node.operands()]
        levels = (m.operands() if m is not None else (v,) for m, v in zip(made, node.operands()))
        return planes(node), tuple(v for level in levels for v in level)
    return (w,), (w,)


def _multiplied(data: EngineData, node: Node) -> str:
    """What the engine's kernels multiply of two operands of 8 bits: these, or what they are widened to on the way.

    Where architectures or kernels differ, each type with its architectures.
    """
    types = " x ".join(v.dtype.value for v in node.operands()[:2])
    if not is_float8_product(node):
        return types
    found: dict[str, list[str]] = {}
    for arch, source in _kernels(data, node, ("contract", "conv")):
        found.setdefault(float8_computes(source, arch) or types, []).append(arch)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{element} ({', '.join(dict.fromkeys(archs))})" for element, archs in found.items())


def _instructions(data: EngineData, node: Node) -> dict[str, str]:
    """By architecture, the instructions of the engine's kernels of a product, those of each range of sizes."""
    found: dict[str, list[str]] = {}
    for arch, source in _kernels(data, node, ("contract", "conv", "chain")):
        found.setdefault(arch, []).append(instructions_of(source))
    return {arch: ", ".join(dict.fromkeys(names)) for arch, names in found.items()}


def _kernels(data: EngineData, node: Node, templates: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The architecture and the source of each of the engine's kernels that compute the product ``node``."""
    for launch in data.program.all_launches():
        if launch.template in templates and not set(node.origin).isdisjoint(launch.origin):
            for arch in data.archs or (launch.variants[0].arch,):
                yield arch, data.sources[choose_variant(launch, arch).kernel]


def _before(weight: Weight) -> tuple[DType, ...]:
    """The types that a widened weight has in the model; none for a weight that was not of 8 bits or fewer."""
    steps: Transform = weight.transform
    dequantised = [args for step, args in steps if step == "DequantizeLinear"]
    if not dequantised:
        return ()
    unpacked: list[DType] = [parse_fields(str(args[1]))["dtype"] for step, args in steps if step == "UnpackBits"]
    if unpacked:
        return (unpacked[0], unpacked[-1]) if dequantised[-1][0] > HIGH else (unpacked[0],)
    types = [parse_type(str(args[1])).dtype for step, args in steps if step == "source"]
    return tuple(t for t in types if t.bits <= 8)[:1]


def print_products(rows: list[dict[str, Any]]) -> None:
    """Prints the entries of ``quantised_products``, times of the last architecture in microseconds."""
    if not rows:
        return
    arch = next((list(r["modelled"])[-1] for r in rows if r["modelled"]), "")
    out.print(f"products of quantised weights{f', modelled microseconds on {arch}' if arch else ''}:")
    cells = []
    for r in rows:
        stored = r["stored"] if r["stored"] == r["from"] else f"{r['stored']}, widened from {r['from']}"
        times = (r["modelled"] or {}).get(arch)
        modelled = [f"{1e6 * times[k]:.2f}" for k in ("packed", "widened")] if times else ["", ""]
        by = ", ".join(dict.fromkeys(r["by"].values())) if not arch else r["by"].get(arch, "")
        cells.append((r["node"], stored, r["computes"], by, f"{r['reads']:,}", *modelled))
    numbers = ("reads", "packed", "widened")
    print_table(("product", "stored", "computes in", "by", *numbers), cells, numbers)
