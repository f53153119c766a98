"""LSTM, GRU and RNN in Dynamo's graphs, as operators that AOTAutograd leaves whole.

AOTAutograd unrolls ATen's own over all steps. Importing this lets Dynamo trace these layers (``allow_rnn``), which it
leaves to Python otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import fx

from arcweld.compiler.torch.handlers.recurrent import has_projections

NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_LIBRARY = torch.library.Library("arcweld", "FRAGMENT")
_SCHEMA = (
    "(Tensor input, {hx} hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train,"
    " bool bidirectional, bool batch_first) -> {results}"
)

torch._dynamo.config.allow_rnn = True


def _define(name: str) -> None:
    """Defines ``arcweld::name``: torch's function of that name, whose results have torch's usual strides."""
    call: Callable[..., Any] = getattr(torch, name)

    def run(*args: Any) -> tuple[torch.Tensor, ...]:
        y, *states = call(*args)
        steps_first = y.transpose(0, 1) if args[8] else y
        y = steps_first.contiguous()
        return (y.transpose(0, 1) if args[8] else y, *(s.contiguous() for s in states))

    def fake(*args: Any) -> tuple[torch.Tensor, ...]:
        x, hx, bidirectional, batch_first = args[0], args[1], args[7], args[8]
        states = hx if isinstance(hx, list | tuple) else [hx]
        rows, columns = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        y = x.new_empty((rows, columns, states[0].shape[2] * (2 if bidirectional else 1)))
        return (y.transpose(0, 1) if batch_first else y, *(s.new_empty(s.shape) for s in states))

    results = ", ".join(["Tensor"] * (3 if name == "lstm" else 2))
    _LIBRARY.define(name + _SCHEMA.format(hx="Tensor[]" if name == "lstm" else "Tensor", results=f"({results})"))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"arcweld::{name}", fake, lib=_LIBRARY)


for _name in NAMES:
    _define(_name)


def keep_whole(module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Replaces torch's recurrent layers in a graph of Dynamo's, in place, unless gradients are needed.

    LSTMs that project their hidden states and packed sequences are left as they are.
    """
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in example_inputs):
        return
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in NAMES or node.target is not getattr(torch, name):
            continue
        if len(node.args) != 9 or not isinstance(node.args[3], bool):
            continue
        _, _, params, has_biases, layers, _, _, bidirectional, _ = node.args
        if not has_projections(len(params), has_biases, layers, bidirectional):
            node.target = getattr(torch.ops.arcweld, name).default
    module.recompile()
