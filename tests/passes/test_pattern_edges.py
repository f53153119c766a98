"""Recovered patterns keep the formula's meaning at the edges of its inputs: engines with and without the pass agree.

Each formula is compiled with its pass and without it, and run on the simulator on the same operands: ordinary ones,
rows that a mask empties, one key, equal rows, no variance, the largest and the least numbers, infinities, NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
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


# --------------------------------------------------------------------------------------- activations, norms, clips

ACTIVATIONS = {
    "softplus": "%e = Exp(%x)\n%s = Add(%one, %e)\n%y = Log(%s)",
    "sigmoid": "%n = Neg(%x)\n%e = Exp(%n)\n%s = Add(%one, %e)\n%y = Div(%one, %s)",
    "softsign": "%a = Abs(%x)\n%s = Add(%one, %a)\n%y = Div(%x, %s)",
    "mish": "%s = Softplus(%x)\n%t = Tanh(%s)\n%y = Mul(%x, %t)",
    "gelu": "%k = Mul(%x, %r2)\n%e = Erf(%k)\n%s = Add(%one, %e)\n%h = Mul(%x, %half)\n%y = Mul(%h, %s)",
    "hardswish": "%s = Add(%x, %three)\n%c = Clip(%s, min=0.0, max=6.0)\n%m = Mul(%x, %c)\n%y = Div(%m, %six)",
    "hardsigmoid": "%k = Mul(%x, %half)\n%s = Add(%k, %half)\n%y = Clip(%s, min=0.0, max=1.0)",
    "silu": "%s = Sigmoid(%x)\n%y = Mul(%x, %s)",
    "clip": "%a = Max(%x, %minus)\n%y = Min(%a, %one)",
    "clip other": "%a = Min(%x, %one)\n%y = Max(%a, %minus)",
    "relu": "%y = Max(%x, %zero)",
    "clip of relu": "%a = Relu(%x)\n%y = Clip(%a, min=-1.0, max=6.0)",
}
NUMBERS_OF = {"one": 1, "half": 0.5, "r2": 2**-0.5, "three": 3, "six": 6, "minus": -1, "zero": 0}


def edges(dtype: str) -> np.ndarray:
    info = ml_dtypes.finfo(TYPES[dtype])
    some = [0, 1e-3, 0.1, 0.5, 1, 1.5, 2, 3, 5, 9, 20, 60, 88, 100, 700]
    most = [float(info.max), float(info.max) / 2, float(info.tiny), float(info.smallest_subnormal), np.inf]
    with np.errstate(over="ignore"):
        return np.array([s * v for v in (*some, *most) for s in (1, -1)] + [np.nan], np.float64).astype(TYPES[dtype])


def no_worse(got: np.ndarray, formula: np.ndarray, exact: np.ndarray, dtype: str) -> None:
    """Every element is the formula's as kernels compute it, or that of the same formula in f64: then it is better."""
    tolerance = TOLERANCE[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        exact = exact.astype(TYPES[dtype]).astype(np.float64)
        same = np.isclose(got, formula, tolerance, tolerance, equal_nan=True)
        better = np.isclose(got, exact, tolerance, tolerance, equal_nan=True)
    wrong = ~(same | better)
    assert not wrong.any(), (got[wrong][:4], formula[wrong][:4], exact[wrong][:4])


# formulas that overflow or underflow in f64 too, while the operator doesn't
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softplus": lambda x: np.logaddexp(0, x),
    "log-softmax": lambda x: torch.log_softmax(torch.from_numpy(x), 1).numpy(),
}


def check_formula(
    name: str, body: str, dtype: str, shape: tuple[int, ...], x: np.ndarray, passes: tuple[str, ...]
) -> None:
    def text(t: str) -> str:
        weights = "".join(f"weight %{n}: {t}[] data={v}\n" for n, v in NUMBERS_OF.items() if f"%{n}" in body)
        return f"input %x: {t}[{', '.join(map(str, shape))}]\n{weights}{body}\noutput %y"

    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exact = EXACT[name](wide) if name in EXACT else run_reference(build(text("f64")), {"x": wide})["y"]
    graph = build(text(dtype))
    no_worse(run(graph, {"x": x}), run(graph, {"x": x}, passes), exact, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: str) -> None:
    x = edges(dtype)
    check_formula(name, ACTIVATIONS[name], dtype, x.shape, x, ("clips", "activations"))


_MEAN = "%m = ReduceMean(%x, axes=(1,), keepdims=1)\n%d = Sub(%x, %m)\n%q = Mul(%d, %d)"
ROWS = {
    "softmax": """%m = ReduceMax(%x, axes=(1,), keepdims=1)
        %d = Sub(%x, %m)
        %e = Exp(%d)
        %t = ReduceSum(%e, axes=(1,), keepdims=1)
        %y = Div(%e, %t)""",
    "log-softmax": "%p = Softmax(%x, axis=1)\n%y = Log(%p)",
    "layer norm": f"""{_MEAN}
        %v = ReduceMean(%q, axes=(1,), keepdims=1)
        %w = Add(%v, %half)
        %r = Sqrt(%w)
        %y = Div(%d, %r)""",
    "rms norm": """%q = Mul(%x, %x)
        %v = ReduceMean(%q, axes=(1,), keepdims=1)
        %w = Add(%v, %half)
        %r = Sqrt(%w)
        %y = Div(%x, %r)""",
}


