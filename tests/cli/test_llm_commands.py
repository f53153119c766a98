"""``build-llm``, ``generate`` and ``arcweld.LLM`` on a folder as transformers saves it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from language_models import VOCABULARY, greedy, model
from transformers import PreTrainedTokenizerFast

import arcweld
from arcweld.cli.app import main
from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.compiler.logs import printable
from arcweld.runtime.engine_file import read_engine

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
PROMPT = "What is a kernel?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer of single characters."""
    path = tmp_path_factory.mktemp("checkpoint")
    model("llama").save_pretrained(path)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({chr(k): k for k in range(VOCABULARY)}, unk_token="\0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    saved = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="\2", unk_token="\0")
    saved.chat_template = TEMPLATE
    saved.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "llama.engine"
    options = ["--max-model-len", "128", "--max-num-batched-tokens", "32", "--page-size", "8", "--device", "sim"]
    assert main(["build-llm", str(folder), "-o", str(path), *options, "--verifyBudget", "5", "--quiet"]) == 0
    return path


def expected(text: str, count: int) -> str:
    ids = greedy(model("llama"), [ord(c) for c in text], count)
    return "".join(chr(t) for t in (ids[: ids.index(2)] if 2 in ids else ids) if t not in (0, 2))


def test_a_checkpoint_becomes_one_verified_file_that_answers(
    engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    raw = ["generate", str(engine), PROMPT, "--raw", "--max-tokens", "12", "--device", "sim"]
    assert main([*raw, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == expected(PROMPT, 12)
    assert found["prompt_tokens"] == len(PROMPT)
    assert main(["generate", str(engine), PROMPT, "--max-tokens", "12", "--device", "sim", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == expected(f"<user>{PROMPT}", 12)
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert main(["generate", str(engine), "-", "--raw", "--max-tokens", "12", "--device", "sim", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == expected(PROMPT, 12)
    assert main(raw) == 0
    shown = capsys.readouterr()
    assert shown.out.rstrip("\n") == printable(expected(PROMPT, 12))
    assert "tokens of prompt" in shown.err


def test_evidence_is_stored_with_the_engine(engine: Path) -> None:
    verify = read_engine(engine).verify
    assert verify["level"] == "quick"
    compared = [p["sizes"] for p in verify["points"] if p.get("outputs")]
    assert any(s["tile"] == 1 for s in compared)  # single tokens have kernels of their own
    assert any(s["tile"] > 1 for s in compared)


def test_the_engine_of_a_checkpoint_is_built_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path))
    sizes = {"max_model_len": 64, "max_num_batched_tokens": 16}
    params = arcweld.SamplingParams(temperature=0, max_tokens=6)
    first = arcweld.LLM(folder, device="sim", build={"verify": "off"}, **sizes).generate(PROMPT, params)
    assert first[0].outputs[0].text == expected(PROMPT, 6)
    (kept,) = (tmp_path / "llm").iterdir()
    before = kept.stat().st_mtime_ns
    again = arcweld.LLM(folder, device="sim", build={"verify": "off"}, **sizes).generate(PROMPT, params)
    assert again[0].outputs[0].text == first[0].outputs[0].text
    assert kept.stat().st_mtime_ns == before
    os.utime(folder / "config.json")
    arcweld.LLM(folder, device="sim", build={"verify": "off"}, **sizes)
    (now,) = (tmp_path / "llm").iterdir()  # in place of the other one
    assert now != kept
    with pytest.raises(UsageError, match="an engine already"):
        arcweld.LLM(now, device="sim", build={"verify": "off"})


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build-llm", "no-such-folder", "-o", "x.engine"], 2, "no such checkpoint"),
        (["generate", "no-such.engine", "hello"], 2, "there is no model"),
        (["eval", "perplexity", "no-such.engine", "--text", "x.txt"], 2, "there is no model"),
    ],
)
def test_what_is_not_there_is_one_error(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class _Seen(ArcweldError):
    code = "seen"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a build is asked for, which then does not take place."""
    found: dict[str, Any] = {}

    def build(*_: Any, **given: Any) -> None:
        found.update(given)
        raise _Seen("enough")

    monkeypatch.setattr("arcweld.cli.llm.build_checkpoint", build)
    monkeypatch.setattr("arcweld.driver.checkpoint_models.build_checkpoint", build)
    return found


def test_numeric_options_reach_the_build(folder: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    options = ["--fp16", "--kv-cache-dtype", "fp8", "--batch-invariant", "--embeddings", "--device", "sim"]
    assert main(["build-llm", str(folder), "-o", str(tmp_path / "x.engine"), *options, "--quiet"]) != 0
    names = ("precision", "kv_cache_dtype", "batch_invariant", "embeddings")
    assert [asked[n] for n in names] == ["fp16", "fp8", True, True]
    asked.clear()
    with pytest.raises(_Seen):
        arcweld.LLM(
            folder, device="sim", kv_cache_dtype="fp8", batch_invariant=True, embeddings=True,
            build={"precision": "fp16"},
        )  # fmt: skip
    assert [asked[n] for n in names] == ["fp16", "fp8", True, True]
    with pytest.raises(UsageError, match="one of auto, float16, bfloat16, fp8, fp8_e4m3, int8"):
        arcweld.LLM(folder, device="sim", kv_cache_dtype="fp7")


def test_an_engine_that_was_built_otherwise_is_refused(engine: Path) -> None:
    with pytest.raises(UsageError, match="not batch-invariant"):
        arcweld.LLM(engine, device="sim", batch_invariant=True)
    with pytest.raises(UsageError, match="built with caches of f32"):
        arcweld.LLM(engine, device="sim", kv_cache_dtype="fp8")
    with pytest.raises(UsageError, match="no hidden states"):
        arcweld.LLM(engine, device="sim", embeddings=True)
