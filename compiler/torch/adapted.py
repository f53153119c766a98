"""LoRA adapters in a causal language model: each linear layer adds ``x A B`` of the adapter that a token has.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), say what an adapter is; Chen et al., "Punica:
Multi-Tenant LoRA Serving" (2023), compute several in one batch. Here each layer has two weights with room for all of
them, ``A`` [adapters, in, rank] and ``B`` [adapters, rank, out]. A batch's tokens are in the order of their adapters,
those without one last, so that both are grouped products, which give exactly 0 for tokens of no group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

_A, _B = "lora_a", "lora_b"
_LIBRARY = torch.library.Library("arcweld", "FRAGMENT")
_LIBRARY.define("adapted(Tensor y, Tensor x, Tensor a, Tensor b, Tensor ends) -> Tensor")
torch.library.register_fake("arcweld::adapted", lambda y, x, a, b, ends: y.new_empty(y.shape), lib=_LIBRARY)


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A layer that adapters may change: its name in the model, its sizes, and the names of its weights in the graph."""

    name: str
    inputs: int
    outputs: int
    a: str
    b: str


@dataclass
class Adapters:
    """Room for ``count`` adapters of at most ``rank``.

    ends    i32[count]: how many of the batch's first tokens have the first adapter, the first two, and so on; set
            while the model runs
    tokens  how many the batch has
    """

    count: int
    rank: int
    ends: torch.Tensor | None = None
    tokens: Any = 0
    found: dict[str, AdaptedLayer] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[AdaptedLayer, ...]:
        """The layers that were met when the model ran."""
        return tuple(self.found.values())


@contextmanager
def with_adapters(model: Any, adapters: Adapters, prefix: str) -> Iterator[None]:
    """Lets the model's linear layers add what adapters say. ``prefix`` begins the names of its weights in the graph.

    The layer that makes logits has none: it sees other rows than the batch's tokens.
    """
    rng = torch.Generator().manual_seed(0)
    last, undo, changed = model.get_output_embeddings(), [], []
    try:
        for name, module in model.named_modules():
            sizes = _sizes(module)
            if sizes is None or module is last:
                continue
            for key, shape in ((_A, (sizes[0], adapters.rank)), (_B, (adapters.rank, sizes[1]))):
                # zeros, and equal weights, might be folded
                values = 0.02 * torch.randn((adapters.count, *shape), generator=rng)
                module.register_buffer(key, values.to(module.weight.dtype))
            changed.append(module)
            layer = AdaptedLayer(name, *sizes, f"{prefix}{name}.{_A}", f"{prefix}{name}.{_B}")
            undo.append(module.register_forward_hook(_Hook(adapters, layer)))
        yield
    finally:
        for handle in undo:
            handle.remove()
        for module in changed:
            delattr(module, _A)
            delattr(module, _B)


def _sizes(module: Any) -> tuple[int, int] | None:
    """The inputs and outputs of a linear layer; None for any other module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    return tuple(module.weight.shape) if isinstance(module, Conv1D) else None


class _Hook:
    """Adds an adapter's share to what a layer computes for the batch's tokens."""

    def __init__(self, adapters: Adapters, layer: AdaptedLayer) -> None:
        self._adapters, self._layer = adapters, layer

    def __call__(self, module: Any, args: tuple[Any, ...], y: Any) -> Any:
        """The layer's result with the adapters' share; as it is where rows are no tokens of the batch."""
        x, found = args[0], self._adapters
        if found.ends is None or not statically_known_true(x.numel() == self._layer.inputs * found.tokens):
            return y
        found.found[self._layer.name] = self._layer
        return torch.ops.arcweld.adapted(y, x, getattr(module, _A), getattr(module, _B), found.ends)
