"""The nodes that stay f32 in a half-precision build: where 11 (f16) or 8 (bf16) bits, or f16's range, are not enough.

* nodes that ``Options.keep_f32`` names, quantisation, views of bits, and arithmetic on single numbers;
* sums over axes, with the pointwise nodes around them: a sum of squares overflows f16, a rounded mean shifts a row;
* values that are rounded to integers: f16 has not all integers beyond 2048;
* values computed from integers and small constants only (positions, rotary angles, masks), and products of integers;
* sums of products of 8-bit floats until both scales are applied: they are beyond f16;
* random numbers and what is made of them at once: rounded ones may be 1, and compare with a bias;
* positions in an image that count pixels: among 1,000 of them f16 names every half one;
* formulas of the scales by which numbers are quantised, and caches of scales: f16 would round small ones to 0;
* for f16, arithmetic with constants so small that they would become 0;
* for f16, masks of attention made with numbers beyond its range: a lesser number would not absorb the scores.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.float8 import is_float8_product
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.passes.common import scalar, use_counts

SMALL = 4096  # elements: a larger weight is taken for a learnt table, not for a constant of a formula of positions
ROUNDS_TO_ZERO = 2.0**-25  # the largest number that f16 rounds to 0
_PRODUCTS = frozenset({Kind.CONTRACT, Kind.CONV})
_SUMS = frozenset({"sum", "prod", "linear"})  # combiners
_ROUNDING = frozenset({"Floor", "Ceil", "Round", "Mod"})
_EXACT = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicRange", "BitCast", "Uniform"}
)
_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FORMULA = frozenset({Kind.POINTWISE, Kind.MOVEMENT, Kind.SCATTER})
_SCALING = frozenset({"Add", "Sub", "Mul", "Div"})


def keep_f32(graph: Graph, options: Options) -> set[str]:
    """The names of the first results of the nodes that stay f32."""
    kept = {n.output.name for n in graph.nodes if n.op in _EXACT or options.keep_f32.intersection(n.origin)}
    kept |= {n.output.name for n in graph.nodes if n.attrs.get("rounded")}  # to 8 bits, as a Recurrence rounds states
    kept |= {n.output.name for n in graph.nodes if n.output.type.numel == 1 and _is_float_arithmetic(n)}
    kept |= _of_random_numbers(graph)
    kept |= _around_integers(graph)
    kept |= _around_float8_products(graph)
    kept |= _around_sums_and_rounding(graph)
    kept |= _formulas(graph, [n.operands()[1] for n in graph.nodes if counts_pixels(n) or n.op in _QUANTISING])
    if options.float_type is DType.F16:
        kept |= {n.output.name for n in graph.nodes if n.op in _SCALING and _has_tiny_constant(graph, n)}
        kept |= _around_masks(graph)
    return kept


def _around_integers(graph: Graph) -> set[str]:
    """Nodes computed from integers, bools, dimensions and small constants only, and readers of integer products."""
    exact = {name for name, w in graph.weights.items() if w.data.size <= SMALL}
    exact |= {v.name for v in graph.values() if not v.dtype.is_float}
    results: set[str] = set()
    products: set[str] = set()
    for n in graph.nodes:
        operands = n.operands()
        follows = bool(products.intersection(v.name for v in operands))
        if (opdef(n.op).kind in _PRODUCTS and _is_integer_product(graph, n, exact)) or (
            follows and (n.op == "Cast" or not n.output.dtype.is_float or opdef(n.op).kind is Kind.MOVEMENT)
        ):
            products.add(n.output.name)
        elif follows:  # sums of many products of 8-bit integers are beyond f16 until they are scaled
            results.update(o.name for o in n.outputs if _is_float_pointwise(n))
            continue
        elif _is_learnt(graph, n) or not all(v.name in exact for v in operands):
            continue
        exact.update(o.name for o in n.outputs)
        results.add(n.output.name)
    return results


def _of_random_numbers(graph: Graph) -> set[str]:
    """The pointwise nodes that read random numbers."""
    made = {n.output.name for n in graph.nodes if n.op == "Uniform"}
    readers = (n for n in graph.nodes if made.intersection(v.name for v in n.operands()))
    return {n.output.name for n in readers if opdef(n.op).kind is Kind.POINTWISE}


def _around_float8_products(graph: Graph) -> set[str]:
    """Products of 8-bit floats, and the two products by scales that follow each."""
    consumers = graph.consumers()
    kept: set[str] = set()
    for n in graph.nodes:
        if is_float8_product(n):
            kept.add(n.output.name)
            near = [n]
            for _ in range(2):
                near = [c for p in near for c in consumers.get(p.output.name, ()) if c.op == "Mul"]
                kept.update(c.output.name for c in near)
    return kept


def _is_learnt(graph: Graph, node: Node) -> bool:
    """True if the result is an activation, though computed from integers and constants: a layer, a table look-up."""
    kind, first = opdef(node.op).kind, node.operands()[:1]
    if kind is Kind.CONTRACT:
        return first[0].shape[-1] != 1  # positions times frequencies are an outer product
    lookup = node.op.startswith("Gather") and first[0].name in graph.weights
    return lookup or kind is Kind.CONV or node.op == "DequantizeLinear"


def _is_integer_product(graph: Graph, node: Node, exact: set[str]) -> bool:
    """True if a product or convolution multiplies computed integers by computed or constant ones."""
    x, w = node.operands()[:2]
    if x.name not in exact:
        return False
    weight = graph.weights.get(w.name)
    return w.name in exact if weight is None else bool(np.all(weight.data == np.rint(weight.data)))


def _around_sums_and_rounding(graph: Graph) -> set[str]:
    """Sums over axes and roundings to integers, with pointwise neighbours.

    Those are the pointwise producers that only they read and, of sums, the pointwise consumers that read nothing else
    or apply the sum to a whole row.
    """
    producers, uses = graph.producers(), use_counts(graph)
    kept: set[str] = set()
    walked: set[str] = set()
    for n in graph.nodes:
        if opdef(n.op).combine in _SUMS and n.output.dtype is DType.F32:
            kept.add(n.output.name)
            kept.update(_private_producers(n, producers, uses, walked))
        elif n.op in _ROUNDING or (n.op == "Cast" and n.output.dtype.is_int):
            kept.update(o.name for o in n.outputs if o.dtype is DType.F32)
            kept.update(_private_producers(n, producers, uses, walked))
        elif _is_float_pointwise(n):
            activations = [v for v in n.operands() if v.name not in graph.weights]
            from_sums = [v for v in activations if _sum_like(v, kept, producers)]
            # a mean or a deviation, applied to what it is the mean of: rounding it would shift or scale a whole row
            if from_sums and (len(from_sums) == len(activations) or any(_is_statistic(v, n) for v in from_sums)):
                kept.add(n.output.name)
    return kept


def _is_statistic(v: Value, reader: Node) -> bool:
    """True if ``v`` has one element for several of the reader's result: it is constant along an axis."""
    out = reader.output.shape
    return len(v.shape) == len(out) and any(a == 1 and b != 1 for a, b in zip(v.shape, out))


