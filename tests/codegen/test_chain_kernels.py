"""The chain template: every tactic is right, none that is chosen for real sizes spills, and each barrier is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import assert_compiles, render_with, run_kernel
from mutate import survivors

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.ir import Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.driver.object_code import PlannedLaunch

Arrays = dict[str, np.ndarray]


def attention_inputs(
    rows: int, hidden: int, heads: int, groups: int, size: int, *, normed: bool = False, dtype: str = "f16"
) -> str:  # fmt: skip
    """RMSNorm, queries and keys of ``heads`` and ``groups`` heads of ``size``, their norms, RoPE by halves."""
    width, half = (heads + groups) * size, size // 2
    norm = "RMSNormalization(%{}u, %s, axis=3, epsilon=1e-05)" if normed else "Identity(%{}u)"
    text = f"""input %x: {dtype}[1, {rows}, {hidden}]
input %cos: {dtype}[1, 1, {rows}, {size}]
input %sin: {dtype}[1, 1, {rows}, {size}]
weight %g: {dtype}[{hidden}]
weight %s: {dtype}[{size}]
weight %w: {dtype}[{hidden}, {width}]
%h = RMSNormalization(%x, %g, axis=2, epsilon=1e-05) @ 'norm'
%m = MatMul(%h, %w) @ 'product'
"""
    for name, start, count in (("q", 0, heads), ("k", heads * size, groups)):
        shape = f"(1, {count}, {rows}, {half})"
        text += f"""%{name}s: {dtype}[1, {rows}, {count * size}] = Slice(%m, starts=(0, 0, {start}), \
sizes=(1, {rows}, {count * size}), steps=(1, 1, 1))
%{name}r: {dtype}[1, {rows}, {count}, {size}] = Reshape(%{name}s, shape=(1, {rows}, {count}, {size}))
%{name}u: {dtype}[1, {count}, {rows}, {size}] = Transpose(%{name}r, perm=(0, 2, 1, 3))
%{name}t = {norm.format(name)}
%{name}a: {dtype}[1, {count}, {rows}, {half}] = Slice(%{name}t, starts=(0, 0, 0, 0), sizes={shape}, steps=(1, 1, 1, 1))
%{name}b: {dtype}[1, {count}, {rows}, {half}] = Slice(%{name}t, starts=(0, 0, 0, {half}), sizes={shape}, \
steps=(1, 1, 1, 1))
%{name}n = Neg(%{name}b)
%{name}c = Concat(%{name}n, %{name}a, axis=3)
%{name}d = Mul(%{name}t, %cos)
%{name}e = Mul(%{name}c, %sin)
%{name} = Add(%{name}d, %{name}e) @ 'rope'
"""
    return text + "output %q\noutput %k\n"


def gate_and_up(rows: int, hidden: int, width: int, dtype: str = "f16") -> str:
    """RMSNorm, silu(gate) * up."""
    return f"""input %x: {dtype}[1, {rows}, {hidden}]
