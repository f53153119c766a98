"""Makes a module of transformers without its weights: what a checkpoint holds need not be in memory to be compiled.

Parameters have their shapes and types, but each is one number, repeated. What modules compute for themselves, such as
the frequencies of rotary embeddings, has its values.
"""

from __future__ import annotations

from typing import Any

import torch

from arcweld.compiler.errors import UnsupportedError


def hollow_causal_lm(config: Any, dtype: torch.dtype) -> Any:
    """The ``...ForCausalLM`` of a configuration of transformers, with parameters of ``dtype``.

    Raises UnsupportedError for an architecture that transformers does not know or cannot make from a configuration.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # the model's code raises what it likes
        kind = getattr(config, "model_type", type(config).__name__)
        raise UnsupportedError(
            f"transformers makes no causal language model of the type {kind!r}: {error}",
            hint="a newer transformers may know it",
        ) from error
    _hollow(model)
    return model.eval()


def _hollow(model: Any) -> None:
    """Puts repeated numbers in place of parameters, and lets the model fill its buffers."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = made.setdefault(id(p), _repeated(p))
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = torch.zeros(b.shape, dtype=b.dtype)
    model.initialize_weights()


def _repeated(p: torch.nn.Parameter) -> torch.nn.Parameter:
    new = torch.nn.Parameter(torch.zeros(1, dtype=p.dtype).expand(p.shape), requires_grad=False)
    new._is_hf_initialized = True  # the mark by which transformers leaves a tensor as it is
    return new
