"""Language models of transformers as engines: the same tokens as transformers', however the work is cut up."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_models import MODELS, VOCABULARY, greedy, model, prompts

from arcweld.compiler.errors import EngineFileError, UnsupportedError, UsageError
from arcweld.driver.language_model import build_language_model
from arcweld.driver.llm import sources_hash
from arcweld.runtime.engine_file import read_engine, write_engine
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package, unpacked
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.runner import Computed

COUNT = 12
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


@functools.cache
def package(name: str, page_size: int = 8) -> Package:
    return build_language_model(
        model(name), length=128, page_size=page_size, tokens=64, device="sim", verify="off", end_tokens=[2]
    )


def tokens(llm: LLM, given: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    found = [out.outputs[0].token_ids for out in llm.generate(given, params)]
    llm.core.pool.check([])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_architectures(name: str) -> None:
    """Prompts longer than the sliding windows, together in one batch, in chunks."""
    given = prompts([37, 9, 5])
    llm = LLM(package(name), device="sim", max_prefill_chunk=16)
    assert tokens(llm, given) == [greedy(model(name), p, COUNT) for p in given]


def test_a_step_takes_five_kernels_a_layer() -> None:
    """Norm, QKV, RoPE and both appends; attention; its output; norm, gate and up; down."""
    steps = package("llama").data.program.ranges[0]
    own = [launch.name for launch in steps.launches if any(".layers." in x for x in launch.origin)]
    assert len(own) == 1 + 2 * 5, own  # one looks tokens up, with the first norm


@functools.cache
def wanted() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of which some begin alike, and what follows them."""
    first = prompts([37, 9, 21, 5, 40, 3, 17], seed=1)
    given = [*first, first[0][:30] + first[2]]
    return given, [greedy(model("llama"), p, COUNT) for p in given]


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [8, 16, 32])
def test_tokens_do_not_depend_on_how_the_work_is_cut_up(page_size: int) -> None:
    """Prefix cache off, cold and warm; chunks of 16, 64, all; batches of 1, 3, 8; few pages; guesses."""
    given, want = wanted()
    few = -(-(40 + COUNT) // page_size) + 1
    for caching, chunk, batch in itertools.product([False, True], [16, 64, None], [1, 3, 8]):
        llm = LLM(
            package("llama", page_size), device="sim", enable_prefix_caching=caching, max_prefill_chunk=chunk,
            max_num_seqs=batch, num_pages=80,
        )  # fmt: skip
        assert tokens(llm, given) == want
        again = llm.generate(given, GREEDY)
        assert [out.outputs[0].token_ids for out in again] == want
        assert (sum(out.num_cached_tokens for out in again) > 0) == caching
    llm = LLM(package("llama", page_size), device="sim", num_pages=few, max_num_seqs=8)
    assert tokens(llm, given) == want
    assert (llm.stats().preemptions > 0) == (page_size == 8)  # larger ones hold all that a sequence grows by
    llm = LLM(package("llama", page_size), device="sim", speculative={"num_speculative_tokens": 4, "adaptive": False})
    assert tokens(llm, given) == want
    assert llm.stats().accepted > 0
    assert llm.stats().proposed > llm.stats().accepted


def test_draws_with_a_seed_do_not_depend_on_the_batch() -> None:
    given, _ = wanted()
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=COUNT)
    alone = [tokens(LLM(package("llama"), device="sim"), [p], params)[0] for p in given[:3]]
    assert tokens(LLM(package("llama"), device="sim", speculative=3), given, params)[:3] == alone
    other = SamplingParams(temperature=0.8, top_p=0.9, seed=8, max_tokens=COUNT)
    assert tokens(LLM(package("llama"), device="sim"), given[:3], other) != alone


