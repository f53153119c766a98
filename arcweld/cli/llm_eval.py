"""``eval``: measures of a language model on a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from arcweld.cli.common import out, print_json
from arcweld.compiler.errors import InputError
from arcweld.driver.llm import LLM
from arcweld.driver.llm_evaluation import Agreement, Estimate, compare, perplexity, windows_of
from arcweld.driver.llm_layers import LayerError, layer_errors
from arcweld.runtime.devices import choose

Opt = typer.Option
MOST_SHOWN = 10  # layers
FAR = 1  # the exit code where models differ more than allowed
evaluate = typer.Typer(help="Measure a language model on a text.", no_args_is_help=True)
_MODEL = "Engine file of build-llm, or a checkpoint."
Text = Annotated[str, Opt("--text", help="A file of text, UTF-8.")]
Length = Annotated[int, Opt("--window", help="Tokens of a window.")]
Most = Annotated[int, Opt("--windows", help="The most windows; 0: all.")]
On = Annotated[str, Opt("--device", help="Where to run: cuda, cuda:N, sim.")]
Json = Annotated[bool, Opt("--json", help="Print JSON.")]


@evaluate.command("perplexity")
def perplexity_command(
    model: Annotated[str, typer.Argument(help=_MODEL)], text: Text, window: Length = 512, windows: Most = 0,
    device: On = "", as_json: Json = False,
) -> None:  # fmt: skip
    """Prints the perplexity of a text, with a 95 % interval."""
    llm = LLM(model, device=choose(device or None))
    cut = windows_of(llm.tokenizer.encode(_read(text)), window, windows or None)
    found = perplexity(llm.core, cut)
    if as_json:
        print_json({"perplexity": asdict(found), "windows": len(cut), "window": window})
    else:
        out.print(f"perplexity {_shown(found)} over {len(cut)} windows of {window} tokens")


@evaluate.command("compare")
def compare_command(
    base: Annotated[str, typer.Argument(help=f"{_MODEL} The one to compare with.")],
    other: Annotated[str, typer.Argument(help=_MODEL)],
    text: Text, window: Length = 512, windows: Most = 0,
    limit: Annotated[float | None, Opt("--max-divergence", help="Fail where the mean divergence is larger.")] = None,
    layers: Annotated[bool, Opt("--layers/--no-layers", help="Look for a layer that stands out.")] = True,
    device: On = "", as_json: Json = False,
) -> None:  # fmt: skip
    """Prints how far a model's predictions are from another's.

    The exit code is 1 beyond --max-divergence, and where a layer's error stands out among its likes.
    """
    where = choose(device or None)
    first, second = LLM(base, device=where), LLM(other, device=where)
    cut = windows_of(first.tokenizer.encode(_read(text)), window, windows or None)
    found = compare(first.core, second.core, cut)
    errors = layer_errors(first.core, second.core, cut[0]) if layers and found.worst else []
    odd = [e for e in errors if e.stands_out]
    if as_json:
        print_json({**asdict(found), "layers_compared": len(errors), "layers_that_stand_out": [asdict(e) for e in odd]})
    else:
        _print(found)
        _print_layers(odd, errors)
    if odd:
        raise typer.Exit(FAR)
    if limit is not None and not found.divergence.value <= limit:
        out.print(f"the mean divergence is above {limit:g}")
        raise typer.Exit(FAR)


def _print(a: Agreement) -> None:
    out.print(f"perplexity      {_shown(a.base)}, the other {_shown(a.other)}")
    out.print(f"KL divergence   {_shown(a.divergence)}, the largest {a.worst:.4g}")
    out.print(f"same top token  {_shown(a.same_top)}, of {a.tokens} predictions")


def _print_layers(odd: list[LayerError], errors: list[LayerError]) -> None:
    for e in odd[:MOST_SHOWN]:
        out.print(f"layer           {e.module} is {e.error:.2g} off given the same input; its likes {e.usual:.2g}")
    if len(odd) > MOST_SHOWN:
        out.print(f"                and {len(odd) - MOST_SHOWN} more")
    if errors and not odd:
        out.print(f"layers          none of {len(errors)} modules stands out")


def _shown(e: Estimate) -> str:
    return f"{e.value:.4g} ({e.low:.4g} to {e.high:.4g})"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text {path} cannot be read: {error}") from error
