"""Runs functions both ways: eagerly in torch, and imported and evaluated by the registry's references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.compiler.torch.importer import import_module
from arcweld.compiler.torch.types import as_array
from arcweld.compiler.verifier import verify


class Functions(torch.nn.Module):
    """A module that applies each function to the same arguments and returns a dict of the results."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = dict(functions)

    def forward(self, *args: torch.Tensor) -> dict[str, Any]:
        return {name: fn(*args) for name, fn in self.functions.items()}


def run_graph(graph: Graph, args: Sequence[Any]) -> list[np.ndarray]:
    """The outputs of an imported graph, in order, for the tensors among ``args`` (nested ones included)."""
    verify(graph)
    tensors = [t for t in pytree.tree_leaves(list(args)) if isinstance(t, torch.Tensor)]
    found = run_reference(graph, {v.name: as_array(t) for v, t in zip(graph.inputs, tensors, strict=True)})
    return [found[v.name] for v in graph.outputs]


def compare(graph: Graph, module: torch.nn.Module, args: Sequence[Any], rtol: float = 2e-5, atol: float = 1e-5) -> None:
    """Asserts that the graph computes what the module does: same dtypes, same shapes, close values."""
    with torch.no_grad():
        expected = [t for t in pytree.tree_leaves(module(*args)) if isinstance(t, torch.Tensor)]
    found = run_graph(graph, args)
    assert len(found) == len(expected)
    for label, a, e in zip(graph.labels(), found, expected):
        want = as_array(e.contiguous())
        assert a.dtype == want.dtype, label
        assert a.shape == want.shape, label
        if want.dtype == np.bool_ or np.issubdtype(want.dtype, np.integer):
            np.testing.assert_array_equal(a, want, err_msg=label)
        else:
            np.testing.assert_allclose(a.astype(np.float64), want.astype(np.float64), rtol, atol, err_msg=label)


def check(functions: Mapping[str, Callable[..., Any]], *args: Any, rtol: float = 2e-5, atol: float = 1e-5) -> Graph:
    """Imports the functions as one module and compares each with eager torch; returns the graph."""
    module = Functions(functions).eval()
    graph = import_module(module, args)
    compare(graph, module, args, rtol, atol)
    return graph


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Normal values, or small integers for an integer type."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    if not dtype.is_floating_point:
        return torch.randint(-5 if dtype.is_signed else 0, 6, shape, generator=g).to(dtype)
    return (torch.randn(shape, generator=g) * scale).to(dtype)
