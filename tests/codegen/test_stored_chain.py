"""Chains whose product reads stored weights: against the graph's references, with each barrier, and what they read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases_stored import EVERY, drawn
from harness import assert_compiles, render_with, run_kernel
from mutate import survivors
from test_chain_kernels import Arrays, every_tactic, is_close

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.ir import Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.driver.object_code import PlannedLaunch
from arcweld.models.decode_table import traffic

ENGINES = ("gemv_stream", "gemv_mma")


def gate_and_up(
    rows: int, hidden: int, width: int, stored: str, block: int, *, zeros: bool, dtype: str = "f16", high: str = "",
    levels: bool = False,
) -> str:
    """RMSNorm, silu(gate) * up, of stored weights with scales of ``block`` neighbours in k."""
    text = f"input %x: {dtype}[1, {rows}, {hidden}]\nweight %g: {dtype}[{hidden}]\n"
    text += "%h = RMSNormalization(%x, %g, axis=2, epsilon=1e-05) @ 'norm'\n"
    keep = ", dtype=dtype(f16)" if levels else ""
    for name in ("gate", "up"):
        groups = f"[{width}, {-(-hidden // block)}]"
        text += f"weight %w{name}: {stored}[{width}, {hidden}]\n"
        if levels:
            text += f"weight %c{name}: i8{groups}\nweight %su{name}: f16[{width}, {-(-hidden // 256)}]\n"
            text += f"%s{name} = DequantizeLinear(%c{name}, %su{name}, axis=1, block={256 // block}, "
            text += "dtype=dtype(f32))\n"
        else:
            text += f"weight %s{name}: {dtype}{groups}\n"
        text += f"weight %z{name}: {stored}{groups}\n" if zeros else ""
        text += f"weight %v{name}: {high}[{width}, {hidden}]\n" if high else ""
        operands = ", ".join(f"%{c}{name}" for c in ("wsz" if zeros else "ws"))
        operands += f", _, _, %v{name}" if high else ""
        text += f"%d{name} = DequantizeLinear({operands}, axis=1, block={block}{keep})\n"
        text += f"%t{name} = Transpose(%d{name}, perm=(1, 0))\n%{name} = MatMul(%h, %t{name}) @ '{name}'\n"
    return text + "%s = Silu(%gate)\n%y = Mul(%s, %up) @ 'y'\noutput %y\n"


CASES = {
    "one row": gate_and_up(1, 128, 72, "u4", 32, zeros=True),
    "three rows": gate_and_up(3, 256, 40, "i4", 128, zeros=False),
    "five rows, bf16": gate_and_up(5, 192, 40, "u4", 64, zeros=True, dtype="bf16"),
    "bytes": gate_and_up(2, 160, 40, "i8", 32, zeros=True),
    "two levels": gate_and_up(2, 512, 40, "u4", 16, zeros=False, high="u2", levels=True),
    "many tiles": gate_and_up(2, 64, 1500, "u4", 32, zeros=True),
    "long": gate_and_up(3, 2304, 24, "u4", 32, zeros=True),
}

if EVERY:
    CASES |= {
        "five bits": gate_and_up(2, 128, 40, "u4", 32, zeros=False, high="u1"),
        "six bits": gate_and_up(3, 192, 40, "u4", 64, zeros=False, high="u2"),
    }


def planned(text: str, precision: str = "fp32") -> tuple[PlannedLaunch, Arrays, Arrays]:
    """The launch of the graph's one kernel, what it reads, and what it has to write."""
    lines = text.splitlines()
    text = "\n".join(x for x in lines if x.startswith(("input", "weight"))) + "\n" + "\n".join(
        x for x in lines if not x.startswith(("input", "weight"))
    )
    graph, rng = parse_graph("graph 'g'\n" + text + "\n"), np.random.default_rng(4)

    def data(name: str, w: Weight) -> np.ndarray:
        if name.startswith("s"):
            typical = 2.0**-14 if name.startswith("su") else 2.0**-6
            return (rng.uniform(0.5, 1.5, w.data.shape) * typical).astype(w.data.dtype)
        dtype = next(v.dtype for n in graph.nodes for v in n.operands() if v.name == name)
        if name.startswith(("w", "z", "v", "c")):
            return drawn(rng, dtype, w.data.shape)
        return rng.standard_normal(w.data.shape).astype(w.data.dtype)

    graph = graph.replace(weights={k: Weight(data(k, w), k) for k, w in graph.weights.items()})
    build = build_graph(graph, Options(arch=("sm_80", "sm_90a"), precision=precision), compile_kernels=False)
    (launch,) = build.planned
    kernel, names = launch.bound.kernel, launch.bound.tensors
    assert kernel.template == "chain"
    (x,) = graph.inputs
    feeds = {"x": rng.standard_normal([int(d) for d in x.shape if isinstance(d, int)]).astype(x.dtype.numpy)}
    values = {**feeds, **{k: w.data for k, w in build.fused.graph.weights.items()}}
    want = run_reference(graph, feeds)
    reads = {b.name: values[names[b.name]] for b in kernel.buffers if not b.written}
    return launch, reads, {b.name: want[names[b.name]] for b in kernel.buffers if b.written}


