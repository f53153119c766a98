"""LSTM, GRU and RNN as operators that tracing leaves whole: torch's own are traced step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_LIBRARY = torch.library.Library("arcweld", "FRAGMENT")
_SCHEMA = (
    "(Tensor input, {hx} hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train,"
    " bool bidirectional, bool batch_first) -> ({results})"
)


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
    _LIBRARY.define(name + _SCHEMA.format(hx="Tensor[]" if name == "lstm" else "Tensor", results=results))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"arcweld::{name}", fake, lib=_LIBRARY)


for _name in NAMES:
    _define(_name)


def has_projections(params: int, has_biases: bool, layers: int, bidirectional: bool) -> bool:
    """True for an LSTM that projects its hidden states: it has one more weight in each layer and direction."""
    return params != layers * (2 if bidirectional else 1) * (4 if has_biases else 2)


def whole(function: Any, args: Sequence[Any]) -> Any:
    """The operator for a call of one of torch's functions.

    None for other functions, for LSTMs that project their hidden states, and for packed sequences.
    """
    name = getattr(function, "__name__", "")
    if name not in NAMES or function is not getattr(torch, name) or len(args) != 9 or not isinstance(args[3], bool):
        return None
    _, _, params, has_biases, layers, _, _, bidirectional, _ = args
    if has_projections(len(params), has_biases, layers, bidirectional):
        return None
    return getattr(torch.ops.arcweld, name).default


class WholeLayers(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, torch's functions for recurrent layers are these operators. They have no gradients."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Torch calls this for each of its functions."""
        found = None if kwargs else whole(func, args)
        return (found or func)(*args, **(kwargs or {}))
