"""The arena: no two live buffers overlap, offsets are aligned, and the size is near the lower bound."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from arcweld.runtime.arena import ALIGNMENT, Interval, aligned, pack_intervals


def live_bytes(intervals: Sequence[Interval]) -> int:
    """The largest sum of bytes alive at one launch: no arena can be smaller."""
    points = sorted({i.first for i in intervals})
    return max((sum(aligned(i.nbytes) for i in intervals if i.first <= p <= i.last) for p in points), default=0)


@st.composite
def intervals(draw: st.DrawFn) -> list[Interval]:
    out = []
    for _ in range(draw(st.integers(0, 30))):
        first = draw(st.integers(0, 20))
        out.append(Interval(draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 6))))
    return out


@given(intervals())
def test_live_buffers_never_overlap(items: list[Interval]) -> None:
    offsets, total = pack_intervals(items)
    for i, a in enumerate(items):
        assert offsets[i] % ALIGNMENT == 0
        assert 0 <= offsets[i] <= offsets[i] + a.nbytes <= total or a.nbytes == 0
        for j, b in enumerate(items[:i]):
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]
            assert apart or not together or a.nbytes == 0 or b.nbytes == 0
    assert live_bytes(items) <= total <= 2 * live_bytes(items)


def test_a_chain_needs_two_buffers() -> None:
    items = [Interval(1 << 20, n, n + 1) for n in range(50)]
    assert pack_intervals(items)[1] == 2 << 20


def test_a_residual_network_is_packed_to_the_bound() -> None:
    items = []
    for block in range(0, 48, 4):
        items += [
            Interval(4096, block, block + 4),
            Interval(16384, block + 1, block + 2),
            Interval(4096, block + 2, block + 3),
        ]
    assert pack_intervals(items)[1] == live_bytes(items)


def test_a_thousand_buffers_are_packed_quickly() -> None:
    items = [Interval(1000 + 37 * n % 90000, n, n + n % 7) for n in range(1000)]
    begin = time.perf_counter()
    pack_intervals(items)
    assert time.perf_counter() - begin < 1.0
