"""Recurrent layers in Dynamo's graphs, which AOTAutograd would unroll over all steps.

Importing this lets Dynamo trace these layers (``allow_rnn``), which it leaves to Python otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx

from arcweld.compiler.torch.whole_layers import whole

torch._dynamo.config.allow_rnn = True


@contextmanager
def recurrent_layers(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Iterator[None]:
    """Makes torch's recurrent layers in a graph of Dynamo's whole operators, in place.

    Where gradients are needed they are traced step by step instead: within the context, PyTorch does not take oneDNN's
    layers, which AOTAutograd cannot trace with their gradients.
    """
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in example_inputs):
        with torch.backends.mkldnn.flags(enabled=False):
            yield
        return
    for node in module.graph.nodes:
        found = whole(node.target, node.args) if node.op == "call_function" and not node.kwargs else None
        if found is not None:
            node.target = found
    module.recompile()
    yield
