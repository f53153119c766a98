"""The one list that orders the passes, and the function that runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Limit, Options
from arcweld.compiler.text import print_graph
from arcweld.compiler.verifier import verify
from arcweld.passes.attention import attention
from arcweld.passes.batches import batches
from arcweld.passes.cleanup import cleanup
from arcweld.passes.column_orders import column_orders
from arcweld.passes.constant_folding import constant_folding
from arcweld.passes.cse import cse
from arcweld.passes.dce import dce
from arcweld.passes.decompose import decompose
from arcweld.passes.dynamic_quantisation import dynamic_quantisation
from arcweld.passes.float8_products import float8_products
from arcweld.passes.fold_affine import fold_affine
from arcweld.passes.integer_products import integer_products
from arcweld.passes.layout import layout
from arcweld.passes.merge_integer_matmuls import merge_integer_matmuls
from arcweld.passes.merge_matmuls import merge_matmuls
from arcweld.passes.pack_weights import pack_weights
from arcweld.passes.patterns_pointwise import activations, clips
from arcweld.passes.patterns_rowwise import rowwise
from arcweld.passes.positions import positions
from arcweld.passes.precision import precision
from arcweld.passes.quantised_movement import quantised_movement
from arcweld.passes.ranges import ranges
from arcweld.passes.single_steps import single_steps
from arcweld.passes.split_operands import split_operands
from arcweld.passes.storage import storage
from arcweld.passes.tied_weights import tied_weights
from arcweld.passes.unflatten import unflatten

log = logging.getLogger("arcweld.passes")

Observer = Callable[["Pass", Graph, Graph], None]


@dataclass(frozen=True, slots=True)
class Pass:
    """A function from graph to graph, with its name and a line of documentation.

    ``run`` returns the same object if it changed nothing. Without a ``needed`` one there are nodes that no kernel
    computes: a limit does not leave it out.
    """

    name: str
    run: Callable[[Graph, Options], Graph]
    doc: str
    needed: bool = False


PASSES: tuple[Pass, ...] = (
    # first, so that every other pass knows the ranges with which the graph is compiled
    Pass("ranges", ranges, "exclude sizes for which a node has no element to make its result of"),
    # no-ops and duplicates that exporters leave would hide patterns from the passes that look for them
    Pass("cleanup", cleanup, "drop nodes that change nothing, join chains of movements"),
    # before constants are folded, and products and activations looked for
    Pass("single-steps", single_steps, "write a recurrence of one step as products"),
    Pass("quantised-movement", quantised_movement, "move 8-bit values without dequantising them"),
    # before weights of 8 bits become f32, or are kept for products in f32
    Pass("integer-products", integer_products, "multiply 8-bit operands as the integers that they are"),
    Pass("float8-products", float8_products, "multiply 8-bit floats as they are"),
    # before storage counts the rows of the products that read a weight
    Pass("column-orders", column_orders, "take activations in the order in which weights store their columns"),
    Pass("storage", storage, "keep quantised weights as they are stored where that pays"),
    Pass("constant-folding", constant_folding, "evaluate what depends on weights only"),
    Pass("cse", cse, "compute equal values once"),
    # primitives become the operators that kernels are written for, while composite operators (ReduceMean,
    # BatchNormalization) are still whole; attention last, as it looks for Softmax
    Pass("clips", clips, "write Max and Min with constants as Clip or Relu"),
    Pass("activations", activations, "recover activation functions"),
    Pass("batches", batches, "give products the batch axes that frameworks merge, as attention has them"),
    Pass("rowwise", rowwise, "recover Softmax, LayerNormalization and RMSNormalization"),
    Pass("attention", attention, "recover attention"),
    Pass("fold-affine", fold_affine, "move per-channel scales and shifts into convolutions and products"),
    Pass("decompose", decompose, "write composite operators in terms of others", needed=True),
    Pass("constant-folding", constant_folding, "evaluate the constants that decomposition made"),
    # shapes before layout: a flattened operand has no channel axis to move, and siblings share an operand
    # only unflattened
    Pass("unflatten", unflatten, "let products and row-wise work keep the axes that exporters flatten"),
    Pass("merge-matmuls", merge_matmuls, "join products of one activation"),
    Pass("merge-integer-matmuls", merge_integer_matmuls, "join integer products of one activation"),
    Pass("layout", layout, "run convolutions channels-last, move transposes to the edges"),
    Pass("cleanup", cleanup, "join the movements that layout left side by side"),
    Pass("attention", attention, "drop repeated keys that transposes had hidden"),
    Pass("decompose", decompose, "also what layout wrote", needed=True),
    Pass("constant-folding", constant_folding, "evaluate the constants of both"),
    # behind layout, so that precision sees the sums of normalisations that layout rewrote, and casts transposed
    # constants only once
    Pass("precision", precision, "narrow f32 tensors to half where the build asks for it"),
    Pass("cleanup", cleanup, "join the movements that the passes above emitted"),
    # behind all passes that look at whole sums and concatenations, and behind the casts of precision
    Pass("split-operands", split_operands, "take apart sums and concatenations of very many operands"),
    # on the values that layout and precision have left, which no later pass moves
    Pass("dynamic-quantisation", dynamic_quantisation, "quantise tensors by their own range in one kernel or two"),
    # last of all rewrites: folding must not undo them
    Pass("positions", positions, "compute constant positions where they are compared"),
    Pass("pack-weights", pack_weights, "store convolution weights in the order in which kernels read them"),
    Pass("tied-weights", tied_weights, "store equal weights once"),
    Pass("cse", cse, "compute equal values once"),
    Pass("dce", dce, "drop what no output needs"),
)


# the passes that the driver runs later, on regions instead of graphs
REGION_PASSES = ("fusion", "chain", "siblings")
SIZE_RANGES = "size-ranges"  # likewise: it chooses the sizes that get regions of their own


def applications() -> tuple[str, ...]:
    """The names of all passes in the order of running, some of them repeatedly. A ``Limit`` counts them from 1 on."""
    return (*(p.name for p in PASSES), SIZE_RANGES, *REGION_PASSES)


def beyond(limit: Limit | None) -> frozenset[str]:
    """The passes on regions, and the choice of sizes, that a limit leaves out."""
    if limit is None:
        return frozenset()
    return frozenset(applications()[max(limit.passes, len(PASSES)) :])


def pass_names() -> tuple[str, ...]:
    """The names that ``disable`` takes, in the order of running."""
    return (*dict.fromkeys(p.name for p in PASSES), *REGION_PASSES, SIZE_RANGES)


def run_passes(
    graph: Graph,
    options: Options,
    *,
    disable: frozenset[str] = frozenset(),
    dump: Path | None = None,
    verify_each: bool = False,
    observer: Observer | None = None,
) -> Graph:
    """Runs every pass of PASSES that is neither disabled nor beyond ``options.limit``.

    ``dump``: a folder for the graph's text before the first pass and after each one (``NN-name.txt``). ``verify_each``:
    verify what every pass returns. ``observer(pass, before, after)`` is called after each pass. Raises UsageError for
    an unknown name in ``disable`` or ``options.disable``, and VerifyError for an invalid graph with ``verify_each``.
    """
    off = disable | options.disable
    unknown = off - set(pass_names())
    if unknown:
        raise UsageError(f"no pass is called {', '.join(sorted(unknown))}", hint=f"passes: {', '.join(pass_names())}")
    _dump(dump, 0, "import", graph)
    if verify_each:
        verify(graph)
    for number, step in enumerate(PASSES, 1):
        if step.name in off or (options.limit is not None and number > options.limit.passes and not step.needed):
            continue
        before, graph = graph, step.run(graph, options)
        _dump(dump, number, step.name, graph)
        if verify_each and graph is not before:
            verify(graph, after=step.name)
        if graph is not before:
            log.debug("%s: %d nodes -> %d", step.name, len(before.nodes), len(graph.nodes))
        if observer is not None:
            observer(step, before, graph)
    return graph


def _dump(folder: Path | None, number: int, name: str, graph: Graph) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}-{name}.txt").write_text(print_graph(graph, data_limit=8), encoding="utf-8")
