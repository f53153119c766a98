"""``build-llm`` and ``generate``: a checkpoint to an engine, and text from it."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from arcweld.cli.archs import parse_archs
from arcweld.cli.common import check_writable, err, out, print_json, progress_bar
from arcweld.cli.inputs import precision_of
from arcweld.compiler.errors import UsageError
from arcweld.driver.checkpoint_models import build_checkpoint
from arcweld.driver.language_model import DEFAULT_PAGE, DEFAULT_RANK, DEFAULT_TOKENS
from arcweld.driver.llm import LLM
from arcweld.driver.summary import bytes_text
from arcweld.runtime.devices import choose
from arcweld.runtime.engine_file import write_engine
from arcweld.runtime.llm.package import Description
from arcweld.runtime.llm.params import SamplingParams

Opt = typer.Option
_MODEL = "Checkpoint: the folder of a Hugging Face model, or a GGUF file."
_CACHE = "Keys and values: auto, as the checkpoint says, else as the build computes; float16, bfloat16, fp8, int8."
_INVARIANT = "Logits to the same bits whatever else is in a step: one set of kernels for all steps."
_EMBEDDINGS = "Give hidden states too, for embeddings."
_LENGTH = "The most tokens of a sequence; default: the model's own, at most 2048."


def build_llm(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    output: Annotated[str, Opt("-o", "--output", help="Engine file to write.")],
    length: Annotated[int, Opt("--max-model-len", help=_LENGTH)] = 0,
    tokens: Annotated[int, Opt("--max-num-batched-tokens", help="The most tokens of a step.")] = DEFAULT_TOKENS,
    page_size: Annotated[int, Opt("--page-size", help="Positions of a page of the cache.")] = DEFAULT_PAGE,
    cache: Annotated[str, Opt("--kv-cache-dtype", help=_CACHE)] = "auto",
    invariant: Annotated[bool, Opt("--batch-invariant", help=_INVARIANT)] = False,
    embeddings: Annotated[bool, Opt("--embeddings", help=_EMBEDDINGS)] = False,
    loras: Annotated[int, Opt("--max-loras", help="For how many LoRA adapters there is room at a time.")] = 0,
    rank: Annotated[int, Opt("--max-lora-rank", help="Their greatest rank.")] = DEFAULT_RANK,
    skip: Annotated[bool, Opt("--skip-tokenizer-init", help="Build an engine that takes token ids.")] = False,
    fp16: Annotated[bool, Opt("--fp16", help="Compute in half precision, verified against f32.")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="Compute in bfloat16, verified against f32.")] = False,
    arch: Annotated[str, Opt("--arch", help="Architectures to compile for, like sm_90a,native; or list.")] = "",
    device: Annotated[str, Opt("--device", help="Where to verify: cuda, cuda:N, sim.")] = "",
    verify: Annotated[str, Opt("--verify", help="full, quick or off.")] = "quick",
    verify_budget: Annotated[float, Opt("--verifyBudget", help="CPU seconds for quick verification.")] = 20.0,
    quiet: Annotated[bool, Opt("--quiet", help="Nothing about progress.")] = False,
) -> None:  # fmt: skip
    """Builds the engine of a language model from its checkpoint: one file, with the tokenizer."""
    archs = parse_archs(arch, "none")
    if archs == ():
        return
    if length < 0 or tokens < 1 or page_size < 1:
        raise UsageError("--max-model-len, --max-num-batched-tokens and --page-size are positive numbers")
    if loras < 0 or rank < 1:
        raise UsageError(f"--max-loras is {loras} and --max-lora-rank {rank}, not at least 0 and at least 1")
    check_writable(output, model)
    started = time.perf_counter()
    with progress_bar(quiet) as report:
        package = build_checkpoint(
            model, length=length or None, tokens=tokens, page_size=page_size, max_loras=loras, max_lora_rank=rank,
            precision=precision_of(fp16, bf16),
            arch=archs, device=choose(device or None), verify=verify, verify_budget=verify_budget, progress=report,
            kv_cache_dtype=cache, batch_invariant=invariant, embeddings=embeddings, skip_tokenizer_init=skip,
        )  # fmt: skip
        write_engine(output, package.data)
    d, data = package.description, package.data
    launches = " or ".join(str(len(part.launches)) for part in data.program.parts())
    weights = sum(w.nbytes for w in data.weights.values())
    text = "with its tokenizer" if package.tokenizer is not None else "without a tokenizer"
    out.print(
        f"built {output}: {d.architecture}, {text}, up to {d.length} tokens a sequence, "
        f"keys and values in {_caches(d)}, {launches} launches a step, "
        f"{bytes_text(weights)} of weights, in {time.perf_counter() - started:.1f} s"
    )


def _caches(description: Description) -> str:
    """The types of keys and values, and whose scales they have."""
    types = " and ".join(sorted({c.dtype for c in description.caches}))
    return types + (" with the checkpoint's scales" if description.calibrated else "")


def generate(
    model: Annotated[str, typer.Argument(help="Engine file of build-llm, or a checkpoint.")],
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    chat: Annotated[bool, Opt("--chat/--raw", help="Put the prompt into the model's chat template.")] = True,
    tokens: Annotated[int, Opt("--max-tokens", help="The most tokens of the answer.")] = 128,
    temperature: Annotated[float, Opt("--temperature", help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, Opt("--top-p", help="Only the most likely tokens with this sum.")] = 1.0,
    seed: Annotated[int | None, Opt("--seed", help="Of the random numbers.")] = None,
    device: Annotated[str, Opt("--device", help="Where to run: cuda, cuda:N, sim.")] = "",
    trust: Annotated[bool, Opt("--trust", help="Run a stranger's file on the simulator.")] = False,
    as_json: Annotated[bool, Opt("--json", help="Print the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Answers a prompt, and shows the text as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    llm = LLM(model, device=choose(device or None), trusted=trust)
    ids = llm.chat_prompt([{"role": "user", "content": text}]) if chat else llm.tokenizer.encode(text)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=tokens)
    started, first, shown, count = time.perf_counter(), 0.0, 0, 0
    for result in llm.stream(ids, params):
        answer = result.outputs[0]
        first = first or time.perf_counter() - started
        count = len(answer.token_ids)
        if not as_json:
            settled = llm.settled(result.request_id) if not answer.finished else answer.text
            out.print(settled[shown:], end="", soft_wrap=True, highlight=False)
            shown = len(settled)
    spent = time.perf_counter() - started
    stats = llm.stats()
    if as_json:
        print_json({
            "text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason,
            "prompt_tokens": len(ids), "seconds_to_first_token": first, "seconds": spent, "steps": stats.steps,
        })  # fmt: skip
        return
    out.print()
    rate = (count - 1) / (spent - first) if count > 1 else 0.0
    err.print(
        f"{count} tokens, {rate:.2f} a second after the first one, which came after {first:.2f} s; "
        f"{len(ids)} tokens of prompt, {stats.pages_cached} of {stats.pages} pages in use"
    )
