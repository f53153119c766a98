"""SmolLM2-135M-Instruct as an engine: tokens and perplexity are transformers', in CI for its first four layers.

``make llm`` runs the whole model too (ARCWELD_EVERY=1): some minutes on two CPUs without a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import pydoc_data.topics
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import torch
from language_models import greedy
from transformers import AutoConfig

from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.torch.hollow import hollow_causal_lm
from arcweld.driver.checkpoint_models import build_checkpoint
from arcweld.models import reencode
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.params import SamplingParams, StructuredOutputsParams

pytestmark = [pytest.mark.models, pytest.mark.slow]
whole = pytest.mark.skipif(not os.environ.get("ARCWELD_EVERY"), reason="ARCWELD_EVERY=1 runs the whole model")
CUT = 4
PROMPTS = (
    "The capital of France is", "Once upon a time there was a", "def fibonacci(n):\n", "Water boils at",
    "In 1969, the first man", "The quick brown fox", "List three colours:", "A prime number is", "Dear Sir or Madam,",
    "To make bread you need",
)  # fmt: skip


def module(path: Path) -> Any:
    """The module of transformers with the checkpoint's numbers, widened to f32."""
    checkpoint = open_checkpoint(path)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    made = hollow_causal_lm(config, torch.float32)
    names = {n: tuple(p.shape) for n, p in made.named_parameters()}
    bound = bind(checkpoint, names)
    for name, tensor in bound.tensors.items():
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner)._parameters[leaf] = torch.nn.Parameter(torch.tensor(tensor.decode()), False)
    made.tie_weights()
    return made


@functools.cache
def opened(path: Path) -> tuple[LLM, Any]:
    package = build_checkpoint(path, length=1024, tokens=256, device="sim", verify="off")
    return LLM(package, device="sim", max_num_seqs=10), module(path)


@pytest.fixture(scope="module")
def first_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four layers, re-encoded as they were: Q4_1."""
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    reencode.main(["Q4_1", str(path), "--layers", str(CUT)])
    return path


def follows(path: Path, prompts: tuple[str, ...], count: int) -> None:
    llm, theirs = opened(path)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    for out in llm.generate(list(prompts), params):
        assert out.outputs[0].token_ids == greedy(theirs, out.prompt_token_ids, count), out.prompt
    llm.core.pool.check([])


def perplexities(path: Path, windows: int, length: int) -> tuple[float, float]:
    """Ours and transformers' over the first windows of Python's own help texts."""
    llm, theirs = opened(path)
    text = "\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))
    ids = llm.tokenizer.encode(text[: windows * length * 8])[: windows * length]
    cut = [ids[k : k + length] for k in range(0, windows * length, length)]
    ours = np.concatenate(llm.prompt_logprobs(cut))
    wanted = []
    for window in cut:
        with torch.no_grad():
            rows = theirs(torch.tensor([window])).logits[0, :-1].double().log_softmax(-1)
        wanted.append(rows[torch.arange(length - 1), torch.tensor(window[1:])].numpy())
    return float(np.exp(-ours.mean())), float(np.exp(-np.concatenate(wanted).mean()))


def test_weights_stay_as_they_are_stored(first_layers: Path) -> None:
    """The engine's weights are hardly more bytes than the checkpoint's tensors."""
    llm, _ = opened(first_layers)
    stored = sum(t.nbytes for t in open_checkpoint(first_layers).tensors.values())
    held = sum(w.nbytes for w in llm.core.runner.engine.data.weights.values())
    assert held < 1.03 * stored


def test_tokens_of_the_first_layers_are_transformers(first_layers: Path) -> None:
    follows(first_layers, PROMPTS[:3], 16)


def test_perplexity_of_the_first_layers_is_transformers(first_layers: Path) -> None:
    ours, theirs = perplexities(first_layers, 1, 192)
    assert abs(ours - theirs) < 1e-3 * theirs


@whole
@pytest.mark.timeout(3600)
def test_tokens_are_transformers() -> None:
    follows(reencode.smollm2(), PROMPTS, 64)


@whole
@pytest.mark.timeout(3600)
def test_perplexity_is_transformers() -> None:
    ours, theirs = perplexities(reencode.smollm2(), 4, 512)
    assert abs(ours - theirs) < 1e-3
    assert theirs < 20  # it has learnt to read


@whole
def test_it_answers_a_question() -> None:
    llm, _ = opened(reencode.smollm2())
    params = SamplingParams(temperature=0, max_tokens=24)
    (out,) = llm.chat([{"role": "user", "content": "What is the capital of France?"}], params)
    assert out.outputs[0].text == "The capital of France is Paris."
    assert out.outputs[0].finish_reason == "stop"


CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30}, "capital": {"type": "boolean"},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
        "people": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
    },
    "required": ["name", "capital", "rivers", "people"], "additionalProperties": False,
}  # fmt: skip
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"


@whole
@pytest.mark.timeout(3600)
def test_answers_have_the_form_that_is_asked_for() -> None:
    """A JSON schema, a regular expression and a choice in one batch, most likely tokens and drawn ones."""
    llm, _ = opened(reencode.smollm2())
    forms = [
        StructuredOutputsParams(json=CITY, disable_any_whitespace=True), StructuredOutputsParams(regex=DATE),
        StructuredOutputsParams(choice=["Paris", "Rome", "Oslo"]),
    ]  # fmt: skip
    questions = ["Describe Paris as JSON.", "When did men land on the moon?", "What is the capital of France?"]
    chats: Any = [[{"role": "user", "content": q}] for q in questions]
    for temperature in (0.0, 1.0):
        params = [
            SamplingParams(temperature=temperature, seed=1, max_tokens=120, structured_outputs=f) for f in forms
        ]
        found = [out.outputs[0] for out in llm.chat(chats, params)]
        assert [o.finish_reason for o in found] == ["stop"] * 3
        jsonschema_rs.validator_for(CITY).validate(json.loads(found[0].text))
        assert re.fullmatch(DATE, found[1].text)
        assert found[2].text in ("Paris", "Rome", "Oslo")
    llm.core.pool.check([])
