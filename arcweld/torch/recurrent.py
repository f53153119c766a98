"""Recurrent layers in Dynamo's graphs, which AOTAutograd would unroll over all steps.

Importing this lets Dynamo trace these layers (``allow_rnn``), which it leaves to Python otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._dynamo
from torch import fx

from arcweld.compiler.torch.whole_layers import whole

torch._dynamo.config.allow_rnn = True


def keep_whole(module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Makes torch's recurrent layers in a graph of Dynamo's whole operators, in place, unless gradients are needed."""
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in example_inputs):
        return
    for node in module.graph.nodes:
        found = whole(node.target, node.args) if node.op == "call_function" and not node.kwargs else None
        if found is not None:
            node.target = found
    module.recompile()
