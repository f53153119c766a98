"""Checkpoints of language models to alter: how they are made, altered part by part, and opened.

A folder is carried as an archive of its files, a GGUF file as an archive of one.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from alter import NUMBERS, WORDS, Members, file_altered, flipped, read_members, tensors_altered, written

from arcweld.models import reencode

GGUF = "model.gguf"
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 128, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIG = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
TOKENS = ["<|endoftext|>", "<s>", "</s>", *map(chr, range(33, 127)), "th", *(f"<{k}>" for k in range(30))]
METADATA = {
    "llama.context_length": 128, "llama.embedding_length": 256, "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.vocab_size": 128, "llama.rope.dimension_count": 64,
}  # fmt: skip
TEXTS = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.merges": ["t h"],
    "tokenizer.ggml.token_type": [3] * 3 + [1] * 125,
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}", "general.license": "mit",
}  # fmt: skip
# raised where an earlier alteration left a file that cannot be read
UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error)
OTHERS: dict[str, Callable[[Any], Any]] = {
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=128, n_positions=64)),
    "qwen3_moe": lambda t: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(
        **SIZES | {"hidden_size": 64, "head_dim": 16}, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32
    )),
    "gemma3": lambda t: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SIZES | {"hidden_size": 64, "head_dim": 16})),
}  # fmt: skip


@cache
def checkpoints(folder: Path) -> tuple[bytes, ...]:
    """Every form that Arcweld reads of one small Llama, and folders of other architectures; all with a tokenizer."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # children are forked
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.1))
    state = {n: p.detach().numpy() for n, p in module.named_parameters()}
    found = []
    for k, (form, encode) in enumerate(reencode.FOLDERS.items()):
        shards = 2 if k % 4 == 0 else 1
        found.append(_with_texts(reencode.write_folder(folder / form, CONFIG, *encode(state), shards=shards)))
    for name, make in OTHERS.items():
        make(transformers).save_pretrained(folder / name)
        found.append(_with_texts(folder / name))
    for form in reencode.FILES:
        path = reencode.llama_gguf(folder / f"{form}.gguf", form, CONFIG, state, METADATA | TEXTS)
        found.append(written({GGUF: path.read_bytes()}))
    return tuple(found)


def _with_texts(folder: Path) -> bytes:
    """The archive of a folder, with a tokenizer, chat templates, end tokens and a licence."""
    import tokenizers
    import transformers

    unknown, begin, end = TOKENS[:3]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({t: k for k, t in enumerate(TOKENS)}, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=end, bos_token=begin, unk_token=unknown
    )
    fast.chat_template = {"default": TEXTS["tokenizer.chat_template"], "tool_use": "{{ tools | tojson }}"}
    fast.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}', encoding="utf-8")
    (folder / "LICENSE").write_text("MIT", encoding="utf-8")
    return written({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})


# ------------------------------------------------------------------------------------------------------------- altered


