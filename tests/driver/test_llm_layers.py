"""``eval compare`` of checkpoints of which one matrix is stored wrongly: it fails, and names that matrix's layer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file
from test_llm_evaluation import letters

from arcweld.cli.app import main
from arcweld.driver.checkpoint_models import build_checkpoint
from arcweld.driver.llm_layers import layer_errors
from arcweld.models import reencode
from arcweld.runtime.engine_file import write_engine
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package

LAYERS, SIZE, LAYER = 3, 128, "model.layers.1.mlp.up_proj"
SIZES: dict[str, Any] = {
    "hidden_size": SIZE, "intermediate_size": SIZE, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 128, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIG = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
METADATA = {
    "llama.context_length": 128, "llama.embedding_length": SIZE, "llama.feed_forward_length": SIZE,
    "llama.attention.head_count": 2, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.vocab_size": 128, "llama.rope.dimension_count": 64,
}  # fmt: skip
WINDOW = np.random.default_rng(3).integers(3, 128, 32).tolist()
HEADERS = {"Q4_0": 2, "Q4_1": 4}  # bytes of a block's scale, and of its least value
Fault = Callable[[Path], None]


def write(folder: Path, form: str) -> Path:
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.1))
    state = {n: p.detach().numpy() for n, p in module.named_parameters()}
    if form in reencode.FILES:
        return reencode.llama_gguf(folder / "model.gguf", form, CONFIG, state, METADATA)
    return reencode.write_folder(folder / form, CONFIG, *reencode.FOLDERS[form](state))


def built(path: Path, skip_tokenizer_init: bool = True) -> Package:
    return build_checkpoint(
        path, length=64, tokens=32, rows=32, device="sim", verify="off", skip_tokenizer_init=skip_tokenizer_init
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Package:
    path = write(tmp_path_factory.mktemp("base"), "f32")
    own = tokenizers.Tokenizer.from_str(letters())
    transformers.PreTrainedTokenizerFast(tokenizer_object=own).save_pretrained(path)
    return built(path, skip_tokenizer_init=False)


# -------------------------------------------------------------------------------------------------------------- faults


def in_words(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """A change of the words of a GPTQ or AWQ layer."""

    def fault(path: Path) -> None:
        file = path / "model.safetensors"
        arrays = load_file(file)
        arrays[f"{LAYER}.{part}"] = change(arrays[f"{LAYER}.{part}"].view(np.uint32)).view(np.int32)
        save_file(arrays, file)

    return fault


def in_blocks(change: Callable[[np.ndarray], None]) -> Fault:
    """A change of the blocks u8[blocks, bytes] of a GGUF file's tensor."""

    def fault(path: Path) -> None:
        (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight"]
        whole = np.memmap(path, np.uint8, "r+")
        start, size = int(tensor.data_offset), int(tensor.n_bytes)
        change(whole[start : start + size].reshape(-1, size * 32 // (SIZE * SIZE)))
        whole.flush()

    return fault


def swapped(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint32(4) & np.uint32(0x0F0F0F0F)) | (words & np.uint32(0x0F0F0F0F)) << np.uint32(4)


def one_more(words: np.ndarray) -> np.ndarray:
    """Each zero point one larger; rounding made none that is 15."""
    codes = words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)
    assert codes.max() < 15
    return words + np.uint32(0x11111111)


def swap_nibbles(header: int) -> Callable[[np.ndarray], None]:
    def change(blocks: np.ndarray) -> None:
        codes = blocks[:, header:]
        blocks[:, header:] = codes >> 4 | codes << 4

    return change


def move_least(blocks: np.ndarray) -> None:
    """Each block's least value is one step less: its zero point is off by one."""
    least, step = (blocks[:, at : at + 2].copy().view(np.float16) for at in (2, 0))
    blocks[:, 2:4] = (least - step).astype(np.float16).view(np.uint8)


FAULTS: dict[tuple[str, str], Fault] = {
    ("Q4_1", "nibbles"): in_blocks(swap_nibbles(4)), ("gptq", "zeros"): in_words("qzeros", one_more),
    ("Q4_1", "zeros"): in_blocks(move_least), ("Q4_0", "nibbles"): in_blocks(swap_nibbles(2)),
    ("gptq", "nibbles"): in_words("qweight", swapped), ("gptq-v1", "zeros"): in_words("qzeros", one_more),
    ("awq", "nibbles"): in_words("qweight", swapped), ("awq", "zeros"): in_words("qzeros", one_more),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.slow
@pytest.mark.skipif("ARCWELD_EVERY" not in os.environ, reason="takes minutes: two builds each")
@pytest.mark.parametrize(("form", "what"), FAULTS)
def test_the_layer_that_is_stored_wrongly_stands_out(form: str, what: str, base: Package, tmp_path: Path) -> None:
    path = write(tmp_path, form)
    first, second = (LLM(p, device="sim").core for p in (base, built(path)))
    assert [e.module for e in layer_errors(first, second, WINDOW) if e.stands_out] == []
    FAULTS[form, what](path)
    second = LLM(built(path), device="sim").core
    assert [e.module for e in layer_errors(first, second, WINDOW) if e.stands_out] == [LAYER]


@pytest.mark.slow
def test_the_command_fails_and_names_it(
    base: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = str(tmp_path / "good.engine"), str(tmp_path / "bad.engine")
    write_engine(good, base.data)
    path = write(tmp_path, "Q4_1")
    FAULTS["Q4_1", "nibbles"](path)
    write_engine(bad, built(path).data)
    text = tmp_path / "text.txt"
    text.write_text("What a text of a hundred characters says is of no importance to a model of random weights.")
    options = ["--text", str(text), "--window", "32", "--device", "sim"]
    assert main(["eval", "compare", good, bad, *options]) == 1
    assert f"layer           {LAYER} is" in capsys.readouterr().out
    assert main(["eval", "compare", good, bad, *options, "--json"]) == 1
    (odd,) = json.loads(capsys.readouterr().out)["layers_that_stand_out"]
    assert odd["module"] == LAYER
    assert odd["error"] > 2.5 * odd["usual"] > 0
    assert main(["eval", "compare", good, bad, *options, "--no-layers"]) == 0
