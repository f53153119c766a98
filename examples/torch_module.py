"""A PyTorch module becomes an engine that takes and returns tensors."""

from __future__ import annotations

import torch
from torch import nn

import arcweld


def main() -> tuple[torch.Tensor, torch.Tensor]:
    """Compiles a small network; returns the engine's result and PyTorch's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 4)).eval()
    x = torch.randn(8, 16)
    engine = arcweld.compile(model, x)  # example arguments, as torch.export takes them
    y = engine(x)  # a tensor for a tensor, on torch's current stream
    with torch.no_grad():
        expected = model(x)
    print(f"{len(engine.program.launches)} kernel launches, largest difference {(y - expected).abs().max():.1e}")
    return y, expected


if __name__ == "__main__":
    main()
