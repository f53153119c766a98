"""Small language models of transformers with random weights, and the tokens that transformers' code gives for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers as t

VOCABULARY = 128
_COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "head_dim": 16, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_PLAIN = {k: v for k, v in _COMMON.items() if k != "head_dim"}
_TWO = ["sliding_attention", "full_attention"]

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_COMMON)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_COMMON)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**_COMMON)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**_COMMON, sliding_window=12, query_pre_attn_scalar=16)),
    "gemma3": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**_COMMON, sliding_window=12, layer_types=_TWO, query_pre_attn_scalar=16)
    ),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**_PLAIN)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**_COMMON, sliding_window=12)),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=256, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )
    ),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_PLAIN)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**_COMMON, num_local_experts=4)),
    "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**_COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    ),
    "gpt_oss": lambda: t.GptOssForCausalLM(
        t.GptOssConfig(**_COMMON, num_local_experts=4, sliding_window=12, layer_types=_TWO)
    ),
}  # fmt: skip


@functools.cache
def model(name: str) -> Any:
    """The model, with the same weights each time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, n).tolist() for n in lengths]


def greedy(module: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` tokens that follow, each the most likely one; the whole sequence is computed each time."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            found = module(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(found.argmax()))
    return tokens[len(prompt) :]
