"""A decoder with a cache of open length: one engine, called token after token with the cache that it returned."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

import arcweld

WIDTH, HEADS = 32, 4


class Decoder(nn.Module):
    """One attention layer over the cache and the new token."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(
        self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The token's new state, and the cache with the token."""
        q, k, v = (p.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for p in self.qkv(self.norm(x)).chunk(3, -1))
        key, value = torch.cat([key, k], 2), torch.cat([value, v], 2)
        y = nn.functional.scaled_dot_product_attention(q, key, value)
        return x + self.out(y.transpose(1, 2).reshape(1, -1, WIDTH)), key, value


def cache(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of that many tokens."""
    return torch.randn(1, HEADS, length, WIDTH // HEADS), torch.randn(1, HEADS, length, WIDTH // HEADS)


def main() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Decodes five tokens; returns each state from the engine and from PyTorch."""
    torch.manual_seed(0)
    model, past = Decoder().eval(), Dim("past", min=0, max=128)
    # the example cache has two tokens or more: torch takes a length of 0 or 1 for a constant
    engine = arcweld.compile(
        model, torch.randn(1, 1, WIDTH), *cache(5), dynamic_shapes=(None, {2: past}, {2: past})
    )
    ours, theirs, states = cache(0), cache(0), []
    for _ in range(5):
        x = torch.randn(1, 1, WIDTH)
        y, *ours = engine(x, *ours)
        with torch.no_grad():
            expected, *theirs = model(x, *theirs)
        states.append((y, expected))
        print(f"cache of {ours[0].shape[2]} tokens, largest difference {(y - expected).abs().max():.1e}")
    return states


if __name__ == "__main__":
    main()
