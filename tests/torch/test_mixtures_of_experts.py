"""Transformers' mixtures of experts against eager: more tokens than few, no node left to PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backend_oracle import ReferenceEngine, compiled
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from arcweld.torch.report import clear_report, torch_report

EVERY = pytest.mark.skipif("ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NARROW = {"num_experts": 5, "moe_intermediate_size": 24}
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 5},
    "qwen2_moe": {**NARROW, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**NARROW, "head_dim": 8},
    "olmoe": {"num_experts": 5},
    "deepseek_v3": {
        "n_routed_experts": 8, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 0,
        "num_key_value_heads": 4,
    },
    "jamba": {
        "num_experts": 5, "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
        "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1,
        "expert_layer_offset": 0,
    },
}  # fmt: skip
OFTEN = ("mixtral", "deepseek_v3")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    clear_report()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **OWN[name]})
    made: nn.Module = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in OFTEN else EVERY) for n in OWN])
def test_every_node_is_compiled(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    operators: list[str] = []
    made = ReferenceEngine.__init__

    def noted(self: ReferenceEngine, graph: Any, feeds: Any) -> None:
        operators.extend(n.op for n in graph.nodes)
        made(self, graph, feeds)

    monkeypatch.setattr(ReferenceEngine, "__init__", noted)
    decoder, tokens = model(name, dtype), torch.randint(3, 60, (2, 40))
    want = decoder(tokens, use_cache=False).logits
    found = compiled(lambda x: decoder(x, use_cache=False).logits)(tokens)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)
    (report,) = torch_report()
    assert report.nodes == report.compiled
    assert "GroupedMatMul" in operators


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_on_the_simulator(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    experts = model("mixtral", dtype).model.layers[0].mlp  # type: ignore[union-attr, index]
    x = torch.randn(2, 35, 32).to(dtype)
    want = experts(x)
    found = torch.compile(experts, backend="arcweld")(x)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-3
    torch.testing.assert_close(found, want, rtol=20 * tolerance, atol=tolerance)
    (report,) = torch_report()
    assert report.nodes == report.compiled