def row_edges(dtype: str) -> np.ndarray:
    """Rows of equal numbers, of one outlier, of extremes, infinities and NaN."""
    v = edges(dtype)
    rng = np.random.default_rng(0)
    drawn = v[rng.integers(0, len(v), (40, 5))]
    ordinary = rng.standard_normal((8, 5)).astype(TYPES[dtype])
    outlier = ordinary.copy()
    outlier[:, 2] = v[:8]
    return np.concatenate([drawn, np.repeat(v[:, None], 5, 1), ordinary, outlier])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, dtype: str) -> None:
    x = row_edges(dtype)
    check_formula(name, ROWS[name], dtype, x.shape, x, ("rowwise",))


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_nothing_and_of_one(name: str) -> None:
    for shape in ((0, 5), (3, 0), (3, 1)):
        x = np.ones(shape, np.float32)
        check_formula(name, ROWS[name], "f32", shape, x, ("rowwise",))


# ------------------------------------------------------------------------------------ affine maps, merged products

FOLDED = {
    "product": "%m = MatMul(%x, %w)\n%k = Mul(%m, %s)\n%y = Add(%k, %b)",
    "scaled before": "%k = Mul(%x, %s0)\n%y = MatMul(%k, %w)",
    "merged": "%m = MatMul(%x, %w)\n%n = MatMul(%x, %w1)\n%y = Add(%m, %n)",
}
SCALES = {"ordinary": 2.0, "zero": 0.0, "large": 300.0, "small": 1e-4, "infinite": np.inf}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FOLDED)
def test_folded_affine_maps_and_merged_products(name: str, scale: str, dtype: str) -> None:
    """What is folded must not overflow where the formula doesn't: a weight of 400 times 300 is beyond f16."""
    rng = np.random.default_rng(0)
    graph = build(f"""
        input %x: {dtype}[4, 8]
        weight %w: {dtype}[8, 6]
        weight %w1: {dtype}[8, 6]
        weight %s: {dtype}[6]
        weight %s0: {dtype}[8]
        weight %b: {dtype}[6]
        {FOLDED[name]}
        output %y
    """)
    arrays = {"w": rng.uniform(200, 400, (8, 6)), "w1": rng.uniform(-1, 1, (8, 6)), "b": rng.uniform(-1, 1, 6),
              "s": np.full(6, SCALES[scale]), "s0": np.full(8, SCALES[scale])}  # fmt: skip
    weights = {n: replace(w, data=arrays[n].astype(TYPES[dtype])) for n, w in graph.weights.items() if n in arrays}
    graph = graph.replace(weights=weights)
    passes = ("fold-affine", "merge-matmuls", "constant-folding")
    for value in (1e-3, 1.0, np.inf, np.nan):
        x = (rng.uniform(0.5, 1, (4, 8)) * 1e-3).astype(TYPES[dtype])
        x[1, 2] = value
        want = run(graph, {"x": x}, passes)
        got = run(graph, {"x": x})
        np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32 as fp16"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_normalisation_between_convolutions_has_f32_statistics(dtype: str, offset: float) -> None:
    """Channels-last statistics of 16-bit images: no mean, deviation or centred value is rounded."""
    rng = np.random.default_rng(0)
    dtype, *precision = dtype.split(" as ")
    stored_type = TYPES["f16" if precision else dtype]
    graph = build(f"""
        input %x: {dtype}[1, 8, 6, 6]
        weight %w: {dtype}[16, 8, 1, 1]
        weight %v: {dtype}[8, 16, 1, 1]
        weight %s: {dtype}[16]
        weight %b: {dtype}[16]
        %c = Conv(%x, %w, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0))
        %n = GroupNormalization(%c, %s, %b, num_groups=4)
        %y = Conv(%n, %v, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0))
        output %y
    """)
    x = (rng.standard_normal((1, 8, 6, 6)) + offset).astype(stored_type).astype(TYPES[dtype])
    values = {k: w.data.astype(stored_type).astype(np.float64) for k, w in graph.weights.items()}
    c = np.einsum("oi,nihw->nohw", values["w"][:, :, 0, 0], x.astype(np.float64))
    options = {"precision": precision[0], "tolerance": 1.0} if precision else {}
    got, eps = run(graph, {"x": x}, **options), float(ml_dtypes.finfo(stored_type).eps)
    errors = []
    for stored in (c, c.astype(stored_type).astype(np.float64)):  # the convolution's result may be rounded or not
        g = stored.reshape(1, 4, -1)
        g = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)
        n = g.reshape(c.shape) * values["s"][:, None, None] + values["b"][:, None, None]
        want = np.einsum("oi,nihw->nohw", values["v"][:, :, 0, 0], n.astype(stored_type).astype(np.float64))
        errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert min(errors) < eps / 2  # the last rounding
