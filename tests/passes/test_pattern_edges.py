"""Recovered patterns keep the formula's meaning at the edges of its inputs: engines with and without the pass agree.

Each formula is compiled with its pass and without it, and run on the simulator on the same operands: ordinary ones,
rows that a mask empties, one key, equal rows, no variance, the largest and the least numbers, infinities, NaN.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from pass_tools import build

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.driver import api

# relative to the largest element: a few roundings of a result of the type
TOLERANCE = {"f32": 2e-5, "f16": 4e-3, "bf16": 3e-2}
TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def run(graph: Graph, feeds: dict[str, np.ndarray], disable: tuple[str, ...] = (), **options: Any) -> np.ndarray:
    engine = api.compile_graph(graph, device="sim", verify="off", disable=disable, **options)
    (result,) = engine.run(feeds).values()
    return np.asarray(result).astype(np.float64)


def check(text: str, passes: tuple[str, ...], feeds: dict[str, np.ndarray], dtype: str) -> np.ndarray:
    """Asserts that the passes change the kernels' results by rounding only, and that numpy's are the same."""
    graph = build(text)
    with_pass, without = run(graph, feeds), run(graph, feeds, passes)
    (want,) = run_reference(graph, feeds).values()
    for got in (with_pass, without):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(without))
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(got, without, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    np.testing.assert_array_equal(np.isnan(want.astype(np.float64)), np.isnan(without))
    return with_pass


# ----------------------------------------------------------------------------------------------------- attention

KEYS = 6
MASKED = {  # the scores %s of [1, 2, 4, KEYS] with a mask; %c is true where a key is seen, %a is added
    "where": "%m = Where(%c, %s, %number)",
    "where not": "%n = Not(%c)\n%m = Where(%n, %number, %s)",
    "added": "%o = Where(%c, %zero, %number)\n%m = Add(%s, %o)",
    "input": "%m = Add(%s, %a)",
    "where, then added": "%w = Where(%c, %s, %number)\n%m = Add(%w, %a)",
    "added, then where": "%w = Add(%s, %a)\n%m = Where(%c, %w, %number)",
}
NUMBERS = {"-10000": -1e4, "-1e9": -1e9, "lowest": float(np.finfo(np.float32).min)}
SEEN = {  # the keys that the four queries see
    "all": np.ones((4, KEYS), np.bool_),
    "none": np.zeros((4, KEYS), np.bool_),
    "one": np.eye(4, KEYS, dtype=np.bool_),
    "causal": np.tril(np.ones((4, KEYS), np.bool_)),
    "some rows": np.array([[1] * 6, [0] * 6, [0, 1, 1, 0, 0, 0], [0] * 6], np.bool_),
}


def attention_text(mask: str, dtype: str, number: float) -> str:
    return f"""
        input %q: {dtype}[1, 2, 4, 8]
        input %k: {dtype}[1, 2, {KEYS}, 8]
        input %v: {dtype}[1, 2, {KEYS}, 8]
        input %c: bool[4, {KEYS}]
        input %a: {dtype}[4, {KEYS}]
        weight %number: {dtype}[] data={number}
        weight %zero: {dtype}[] data=0.0
        %t = Transpose(%k, perm=(0, 1, 3, 2))
        %s = MatMul(%q, %t)
        {MASKED[mask]}
        %p = Softmax(%m, axis=3)
        %y = MatMul(%p, %v)
        output %y
    """


def attention_feeds(dtype: str, seen: str, number: float, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 2, 4, 8), "k": (1, 2, KEYS, 8), "v": (1, 2, KEYS, 8)}
    feeds = {n: (rng.standard_normal(s) * scale).astype(TYPES[dtype]) for n, s in shapes.items()}
    with np.errstate(over="ignore"):
        added = np.where(SEEN[seen], 0, number).astype(TYPES[dtype])
    return {**feeds, "c": SEEN[seen], "a": added}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("mask", MASKED)
def test_attention_of_f32(mask: str, number: str, seen: str) -> None:
    value = NUMBERS[number]
    feeds = attention_feeds("f32", seen, value)
    if number == "lowest" and mask in ("where, then added", "added, then where"):
        feeds["a"] = np.maximum(feeds["a"], np.float32(-1e30))  # twice the lowest number is minus infinity
    y = check(attention_text(mask, "f32", value), ("attention",), feeds, "f32")
    if seen == "none" and "added" not in mask and mask != "input":
        np.testing.assert_allclose(y, np.broadcast_to(feeds["v"].mean(2, keepdims=True), y.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen", ["none", "some rows", "causal"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("mask", ["where", "added", "input"])
def test_attention_of_16_bits(mask: str, dtype: str, seen: str) -> None:
    value = -6e4 if dtype == "f16" else -1e9
    text, feeds = attention_text(mask, dtype, value), attention_feeds(dtype, seen, value)
    if mask == "where" or dtype == "bf16":
        check(text, ("attention",), feeds, dtype)
        return
    # a score and -60000 make a number that f16 rounds by up to 16; inside the kernel it is f32
    q, k, v, added = (feeds[n].astype(np.float32) for n in "qkva")
    scores = q @ k.swapaxes(2, 3) + added
    e = np.exp(scores - scores.max(-1, keepdims=True))
    want = e / e.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(run(build(text), feeds), want, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("seen", ["none", "some rows"])
@pytest.mark.parametrize("number", ["-1e9", "lowest"])
@pytest.mark.parametrize("mask", ["where", "added"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_of_f32_in_half_precision(precision: str, mask: str, number: str, seen: str) -> None:
    """Numbers beyond f16's range keep their meaning: a row of nothing else is the mean of the values."""
    value = NUMBERS[number]
    graph, feeds = build(attention_text(mask, "f32", value)), attention_feeds("f32", seen, value)
    want = run(graph, feeds, ("attention",))
    got = run(graph, feeds, precision=precision, tolerance=1.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-2 if precision == "fp16" else 5e-2)


@pytest.mark.parametrize("scale", [1e-20, 30.0, 1e4])
@pytest.mark.parametrize("seen", ["all", "causal", "some rows"])
def test_attention_of_large_and_small_scores(seen: str, scale: float) -> None:
    text = attention_text("where", "f32", -1e30)
    check(text, ("attention",), attention_feeds("f32", seen, -1e30, scale), "f32")


@pytest.mark.parametrize("what", ["nan key", "infinite query", "infinite value", "nan value"])
def test_attention_of_infinities(what: str) -> None:
    feeds = attention_feeds("f32", "causal", -1e30)
    name, value = {"nan key": ("k", np.nan), "infinite query": ("q", np.inf), "infinite value": ("v", np.inf),
                   "nan value": ("v", np.nan)}[what]  # fmt: skip
    feeds[name][0, 0, 1, 2] = value
    check(attention_text("where", "f32", -1e30), ("attention",), feeds, "f32")
