"""Caches in 8-bit integers with scales of tokens and heads, against the formula in numpy and transformers' model."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_models import model, prompts

from arcweld.compiler.errors import EngineFileError, UsageError
from arcweld.driver.evidence import ENGINE_TOLERANCE
from arcweld.driver.language_model import build_language_model
from arcweld.driver.llm_evaluation import compare
from arcweld.driver.llm_layers import layer_errors
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package, unpacked
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.sim.device import SimDevice

NAME, LAYERS, HEADS, SIZE, PAGE, PAGES = "phi3", 2, 2, 16, 8, 12
ENDS = [15, 30, *range(31, 37)]  # a prompt in two chunks, then single tokens
EVERY = "ARCWELD_EVERY" in os.environ  # other models, precisions and pages take some minutes


def package(
    cache: str, *, name: str = NAME, invariant: bool = True, page: int = PAGE, precision: str = "fp32"
) -> Package:
    return _package(cache, name, invariant, page, precision)


@functools.cache
def _package(cache: str, name: str, invariant: bool, page: int, precision: str) -> Package:
    return build_language_model(
        model(name), length=64, page_size=page, tokens=40, device="sim", verify="off", precision=precision,
        kv_cache_dtype=cache, batch_invariant=invariant,
    )  # fmt: skip


def runner(package: Package, checked: bool = False) -> Runner:
    return Runner(Engine(package.data, SimDevice(checked=checked)), package.description, PAGES)


def in_chunks(r: Runner, ids: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """The logits of all tokens, of which ``ends`` says where each step ends; pages are in no order."""
    pages = [(5 * k + 3) % PAGES for k in range(-(-len(ids) // r.description.page_size))]
    steps = zip([0, *ends], ends)
    return np.concatenate([r.logits([Run(ids[a:b], a, pages, range(b - a))]) for a, b in steps])


class RoundedCache(transformers.DynamicCache):
    """transformers' cache, with keys and values rounded to 255 steps between the ends of each row."""

    def update(self, key: torch.Tensor, value: torch.Tensor, *more: Any, **named: Any) -> Any:
        return super().update(self.rounded(key), self.rounded(value), *more, **named)

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return torch.round(x / scale).clamp(-128, 127) * scale


def expected(name: str, ids: Sequence[int]) -> np.ndarray:
    """transformers' logits with such a cache."""
    with torch.no_grad():
        own = model(name)
        found: np.ndarray = own(torch.tensor([ids]), past_key_values=RoundedCache(config=own.config)).logits[0].numpy()
    return found


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


MORE = [("gemma2", "fp32", 8, True), (NAME, "fp32", 16, False), (NAME, "fp16", 8, False), (NAME, "bf16", 16, True)]


@pytest.mark.filterwarnings("ignore:.*no node is kept:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "precision", "page", "invariant"), [(NAME, "fp32", 8, True), *(MORE if EVERY else [])]
)
def test_logits_with_rounded_caches(name: str, precision: str, page: int, invariant: bool) -> None:
    built = package("int8", name=name, invariant=invariant, page=page, precision=precision)
    assert {(c.dtype, c.scales) for c in built.description.caches} == {("i8", "f32")}
    assert built.description.page_bytes == LAYERS * page * 2 * HEADS * (SIZE + 4)
    (ids,) = prompts([36])
    got, want = in_chunks(runner(built, checked=True), ids, ENDS), expected(name, ids)
    if precision == "fp32":
        # a number between two steps may round the other way, which later tokens see
        assert np.median(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)) <= 1e-5
        assert relative(got, want) <= 1e-3
        with torch.no_grad():
            assert relative(got, model(name)(torch.tensor([ids])).logits[0].numpy()) > 3e-3  # caches are rounded
    assert relative(got, want) <= ENGINE_TOLERANCE[precision]


def pages_of(r: Runner) -> dict[str, np.ndarray]:
    found = {}
    for name, (shape, dtype) in r.description.state(PAGES).items():
        found[name] = np.empty(shape, dtype.numpy)
        r.engine.device.download(found[name], r._memory[name].address)
    return found


