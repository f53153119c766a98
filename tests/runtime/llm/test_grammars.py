"""Grammars over the kinds of tokenizers that models have: what they allow, decoded by ``tokenizers``, has the form."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.grammar import Grammars
from arcweld.runtime.llm.grammar_limits import written_out
from arcweld.runtime.llm.params import StructuredOutputsParams as Form
from arcweld.runtime.llm.tokenizer import Tokenizer

TEXT = ['{"name": "Zürich", "sizes": [12, 345], "on": true} <tool_call>', "über den Wolken, naïve 東京 12:34"] * 3
SPECIAL = ["<s>", "</s>", "<tool_call>"]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    found.add_special_tokens(SPECIAL)
    return found


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's: a bar for each space, and a token for each byte that has no other."""
    words = ["<unk>", *(f"<0x{k:02X}>" for k in range(256)), "▁", *(chr(c) for c in range(33, 127)), '":', "▁▁", "ü"]
    found = tokenizers.Tokenizer(
        models.BPE({w: k for k, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    found.normalizer = normalizers.Replace(" ", "▁")
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found.add_special_tokens(SPECIAL)
    return found


def plain() -> tokenizers.Tokenizer:
    """Texts that are joined as they are."""
    words = ["<unk>", *(chr(c) for c in range(32, 127)), "ü", "on", '": ']
    found = tokenizers.Tokenizer(models.BPE({w: k for k, w in enumerate(words)}, [], unk_token="<unk>"))
    found.decoder = decoders.Fuse()
    found.add_special_tokens(SPECIAL)
    return found


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte level": byte_level, "byte fallback": byte_fallback, "plain": plain,
}  # fmt: skip


@functools.cache
def made(kind: str) -> tuple[tokenizers.Tokenizer, Grammars]:
    """The tokenizer, and the grammars of a model whose vocabulary is greater, as those of real ones."""
    found = KINDS[kind]()
    return found, Grammars(Tokenizer(found.to_str()), found.get_vocab_size() + 5)


def walk(kind: str, form: Form, seed: int, most: int = 300) -> tuple[str, list[int]]:
    """A text of the form, by random tokens of those that are allowed, and its tokens."""
    tokenizer, grammars = made(kind)
    rng, state, found = np.random.default_rng(seed), grammars.start(form), []
    end = tokenizer.token_to_id("</s>")
    while not state.complete and len(found) < most:
        allowed = np.flatnonzero(state.allowed([end]))
        assert allowed.max() < tokenizer.get_vocab_size()
        token = int(rng.choice(allowed))
        if token == end:
            assert state.prefix([token]) == 0
            break
        assert state.prefix([token]) == 1
        state.take(token)
        found.append(token)
    return tokenizer.decode(found, skip_special_tokens=False), found


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind_of_tokenizer_have_the_form(kind: str) -> None:
    sizes = {"type": "object", "properties": {"ü": {"type": "array", "items": {"enum": [12, "é"]}, "maxItems": 3}},
             "required": ["ü"], "additionalProperties": False}  # fmt: skip
    words = set()
    for seed in range(20):
        text, _ = walk(kind, Form(regex=r"[a-zü]{2,6} [0-9]{1,3}(on|off)?"), seed)
        assert re.fullmatch(r"[a-zü]{2,6} [0-9]{1,3}(on|off)?", text), text
        words.add(text)
        if kind != "plain":  # which has no é
            found = json.loads(walk(kind, Form(json=sizes, disable_any_whitespace=True), seed)[0])
            assert set(found) == {"ü"}
            assert set(found["ü"]) <= {12, "é"}
    assert len(words) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_tags_may_be_tokens_that_are_no_text(kind: str) -> None:
    tokenizer, _ = made(kind)
    tag = tokenizer.token_to_id("<tool_call>")
    _, ids = walk(kind, Form(grammar='start: <tool_call> "on"'), 0)
    assert ids[0] == tag
    texts = Form(grammar='start: "<tool_call>on"'), Form(choice=["<tool_call>on"]), Form(regex="<tool_call>on")
    for seed, form in enumerate(texts):
        text, ids = walk(kind, form, seed)
        assert text == "<tool_call>on"
        assert tag not in ids
    assert json.loads(walk(kind, Form(json={"const": "<tool_call>on"}), 0)[0]) == "<tool_call>on"


def test_tokenizers_of_unknown_bytes_are_refused() -> None:
    words = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(UsageError, match="do not know this tokenizer"):
        Grammars(Tokenizer(words.to_str()), 3).start(Form(regex="a"))


@pytest.mark.parametrize(
    ("expression", "size"),
    [
        ("abc", 3), ("a{3}b", 4), ("(ab){3}", 6), ("((ab){3}c){2}", 14), ("[a-z]{5}", 5), (r"\d{2}\{3}", 4 + 1),
        ("[]{9}]{2}", 2), (r"[\]{9}]{2}", 2), ("a{2,}", 3), ("a{,4}", 4), ("(a|bc)*", 3), ("a{300}{300}", 90_000),
        ("(((((a{9}){9}){9}){9}){9})", 9**5), ("((", 0), ("(a{50}", 50), ("", 0),
    ],
)  # fmt: skip
def test_sizes_of_expressions(expression: str, size: int) -> None:
    assert written_out(expression) == size
