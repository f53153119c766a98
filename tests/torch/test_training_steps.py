"""Twenty steps of training: losses as near those in f64 as eager's in f32 are, with forward and backward compiled.

Training amplifies rounding: after some steps, two right computations in f32 differ as much as each does from f64.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import flop_registry

from arcweld.torch.report import clear_report, torch_report

pytestmark = pytest.mark.slow

STEPS = 20
Batch = tuple[torch.Tensor, torch.Tensor]


class Encoder(nn.Module):
    """Embedding, two layers of a transformer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layers(self.embedding(x)).mean(1))
        return found


class Recurrent(nn.Module):
    """An LSTM, whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layer(x)[0][:, -1])
        return found


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "lstm": (Recurrent, lambda: torch.randn(4, 10, 8)),
    "transformer": (Encoder, lambda: torch.randint(0, 50, (4, 12))),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), images),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0), images),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
}  # fmt: skip
EVERY = [
    pytest.mark.skipif("ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it"), pytest.mark.timeout(3000)
]  # fmt: skip
# operators whose FLOPs PyTorch counts: none may be left to it, so that all FLOPs are compiled, forward and backward
MULTIPLIES = {str(op) for op in flop_registry} | {
    f"aten._scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")
}


def losses(module: nn.Module, call: Callable[..., torch.Tensor], name: str, batches: list[Batch]) -> torch.Tensor:
    optimizer, found = OPTIMIZERS[name](module.parameters()), []
    for k in range(STEPS):
        x, y = batches[k % len(batches)]
        optimizer.zero_grad()
        loss = cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("lstm", "sgd"), ("lstm", "adamw"), ("transformer", "sgd"), ("transformer", "adamw"),
        pytest.param("resnet18", "sgd", marks=EVERY), pytest.param("resnet18", "adamw", marks=EVERY),
        pytest.param("mobilenet_v2", "sgd", marks=EVERY), pytest.param("mobilenet_v2", "adamw", marks=EVERY),
    ],
)  # fmt: skip
def test_losses_are_eagers_within_rounding(name: str, optimizer: str) -> None:
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    torch._dynamo.reset()
    clear_report()
    make, draw = MODELS[name]
    eager = make().train()
    exact, ours = copy.deepcopy(eager).double(), copy.deepcopy(eager)
    batches = [(draw(), torch.randint(0, 10, (4,))) for _ in range(4)]
    wide = [(x.double() if x.is_floating_point() else x, y) for x, y in batches]
    true = losses(exact, exact, optimizer, wide)
    theirs = losses(eager, eager, optimizer, batches)
    compiled = torch.compile(ours, backend="arcweld", options={"device": "sim"})
    found = losses(ours, compiled, optimizer, batches)
    logging.disable(logging.NOTSET)
    assert (found - true).abs().max() <= 3 * (theirs - true).abs().max() + 1e-5
    nodes, taken = (sum(getattr(g, k) for g in torch_report()) for k in ("nodes", "compiled"))
    assert taken >= 0.95 * nodes
    assert len(torch_report()) == 2, "one graph forward, one backward"
    for report in torch_report():
        assert all(b.fallback is None for b in report.blocks)
        assert not [op for op, _ in report.left if op.rpartition(".")[0] in MULTIPLIES]
        assert report.compiled >= 0.9 * report.nodes
