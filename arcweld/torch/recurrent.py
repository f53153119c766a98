"""Recurrent layers in Dynamo's graphs, which AOTAutograd would unroll over all steps.

Importing this lets Dynamo trace these layers (``allow_rnn``), which it leaves to Python otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from arcweld.compiler.torch.whole_layers import whole

torch._dynamo.config.allow_rnn = True


@contextmanager
def layers_for_tracing(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Iterator[None]:
    """Makes torch's recurrent layers in a graph of Dynamo's whole operators, in place.

    Where gradients are needed they are traced step by step instead: within the context, PyTorch does not take oneDNN's
    layers, which AOTAutograd cannot trace with their gradients. Nor does it take the CPU's flash attention, whose
    gradient is an operator of its own: on the CPU, attention with gradients is traced as products and a softmax.
    """
    tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        with ExitStack() as stack:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            if not any(t.is_cuda for t in tensors):
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
        return
    for node in module.graph.nodes:
        found = whole(node.target, node.args) if node.op == "call_function" and not node.kwargs else None
        if found is not None:
            node.target = found
    module.recompile()
    yield
