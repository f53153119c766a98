"""One engine for a prompt of any length and for single tokens: each has kernels of its own, one cache serves all."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

import arcweld

WIDTH, HEADS, ROOM = 32, 4, 64


class Decoder(nn.Module):
    """One attention layer over a cache of fixed length, which the module owns."""

    key: torch.Tensor
    value: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        for name in ("key", "value"):
            self.register_buffer(name, torch.zeros(1, HEADS, ROOM, WIDTH // HEADS))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The new state of the tokens at the positions ``at``."""
        q, k, v = (p.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for p in self.qkv(self.norm(x)).chunk(3, -1))
        self.key.index_copy_(2, at, k)
        self.value.index_copy_(2, at, v)
        seen = torch.arange(ROOM) <= at[:, None]
        y = nn.functional.scaled_dot_product_attention(q, self.key, self.value, attn_mask=seen[None, None])
        return x + self.out(y.transpose(1, 2).reshape(1, -1, WIDTH))


def main() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A prompt of six tokens, then four single ones; returns each state from the engine and from PyTorch."""
    torch.manual_seed(0)
    model, tokens = Decoder().eval(), Dim("tokens", min=1, max=ROOM)
    example = torch.randn(1, 6, WIDTH), torch.arange(6)
    engine = arcweld.compile(model, *example, dynamic_shapes=({1: tokens}, {0: tokens}))
    print(f"a call launches {len(engine.program.launches)} kernels")
    for part in engine.program.ranges:
        print(f"  at {part.sizes.label}: {len(part.launches)}")
    session, start, states = engine.session(), 0, []
    for count in (6, 1, 1, 1, 1):
        x, at = torch.randn(1, count, WIDTH), torch.arange(start, start + count)
        with torch.no_grad():
            states.append((session(x, at), model(x, at)))
        start += count
    print(f"largest difference {max(float((a - b).abs().max()) for a, b in states):.1e}")
    try:
        session(torch.randn(1, 2, WIDTH), torch.tensor([ROOM - 1, ROOM]))
    except arcweld.InputError as error:  # before anything is written
        print(error)
    return states


if __name__ == "__main__":
    main()
