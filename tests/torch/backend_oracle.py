"""Runs ``torch.compile`` with blocks evaluated by the registry's references in place of engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.compiler.torch.types import as_array
from arcweld.compiler.verifier import verify
from arcweld.runtime.arrays import ALIGNMENT
from arcweld.torch import backend
from arcweld.torch.options import parse_options


class ReferenceEngine:
    """What an engine is to a block: callable with torch tensors, changes state where it is.

    It demands what engines demand of their inputs.
    """

    def __init__(self, graph: Graph, feeds: Mapping[str, np.ndarray]) -> None:
        verify(graph)
        self.graph = graph
        run_reference(graph, feeds)

    def __call__(self, *args: torch.Tensor) -> Any:
        assert all(a.is_contiguous() or a.numel() == 0 or a.dim() for a in args)
        feeds = {v.name: as_array(a.contiguous()) for v, a in zip(self.graph.inputs, args, strict=True)}
        found = run_reference(self.graph, feeds)
        results = [_tensor(found[v.name]) for v in self.graph.outputs]
        given, state = dict(zip(feeds, args)), self.graph.state()
        for k, v in enumerate(self.graph.outputs):
            if v.name in state:
                target = given[state[v.name]]
                assert target.is_contiguous()
                assert target.data_ptr() % ALIGNMENT == 0
                results[k] = target.copy_(results[k])
        return results[0] if len(results) == 1 else tuple(results)


def _tensor(array: np.ndarray) -> torch.Tensor:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def compiled(fn: Callable[..., Any], dynamic: bool | None = False, **options: Any) -> Callable[..., Any]:
    """``torch.compile`` with the backend over reference engines."""
    chosen = parse_options(options)

    def build_engine(graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> ReferenceEngine:
        return ReferenceEngine(graph, feeds)

    def compiler(module: Any, inputs: Any) -> Any:
        return backend.compile_with(module, inputs, chosen, "sim", build_engine)

    result: Callable[..., Any] = torch.compile(fn, backend=compiler, dynamic=dynamic)
    return result


def same(found: Any, expected: Any, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=atol, check_stride=True)
