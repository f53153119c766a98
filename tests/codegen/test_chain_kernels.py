"""The chain template: every tactic is right, none that is chosen for real sizes spills, and each barrier is needed."""

from __future__ import annotations

import numpy as np
import pytest
from harness import assert_compiles, render_with, run_kernel
from mutate import survivors

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.contract.chain import tactics
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
    build = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)
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
    "gate and up": gate_and_up(1, 64, 40),
    "gate and up, odd": gate_and_up(5, 20, 21, "f32"),
    "more tiles than blocks": gate_and_up(1, 16, 1500, "f32"),
    "more heads than blocks": attention_inputs(2, 16, 300, 10, 8, normed=True, dtype="f32"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tactic_gives_what_the_references_give(name: str) -> None:
    launch, reads, want = planned(CASES[name], seed=4)
    kernel = launch.bound.kernel
    assert len(tactics(kernel, "sm_80")) > 1
    for tactic in tactics(kernel, "sm_80"):
        assert is_close(kernel, run_kernel(render_with(kernel, tactic), kernel, reads, seed=1), want), tactic


REAL = {
    "Llama 1B": attention_inputs(1, 2048, 32, 8, 64),
    "Llama 8B": attention_inputs(1, 4096, 32, 8, 128),
    "Llama 8B, 8 rows": attention_inputs(8, 4096, 32, 8, 128),
    "Qwen3 0.6B": attention_inputs(1, 1024, 16, 8, 128, normed=True),
    "Qwen3 0.6B, 8 rows": attention_inputs(8, 1024, 16, 8, 128, normed=True),
    "gate and up": gate_and_up(1, 2048, 8192),
    "gate and up, 8 rows": gate_and_up(8, 2048, 8192),
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
    kernel, (source,) = launch.bound.kernel, launch.sources

    def passes(text: str) -> bool:
        return is_close(kernel, run_kernel(source, kernel, reads, text=text), want)

    assert passes(source.source)
    assert survivors(source.source, passes) == []
