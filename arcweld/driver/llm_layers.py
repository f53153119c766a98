"""Finds the layer of a language model that computes something else than another model's layer of the same name.

Both engines hold their graphs, whose nodes say which module of the model they came from. Numpy evaluates both on the
same tokens. Each module of the second model gets what the modules before it give in the first one, so that its error is
its own, and errors do not add up along the layers. A quantised matrix has an error that is much the same in all layers;
one whose codes or zero points were read wrongly has a larger one than its likes, and that is what is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.reference import stream_reference
from arcweld.driver.stored_graph import stored_graph
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.core import Core

TOKENS = 32  # of a window that are computed
FACTOR = 2.5  # by which an error must exceed those of the same module in other layers to be one of reading
FLOOR = 1e-3  # relative errors below it are rounding of 16-bit floats
_PLACE = re.compile(r"model\.(\S+) \(.*\)")  # an origin with a module's name; the exported wrapper calls the model so


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a module's results are from the base's, given the same input.

    module  its name, such as ``model.layers.3.mlp.down_proj``
    error   the relative error, a quotient of Euclidean norms
    usual   the median of the same module's in other layers; of all modules that differ, where it has no two likes
    """

    module: str
    error: float
    usual: float

    @property
    def stands_out(self) -> bool:
        """Whether the error is of another kind than its likes'."""
        return not self.error <= max(FACTOR * self.usual, FLOOR)


def layer_errors(base: Core, other: Core, window: Sequence[int]) -> list[LayerError]:
    """The error of each module of ``other`` that ``base`` has too, in the order in which the base computes them.

    Raises UsageError for models that have no module in common, EngineFileError for an engine without a graph.
    """
    most = min(TOKENS, len(window), *(min(c.description.tokens, c.description.length) for c in (base, other)))
    rows = min(most, *(c.description.rows for c in (base, other)))
    tokens = list(window[:most])
    graphs = [stored_graph(c.runner.engine.data) for c in (base, other)]
    places = [_modules(g) for g in graphs]
    want = _results(graphs[0], _feeds(base, tokens, rows), places[0])
    errors = _forced(graphs[1], _feeds(other, tokens, rows), places[1], want)
    if not errors:
        raise UsageError("the models have no layer in common: their graphs name other modules")
    return [LayerError(m, errors[m], _usual(m, errors)) for m in want if m in errors]


def _modules(graph: Graph) -> dict[int, str]:
    """The module that each node ends, by the node's index: the last one of it whose result is no constant."""
    constant = set(graph.weights)
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.operands() and all(v.name in constant for v in node.operands()):
            constant |= {v.name for v in node.outputs}
        elif (name := _module(node)) is not None:
            last[name] = index
    return {index: name for name, index in last.items()}


def _module(node: Node) -> str | None:
    """The module that a node is of; None for one of several, and for one of none."""
    found = {m[1] if (m := _PLACE.fullmatch(origin)) else None for origin in node.origin}
    return found.pop() if len(found) == 1 else None


def _feeds(core: Core, tokens: Sequence[int], rows: int) -> dict[str, np.ndarray]:
    d = core.description
    pages = -(-len(tokens) // d.page_size)
    run = Run(tokens, 0, range(pages), range(len(tokens) - rows, len(tokens)))
    state = {name: np.zeros(shape, dtype.numpy) for name, (shape, dtype) in d.state(pages).items()}
    return core.runner.feeds([run]) | state


def _results(graph: Graph, feeds: Mapping[str, np.ndarray], places: Mapping[int, str]) -> dict[str, np.ndarray]:
    """What each module gives."""
    found = {}
    for index, values in stream_reference(graph, feeds, hold={}):
        if index in places:
            found[places[index]] = values[graph.nodes[index].output.name]
    return found


def _forced(
    graph: Graph, feeds: Mapping[str, np.ndarray], places: Mapping[int, str], want: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The error of each module where all before it give what is wanted."""
    errors = {}
    for index, values in stream_reference(graph, feeds, hold={}):
        name = places.get(index, "")
        if name not in want:
            continue
        out = graph.nodes[index].output.name
        if values[out].shape == want[name].shape:
            errors[name] = _relative(values[out], want[name])
            values[out] = want[name].astype(values[out].dtype)
    return errors


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    """The error; infinity for results that are not finite, and where 0 was wanted and something came."""
    with np.errstate(all="ignore"):
        difference, size = np.linalg.norm(got.astype(np.float64) - want), np.linalg.norm(want.astype(np.float64))
        error = float(difference / size) if difference else 0.0
    return error if np.isfinite(error) else float("inf")


def _usual(module: str, errors: Mapping[str, float]) -> float:
    kind = re.sub(r"\d+", "*", module)
    likes = [e for m, e in errors.items() if m != module and re.sub(r"\d+", "*", m) == kind]
    if len(likes) < 2:
        likes = [e for m, e in errors.items() if m != module and e]
    return float(np.median(likes)) if likes else 0.0