def test_several_results_of_a_prompt() -> None:
    (prompt,) = prompts([9])
    llm = LLM(package("llama"), device="sim")
    (out,) = llm.generate(prompt, SamplingParams(n=3, seed=1, max_tokens=5, temperature=1))
    assert [o.index for o in out.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in out.outputs}) == 3
    (best,) = llm.generate(prompt, SamplingParams(n=1, best_of=3, seed=1, max_tokens=5, temperature=1))
    mean = {tuple(o.token_ids): o.cumulative_logprob / len(o.token_ids) for o in out.outputs}
    assert tuple(best.outputs[0].token_ids) == max(mean, key=lambda k: mean[k])
    llm.core.pool.check([])


def test_log_probabilities_are_transformers() -> None:
    (prompt,) = prompts([11])
    llm = LLM(package("llama"), device="sim", max_prefill_chunk=4)
    llm.generate(prompt, GREEDY)  # a warm prefix cache must not hide the prompt's logits
    (out,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1))
    ids = [*prompt, *out.outputs[0].token_ids]
    with torch.no_grad():
        want = model("llama")(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    found = out.outputs[0]
    assert found.logprobs is not None
    for k, (token, entry) in enumerate(zip(found.token_ids, found.logprobs)):
        row = want[len(prompt) - 1 + k]
        assert list(entry) == np.argsort(-row)[:2].tolist()
        np.testing.assert_allclose(entry[token].logprob, row[token], atol=1e-5)
    (scores,) = llm.prompt_logprobs(prompt)
    np.testing.assert_allclose(scores, [want[k, t] for k, t in enumerate(prompt[1:])], atol=1e-5)
    assert out.prompt_logprobs is not None
    assert out.prompt_logprobs[0] is None
    assert len(out.prompt_logprobs) == len(prompt)


def test_results_end_at_tokens_and_at_lengths() -> None:
    given, want = wanted()
    llm = LLM(package("llama"), device="sim")
    stop = want[0][4]
    at = want[0].index(stop)
    (out,) = llm.generate(given[0], SamplingParams(temperature=0, stop_token_ids=[stop], max_tokens=COUNT))
    assert out.outputs[0].token_ids == want[0][: at + 1]
    assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason) == ("stop", stop)
    late = SamplingParams(temperature=0, stop_token_ids=[stop], min_tokens=COUNT, max_tokens=COUNT)
    (out,) = llm.generate(given[0], late)
    assert stop not in out.outputs[0].token_ids
    assert out.outputs[0].finish_reason == "length"
    (out,) = llm.generate(given[0], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    assert len(given[0]) + len(out.outputs[0].token_ids) == 128


def test_the_engine_file_is_the_whole_model(tmp_path: Any) -> None:
    given, want = wanted()
    path = tmp_path / "llama.engine"
    write_engine(path, package("llama").data)
    assert tokens(LLM(path, device="sim"), given[:2]) == want[:2]
    assert unpacked(read_engine(path)).description == package("llama").description


def test_an_engine_that_is_kept_was_made_by_the_same_sources(tmp_path: Path) -> None:
    """Links are followed, since a working tree is a folder of links; bytecode does not count."""
    inner, package_folder = tmp_path / "codegen", tmp_path / "package"
    (inner / "__pycache__").mkdir(parents=True)
    package_folder.mkdir()
    (inner / "a.py").write_text("1")
    (package_folder / "codegen").symlink_to(inner, target_is_directory=True)
    seen = [_hash_now(package_folder)]
    for name, text, changes in (
        ("__pycache__/a.pyc", "1", False), ("a.py", "2", True), ("b.cuh", "", True), ("a.py", "1", True),
    ):  # fmt: skip
        (inner / name).write_text(text)
        seen.append(_hash_now(package_folder))
        assert (seen[-1] not in seen[:-1]) == changes
    (inner / "b.cuh").unlink()
    assert _hash_now(package_folder) == seen[0]


def _hash_now(folder: Path) -> str:
    sources_hash.cache_clear()
    return sources_hash(folder)


def test_a_stream_grows_and_gives_its_pages_back_when_left() -> None:
    given, want = wanted()
    llm = LLM(package("llama"), device="sim")
    seen = [list(out.outputs[0].token_ids) for out in llm.stream(given[0], GREEDY)]
    assert seen == [want[0][: k + 1] for k in range(COUNT)]
    for _ in llm.stream(given[1], GREEDY):
        break
    llm.core.pool.check([])
    assert not llm.core


@pytest.mark.parametrize("sampler", ["host", "device"])
def test_logits_that_are_no_numbers_end_one_request_alone(monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    given, want = wanted()
    llm = LLM(package("llama"), device="sim", sampler=sampler)
    compute = llm.core.runner.compute

    def broken(runs: Any) -> Computed:
        found = compute(runs)
        if len(runs) > 1:
            llm.core.runner.engine.device.fill(found.results[0].address, 4 * VOCABULARY, 255)
        return found

    monkeypatch.setattr(llm.core.runner, "compute", broken)
    out = llm.generate(given[:2], GREEDY)
    assert out[0].outputs[0].finish_reason == "error"
    assert "not finite" in out[0].outputs[0].error
    assert out[1].outputs[0].token_ids == want[1]
    llm.core.pool.check([])


def test_tokens_that_the_device_chooses_are_transformers_and_few_bytes_come_back() -> None:
    """One token and its log probability of each row, not its logits."""
    given, want = wanted()
    llm = LLM(package("llama"), device="sim", sampler="device", max_prefill_chunk=16)
    assert tokens(llm, given) == want
    stats = llm.stats()
    assert (stats.on_device, stats.on_host) == (len(given) * COUNT, 0)
    assert stats.bytes_read == 16 * len(given) * COUNT < 4 * VOCABULARY * len(given) * COUNT
    guessing = LLM(package("llama"), device="sim", sampler="device", speculative=3)
    assert tokens(guessing, given) == want
    assert guessing.stats().on_host == 0


def test_tokens_that_the_device_draws_are_those_of_the_host() -> None:
    """Among them some that it does not decide. Penalties count the tokens of earlier steps."""
    given, _ = wanted()
    params = [
        SamplingParams(temperature=0.9, seed=4, max_tokens=COUNT, top_p=0.8),
        SamplingParams(temperature=1.5, seed=5, max_tokens=COUNT, repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(temperature=1, seed=6, max_tokens=COUNT, top_k=12, logprobs=3),
        SamplingParams(temperature=0.7, seed=7, max_tokens=COUNT, logit_bias={5: 3.0}, min_tokens=4, min_p=0.1),
        SamplingParams(temperature=1, seed=8, max_tokens=COUNT, repetition_penalty=1.1, logprobs=1),
    ]
    host, device = (LLM(package("llama"), device="sim", sampler=s) for s in ("host", "device"))  # type: ignore[arg-type]
    left, right = host.generate(given[:5], params), device.generate(given[:5], params)
    assert [o.outputs[0].token_ids for o in left] == [o.outputs[0].token_ids for o in right]
    for a, b in zip(left, right):
        np.testing.assert_allclose(a.outputs[0].cumulative_logprob, b.outputs[0].cumulative_logprob, atol=1e-9)
        assert [list(e) for e in a.outputs[0].logprobs or []] == [list(e) for e in b.outputs[0].logprobs or []]
    assert host.stats().on_device == 0
    stats = device.stats()
    assert stats.on_host == len(right[4].outputs[0].token_ids)  # log probabilities beside penalties
    assert stats.on_device == sum(len(o.outputs[0].token_ids) for o in right[:4])


def test_requests_that_cannot_be_computed_change_nothing() -> None:
    given, want = wanted()
    llm = LLM(package("llama"), device="sim", num_pages=8)
    for bad, params, text in [
        ([1] * 128, GREEDY, "128 tokens; at most 127"),
        ([1, VOCABULARY], GREEDY, "token 128 is not one of the model's 128"),
        ([], GREEDY, "empty prompt"),
        ([1] * 60, SamplingParams(max_tokens=20), "need 10 pages, there are 8"),
        ("text", GREEDY, "no tokenizer"),
        ([1], SamplingParams(stop="x"), "stop strings need a tokenizer"),
    ]:
        with pytest.raises(UsageError, match=text):
            llm.generate([given[1], bad], params)  # type: ignore[list-item]
    assert not llm.core
    assert tokens(llm, given[1:2]) == want[1:2]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_model_len": 129}, "max_model_len is 129, not 1 to 128"), ({"max_num_seqs": 65}, "max_num_seqs"),
        ({"kv_cache_memory": "1K"}, "holds no page"), ({"kv_cache_memory": "much"}, "no number of bytes"),
        ({"num_pages": 3, "kv_cache_memory": 1}, "the same"), ({"speculative": 64}, "speculative"),
        ({"max_num_batched_tokens": 4, "max_num_seqs": 5}, "max_num_seqs"), ({"sampler": "gpu"}, "sampler is 'gpu'"),
    ],
)  # fmt: skip
def test_settings_that_the_engine_does_not_allow(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        LLM(package("llama"), device="sim", **settings)


def test_an_engine_that_is_no_language_model() -> None:
    with pytest.raises(EngineFileError, match="no language model"):
        unpacked(package("llama").data.with_files({}))
    with pytest.raises(EngineFileError, match=r"llm\.json is damaged"):
        unpacked(package("llama").data.with_files({"llm.json": b'{"architecture": 3}'}))
    files = package("llama").data.files
    with pytest.raises(EngineFileError, match=r"sampler\.engine is damaged"):
        unpacked(package("llama").data.with_files({**files, "sampler.engine": files["sampler.engine"][:-9]}))
    old = {**files, "llm.json": files["llm.json"].replace(b'"version": 2', b'"version": 1')}
    with pytest.raises(EngineFileError, match="version 1; this Arcweld reads 2"):
        unpacked(package("llama").data.with_files(old))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"embeddings": True}, "the result 'hidden' is"), ({"tokens": 4096}, "the size 'entries' is"),
        ({"page_size": 4096}, "the input 'pages_0' is"), ({"length": 1}, "the size 'entries' is"),
        ({"rows": 4096}, "the size 'rows' is 4096"), ({"tile": 1}, "the size 'tile' is 1"),
        ({"vocabulary": 129}, "the result 'logits' is"), ({"caches": 1}, "the input 'pages_2' is None"),
        ({"caches": 3}, "the input 'pages_4' is .*, and the engine's is None"),
        ({"adapters": {"count": 1, "rank": 2, "layers": []}}, "the input 'adapter_ends' is .* engine's is None"),
    ],
    ids=str,
)  # fmt: skip
def test_descriptions_of_another_engine(changes: dict[str, Any], text: str) -> None:
    """Sizes decide where keys and values are read and written."""
    data = package("llama").data
    said = json.loads(data.files["llm.json"])
    if "caches" in changes:
        changes = {"caches": said["caches"][:1] * changes["caches"]}
    with pytest.raises(EngineFileError, match=rf"llm\.json is damaged: by it, {text}"):
        unpacked(data.with_files({**data.files, "llm.json": json.dumps(said | changes).encode()}))


def test_sizes_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match="300 tokens: the model has 256 positions"):
        build_language_model(model("gpt2"), length=300, device="sim", verify="off")
    with pytest.raises(UsageError, match="page_size is 0"):
        build_language_model(model("gpt2"), length=30, page_size=0, device="sim", verify="off")
    with pytest.raises(UsageError, match="tokens is 11, not at least 12"):
        build_language_model(model("gpt2"), length=30, tokens=11, device="sim", verify="off")


def test_an_engine_of_the_least_sizes() -> None:
    least = {"tokens": 12, "rows": 3, "tile": 5}
    made = build_language_model(model("llama"), length=40, page_size=8, device="sim", verify="off", **least)
    given = prompts([17, 5])
    llm = LLM(made, device="sim", max_num_seqs=2)
    assert tokens(llm, given) == [greedy(model("llama"), p, COUNT) for p in given]


def test_models_that_do_not_call_the_attention_interface_are_refused() -> None:
    config = transformers.FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
    with pytest.raises(UnsupportedError, match="attention interface"):
        build_language_model(transformers.FalconForCausalLM(config), length=64, device="sim", verify="off")
