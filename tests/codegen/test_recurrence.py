"""The recurrence template against ONNX Runtime and torch, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import numpy as np
import pytest
from cases_recurrence import LAYERS, STATES, Layer, assert_close, by_tensor, cases, expected
from harness import assert_compiles, run_kernel
from kernel_numpy import run_numpy
from mutate import survivors

from arcweld.codegen.templates.card import RESIDENT_BLOCKS, SHARED_LIMIT
from arcweld.codegen.templates.recurrence.recurrence import RecurrenceTactic, render_recurrence, supports, tactics
from arcweld.compiler.cards import CARDS
from arcweld.compiler.dims import evaluate, symbol
from arcweld.compiler.dtypes import DType

T, B = symbol("t", 1), symbol("b", 1)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer_agrees_with_the_oracle(layer: Layer) -> None:
    bound, feeds = layer.kernel(), layer.feeds({})
    want = layer.expected(feeds)
    for seed, tactic in enumerate(layer.tactics()):
        source = render_recurrence(bound.kernel, tactic, "sm_80")
        assert source.cooperative == (source.grid[0] != 1 or source.counters != ())
        got = run_kernel(source, bound.kernel, by_tensor(bound, feeds), seed=seed)
        assert_close(bound, got, want)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_lowered_kernel_means_the_layer(layer: Layer) -> None:
    bound, feeds = layer.kernel(), layer.feeds({})
    memory = by_tensor(bound, feeds)
    memory |= {b.name: np.zeros([int(d) for d in b.shape], b.dtype.numpy) for b in bound.kernel.buffers if b.written}
    run_numpy(bound.kernel, memory, {})
    written = {b.name: memory[b.name] for b in bound.kernel.buffers if b.written}
    assert_close(bound, written, layer.expected(feeds))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("units", [6, 2])
def test_one_kernel_serves_open_numbers_of_steps_and_rows(cell: str, units: int) -> None:
    layer = Layer(cell, 6, T, B, "bidirectional", ("lengths", "first_h"))
    bound = layer.kernel()
    source = render_recurrence(bound.kernel, RecurrenceTactic(units, 2), "sm_80")
    for sizes in ({"t": 1, "b": 1}, {"t": 9, "b": 1}, {"t": 2, "b": 5}, {"t": 40, "b": 2}):
        feeds = layer.feeds(sizes)
        got = run_kernel(source, bound.kernel, by_tensor(bound, feeds), sizes)
        assert_close(bound, got, layer.expected(feeds))


def test_two_thousand_steps() -> None:
    layer = Layer("lstm", 8, T, B)
    bound = layer.kernel()
    feeds = layer.feeds(sizes := {"t": 2000, "b": 1})
    for units in (8, 4):
        source = render_recurrence(bound.kernel, RecurrenceTactic(units, 1), "sm_80")
        assert_close(bound, run_kernel(source, bound.kernel, by_tensor(bound, feeds), sizes), layer.expected(feeds))


def test_rows_without_steps_keep_their_first_states() -> None:
    layer = Layer("lstm", 4, 3, 2, "bidirectional", ("lengths", *STATES))
    bound, feeds = layer.kernel(), layer.feeds({})
    feeds["lengths"] = np.array([0, 9], np.int32)  # and no row has more steps than there are
    other = {**feeds, "lengths": np.array([1, 3], np.int32)}
    want = layer.expected(other)
    for tactic in layer.tactics():
        source = render_recurrence(bound.kernel, tactic, "sm_80")
        got = run_kernel(source, bound.kernel, by_tensor(bound, feeds))
        y, h, c = (got[b] for b in ("out0", "out1", "out2"))
        assert not y[:, :, 0].any()
        np.testing.assert_array_equal(h[:, 0], feeds["first_h"][:, 0])
        np.testing.assert_array_equal(c[:, 0], feeds["first_c"][:, 0])
        np.testing.assert_allclose(y[:, :, 1], want["y"][:, :, 1], atol=2e-6)


# ------------------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("hidden", [1, 16, 33, 75, 76, 256, 512, 1024, 2048])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_blocks_that_wait_for_each_other_fit_on_every_card(cell: str, hidden: int, direction: str) -> None:
    for dtype in (DType.F32, DType.F16):
        kernel = Layer(cell, hidden, T, B, direction, dtype=dtype).kernel().kernel
        assert supports(kernel, "sm_80") is None
        for tactic in tactics(kernel, "sm_80"):
            source = render_recurrence(kernel, tactic, "sm_80")
            assert source.shared_bytes <= SHARED_LIMIT
            assert source.block[0] <= 1024
            x, y, z = (evaluate(d, {"t": 100, "b": 1000}) for d in source.grid)
            if source.cooperative:
                assert x * y * z <= RESIDENT_BLOCKS <= min(c.multiprocessors for c in CARDS.values())
                assert not source.pdl


def test_small_layers_have_one_block_for_all_units() -> None:
    source = lambda hidden: _first("lstm", hidden, DType.F32)
    assert not source(64).cooperative
    assert source(64).grid[0] == 1
    assert source(128).cooperative
    assert source(128).counters


def _first(cell: str, hidden: int, dtype: DType) -> object:
    kernel = Layer(cell, hidden, T, B, dtype=dtype).kernel().kernel
    return render_recurrence(kernel, tactics(kernel, "sm_80")[0], "sm_80")


def test_weights_stay_in_shared_memory_as_they_are_stored() -> None:
    half, single = (_first("lstm", 512, t) for t in (DType.F16, DType.F32))
    assert "const f16* const kept;" in half.source
    assert "const f32* const kept;" in single.source
    assert half.shared_bytes < single.shared_bytes
    assert "kept" not in _first("lstm", 2048, DType.F32).source  # 64 MiB: more than all blocks can hold


# ---------------------------------------------------------------------------------------------- compiling, mutations

SIZES = (("lstm", 64), ("lstm", 512), ("lstm", 2048), ("gru", 250), ("gru", 85), ("rnn", 1024), ("lstm", 33))


@pytest.mark.parametrize(("cell", "hidden"), SIZES)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16], ids=["f32", "f16"])
def test_usual_sizes_compile_without_spills(cell: str, hidden: int, dtype: DType) -> None:
    for extra in ((), ("lengths",)):
        kernel = Layer(cell, hidden, T, B, "bidirectional", extra, dtype=dtype).kernel().kernel
        assert_compiles(render_recurrence(kernel, tactics(kernel, "sm_80")[0], "sm_80"))
    kernel = Layer(cell, hidden, 100, 1, dtype=dtype).kernel().kernel
    assert_compiles(render_recurrence(kernel, tactics(kernel, "sm_80")[0], "sm_80"))


def test_cases_for_a_gpu_have_their_oracle() -> None:
    for case in cases():
        written = {b.name: b for b in case.kernel.buffers if b.written}
        found = expected(case)
        assert {k: v.shape for k, v in found.items()} == {k: b.shape for k, b in written.items()}


@pytest.mark.parametrize("layer", LAYERS[::3], ids=lambda layer: layer.name)
def test_layers_compile(layer: Layer) -> None:
    for tactic in layer.tactics():
        assert_compiles(render_recurrence(layer.kernel().kernel, tactic, "sm_80"))


@pytest.mark.parametrize(
    ("layer", "tactic"),
    [
        (Layer("lstm", 12, 4, 3), RecurrenceTactic(12, 4)),
        (Layer("lstm", 14, 4, 3), RecurrenceTactic(14, 4)),
        (Layer("lstm", 12, 4, 3), RecurrenceTactic(5, 4)),
        (Layer("gru", 12, 4, 5), RecurrenceTactic(12, 8)),
        (Layer("gru", 12, 4, 5), RecurrenceTactic(4, 2)),
        (Layer("lstm", 40, 4, 3, attrs=(("rounded", 1),)), RecurrenceTactic(40, 4)),
        (Layer("lstm", 38, 4, 3, attrs=(("rounded", 1),)), RecurrenceTactic(38, 4)),
        (Layer("lstm", 40, 4, 3, attrs=(("rounded", 1),)), RecurrenceTactic(20, 2)),
    ],
    ids=[
        "alone", "alone_odd", "shared", "alone_two_passes", "shared_two_passes", "alone_rounded", "alone_odd_rounded",
        "shared_rounded",
    ],
)
def test_every_barrier_is_needed(layer: Layer, tactic: RecurrenceTactic) -> None:
    bound, feeds = layer.kernel(), layer.feeds({})
    source, want = render_recurrence(bound.kernel, tactic, "sm_80"), layer.expected(feeds)

    def passes(text: str) -> bool:
        try:
            assert_close(bound, run_kernel(source, bound.kernel, by_tensor(bound, feeds), text=text), want)
        except AssertionError:
            return False
        return True

    assert passes(source.source)
    assert survivors(source.source, passes, "recurrence.cuh") == []
    if source.cooperative:
        assert survivors(source.source, passes, "grid_barrier.cuh") == []
