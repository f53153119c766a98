"""Parameters of transformers' modules and the stored tensors that they are, by name, in the module's order of rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.tensors import Packed
from arcweld.compiler.errors import EnvironmentError_, ModelError, UnsupportedError
from arcweld.models import reencode

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": False,
}  # fmt: skip
METADATA = {
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.embedding_length": 64,
}  # fmt: skip


def module(**changes: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """The shapes of a small llama's parameters, and random weights for them."""
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig(**(SIZES | changes)))
    shapes = {n: tuple(p.shape) for n, p in made.named_parameters()}
    rng = np.random.default_rng(0)
    return shapes, {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}


def test_a_folder_has_the_modules_names(tmp_path: Path) -> None:
    shapes, state = module()
    reencode.write_folder(tmp_path, SIZES, state | {"model.rotary.inv_freq": np.ones(4, np.float32)})
    bound = bind(open_checkpoint(tmp_path), shapes)
    assert bound.unused == ("model.rotary.inv_freq",)
    for name, array in state.items():
        np.testing.assert_array_equal(bound.tensors[name].decode(), array)


def test_a_folder_of_the_inner_model_alone(tmp_path: Path) -> None:
    shapes, state = module(tie_word_embeddings=True)
    assert all(name.startswith("model.") for name in state)
    reencode.write_folder(tmp_path, {}, {n.removeprefix("model."): a for n, a in state.items()})
    bound = bind(open_checkpoint(tmp_path), shapes)
    assert bound.unused == ()
    np.testing.assert_array_equal(bound.tensors["model.norm.weight"].decode(), state["model.norm.weight"])


@pytest.mark.parametrize("form", ["gptq-act-order", "awq-gemv", "pack-quantized", "modelopt"])
def test_quantised_layers_have_the_names_of_their_weights(form: str, tmp_path: Path) -> None:
    shapes, state = module()
    reencode.write_folder(tmp_path, SIZES, *reencode.FOLDERS[form](state))
    bound = bind(open_checkpoint(tmp_path), shapes)
    assert {type(t.to_stored()) for n, t in bound.tensors.items() if "_proj" in n} == {Packed}
    for name, array in state.items():
        assert np.abs(bound.tensors[name].decode() - array).max() < 0.15 * np.abs(array).max()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_rows_of_heads_in_gguf_files(kind: str, tmp_path: Path) -> None:
    """The package's own formulas, on rows in the module's order, are what the bound tensors decode to."""
    shapes, state = module()
    path = reencode.llama_gguf(tmp_path / "m.gguf", kind, SIZES, state, METADATA)
    bound = bind(open_checkpoint(path), shapes)
    assert bound.unused == ()
    for name, array in state.items():
        if "_proj" in name:
            number = gguf.GGMLQuantizationType[kind]
            want = gguf.quants.dequantize(gguf.quants.quantize(array, number), number)
            tensor = bound.tensors[name]
            stored = tensor.to_stored()
            np.testing.assert_array_equal(tensor.decode(), want)
            np.testing.assert_array_equal(stored.decode() if isinstance(stored, Packed) else stored, want)


def test_tied_parameters(tmp_path: Path) -> None:
    shapes, state = module()
    del state["lm_head.weight"]
    reencode.write_folder(tmp_path / "f", SIZES, state)
    path = reencode.llama_gguf(tmp_path / "m.gguf", "F32", SIZES, state, METADATA)
    for checkpoint in (open_checkpoint(tmp_path / "f"), open_checkpoint(path)):
        bound = bind(checkpoint, shapes, {"lm_head.weight": "model.embed_tokens.weight"})
        assert bound.tensors["lm_head.weight"].parts is bound.tensors["model.embed_tokens.weight"].parts
        with pytest.raises(ModelError, match=r"no tensors for lm_head.weight"):
            bind(checkpoint, shapes)


def test_heads_of_each_layer(tmp_path: Path) -> None:
    """Key heads may be an array, one number for each layer."""
    shapes, state = module()
    metadata = METADATA | {"llama.attention.head_count_kv": [2, 2]}
    path = reencode.llama_gguf(tmp_path / "m.gguf", "F32", SIZES, state, metadata)
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(bind(open_checkpoint(path), shapes).tensors[name].decode(), state[name])


def test_norms_of_gemma_are_stored_1_larger(tmp_path: Path) -> None:
    names = {
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.self_attn.q_norm.weight": "blk.0.attn_q_norm.weight",
        "model.norm.weight": "output_norm.weight", "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    }  # fmt: skip
    arrays = {own: np.random.default_rng(0).normal(0, 1, (8,) if "norm" in own else (8, 8)).astype(np.float32)
              for own in names.values()}  # fmt: skip
    path = reencode.write_gguf(tmp_path / "m.gguf", "gemma3", {}, {own: (a, "F32") for own, a in arrays.items()})
    bound = bind(open_checkpoint(path), {n: arrays[own].shape for n, own in names.items()})
    for name, own in names.items():
        np.testing.assert_array_equal(bound.tensors[name].decode(), arrays[own] - np.float32("norm" in own))


def test_parameters_that_are_not_there(tmp_path: Path) -> None:
    shapes, state = module()
    for i in (0, 1):
        for part in ("up", "down", "gate"):
            del state[f"model.layers.{i}.mlp.{part}_proj.weight"]
    reencode.write_folder(tmp_path, {}, state)
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.gate_proj.weight.* and 1 more") as caught:
        bind(open_checkpoint(tmp_path), shapes)
    assert caught.value.hint


def test_parameters_of_another_shape(tmp_path: Path) -> None:
    shapes, state = module()
    reencode.write_folder(tmp_path, {}, state)
    with pytest.raises(ModelError, match=r"is \[64\], and the module's 'model.norm.weight' is \[65\]"):
        bind(open_checkpoint(tmp_path), shapes | {"model.norm.weight": (65,)})


def test_gguf_files_whose_order_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, state = module()
    other = reencode.write_gguf(tmp_path / "o.gguf", "mamba", {}, {"w": (np.zeros((2, 2), np.float32), "F32")})
    with pytest.raises(UnsupportedError, match="architecture 'mamba'"):
        bind(open_checkpoint(other), shapes)
    wrong = METADATA | {"llama.attention.head_count": 5}
    path = reencode.llama_gguf(tmp_path / "m.gguf", "F32", SIZES, state, wrong)
    with pytest.raises(ModelError, match=r"blk.0.attn_q.weight' has 64 rows, which are no 5 heads"):
        bind(open_checkpoint(path), shapes)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(EnvironmentError_, match="package gguf"):
        bind(open_checkpoint(path), shapes)
