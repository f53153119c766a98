"""``serve``: a language model behind the API that clients of OpenAI's speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from arcweld.cli.common import serving_packages
from arcweld.compiler.errors import UsageError
from arcweld.driver.llm import LLM, is_engine_file
from arcweld.runtime.devices import choose
from arcweld.runtime.llm.adapters import LoRARequest, read_adapter
from arcweld.runtime.llm.device_sampler import sampler_place

Opt = typer.Option
_MODEL = "Engine file of build-llm, or a checkpoint."
_KEY = "A key, one of which requests must bear; may be repeated. Also as ARCWELD_API_KEY, which ps does not show."
_CALLS = "How the model writes tool calls, as hermes or mistral (docs/serving.md); default: by its chat template."
_CACHE = "Memory for keys and values, like 512M; default: room for all sequences, at most 1 GiB."
_AHEAD = "Where the device chooses tokens, begin a step before the last one's are read."
_LORA = "A LoRA adapter as name=folder, which requests name as their model; may be repeated."
_SPECULATIVE = 'How tokens are guessed, as JSON: {"model": "draft.engine", "num_speculative_tokens": 4}.'


def serve(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    host: Annotated[str, Opt("--host", help="Where to listen; 0.0.0.0: everywhere.")] = "127.0.0.1",
    port: Annotated[int, Opt("--port", help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[list[str] | None, Opt("--api-key", envvar="ARCWELD_API_KEY", help=_KEY)] = None,
    name: Annotated[str, Opt("--served-model-name", help="The model's name; default: the file's.")] = "",
    length: Annotated[int | None, Opt("--max-model-len", help="The most tokens of a sequence.")] = None,
    sequences: Annotated[int | None, Opt("--max-num-seqs", help="The most sequences that run together.")] = None,
    tokens: Annotated[int | None, Opt("--max-num-batched-tokens", help="The most tokens of a step.")] = None,
    cache: Annotated[str, Opt("--kv-cache-memory", help=_CACHE)] = "",
    cache_type: Annotated[str, Opt("--kv-cache-dtype", help="As of build-llm, which the engine must have.")] = "auto",
    invariant: Annotated[bool, Opt("--batch-invariant", help="As of build-llm, which the engine must have.")] = False,
    embeddings: Annotated[bool, Opt("--embeddings", help="As of build-llm, which the engine must have.")] = False,
    caching: Annotated[bool, Opt("--prefix-caching/--no-prefix-caching", help="Share equal beginnings.")] = True,
    speculative: Annotated[int, Opt("--speculative", help="Tokens guessed in a step.")] = 0,
    sampler: Annotated[str, Opt("--sampler", help="Where tokens are chosen: auto, device, host.")] = "auto",
    ahead: Annotated[bool, Opt("--async-scheduling/--no-async-scheduling", help=_AHEAD)] = True,
    modules: Annotated[list[str] | None, Opt("--lora-modules", help=_LORA)] = None,
    config: Annotated[str, Opt("--speculative-config", help=_SPECULATIVE)] = "",
    body: Annotated[int, Opt("--max-body-bytes", help="The most bytes of a request.")] = 4 << 20,
    prompt: Annotated[int | None, Opt("--max-prompt-tokens", help="The most tokens of a prompt.")] = None,
    queue: Annotated[int, Opt("--max-queue", help="Sequences that may wait; more are refused (429).")] = 256,
    seconds: Annotated[float, Opt("--request-timeout", help="Seconds of a request.")] = 600.0,
    step: Annotated[float, Opt("--step-timeout", help="Seconds of a step before /health fails.")] = 60.0,
    drain: Annotated[float, Opt("--drain-timeout", help="Seconds for requests to end after SIGTERM.")] = 30.0,
    calls: Annotated[str, Opt("--tool-call-parser", help=_CALLS)] = "",
    log_format: Annotated[str, Opt("--log-format", help="text or json.")] = "text",
    device: Annotated[str, Opt("--device", help="Where to run: cuda, cuda:N, sim.")] = "",
    trust: Annotated[bool, Opt("--trust", help="Run a stranger's file on the simulator.")] = False,
) -> None:  # fmt: skip
    """Serves a language model over HTTP until it is told to end."""
    with serving_packages("serving"):
        from arcweld.serving.app import application
        from arcweld.serving.logs import log_to_stderr
        from arcweld.serving.server import listen
        from arcweld.serving.server import serve as run
        from arcweld.serving.settings import Limits, Settings
        from arcweld.serving.tool_calls.forms import form_named
    if log_format not in ("text", "json"):
        raise UsageError(f"--log-format is {log_format!r}, not text or json")
    limits = Limits(body=body, prompt=prompt, queue=queue, seconds=seconds, step=step, drain=drain)
    chooser = sampler_place(sampler)
    place, adapters = Path(model), _adapters(modules or [])
    settings = Settings(
        name or (place.name if place.is_dir() else place.stem), tuple(api_key or ()), limits, adapters,
        form_named(calls) if calls else None,
    )  # fmt: skip
    with listen(host, port) as listening:  # first, because a model takes longer than to see that a port is in use
        llm = LLM(
            model, device=choose(device or None), trusted=trust, max_model_len=length, max_num_seqs=sequences,
            max_num_batched_tokens=tokens, kv_cache_memory=cache or None, enable_prefix_caching=caching,
            speculative=_speculation(speculative, config), kv_cache_dtype=cache_type, batch_invariant=invariant,
            embeddings=embeddings, sampler=chooser, async_scheduling=ahead, **_room(adapters, place),
        )  # fmt: skip
        log_to_stderr(as_json=log_format == "json")
        run(application(llm, settings), listening)


def _speculation(count: int, config: str) -> int | dict[str, Any]:
    """What the two options say of guesses."""
    if not config:
        return count
    if count:
        raise UsageError("--speculative and --speculative-config say the same: give one of them")
    try:
        return msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"--speculative-config is no JSON object: {error}") from None


def _adapters(given: list[str]) -> dict[str, LoRARequest]:
    """The adapters of ``--lora-modules``, by name."""
    found: dict[str, LoRARequest] = {}
    for number, text in enumerate(given, 1):
        name, _, folder = text.partition("=")
        if not name or not folder or name in found:
            raise UsageError(f"--lora-modules {text!r} is no name=folder with a name of its own")
        found[name] = LoRARequest(name, number, folder)
    return found


def _room(adapters: dict[str, LoRARequest], model: Path) -> dict[str, Any]:
    """The settings of ``LLM`` by which the engine of a checkpoint has room for these adapters."""
    if not adapters or is_engine_file(model):
        return {"enable_lora": bool(adapters)}
    ranks = [read_adapter(a.lora_path).rank for a in adapters.values()]
    return {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max(ranks)}
