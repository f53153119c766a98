"""What LoRA adapters add to a linear layer (``compiler/torch/adapted.py``)."""

from __future__ import annotations

from arcweld.compiler.torch.context import AtenContext, Result, aten


@aten("arcweld.adapted.default")
def adapted(c: AtenContext) -> Result:
    """``y`` and, of each token, its row of ``x`` times the matrices of its adapter; of a token without one, 0."""
    y, x, a, b, ends = c["y"], c["x"], c["a"], c["b"], c["ends"]
    tokens = x.shape[-2]  # what precedes it is 1
    low = c.emit("GroupedMatMul", c.reshape(x, (tokens, x.shape[-1])), a, ends)
    return c.result(c.emit("Add", y, c.reshape(c.emit("GroupedMatMul", low, b, ends), y.shape)))
