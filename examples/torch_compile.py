"""``torch.compile`` with an operator that stays in PyTorch, and the report about it."""

from __future__ import annotations

import os

import torch
from torch import nn

import arcweld


class Orthogonal(nn.Module):
    """Features, made orthogonal: the QR decomposition is PyTorch's, the rest becomes kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The coordinates of each row in an orthogonal basis of all rows, as probabilities."""
        basis = torch.linalg.qr(self.body(x).T).Q
        scores = self.body(x) @ basis
        return (scores - scores.amax(-1, keepdim=True)).softmax(-1)


def main() -> tuple[torch.Tensor, torch.Tensor]:
    """Compiles and runs; returns the result and eager PyTorch's."""
    if not torch.cuda.is_available():
        os.environ.setdefault("ARCWELD_DEVICE", "sim")  # without a GPU the backend leaves all to PyTorch unless asked
    torch.manual_seed(0)
    model, x = Orthogonal().eval(), torch.randn(4, 16)
    fast = torch.compile(model, backend="arcweld")
    with torch.no_grad():
        y, expected = fast(x), model(x)
    for graph in arcweld.torch_report():
        print(graph)
    return y, expected


if __name__ == "__main__":
    main()
