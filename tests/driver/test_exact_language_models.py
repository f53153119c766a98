"""Numeric options of language models' engines: 16 bits, caches of 8 bits, logits that do not depend on the batch."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_models import MODELS, model, prompts

from arcweld.compiler.errors import UsageError
from arcweld.driver.evidence import ENGINE_TOLERANCE
from arcweld.driver.language_model import build_language_model
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.runner import Computed, Runner
from arcweld.runtime.sim.device import SimDevice

PAGE, LENGTH, PAGES = 8, 64, 40
EVERY = "ARCWELD_EVERY" in os.environ  # all models in all types take some minutes
TINY = "tiny"


@functools.cache
def module(name: str) -> Any:
    """A model of ``language_models``, or one of a single layer."""
    if name != TINY:
        return model(name)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=128, head_dim=16, initializer_range=0.2, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip


@functools.cache
def package(name: str, precision: str, *, invariant: bool = False, cache: str = "auto", verify: str = "off") -> Package:
    with pytest.warns(RuntimeWarning, match="no node is kept") if verify == "off" and precision != "fp32" else _quiet():
        return build_language_model(
            module(name), length=LENGTH, page_size=PAGE, tokens=64, device="sim", precision=precision, verify=verify,
            batch_invariant=invariant, embeddings=invariant, kv_cache_dtype=cache, verify_budget=20,
        )  # fmt: skip


class _quiet:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def runner(package: Package, *, checked: bool = False, seed: int = 0) -> Runner:
    return Runner(Engine(package.data, SimDevice(checked=checked, seed=seed)), package.description, PAGES)


def in_chunks(r: Runner, ids: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """The logits of all tokens, of which ``ends`` says where each step ends."""
    pages = range(-(-len(ids) // PAGE))
    steps = zip([0, *ends], ends)
    return np.concatenate([r.logits([Run(ids[a:b], a, pages, range(b - a))]) for a, b in steps])


def reference(name: str, ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = module(name)(torch.tensor([ids])).logits[0].numpy()
    return found


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# ------------------------------------------------------------------------------------------------------------ 16 bits


@pytest.mark.parametrize("name", [TINY, *(MODELS if EVERY else [])])
@pytest.mark.parametrize("precision", ["bf16", *(["fp16"] if EVERY else [])])
def test_16_bits(name: str, precision: str) -> None:
    """A prompt in chunks and single tokens, checked, against transformers in f32."""
    built = package(name, precision, invariant=False)
    assert {c.dtype for c in built.description.caches} == {precision.replace("fp", "f")}
    (ids,) = prompts([40])
    want = reference(name, ids)
    got = in_chunks(runner(built, checked=True), ids, [20, 33, *range(34, 41)])
    assert relative(got, want) <= ENGINE_TOLERANCE[precision]
    top = np.sort(want, 1)
    # errors within the tolerance are seldom four times their mean: other tokens are too close to one another
    clear = top[:, -1] - top[:, -2] > 4 * ENGINE_TOLERANCE[precision] * np.sqrt(np.mean(want**2, 1))
    assert clear.sum() >= 10
    assert (got.argmax(1) == want.argmax(1))[clear].all()


@pytest.mark.skipif(not EVERY, reason="ARCWELD_EVERY=1 verifies them too")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_are_verified(precision: str) -> None:
    built = package("llama", precision, verify="quick")
    assert built.data.verify["level"] == "quick"
    (ids,) = prompts([40])
    assert relative(in_chunks(runner(built), ids, [33, 40]), reference("llama", ids)) <= ENGINE_TOLERANCE[precision]


# --------------------------------------------------------------------------------------------- independent of the batch

KINDS = [(TINY, "fp32"), (TINY, "fp16")]
MORE = [(n, p) for n in ("llama", "gemma3", "mixtral", "gpt_oss", "qwen3_moe") for p in ("fp32", "fp16")]


@pytest.mark.parametrize(("name", "precision"), [*KINDS, *(MORE if EVERY else [])])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_do_not_depend_on_the_batch(name: str, precision: str, seed: int) -> None:
    """A sequence alone at once, in chunks, by single tokens; and among 1 to 7 others of which some decode."""
    built = package(name, precision, invariant=True)
    (ids, *others) = prompts([40, 20, 3, 17, 9, 1, 30, 12], seed=3)
    alone = in_chunks(runner(built, seed=seed), ids, [40])
    assert relative(alone, reference(name, ids)) <= ENGINE_TOLERANCE[precision]
    for ends in (range(1, 41), [7, 23, 24, 40]):
        np.testing.assert_array_equal(in_chunks(runner(built, seed=seed), ids, ends), alone)
    for count in range(1, 8):
        r = runner(built, seed=seed)
        ends = [7, 8, 9, 9 + count, 40 - count, 40]
        for step, (a, b) in enumerate(zip([0, *ends], ends)):
            runs = [_other(o, k, step, a) for k, o in enumerate(others[:count])]
            room = 64 - (b - a)
            runs = [x for x in runs if (room := room - len(x.tokens)) >= 0]
            place = (step + count) % (len(runs) + 1)
            before = sum(len(x.rows) for x in runs[:place])
            got = r.logits([*runs[:place], Run(ids[a:b], a, range(5), range(b - a)), *runs[place:]])
            np.testing.assert_array_equal(got[before : before + b - a], alone[a:b])


def _other(ids: list[int], k: int, step: int, at: int) -> Run:
    """Another sequence's run in a step: a prompt or a single token, on pages of its own."""
    pages = range(5 + 4 * k, 9 + 4 * k)
    if (k + step) % 2:
        return Run(ids[:1], at % 20, pages, [0])
    return Run(ids[:20], 0, pages, range(k % 2, min(len(ids), 20)))


