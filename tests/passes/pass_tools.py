"""Shared by the pass tests: graphs from IR text with random weights, and the comparison before against after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from arcweld.compiler.dims import evaluate
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.compiler.verifier import verify
from arcweld.passes.dce import remove_dead

GraphPass = Callable[[Graph, Options], Graph]


def build(text: str, seed: int = 0) -> Graph:
    """The graph of an IR text (``graph 'g'`` is put in front); weights without data are random, and their
    own source.
    """
    graph = parse_graph("graph 'g'\n" + text)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, w in graph.weights.items():
        given = f"%{name}:" in text and "data=" in next(s for s in text.splitlines() if f"weight %{name}:" in s)
        weights[name] = w if given else Weight(random_array(rng, w.data.shape, w.data.dtype), w.source or name)
    graph = graph.replace(weights=weights)
    verify(graph, after="the test's text")
    return graph


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values that suit every operator of these tests: floats around 1, small integers, bools."""
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in "iu":
        return rng.integers(0, 3, shape).astype(dtype)
    return rng.uniform(-1.5, 2.5, shape).astype(dtype)


def run(graph: Graph, *passes: GraphPass, options: Options | None = None) -> Graph:
    """Applies the passes, drops dead nodes, and verifies."""
    for p in passes:
        graph = p(graph, options or Options())
        verify(graph, after=getattr(p, "__name__", "pass"))
    return remove_dead(graph)


def check(
    text: str, *passes: GraphPass, options: Options | None = None, dims: dict[str, int] | None = None,
    rtol: float = 2e-5, atol: float = 2e-5,
) -> Graph:  # fmt: skip
    """Applies the passes to the text's graph and compares the outputs before and after on random inputs."""
    before = build(text)
    after = run(before, *passes, options=options)
    same_results(before, after, dims=dims, rtol=rtol, atol=atol)
    return after


def same_results(
    before: Graph, after: Graph, *, dims: dict[str, int] | None = None, rtol: float = 2e-5, atol: float = 2e-5
) -> None:
    """Asserts that both graphs compute the same: outputs equal in type and shape, close in value."""
    rng = np.random.default_rng(1)
    feeds = {}
    for v in before.inputs:
        shape = tuple(evaluate(d, dims or {}) for d in v.shape)
        feeds[v.name] = random_array(rng, shape, v.dtype.numpy)
    expected, found = run_reference(before, feeds), run_reference(after, feeds)
    for old, new in zip(before.outputs, after.outputs, strict=True):
        a, b = expected[old.name], found[new.name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=rtol, atol=atol)


def ops(graph: Graph) -> list[str]:
    """The operators in order."""
    return [n.op for n in graph.nodes]


def body(graph: Graph) -> str:
    """The text of the nodes and outputs, without types."""
    lines = [s for s in print_graph(graph).splitlines() if s.startswith(("%", "output"))]
    return "\n".join(_untyped(s) for s in lines)


def _untyped(line: str) -> str:
    left, eq, right = line.partition(" = ")
    return f"{left.split(': ')[0]} = {right}" if eq else line


def lines(text: str) -> str:
    """Expected text: stripped lines."""
    return "\n".join(s.strip() for s in text.strip().splitlines())


HALF = {"fp16": DType.F16, "bf16": DType.BF16}