def test_pages_hold_what_the_formula_says() -> None:
    """The first layer's keys and values are those of an engine in f32, whose kernels sum in the same order."""
    (ids,) = prompts([36])
    wide, narrow = (runner(package(cache)) for cache in ("auto", "int8"))
    for r in (wide, narrow):
        in_chunks(r, ids, ENDS)
    numbers, found = pages_of(wide), pages_of(narrow)
    assert [found[f"pages_{k}"].dtype for k in range(4)] == [np.int8, np.int8, np.float32, np.float32]
    for k in range(2):
        x = numbers[f"pages_{k}"]
        scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(127), np.finfo(np.float32).tiny)
        written = np.abs(x).max(-1, keepdims=True) > 0
        assert written.sum() == 36 * HEADS
        codes = np.clip(np.rint(x / scale), -128, 127)
        assert np.abs(codes).max() == 127
        np.testing.assert_array_equal(found[f"pages_{k}"], codes.astype(np.int8))
        # keys are turned in the kernels that store them, whose multiply-adds may round once or twice
        np.testing.assert_array_max_ulp(found[f"pages_{k + 2}"], np.where(written, scale, 0), 1 - k)


def test_attention_reads_the_integers() -> None:
    """No launch but the scatters stores what is as large as the pages, and attention reads what they store."""
    program = package("int8").data.program
    reads = [set(x.reads) for x in program.launches if x.template == "attention"]
    assert len(reads) == LAYERS
    for k, read in enumerate(reads):
        assert {f"pages_{4 * k + i}_now" for i in range(4)} <= read
    written = [w for x in program.launches for w in x.writes]
    assert sorted(w for w in written if w.startswith("pages_")) == sorted(f"pages_{i}_now" for i in range(4 * LAYERS))
    large = [t.name for t in program.temps if "pages" in "".join(map(str, t.shape))]
    assert large == []


def test_logits_do_not_depend_on_the_batch() -> None:
    built = package("int8")
    (ids, other) = prompts([36, 9], seed=3)
    alone = in_chunks(runner(built), ids, [36])
    np.testing.assert_array_equal(in_chunks(runner(built), ids, range(1, 37)), alone)
    r = runner(built)
    first = r.logits([Run(other, 0, [10, 11], [0]), Run(ids[:20], 0, range(5), range(20))])
    second = r.logits([Run(ids[20:], 20, range(5), range(16)), Run(other[:1], 8, [10, 11], [0])])
    np.testing.assert_array_equal(np.concatenate([first[1:], second[:16]]), alone)


def test_text_with_the_prefix_cache() -> None:
    """Cold and warm, in chunks, with few pages: the tokens that transformers' code gives with rounded caches."""
    (prompt,) = prompts([20], seed=4)
    want = list(prompt)
    for _ in range(5):
        want.append(int(expected(NAME, want)[-1].argmax()))
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    size = package("int8").description.page_bytes
    llm = LLM(package("int8"), device="sim", kv_cache_dtype="int8", kv_cache_memory=7 * size, max_prefill_chunk=7)
    assert llm.stats().pages == 7
    for warm in (False, True):
        (out,) = llm.generate([prompt], params)
        assert [*prompt, *out.outputs[0].token_ids] == want
        assert (out.num_cached_tokens > 0) is warm
    with pytest.raises(UsageError, match="kv_cache_dtype is fp8, and the engine was built with caches of i8"):
        LLM(package("int8"), device="sim", kv_cache_dtype="fp8")
    with pytest.raises(UsageError, match="kv_cache_dtype is int8, and the engine was built with caches of f32"):
        LLM(package("auto"), device="sim", kv_cache_dtype="int8")


def test_comparison_with_an_engine_in_f32() -> None:
    base, other = (LLM(package(cache), device="sim").core for cache in ("auto", "int8"))
    windows = prompts([36, 30], seed=6)
    found = compare(base, other, windows)
    assert 0 < found.divergence.value < 1e-2
    errors = layer_errors(base, other, windows[0])
    assert [e.module for e in errors if e.error > 1e-5] == [f"model.layers.{k}.self_attn" for k in range(LAYERS)]
    assert not any(e.stands_out for e in errors)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"i8"', '"f8e4m3fn"', r"the input 'pages_0' is \('f8e4m3fn'.* engine's is \('i8'"),
        ('"i8"', '"i9"', "caches are of no type"),
        ('"f32"', "null", r"the input 'pages_2' is \('i8'.* engine's is \('f32'"),
    ],
)  # fmt: skip
def test_damaged_descriptions(old: str, new: str, text: str) -> None:
    data = package("int8").data
    changed = data.with_files({**data.files, "llm.json": data.files["llm.json"].replace(old.encode(), new.encode())})
    with pytest.raises(EngineFileError, match=text):
        unpacked(changed)
