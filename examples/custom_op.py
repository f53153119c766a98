"""An operator that neither ONNX nor PyTorch has, in a kernel with what is round it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import arcweld
from arcweld import functions as f


@arcweld.custom_op("com.acme::Swizzle", attributes={"alpha": 1.0})
def swizzle(x, alpha):  # type: ignore[no-untyped-def]
    """x * sigmoid(alpha * x), in numpy: what the operator means."""
    return x / (1 + np.exp(-alpha * x))


@swizzle.expression
def swizzle_expression(x, alpha):  # type: ignore[no-untyped-def]
    """The same for kernels."""
    return x / (1 + f.exp(-alpha * x))


class Block(nn.Module):
    """A layer with the operator between its product and its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of rows of 64 numbers."""
        result: torch.Tensor = swizzle(self.layer(x), alpha=1.5) + x
        return result


def main() -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Compiles and runs; returns the result, eager PyTorch's, and the kernels with fusion and without."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(8, 64)
    engine = arcweld.compile(model, x)
    unfused = arcweld.compile(model, x, disable=["fusion"])
    with torch.no_grad():
        y, expected = engine(x), model(x)
    kernels, apart = len(engine.program.launches), len(unfused.program.launches)
    print(f"{kernels} kernel; {apart} where nothing is fused")
    return y, expected, kernels, apart


if __name__ == "__main__":
    main()
