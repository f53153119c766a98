"""Decoders of transformers with static caches: greedy tokens by both ways from PyTorch, and caches stay in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import arcweld
from arcweld.compiler.ir import Graph
from arcweld.torch import backend
from arcweld.torch.options import parse_options
from arcweld.torch.report import torch_report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_dynamo")]

POSITIONS, WINDOW, PROMPT = 64, 8, [[3, 7, 9]]
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "mistral": {**SIZES, "sliding_window": WINDOW},
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gemma2": {**SIZES, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "qwen3": {**SIZES, "head_dim": 16},
    "gemma3_text": {**SIZES, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "phi3": {**SIZES, "pad_token_id": 0},
}
PARALLEL: dict[str, dict[str, Any]] = {  # attention beside the other layers, with one key head or a part rotated
    "falcon": {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neox": {k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
}
ENCODED: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "whisper": {
        "vocab_size": 128, "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 16,
        "max_source_positions": 30, "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip
ROLLED = {"mistral": 4, "gemma2": 2, "gemma3_text": 4}  # caches of windows
NORMED = ("gemma2", "gemma3_text")  # also behind attention and the feed-forward part


def decoder(name: str) -> Any:
    """A small model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    attention = "eager" if name == "gemma2" else "sdpa"  # which has no soft cap
    config = AutoConfig.for_model(name, **{**MODELS, **PARALLEL}[name])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def compiled(model: Any) -> tuple[Any, list[arcweld.Engine]]:
    """The model by ``torch.compile`` on the simulator, and the engines that it builds."""
    chosen, engines = parse_options({}), list[arcweld.Engine]()

    def build(graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> arcweld.Engine:
        engines.append(backend._engine(chosen, "sim", graph, feeds=feeds))
        return engines[-1]

    return torch.compile(model, backend=lambda m, i: backend.compile_with(m, i, chosen, "sim", build)), engines


def greedy(model: Any, step: Callable[..., Any], tokens: int) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits after the prompt, which the model itself reads into a cache; ``step`` makes the rest."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=POSITIONS)
    logits = [model(torch.tensor(PROMPT), past_key_values=cache).logits[:, -1]]
    for _ in range(tokens):
        logits.append(step(logits[-1].argmax(-1, keepdim=True), past_key_values=cache).logits[:, -1])
    return [int(x.argmax()) for x in logits], logits


@pytest.mark.parametrize("name", [*MODELS, *PARALLEL])
def test_tokens_by_torch_compile(name: str) -> None:
    model = decoder(name)
    step, engines = compiled(model)
    found, expected = greedy(model, step, 16), greedy(model, model, 16)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert not any(r.left or len(r.blocks) != 1 or r.blocks[0].fallback for r in torch_report())
    # with windows, PyTorch compiles again for lengths as symbols, and for full windows, which move by a token
    assert len(engines) == (3 if name in ROLLED else 1)
    assert [kept_in_place(e) for e in engines] == [4, 4, 4 - ROLLED[name]] if name in ROLLED else [4]
    for engine in engines[:2]:
        assert_few_kernels(name, engine)


def assert_few_kernels(name: str, engine: arcweld.Engine) -> None:
    """Norm, q/k/v, RoPE and the appends to caches; attention; output; gate and up; down. What is alike in all layers,
    the embedding and the logits are four more."""
    limit = 2 * (8 if name in NORMED else 6) + 4
    assert len(engine.program.launches) <= limit, [x.name for x in engine.program.launches]


def kept_in_place(engine: arcweld.Engine) -> int:
    """How many of the four caches the engine writes where they are, without a launch that reads the old values."""
    caches = {t.name for t in engine.inputs if len(t.shape) == 4}
    assert len(caches & {s.input for s in engine.program.state}) == 4
    kept = caches & {a.of for a in engine.program.aliases}
    assert not any(kept & set(x.reads) for x in engine.program.launches)
    return len(kept)


def exported(model: Any, positions: int) -> torch.export.ExportedProgram:
    """The model with a static cache of its own, of that many positions, which makes one token."""
    from transformers import GenerationConfig
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    cache = {"batch_size": 1, "max_cache_len": positions}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=positions, cache_config=cache
    )
    module = TorchExportableModuleWithStaticCache(model, device=torch.device("cpu"))
    example = {"input_ids": torch.tensor([[3]]), "cache_position": torch.tensor([0])}
    return torch.export.export(module, (), example, strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_ahead_of_time(name: str) -> None:
    from transformers import DynamicCache

    model = decoder(name)
    engine = arcweld.compile(exported(model, POSITIONS), device="sim", verify="off")  # above it is verified
    assert kept_in_place(engine) == 4
    assert_few_kernels(name, engine)
    session, past, tokens = engine.session(), DynamicCache(config=model.config), list(PROMPT[0])
    for k in range(len(tokens) + 8):
        ids = torch.tensor([[tokens[k]]])
        want = model(ids, past_key_values=past).logits
        got = session(input_ids=ids, cache_position=torch.tensor([k]))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert int(got[0, -1].argmax()) == int(want[0, -1].argmax())
        tokens += [int(got[0, -1].argmax())] * (k + 1 == len(tokens))


def encoded(model: Any, step: Callable[..., Any], tokens: int) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits of a decoder that also attends to what the encoder has made, by caches of both."""
    from transformers import EncoderDecoderCache, StaticCache

    whisper, draw = model.config.model_type == "whisper", torch.Generator().manual_seed(1)
    source = torch.randn(1, 16, 60, generator=draw) if whisper else torch.tensor([[5, 6, 7, 8, 9]])
    read = {"encoder_outputs": model.get_encoder()(source)}
    lengths = (POSITIONS, read["encoder_outputs"].last_hidden_state.shape[1])
    read["past_key_values"] = EncoderDecoderCache(*(StaticCache(model.config, max_cache_len=n) for n in lengths))
    logits = [model(decoder_input_ids=torch.tensor([[1, 5]]), **read).logits[:, -1]]
    for _ in range(tokens):
        logits.append(step(decoder_input_ids=logits[-1].argmax(-1, keepdim=True), **read).logits[:, -1])
    return [int(x.argmax()) for x in logits], logits


@pytest.mark.parametrize("name", ENCODED)
def test_tokens_of_a_decoder_behind_an_encoder(name: str) -> None:
    from transformers import AutoConfig, T5ForConditionalGeneration, WhisperForConditionalGeneration

    torch.manual_seed(0)
    make = T5ForConditionalGeneration if name == "t5" else WhisperForConditionalGeneration
    model = make(AutoConfig.for_model(name, **ENCODED[name])).eval()
    step, engines = compiled(model)
    found, expected = encoded(model, step, 8), encoded(model, model, 8)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert not any(r.left or len(r.blocks) != 1 or r.blocks[0].fallback for r in torch_report())
    assert [kept_in_place(e) for e in engines] == [4]


def test_contexts_of_any_length() -> None:
    """64 tokens behind 1, 31 and 1,000 others, and up to the cache's last position."""
    from transformers import StaticCache

    model = decoder("llama")
    model.config.max_position_embeddings = 2048
    step, engines = compiled(model)
    draw = torch.Generator().manual_seed(2)
    for context in (1, 31, 1000, 1088 - 64):
        prompt = torch.randint(128, (1, context), generator=draw)
        found: list[list[int]] = []
        for run in (step, model):
            cache = StaticCache(config=model.config, max_cache_len=1088)
            tokens = [int(model(prompt, past_key_values=cache).logits[0, -1].argmax())]
            for _ in range(64):
                logits = run(torch.tensor([tokens[-1:]]), past_key_values=cache).logits
                tokens.append(int(logits[0, -1].argmax()))
            found.append(tokens)
        assert found[0] == found[1]
    assert len(engines) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_a_step_writes_does_not_grow_with_the_cache(name: str) -> None:
    def written(positions: int) -> int:
        engine = arcweld.compile(exported(decoder(name), positions), device="sim", verify="off")
        kept = {a.name for a in engine.program.aliases}
        tensors = {t.name: t for t in (*engine.program.temps, *engine.program.outputs)}
        stored = [tensors[w] for x in engine.program.launches for w in x.writes if w not in kept]
        return sum(int(np.prod([int(d) for d in t.shape])) for t in stored)

    assert written(32) == written(128)