def altered_checkpoint(original: bytes, rng: random.Random) -> bytes:
    """The checkpoint with one to three things altered in its files."""
    members = read_members(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(*UNREADABLE):
            members = _altered(members, rng)
    return written(members)


def _altered(members: Members, rng: random.Random) -> Members:
    if len(members) > 1 and rng.random() < 0.1:
        return _names(members, rng)
    # the weights are as likely as the configuration, and all texts together
    chosen = rng.choice([*members, *[n for n in members if "token" not in n and "template" not in n] * 3])
    body = members[chosen]
    if rng.random() < 0.1:
        new = flipped(body, rng)
    elif chosen == GGUF:
        new = gguf_altered(body, rng)
    elif chosen.endswith(".safetensors"):
        new = tensors_altered(body, rng)
    else:
        new = file_altered(chosen, body, rng)
    return {**members, chosen: new}


def _names(members: Members, rng: random.Random) -> Members:
    """Leaves a file out, gives it another name, or exchanges two."""
    chosen, other = rng.choice(list(members)), rng.choice(list(members))
    match rng.randrange(3):
        case 0:
            return {n: b for n, b in members.items() if n != chosen}
        case 1:
            new = rng.choice(("quantize_config.json", "hf_quant_config.json", "tokenizer.model", "vocab.json", "x"))
            return {(new if n == chosen else n): b for n, b in members.items()}
        case _:
            return {**members, chosen: members[other], other: members[chosen]}


# ---------------------------------------------------------------------------------------------------------------- GGUF


Part = tuple[int, int, str]  # where a number or a text with its length lies, and the number's form; "" for a text


class _Header:
    """The parts of a GGUF header, entry by entry: counts, values that describe the model, tensors."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.entries = data, 0, list[list[Part]]()
        self._begin()
        self.at = 4
        _, tensors, values = self._number("<I"), self._number("<Q"), self._number("<Q")
        for _ in range(values):
            self._begin()
            self._text()
            self._value(self._number("<I"))
        for _ in range(tensors):
            self._begin()
            self._text()
            for _ in range(self._number("<I")):
                self._number("<Q")
            self._number("<I"), self._number("<Q")

    def _begin(self) -> None:
        self.entries.append([])

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self.entries[-1].append((self.at, self.at + size, form))
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)[0]

    def _text(self) -> None:
        size = 8 + int(struct.unpack_from("<Q", self.data, self.at)[0])
        self.entries[-1].append((self.at, self.at + size, ""))
        self.at += size

    def _value(self, kind: int) -> None:
        if kind == 8:
            self._text()
        elif kind == 9:
            inner = self._number("<I")
            for _ in range(self._number("<Q")):
                self._value(inner)
        else:
            self._number(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d")[kind])


def gguf_altered(data: bytes, rng: random.Random) -> bytes:
    """A GGUF file with a number, a text or a whole entry of its header changed; what follows stays aligned."""
    header = _Header(data)
    entry = rng.choice(header.entries)
    begin, end, form = rng.choice(entry)
    if rng.random() < 0.1 and len(entry) > 1:  # an entry twice, or not at all
        begin, end = entry[0][0], entry[-1][1]
        new = data[begin:end] * rng.choice((0, 2))
    elif form:
        new = _number(form, struct.unpack_from(form, data, begin)[0], rng)
    else:
        text = rng.choice((data[begin + 8 : end] + b"'", b"", rng.choice(WORDS).encode(), data[begin + 9 : end]))
        new = struct.pack("<Q", len(text)) + text
    changed = data[:begin] + new + data[end : header.at]
    return changed + b"\0" * (-len(changed) % 32) + data[-(-header.at // 32) * 32 :]


def _number(form: str, old: Any, rng: random.Random) -> bytes:
    """Another number of this form; a wide one is cut to it."""
    if form in ("<f", "<d"):
        return struct.pack(form, rng.choice((0.0, -1.0, 1e-30, 3e38, float("nan"), float("inf"), 0.5, old * 2)))
    value = int(rng.choice([old - 1, old + 1, old * 2, *NUMBERS]))
    size = struct.calcsize(form)
    return (value % (1 << 8 * size)).to_bytes(size, "little") if form != "<?" else bytes([value % 256])


# -------------------------------------------------------------------------------------------------------------- opened


def written_to(data: bytes, folder: Path) -> Path:
    """Writes a checkpoint's files into a new folder; the path is that of its GGUF file, or the folder."""
    members = read_members(data)
    for name, body in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder / GGUF if GGUF in members else folder


def open_checkpoint(data: bytes, folder: Path) -> None:
    """Reads the altered checkpoint's texts and all of its weights; one in sixteen becomes an engine too."""
    from arcweld.driver.checkpoint_models import build_checkpoint, read_language_model

    path = written_to(data, folder / "checkpoint")
    if sum(data) % 16 == 0:
        build_checkpoint(path, length=32, tokens=16, rows=4, device="sim", verify="off", arch="sm_80")
        return
    for tensor in read_language_model(path).bound.tensors.values():
        tensor.to_stored()