weight %g: {dtype}[{hidden}]
weight %a: {dtype}[{hidden}, {width}]
weight %b: {dtype}[{hidden}, {width}]
%h = RMSNormalization(%x, %g, axis=2, epsilon=1e-05) @ 'norm'
%gate = MatMul(%h, %a) @ 'gate'
%up = MatMul(%h, %b) @ 'up'
%s = Silu(%gate)
%y = Mul(%s, %up) @ 'y'
output %y
"""


def planned(text: str, seed: int | None = None) -> tuple[PlannedLaunch, Arrays, Arrays]:
    """The launch of the graph's one kernel, the arrays that it reads and those that it has to write.

    Without a ``seed`` there are no arrays, and each weight is of one number.
    """
    graph = parse_graph("graph 'g'\n" + text)
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    data = {
        k: np.full(w.data.shape, i, w.data.dtype) if seed is None else drawn(w.data.shape, w.data.dtype)
        for i, (k, w) in enumerate(graph.weights.items())
    }
    graph = graph.replace(weights={k: Weight(d, k) for k, d in data.items()})
    build = build_graph(graph, Options(arch=("sm_80", "sm_90a")), compile_kernels=False)
    (launch,) = build.planned
    assert launch.bound.kernel.template == "chain"
    if seed is None:
        return launch, {}, {}
    feeds = {v.name: drawn(tuple(int(d) for d in v.shape if isinstance(d, int)), v.dtype.numpy) for v in graph.inputs}
    values = {**feeds, **{k: w.data for k, w in build.fused.graph.weights.items()}}
    want = run_reference(graph, feeds)
    buffers = launch.bound.tensors
    kernel = launch.bound.kernel
    reads = {b.name: values[buffers[b.name]] for b in kernel.buffers if not b.written}
    return launch, reads, {b.name: want[buffers[b.name]] for b in kernel.buffers if b.written}


def is_close(kernel: Kernel, got: Arrays, want: Arrays) -> bool:
    tolerance = 6e-3 if any(b.dtype.is_half for b in kernel.buffers) else 2e-5
    return all(
        np.allclose(got[k].astype(np.float64), w.astype(np.float64), rtol=tolerance, atol=tolerance * np.abs(w).max())
        for k, w in want.items()
    )


CASES = {
    "one row": attention_inputs(1, 64, 4, 2, 16),
    "three rows, f32": attention_inputs(3, 48, 2, 1, 8, dtype="f32"),
    "norms of heads": attention_inputs(2, 64, 4, 2, 16, normed=True),
    "norms of heads of 64": attention_inputs(1, 32, 2, 1, 64, normed=True, dtype="f32"),
    "sixteen rows": attention_inputs(16, 64, 4, 2, 16),
    "gate and up": gate_and_up(1, 64, 40),
    "gate and up, twelve rows": gate_and_up(12, 72, 40),
    "gate and up, many tiles": gate_and_up(3, 16, 1500),
    "gate and up, odd": gate_and_up(5, 20, 21, "f32"),
    "more tiles than blocks": gate_and_up(1, 16, 1500, "f32"),
    "more heads than blocks": attention_inputs(2, 16, 300, 10, 8, normed=True, dtype="f32"),
}


def every_tactic(kernel: Kernel) -> list[Any]:
    """Those of all implementations, best first."""
    return [t for i in implementations(kernel, "sm_90a") for t in i.tactics(kernel, "sm_90a")]


@pytest.mark.parametrize("name", CASES)
def test_every_tactic_gives_what_the_references_give(name: str) -> None:
    launch, reads, want = planned(CASES[name], seed=4)
    kernel = launch.bound.kernel
    tactics = every_tactic(kernel)
    assert len(tactics) > 1
    for tactic in tactics:
        assert is_close(kernel, run_kernel(render_with(kernel, tactic), kernel, reads, seed=1), want), tactic


def test_which_implementations_serve_which_rows() -> None:
    names = {}
    for name in ("one row", "three rows, f32", "norms of heads", "sixteen rows"):
        launch, _, _ = planned(CASES[name])
        names[name] = [i.name for i in implementations(launch.bound.kernel, "sm_90a")]
    assert names["one row"] == ["gemv_stream", "gemv"]
    assert names["three rows, f32"] == ["gemv"]
    assert names["norms of heads"] == ["gemv_stream", "gemv_mma", "gemv"]
    assert names["sixteen rows"] == ["gemv_stream", "gemv_mma"]


def test_first_weights_are_asked_for_before_waiting() -> None:
    """Also where a block computes several tiles, and keeps no weights in registers meanwhile."""
    launch, _, _ = planned(CASES["more tiles than blocks"])
    kernel = launch.bound.kernel
    for tactic in every_tactic(kernel)[:3]:
        text = render_with(kernel, tactic).source
        assert text.index("prefetch_l2(at);") < text.index("pdl_wait();")


REAL = {
    "Llama 1B": attention_inputs(1, 2048, 32, 8, 64),
    "Llama 8B": attention_inputs(1, 4096, 32, 8, 128),
    "Llama 8B, 8 rows": attention_inputs(8, 4096, 32, 8, 128),
    "Llama 1B, 16 rows": attention_inputs(16, 2048, 32, 8, 64),
    "Qwen3 0.6B": attention_inputs(1, 1024, 16, 8, 128, normed=True),
    "Qwen3 0.6B, 8 rows": attention_inputs(8, 1024, 16, 8, 128, normed=True),
    "gate and up": gate_and_up(1, 2048, 8192),
    "gate and up, 8 rows": gate_and_up(8, 2048, 8192),
    "gate and up, 16 rows": gate_and_up(16, 2048, 8192),
    "gate and up, f32": gate_and_up(4, 2048, 8192, "f32"),
}


@pytest.mark.parametrize("name", REAL)
def test_default_tactics_for_real_sizes_do_not_spill(name: str) -> None:
    launch, _, _ = planned(REAL[name])
    for source in launch.sources:
        assert_compiles(source)


@pytest.mark.parametrize("name", ["norms of heads", "gate and up, odd", "more heads than blocks"])
def test_each_barrier_is_needed(name: str) -> None:
    launch, reads, want = planned(CASES[name], seed=4)
    kernel = launch.bound.kernel
    source = render_with(kernel, next(t for t in every_tactic(kernel) if t.implementation == "gemv"))

    def passes(text: str) -> bool:
        return is_close(kernel, run_kernel(source, kernel, reads, text=text), want)

    assert passes(source.source)
    assert survivors(source.source, passes) == []


LONG = {
    "norms of heads": attention_inputs(2, 640, 4, 2, 16, normed=True),
    "several tiles of a block": gate_and_up(3, 72, 2400),
    "sixteen rows": attention_inputs(16, 640, 4, 2, 16),
}


@pytest.mark.parametrize("implementation", ["gemv_stream", "gemv_mma"])
@pytest.mark.parametrize("name", LONG)
def test_each_wait_of_the_tensor_core_kernels_is_needed(name: str, implementation: str) -> None:
    launch, reads, want = planned(LONG[name], seed=4)
    kernel = launch.bound.kernel
    tactic = next(t for t in every_tactic(kernel) if t.implementation == implementation and t.split == 8)
    # requests so small that every stage is filled again
    source = render_with(kernel, replace(tactic, depth=32, stages=min(tactic.stages, 2)))

    def passes(text: str) -> bool:
        return is_close(kernel, run_kernel(source, kernel, reads, text=text), want)

    assert passes(source.source)
    unnoticed = [m.deleted for m in survivors(source.source, passes)]
    # the fence orders mbar_init before bulk copies: the simulator has no proxies
    assert unnoticed == ["fence_proxy_async();"] * (implementation == "gemv_stream")