def stored_tactics(kernel: Kernel) -> list[Any]:
    return [t for t in every_tactic(kernel) if t.implementation in ENGINES]


@pytest.mark.parametrize("name", CASES)
def test_every_tactic_gives_what_the_references_give(name: str) -> None:
    launch, reads, want = planned(CASES[name])
    kernel = launch.bound.kernel
    assert {t.implementation for t in stored_tactics(kernel)} == set(ENGINES)
    assert implementations(kernel, "sm_80")[0].name == "gemv_mma"
    for tactic in stored_tactics(kernel):
        assert is_close(kernel, run_kernel(render_with(kernel, tactic), kernel, reads, seed=1), want), tactic


@pytest.mark.parametrize("implementation", ENGINES)
@pytest.mark.parametrize("name", ["many tiles", "long"])
def test_each_wait_is_needed(name: str, implementation: str) -> None:
    launch, reads, want = planned(CASES[name])
    kernel = launch.bound.kernel
    tactic = next(t for t in stored_tactics(kernel) if t.implementation == implementation and t.split == 8)
    # requests so small that every stage is filled again
    streaming = implementation == "gemv_stream"
    source = render_with(kernel, replace(tactic, depth=32 if streaming else 128, stages=min(tactic.stages, 2)))

    def passes(text: str) -> bool:
        return is_close(kernel, run_kernel(source, kernel, reads, text=text), want)

    assert passes(source.source)
    unnoticed = [m.deleted for m in survivors(source.source, passes)]
    # the fence orders mbar_init before bulk copies: the simulator has no proxies
    assert unnoticed == ["fence_proxy_async();"] * streaming


def test_weights_scales_and_zero_points_are_read_once() -> None:
    launch, _, _ = planned(CASES["long"])
    kernel, source = launch.bound.kernel, launch.sources[0]
    rows, hidden, width = 3, 2304, 2 * 24
    weights = width * hidden // 2 + width * hidden // 32 * 2 + width * hidden // 32 // 2
    read, written = traffic(launch.bound, source)
    assert read == weights + 2 * hidden * (rows + 1)  # and the rows, and the norm's weights
    assert written == 2 * rows * width // 2
    assert not source.workspace
    assert kernel.attrs["b_is_weight"]


REAL = {
    "1 row": gate_and_up(1, 4096, 14336, "u4", 32, zeros=True),
    "8 rows": gate_and_up(8, 4096, 14336, "u4", 128, zeros=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_default_tactics_for_real_sizes_do_not_spill(name: str) -> None:
    launch, _, _ = planned(REAL[name])
    for source in launch.sources:
        assert_compiles(source)
