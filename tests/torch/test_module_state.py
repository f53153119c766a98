"""Exported modules that write to their buffers and inputs: sessions do what eager calls do, caches stay in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import arcweld
from arcweld.compiler.errors import ModelError
from arcweld.runtime.arrays import aligned_empty


class Decoder(torch.nn.Module):
    """A step with a cache, a counter and a running mean."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write = write
        self.project = torch.nn.Linear(8, 8)
        self.register_buffer("cache", torch.zeros(2, 3, 16, 8))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64), persistent=False)
        self.register_buffer("mean", torch.linspace(-1, 1, 8))
        self.cache: torch.Tensor
        self.steps: torch.Tensor
        self.mean: torch.Tensor

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        new = self.project(x)
        if self.write == "index_copy":
            self.cache.index_copy_(2, at, new)
        elif self.write == "index_put":
            self.cache[:, :, at] = new
        elif self.write == "accumulate":
            self.cache.index_add_(2, at, new)
        else:
            self.cache.scatter_(2, at.reshape(1, 1, -1, 1).expand_as(new), new)
        self.steps.add_(1)
        self.mean.mul_(0.9).add_(0.1 * new.mean((0, 1, 2)))
        return torch.softmax(self.cache, 2).sum(2) + self.mean + self.steps


@pytest.mark.parametrize("write", ["index_copy", "index_put", "accumulate", "scatter"])
def test_a_session_does_what_calls_of_the_module_do(write: str) -> None:
    torch.manual_seed(0)
    module = Decoder(write).eval()
    module.cache[:, :, 1] = 0.5
    engine = arcweld.compile(module, torch.zeros(2, 3, 1, 8), torch.tensor([0]), device="sim")
    assert {(s.input, s.initial is not None) for s in engine.program.state} == {
        ("cache", True), ("steps", True), ("mean", True),
    }  # fmt: skip
    assert "cache" in {a.of for a in engine.program.aliases}
    assert {t.name for t in engine.inputs[:2]} == {"x", "at"}
    session = engine.session()
    with torch.no_grad():
        for k in (2, 3, 4, 15):
            x, at = torch.randn(2, 3, 1, 8), torch.tensor([k])
            torch.testing.assert_close(session(x, at), module(x, at), rtol=1e-5, atol=1e-5)
    for name, want in module.named_buffers():
        np.testing.assert_allclose(session.read(name), want.numpy(), rtol=1e-5, atol=1e-6)
    session.reset()
    assert not session.read("steps").any()


class InPlace(torch.nn.Module):
    def forward(self, x: torch.Tensor, cache: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        cache[:, 1:3] = x
        total.add_(x.sum())
        return cache.sum(1)


def test_inputs_that_the_module_writes_are_changed_in_place() -> None:
    shapes = ((4, 2), (4, 6), (1,))
    args = [torch.from_numpy(aligned_empty(s, np.dtype(np.float32))).normal_() for s in shapes]
    engine = arcweld.compile(InPlace(), *(a.clone() for a in args), device="sim")
    assert [(s.input, s.initial) for s in engine.program.state] == [("cache", None), ("total", None)]
    mine = [a.clone() for a in args]
    want = InPlace()(*mine)
    found = engine(*args)
    torch.testing.assert_close(found[0], want)
    for changed, expected in zip(args[1:], mine[1:]):
        torch.testing.assert_close(changed, expected)
    assert found[1] is args[1]


def test_constants_that_an_export_writes_to_are_refused() -> None:
    """Tensors that are no buffers become constants of the program."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.holder: Any = [torch.zeros(4)]
            self.register_buffer("same", self.holder[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.holder[0].index_copy_(0, torch.tensor([1]), x)
            return self.holder[0] + 1

    with pytest.raises(ModelError, match=r"torch"):
        arcweld.compile(Plain(), torch.ones(1), device="sim")