def _sum_like(v: Value, kept: set[str], producers: dict[str, Node]) -> bool:
    """True for a kept value, or one computed from dimensions only; casts are looked through."""
    node = producers.get(v.name)
    while node is not None and node.op == "Cast" and v.name not in kept:
        v = node.operands()[0]
        node = producers.get(v.name)
    return v.name in kept or (node is not None and node.op == "Dims")


def _private_producers(node: Node, producers: dict[str, Node], uses: dict[str, int], walked: set[str]) -> Iterable[str]:
    """The pointwise producers, near and far, that nothing else reads; without those already in ``walked``."""
    stack = [node]
    while stack:
        reader = stack.pop()
        for v in reader.operands():
            reads = sum(1 for o in reader.operands() if o.name == v.name)
            producer = producers.get(v.name)
            if producer is None or v.name in walked:
                continue
            if uses[v.name] == reads and _is_float_pointwise(producer):
                walked.add(v.name)
                yield v.name
                stack.append(producer)


def _is_float_pointwise(node: Node) -> bool:
    return opdef(node.op).kind is Kind.POINTWISE and node.output.dtype is DType.F32


def _is_float_arithmetic(node: Node) -> bool:
    """True for arithmetic with f32 operands; comparisons count too: f16 would find a small scale equal to 0."""
    kind = opdef(node.op).kind
    return kind in (Kind.POINTWISE, Kind.REDUCE) and any(v.dtype is DType.F32 for v in (node.output, *node.operands()))


def _around_masks(graph: Graph) -> set[str]:
    """The producers of those masks of attention that are made with a number beyond f16's range."""
    producers = graph.producers()
    kept: set[str] = set()
    for n in graph.nodes:
        mask = n.inputs[3] if n.op == "Attention" and len(n.inputs) > 3 else None
        found: dict[str, Node] = {}
        stack = [] if mask is None else [mask]
        numbers: list[np.ndarray] = []
        while stack:
            v = stack.pop()
            made, weight = producers.get(v.name), graph.weights.get(v.name)
            if weight is not None and v.dtype is DType.F32:
                numbers.append(weight.data)
            is_formula = made is not None and opdef(made.op).kind in (Kind.POINTWISE, Kind.MOVEMENT)
            if made is None or not is_formula or v.dtype is not DType.F32 or v.name in found:
                continue
            found[v.name] = made
            if made.op == "ConstantOfShape":
                numbers.append(np.asarray(made.attrs["value"], np.float32))
            stack += made.operands()
        if any(beyond(a, DType.F16) for a in numbers):
            kept.update(found)
    return kept


def counts_pixels(node: Node) -> bool:
    """True for a GridSample whose positions count pixels: they stay f32."""
    return node.op == "GridSample" and bool(node.attrs["pixels"])


def _formulas(graph: Graph, results: Iterable[Value]) -> set[str]:
    """``results`` and what they are computed from by pointwise operators, movement and scatters, if it is f32."""
    producers, found, stack = graph.producers(), set[str](), list(results)
    while stack:
        v = stack.pop()
        made = producers.get(v.name)
        if made is None or v.name in found or v.dtype is not DType.F32:
            continue
        if opdef(made.op).kind in _FORMULA:
            found.add(v.name)
            stack += made.operands()
    return found


def _has_tiny_constant(graph: Graph, node: Node) -> bool:
    for v in node.operands():
        weight = graph.weights.get(v.name)
        value = scalar(weight.data) if weight is not None else None
        if value and abs(value) <= ROUNDS_TO_ZERO:
            return True
    return False


def beyond(data: np.ndarray, half: DType) -> bool:
    """True if some finite number is beyond the finite range of ``half``."""
    finite = np.abs(data[np.isfinite(data)])
    return finite.size > 0 and float(finite.max()) > largest(half)


def largest(dtype: DType) -> float:
    """The largest finite number of a half type."""
    return float(ml_dtypes.finfo(dtype.numpy).max)
