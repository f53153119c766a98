"""Options of ``serve`` that make no sense are refused before a model is opened."""

from __future__ import annotations

import pytest

from arcweld.cli.app import main


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lora-modules", "sql"], "--lora-modules 'sql' is no name=folder"),
        (["--lora-modules", "a=x", "--lora-modules", "a=y"], "--lora-modules 'a=y' is no name=folder with a name"),
        (["--lora-modules", "a=nowhere"], "the adapter has no adapter_config.json"),
        (["--sampler", "gpu"], "sampler is 'gpu', not auto, device or host"),
        (["--speculative-config", "{"], "--speculative-config is no JSON object"),
        (["--speculative-config", "{}", "--speculative", "3"], "say the same"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no.engine", "--port", "0", *options]) != 0
    assert said in " ".join(capsys.readouterr().err.split())
