"""Decoders with a cache of open length: one engine for every length, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from torch_oracle import rand

import arcweld
from arcweld.compiler.dims import Sym, var
from arcweld.compiler.errors import ModelError
from arcweld.compiler.torch.equalities import Offset, learn, narrowed

WIDTH, HEADS = 32, 4


class Layer(nn.Module):
    """Attention of new tokens to a cache and to each other, by one operator or by products."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.fused = nn.LayerNorm(WIDTH), fused

    def forward(
        self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, t, _ = x.shape
        q, k, v = (w(self.norm(x)).view(b, t, HEADS, -1).transpose(1, 2) for w in (self.q, self.k, self.v))
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
            out = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v
        return x + self.o(out.transpose(1, 2).reshape(b, t, WIDTH)), k, v


class Causal(nn.Module):
    """Several new tokens, each of which sees the cache and its predecessors."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.layer = Layer(fused)

    def forward(self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor) -> Any:
        t, total = x.shape[1], x.shape[1] + past_key.shape[2]
        return self.layer(x, past_key, past_value, torch.ones(t, total, dtype=torch.bool).tril(total - t))


class Padded(nn.Module):
    """A mask over the cache and the new token, as tokenizers make it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.layer(x, past_key, past_value, mask[:, None, None, :].bool())


class Stack(nn.Module):
    """Two layers, with their caches as a list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        new = []
        for layer, (key, value) in zip(self.layers, past):
            x, key, value = layer(x, key, value)
            new.append((key, value))
        return x, new


def cache(n: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return rand(batch, HEADS, n, WIDTH // HEADS), rand(batch, HEADS, n, WIDTH // HEADS)


def compiled(model: nn.Module, make: Callable[[int], tuple[Any, ...]], dynamic_shapes: Any) -> arcweld.Engine:
    """The engine, after it has agreed with eager for several lengths of the cache."""
    engine = arcweld.compile(model.eval(), *make(5), dynamic_shapes=dynamic_shapes, device="sim")
    least = max(s.lo for s in engine.program.symbols)
    for n in (least, 7, 40):
        args = make(n)
        with torch.no_grad():
            want = pytree.tree_leaves(model(*args))
        for got, expected in zip(engine(*pytree.tree_leaves(args)), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    return engine


def lengths(engine: arcweld.Engine) -> dict[str, str]:
    """The length of each cache, by input."""
    return {t.name: t.shape[2] for t in engine.inputs if len(t.shape) == 4}


@pytest.mark.parametrize("fused", [True, False])
def test_one_dim_for_both(fused: bool) -> None:
    past = Dim("past", min=0, max=64)
    engine = compiled(Causal(fused), lambda n: (rand(1, 3, WIDTH), *cache(n)), ({}, {2: past}, {2: past}))
    assert lengths(engine) == {"past_key": "past", "past_value": "past"}
    (found,) = engine.program.symbols
    assert (found.lo, found.hi) == (0, 64)


def test_lengths_that_torch_holds_for_different() -> None:
    """Attention as one operator compares nothing, so that torch keeps two symbols: ``s88 + 1`` and ``s58 + 1``."""
    make = lambda n: (rand(1, 1, WIDTH), *cache(n))
    engine = compiled(Layer(), make, (None, {2: Dim("key", max=64)}, {2: Dim("value", min=2, max=50)}))
    assert lengths(engine) == {"past_key": "key", "past_value": "key"}
    (found,) = engine.program.symbols
    assert (found.lo, found.hi) == (2, 50)  # what both may be
    engine = compiled(Layer(), make, (None, {2: Dim.AUTO}, {2: Dim.AUTO}))
    assert len(engine.program.symbols) == 1


def test_a_mask_is_longer_than_the_cache() -> None:
    make = lambda n: (rand(1, 1, WIDTH), *cache(n), torch.tensor([[0] * (n > 2) + [1] * (n + 1 - (n > 2))]))
    past = Dim("past", min=0, max=64)
    engine = compiled(Padded(), make, (None, {2: past}, {2: past}, {1: past + 1}))
    assert [t.shape for t in engine.inputs if t.name == "mask"] == [("1", "past + 1")]
    auto = Dim.AUTO
    engine = compiled(Padded(), make, (None, {2: auto}, {2: auto}, {1: auto}))
    assert len(engine.program.symbols) == 1


def test_caches_of_all_layers_in_a_list() -> None:
    past = Dim("past", min=1, max=64)
    pair = ({2: past}, {2: past})
    engine = compiled(Stack(), lambda n: (rand(1, 1, WIDTH), [cache(n), cache(n)]), (None, [pair, pair]))
    assert set(lengths(engine).values()) == {"past"}
    auto = ({2: Dim.AUTO}, {2: Dim.AUTO})
    engine = compiled(Stack(), lambda n: (rand(1, 1, WIDTH), [cache(n), cache(n)]), (None, [auto, auto]))
    assert len(engine.program.symbols) == 2  # nothing relates the layers' caches to each other


def test_batch_tokens_and_cache_are_open() -> None:
    batch, tokens, past = Dim("batch", max=8), Dim("tokens", max=16), Dim("past", max=64)
    shapes = ({0: batch, 1: tokens}, {0: batch, 2: past}, {0: batch, 2: past})
    engine = compiled(Causal(), lambda n: (rand(2, 3, WIDTH), *cache(n, 2)), shapes)
    assert {s.name for s in engine.program.symbols} == {"batch", "tokens", "past"}


def test_a_decoding_loop_keeps_its_cache_on_the_engine() -> None:
    """Token after token, each call with the cache that the last one returned."""
    model, past = Layer().eval(), Dim("past", min=0, max=64)
    shapes = (None, {2: past}, {2: past})
    engine = arcweld.compile(model, rand(1, 1, WIDTH), *cache(5), dynamic_shapes=shapes, device="sim")
    ours, theirs = cache(0), cache(0)
    for _ in range(6):
        x = rand(1, 1, WIDTH)
        y, *ours = engine(x, *ours)  # type: ignore[assignment]
        with torch.no_grad():
            want, *theirs = model(x, *theirs)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    assert ours[0].shape[2] == 6


def test_what_an_equality_tells() -> None:
    symbols = [Sym(n, 0, 64) for n in "abc"]
    a, b, c = map(var, symbols)
    names = {s: f"s{k}" for k, s in enumerate(symbols)}
    assert learn([(a + 1, b + 1)], names) == {"s1": Offset("s0", 0)}
    assert learn([(b, a + 3), (c, b - 1)], names) == {"s1": Offset("s0", 3), "s2": Offset("s1", -1)}
    assert learn([(5, c + 1)], names) == {"s2": Offset("", 4)}
    assert learn([(2 * a, b * b), (a + b, c), (a, a)], names) == {}
    ranges: dict[str, tuple[int, int | None]] = {"s0": (0, 64), "s1": (5, 10), "s2": (0, None)}
    assert narrowed(ranges, {"s1": Offset("s0", 3), "s2": Offset("s1", -1)})["s0"] == (2, 7)
    with pytest.raises(ModelError, match="their ranges exclude that"):
        narrowed({"s0": (0, 3), "s1": (9, 10)}, {"s1": Offset("s0", 1)})
