"""Attention as model families write it becomes one operator on the way through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backend_oracle import ReferenceEngine, same
from torch_oracle import rand

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.driver.build import materialise_outputs
from arcweld.passes.pipeline import run_passes
from arcweld.torch import backend
from arcweld.torch.options import BackendOptions

B, H, S, D = 2, 6, 5, 8


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def slopes() -> torch.Tensor:
    return torch.arange(S)[None, None, :] * torch.tensor([2.0**-k for k in range(H)])[:, None, None]


def causal(value: float) -> torch.Tensor:
    return torch.full((S, S), value).triu(1)


def matrix_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) / D**0.5 + causal(float("-inf"))
    return torch.matmul(F.softmax(scores, dim=-1), v)


def merged_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Heads merged into the batch, slopes added by the product itself."""
    q, k, v = (t.reshape(B * H, S, D) for t in (q, k, v))
    scores = torch.baddbmm(slopes().repeat(B, 1, 1), q, k.transpose(1, 2), beta=1.0, alpha=D**-0.5)
    scores = scores.view(B, H, S, S) + causal(-3e38)
    return torch.bmm(F.softmax(scores, dim=-1).view(B * H, S, S), v).view(B, H, S, D)


def filled_after_the_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) * 0.3 + slopes()
    scores = scores.masked_fill(causal(1.0).bool(), torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def chosen_scores(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(q, k.mT)
    scores = torch.where(torch.ones(S, S, dtype=torch.bool).tril(), scores, torch.finfo(scores.dtype).min)
    return torch.matmul(F.softmax(scores + 0.0, -1), v)


def one_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Key heads that broadcast, which some torch take apart, with a guard for rows without any score."""
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=causal(float("-inf")))


def groups(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], attn_mask=slopes(), enable_gqa=True)


def windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A mask for each window, on scores whose batch is split for it."""
    scores = (q * 0.25) @ k.transpose(-2, -1)
    scores = scores.view(1, B, H, S, S) + torch.stack([causal(-100.0), torch.zeros(S, S)])[None, :, None]
    return F.softmax(scores.view(B, H, S, S), -1) @ v


def cosines(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Angles between queries and keys, with a scale for each head that the model learns, and a bias."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return F.softmax(scores * q.mean((0, 2, 3)).exp()[:, None, None] + slopes(), -1) @ v


FORMS: Mapping[str, Callable[..., torch.Tensor]] = {
    f.__name__: f
    for f in (matrix_products, merged_heads, filled_after_the_bias, chosen_scores, one_group, groups, windows, cosines)
}


@pytest.mark.parametrize("form", FORMS)
def test_one_operator(form: str) -> None:
    found: list[Graph] = []

    def build(graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> ReferenceEngine:
        found.append(run_passes(materialise_outputs(graph), Options()))
        return ReferenceEngine(found[-1], feeds)

    def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        q, k, v = (x @ w).view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)
        return FORMS[form](q, k, v).transpose(1, 2).reshape(B, S, H * D)

    def compiler(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        return backend.compile_with(module, inputs, BackendOptions(min_block_size=1), "sim", build)

    x, w = rand(B, S, 16), rand(16, 3 * H * D, scale=0.25)
    same(torch.compile(layer, backend=compiler)(x, w), layer(x, w))
    (graph,) = found
    ops = [n.op for n in graph.nodes]
    assert ops.count("Attention") == 1
    assert ops.count("MatMul") == 1
    assert "Softmax" not in ops