def test_other_engines_depend_on_the_batch() -> None:
    """So that the comparison can fail."""
    (ids,) = prompts([40], seed=3)
    built = package(TINY, "bf16", invariant=False)
    whole, single = (in_chunks(runner(built, checked=True), ids, ends) for ends in ([40], range(1, 41)))
    assert (whole != single).any()


def test_log_probabilities_do_not_depend_on_how_the_work_is_cut_up() -> None:
    """Chunks, the prefix cache cold and warm, guesses, and how many run together: the same tokens to the same bits."""
    given = prompts([30, 9, 5], seed=5)
    given.append(given[0][:20] + given[1])
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=1, ignore_eos=True)

    def results(**settings: Any) -> list[tuple[Any, ...]]:
        llm = LLM(package(TINY, "fp32", invariant=True), device=SimDevice(), batch_invariant=True, **settings)
        found = [llm.generate(given, params) for _ in range(2)]
        assert found[1][0].num_cached_tokens > 0 or not settings.get("enable_prefix_caching", True)
        return [(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for run in found for o in run]

    want = results(max_num_seqs=1, enable_prefix_caching=False)
    assert want[:4] == want[4:]
    assert results() == want
    assert results(max_prefill_chunk=7, speculative=3) == want


def test_an_engine_that_is_not_invariant_is_refused() -> None:
    with pytest.raises(UsageError, match="not batch-invariant"):
        LLM(package(TINY, "bf16", invariant=False), device="sim", batch_invariant=True)
    with pytest.raises(UsageError, match="excludes ranges"):
        build_language_model(module(TINY), length=64, batch_invariant=True, ranges=[{"tokens": 1}], device="sim")


# ----------------------------------------------------------------------------------------------------- caches of 8 bits


def test_caches_of_another_type_are_refused() -> None:
    with pytest.raises(UsageError, match="kv_cache_dtype is fp8, and the engine was built with caches of bf16"):
        LLM(package(TINY, "bf16", invariant=False), device="sim", kv_cache_dtype="fp8")
    with pytest.raises(UsageError, match="kv_cache_dtype is 'int3'"):
        LLM(package(TINY, "bf16", invariant=False), device="sim", kv_cache_dtype="int3")
    assert package(TINY, "bf16", invariant=False).description.page_bytes == 2 * PAGE * 2 * 16 * 2


def _rounded_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention to keys and values that torch rounds to floats of 8 bits; beyond 448 they are clamped."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.clamp(-448, 448).to(torch.float8_e4m3fn).float().repeat_interleave(groups, 1) for x in (key, value))
    y = torch.nn.functional.scaled_dot_product_attention(query, k, v, is_causal=True, scale=scaling)
    return y.transpose(1, 2), None


@pytest.mark.parametrize("precision", ["fp32", *(["fp16", "bf16"] if EVERY else [])])
@pytest.mark.parametrize("invariant", [True, *([False] if EVERY else [])])
def test_caches_of_8_bits(precision: str, invariant: bool) -> None:
    built = package(TINY, precision, invariant=invariant, cache="fp8")
    assert {c.dtype for c in built.description.caches} == {"f8e4m3fn"}
    assert built.description.page_bytes == PAGE * 2 * 16 * 2  # a quarter of those of f32, half of those of 16 bits
    (ids,) = prompts([40])
    transformers.AttentionInterface.register("rounded", _rounded_attention)
    own = module(TINY)
    own.config._attn_implementation = "rounded"
    try:
        want = reference(TINY, ids)
    finally:
        own.config._attn_implementation = "sdpa"
    got = in_chunks(runner(built, checked=EVERY), ids, [20, 33, *range(34, 41)])
    close = 2e-3 if precision == "fp32" else ENGINE_TOLERANCE[precision]  # of 1,280 keys one may round the other way
    assert relative(got, want) <= close
    assert relative(got, reference(TINY, ids)) > 2e-2  # the caches are rounded
    llm = LLM(built, device="sim", kv_cache_dtype="fp8_e4m3", kv_cache_memory=PAGE * 2 * 16 * 2 * 20)
    assert llm.stats().pages == 20


def _in_16_bits(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention to keys and values that torch rounds to bf16."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.bfloat16().float().repeat_interleave(groups, 1) for x in (key, value))
    y = torch.nn.functional.scaled_dot_product_attention(query, k, v, is_causal=True, scale=scaling)
    return y.transpose(1, 2), None


@pytest.mark.parametrize("precision", ["fp32", *(["fp16"] if EVERY else [])])
def test_caches_of_16_bits_in_builds_of_another_type(precision: str) -> None:
    built = package(TINY, precision, invariant=True, cache="bfloat16")
    assert {c.dtype for c in built.description.caches} == {"bf16"}
    (ids,) = prompts([40])
    transformers.AttentionInterface.register("in 16 bits", _in_16_bits)
    own = module(TINY)
    own.config._attn_implementation = "in 16 bits"
    try:
        want = reference(TINY, ids)
    finally:
        own.config._attn_implementation = "sdpa"
    got = in_chunks(runner(built), ids, [20, 33, *range(34, 41)])
    assert relative(got, want) <= (2e-4 if precision == "fp32" else ENGINE_TOLERANCE[precision])
    assert relative(got, reference(TINY, ids)) > 5e-4  # the caches are rounded


# ----------------------------------------------------------------------------------------------------------- embeddings


def hidden(ids: Sequence[int]) -> np.ndarray:
    """What transformers' code makes logits of: f32[tokens, hidden size]."""
    with torch.no_grad():
        found: np.ndarray = module(TINY).model(torch.tensor([ids])).last_hidden_state[0].numpy()
    return found


@pytest.mark.parametrize("settings", [{}, {"max_prefill_chunk": 7}, {"num_pages": 9}])
def test_embeddings_are_transformers(settings: dict[str, Any]) -> None:
    """Of several prompts at once, with a warm cache, in chunks, and one after another where pages are few."""
    given = prompts([40, 9, 30, 5], seed=7)
    given.append(given[0][:20] + given[1])
    llm = LLM(package(TINY, "fp32", invariant=True), device="sim", **settings)
    for _ in range(2):
        for pooling, pool in (("last", lambda h: h[-1]), ("mean", lambda h: h.mean(0))):
            found = llm.encode(given, pooling=pooling)  # type: ignore[arg-type]
            for ids, out in zip(given, found):
                np.testing.assert_allclose(out.outputs.data, pool(hidden(ids)), rtol=0, atol=1e-5)
                assert out.prompt_token_ids == ids
    llm.core.pool.check([])
    assert llm.stats().generated_tokens == 0


def test_embeddings_beside_generation_and_scores() -> None:
    given = prompts([12, 9, 15], seed=8)
    llm = LLM(package(TINY, "fp32", invariant=True), device="sim")
    vectors = [h / np.linalg.norm(h) for h in (hidden(p)[-1] for p in given)]
    for out, want in zip(llm.embed(given), vectors):
        np.testing.assert_allclose(out.outputs.embedding, want, atol=1e-5)
    found = [s.outputs.score for s in llm.score(given[0], given[1:])]
    np.testing.assert_allclose(found, [vectors[0] @ v for v in vectors[1:]], atol=1e-5)
    pairs = [s.outputs.score for s in llm.score(given[:2], given[1:])]
    np.testing.assert_allclose(pairs, [vectors[0] @ vectors[1], vectors[1] @ vectors[2]], atol=1e-5)
    params = [SamplingParams(temperature=0, max_tokens=4), SamplingParams(pooling="last", max_tokens=1)]
    text, vector = llm.generate(given[:2], params)  # in the same steps
    assert text.outputs[0].token_ids[0] == reference(TINY, given[0])[-1].argmax()
    assert vector.embedding is not None
    assert vector.outputs[0].token_ids == []
    np.testing.assert_allclose(vector.embedding, hidden(given[1])[-1], atol=1e-5)
    with pytest.raises(UsageError, match="2 texts are compared with 3"):
        llm.score(given[:2], given)
    with pytest.raises(UsageError, match="no hidden states"):
        LLM(package(TINY, "bf16", invariant=False), device="sim").embed(given)
    with pytest.raises(UsageError, match="pooling is 'first'"):
        SamplingParams(pooling="first")  # type: ignore[arg-type]


def test_hidden_states_that_are_no_numbers_end_one_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = prompts([12, 9], seed=8)
    llm = LLM(package(TINY, "fp32", invariant=True), device="sim")
    compute = llm.core.runner.compute

    def broken(runs: Any) -> Computed:
        found = compute(runs)
        row = found.results[1]
        llm.core.runner.engine.device.fill(row.address, row.nbytes // row.shape[0], 255)  # NaN
        return found

    monkeypatch.setattr(llm.core.runner, "compute", broken)
    params = SamplingParams(pooling="last", max_tokens=1)
    bad, good = llm.generate(given, params)
    assert "not finite" in bad.outputs[0].error
    np.testing.assert_allclose(good.embedding, hidden(given[1])[-1], atol=1e-5)
    with pytest.raises(UsageError, match="not finite"):
        llm.embed(given[:1])
