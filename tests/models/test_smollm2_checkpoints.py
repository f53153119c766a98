"""SmolLM2-135M-Instruct as it is published, and its first layers re-encoded in every form that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGUFReader
from transformers import LlamaConfig, LlamaForCausalLM

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.models import reencode

pytestmark = pytest.mark.models
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
TOKENS = 512  # of the vocabulary that the re-encoded models keep

# Bits of codes, and of floats' fractions. Steps that divide 12 standard deviations into 2^bits make errors of
# 12 / sqrt(12) / 2^bits of a deviation; rounding to a fraction errs by half of its last bit at most.
CODES = {
    "gptq": 4, "gptq-v1": 4, "gptq-act-order": 4, "gptq-3bit": 3, "gptq-8bit": 8, "awq": 4, "awq-gemv": 4,
    "pack-quantized": 4, "pack-quantized-asymmetric": 4, "int-quantized": 8, "Q4_0": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8,
    "Q4_K": 4, "Q5_K": 5, "Q6_K": 6,
}  # fmt: skip
FRACTIONS = {"f16": 10, "bf16": 7, "F16": 10, "BF16": 7, "float-quantized": 3, "modelopt": 3}
ERRORS = (
    {form: 12**0.5 / 2**bits for form, bits in CODES.items()} | {form: 0.5 / 2**b for form, b in FRACTIONS.items()}
    | {"f32": 0.0, "Q4_1": 0.0}  # what the weights were in already
)  # fmt: skip
Cut: TypeAlias = "tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]"


@pytest.fixture(scope="module")
def published() -> Checkpoint:
    return open_checkpoint(reencode.smollm2())


@pytest.fixture(scope="module")
def cut(published: Checkpoint) -> Cut:
    """Four layers and the first tokens: the configuration, the weights, and GGUF's metadata."""
    config, state = reencode.llama(published, 4)
    table = "model.embed_tokens.weight"
    texts = published.config["tokenizer.ggml.tokens"][:TOKENS]
    metadata = {k: v for k, v in published.config.items() if not k.startswith("tokenizer.")}
    return (
        config | {"vocab_size": TOKENS}, state | {table: state[table][:TOKENS]},
        metadata | {"llama.vocab_size": TOKENS, "tokenizer.ggml.tokens": texts},
    )  # fmt: skip


def parameters(config: dict[str, Any]) -> tuple[LlamaForCausalLM, dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig(**config))
    return made, {n: tuple(p.shape) for n, p in made.named_parameters()}


def test_every_tensor_is_what_gguf_decodes(published: Checkpoint) -> None:
    assert published.summary() == "GGUF: 210 Q4_1, 61 f32, 1 Q8_0; 96.6 MB"
    for tensor in GGUFReader(reencode.smollm2()).tensors:
        ours = published.tensors[tensor.name]
        np.testing.assert_array_equal(ours.decode(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert ours.to_stored().nbytes == ours.nbytes  # nothing is larger than in the file


def test_transformers_answers_with_the_bound_weights(published: Checkpoint) -> None:
    """transformers' own model says what it should only if every name and every order of rows is right."""
    config, _ = reencode.llama(published, 1)
    config["num_hidden_layers"] = published.config["llama.block_count"]
    model, shapes = parameters(config)
    bound = bind(published, shapes, TIED)
    assert bound.unused == ()
    state = {n: torch.from_numpy(np.array(t.decode())) for n, t in bound.tensors.items()}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    assert model.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]
    texts = published.config["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in published.config["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    assert tokenizer.decode(answer[0, ids.shape[1] :].tolist()) == "The capital of France is Paris."


def test_every_form_has_a_bound() -> None:
    assert set(ERRORS) == {*reencode.FOLDERS, *reencode.FILES}


@pytest.mark.parametrize("form", sorted(ERRORS))
def test_re_encoded(form: str, cut: Cut, tmp_path: Path) -> None:
    config, state, metadata = cut
    if form in reencode.FILES:
        path = reencode.llama_gguf(tmp_path / "m.gguf", form, config, state, metadata)
    else:
        path = reencode.write_folder(tmp_path / "m", config, *reencode.FOLDERS[form](state))
    checkpoint = open_checkpoint(path)
    bound = bind(checkpoint, parameters(config)[1], TIED)
    assert checkpoint.widened() == {}
    for name, array in state.items():
        if reencode.is_quantised(name, array):
            error = ((bound.tensors[name].decode() - array) ** 2).mean() / (array**2).mean()
            assert error**0.5 <= ERRORS[form], name
