"""Perplexity and divergence of language models, against what transformers' logits give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from language_models import VOCABULARY, model, prompts

from arcweld.cli.app import main
from arcweld.compiler.errors import UsageError
from arcweld.driver.language_model import build_language_model
from arcweld.driver.llm_evaluation import compare, perplexity, windows_of
from arcweld.runtime.engine_file import write_engine
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package

LENGTH = 40


def letters() -> str:
    """A tokenizer of single characters."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({chr(k): k for k in range(VOCABULARY)}, unk_token="\0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return str(made.to_str())


@pytest.fixture(scope="module")
def packages() -> tuple[Package, Package]:
    """Two models with other weights. A step has fewer tokens than a window."""
    return tuple(  # type: ignore[return-value]
        build_language_model(
            model(name), length=64, page_size=8, tokens=32, device="sim", verify="off", tokenizer=letters()
        )
        for name in ("llama", "qwen2")
    )


def rows(name: str, window: list[int]) -> Any:
    with torch.no_grad():
        return model(name)(torch.tensor([window])).logits[0, :-1].double().log_softmax(-1)


def test_measures_are_those_of_transformers_logits(packages: tuple[Package, Package]) -> None:
    cores = [LLM(p, device="sim").core for p in packages]
    cut = prompts([LENGTH] * 3, seed=5)
    p, q = (torch.cat([rows(name, w) for w in cut]) for name in ("llama", "qwen2"))
    targets = torch.tensor([t for w in cut for t in w[1:]])
    want = torch.nn.functional.nll_loss(p, targets).exp()
    found = perplexity(cores[0], cut)
    np.testing.assert_allclose(found.value, want, rtol=1e-5)
    assert found.low <= found.value <= found.high
    both = compare(cores[0], cores[1], cut)
    np.testing.assert_allclose(both.base.value, found.value, rtol=1e-9)
    np.testing.assert_allclose(both.other.value, torch.nn.functional.nll_loss(q, targets).exp(), rtol=1e-5)
    divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(both.divergence.value, divergence.mean(), rtol=1e-4)
    np.testing.assert_allclose(both.worst, divergence.max(), rtol=1e-4)
    np.testing.assert_allclose(both.same_top.value, (p.argmax(-1) == q.argmax(-1)).double().mean(), atol=1e-9)
    assert both.tokens == 3 * (LENGTH - 1)
    same = compare(cores[0], cores[0], cut)
    assert same.divergence.value == 0
    assert same.same_top.value == 1


def test_the_commands(
    packages: tuple[Package, Package], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(tmp_path / "a.engine"), str(tmp_path / "b.engine")
    for path, package in zip((a, b), packages):
        write_engine(path, package.data)
    text = tmp_path / "text.txt"
    text.write_text("Fused kernels, verified: what a text of a hundred characters says is of no importance.")
    options = ["--text", str(text), "--window", "32", "--device", "sim"]
    assert main(["eval", "perplexity", a, *options, "--json"]) == 0
    ids = [ord(c) for c in text.read_text()]
    cut = windows_of(ids, 32)
    loss = torch.nn.functional.nll_loss(
        torch.cat([rows("llama", w) for w in cut]), torch.tensor([t for w in cut for t in w[1:]])
    )
    np.testing.assert_allclose(json.loads(capsys.readouterr().out)["perplexity"]["value"], loss.exp(), rtol=1e-5)
    assert main(["eval", "compare", a, a, *options, "--max-divergence", "0"]) == 0
    assert "same top token  1 (1 to 1), of 62 predictions" in capsys.readouterr().out
    assert main(["eval", "compare", a, b, *options, "--max-divergence", "0.1"]) == 1
    assert "above 0.1" in capsys.readouterr().out


def test_texts_that_are_no_window(packages: tuple[Package, Package]) -> None:
    with pytest.raises(UsageError, match="3 tokens, less than a window of 4"):
        windows_of([1, 2, 3], 4)
    with pytest.raises(UsageError, match="predict nothing"):
        windows_of([1, 2, 3], 1)
    with pytest.raises(UsageError, match="longer than the model takes"):
        perplexity(LLM(packages[0], device="sim").core, [[1] * 65])
