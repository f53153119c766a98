"""The model of time against measured kernels, on problems that its fit has not seen, and by hand where one can."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.cost.model import StreamWork, TiledWork, full_rate, rate, slower, stream_time, tiled_time
from arcweld.compiler.cards import CARDS, card, usual_card
from arcweld.compiler.errors import UsageError
from arcweld.compiler.tiling import Tiling
from arcweld.models.calibrate import MEASURED, START, choices, fit, held_out, measured, relative_errors

H100, ROWS = measured(MEASURED / "kernels-h100.json")


def tiled(bm: int, bn: int, **more: Any) -> Tiling[int]:
    return Tiling(
        "wgmma", "f16", macs=bm * bn * 64, loaded=(bm + bn) * 128, read=bm // 64 * (64 + bn) * 128, elements=bm * bn,
        **more,
    )  # fmt: skip


def median(kind: str) -> float:
    return float(np.median(relative_errors([r for r in ROWS if r.kind == kind], H100, FITTED)))


def test_errors_of_kernels_that_the_fit_has_seen() -> None:
    assert median("product") < 0.06
    assert median("convolution") < 0.08
    assert median("stream") < 0.03
    assert median("rows") < 0.06
    assert median("attention") < 0.02
    assert median("attention_mma") < 0.10
    assert median("decode") < 0.04


def test_errors_of_problems_that_the_fit_has_not_seen() -> None:
    errors = [e for own, found in held_out(ROWS, H100, FITTED, 3) for e in relative_errors(own, H100, found)]
    assert len(errors) == len(ROWS)
    assert np.median(errors) < 0.09


def test_the_best_tactics_of_products() -> None:
    """The measured best comes first for nearly all products, and never is the choice 6 % behind it."""
    made = choices([r for r in ROWS if r.kind == "product"], H100, FITTED)
    assert len(made) >= 18
    assert sum(c.behind == 0 for c in made) >= len(made) - 3
    assert max(c.behind for c in made) < 0.06


def test_the_stored_constants_are_those_of_the_measurements() -> None:
    found = fit(ROWS, H100, FITTED)
    for kind in ("product", "convolution", "stream", "rows", "attention", "decode"):
        own = [r for r in ROWS if r.kind == kind]
        stored, again = (np.median(relative_errors(own, H100, f)) for f in (FITTED, found))
        assert stored == pytest.approx(again, abs=0.005)


def test_constants_are_within_what_the_hardware_can_do() -> None:
    for constants in FITTED.values():
        for name, value in dataclasses.asdict(constants).items():
            assert START[name][1] <= value <= START[name][2], name


# ----------------------------------------------------------------------------------------------------- what it means


def test_a_large_product_is_bound_by_what_multiplies() -> None:
    """8192 cubed: 21 rounds of 128 x 192 tiles; no more than the card's rate, no less than half of it.

    Tensor cores read both operands from shared memory, which bounds them a little earlier than their own rate does.
    """
    tiling = tiled(128, 192, tiles=64 * 43, steps=128, stages=4, persistent=True)
    found = tiled_time(TiledWork(tiling, nbytes=3 * 2 * 8192.0**2), H100, FITTED["product"])
    assert found.bound in ("tensor cores", "shared memory")
    assert found.floor == pytest.approx(2 * 64 * 43 * 128 * 192 * 8192 / 989.4e12 * 1e6)
    assert 0.5 < found.share < 1.0


def test_few_blocks_leave_multiprocessors_idle() -> None:
    """Eight tiles with a long k: each multiplies as fast as it can, and 124 of 132 multiprocessors do nothing."""
    found = tiled_time(TiledWork(tiled(128, 128, tiles=8, steps=512, stages=4)), H100, FITTED["product"])
    assert found.bound == "idle multiprocessors"
    assert found.share < 8 / 132


def test_a_copy_is_bound_by_memory() -> None:
    found = stream_time(StreamWork(1e9), H100, FITTED["stream"])
    assert found.bound == "memory"
    assert found.floor == pytest.approx(1e9 / 3.35e12 * 1e6)
    assert found.share == pytest.approx(FITTED["stream"].memory, rel=0.01)


def test_a_hot_card_against_kernels_that_were_measured_on_both() -> None:
    """Back to back, attention takes up to 10 % longer than after a rest, as far as its load is high."""
    both = [r for r in ROWS if r.hot]
    assert len(both) == 11
    for r in both:
        assert isinstance(r.work, TiledWork)
        load = full_rate(r.work.tiling, H100) / r.us
        assert slower(FITTED["attention"], load) == pytest.approx(r.hot / r.us, rel=0.025)
    assert max(r.hot / r.us for r in both) > 1.1
    assert slower(FITTED["attention"], 0.2) == 1


def test_a_chain_heats_all_its_kernels() -> None:
    """A kernel takes ``slower`` times as long at a given load, but for what memory bounds."""
    work = TiledWork(tiled(128, 128, tiles=264, steps=48, stages=4), load=0.0)
    cool, hot = (tiled_time(dataclasses.replace(work, load=x), H100, FITTED["product"]) for x in (0.0, 0.6))
    assert hot.us / cool.us == pytest.approx(slower(FITTED["product"], 0.6))
    assert sum(hot.parts.values()) == pytest.approx(hot.us)
    far = [tiled_time(dataclasses.replace(work, load=x, nbytes=1e9), H100, FITTED["product"]).us for x in (0.0, 0.6)]
    assert far[0] == far[1]


def test_blocks_that_follow_others_begin_anew() -> None:
    """Five waves of blocks cost four more beginnings, as far as these do not overlap; a persistent kernel has one."""
    constants = FITTED["attention_mma"]
    tiling = tiled(64, 64, tiles=5 * 132, steps=4, stages=4)
    once = tiled_time(TiledWork(tiled(64, 64, tiles=132, steps=4, stages=4)), H100, constants).parts["fill"]
    five = tiled_time(TiledWork(tiling), H100, constants).parts["fill"]
    assert five == pytest.approx(once * (1 + 4 * constants.overlap))
    persistent = tiled(64, 64, tiles=5 * 132, steps=4, stages=4, persistent=True)
    assert tiled_time(TiledWork(persistent), H100, constants).parts["fill"] == pytest.approx(once)


def test_the_longest_tile_of_causal_attention() -> None:
    """Where all blocks run at once, the one with most steps decides; where there are many rounds, the mean does."""
    constants = FITTED["attention_mma"]
    few, many = (
        {n: tiled_time(TiledWork(tiled(64, 64, tiles=tiles, steps=5, stages=1, longest=n)), H100, constants)
         for n in (None, 8)}
        for tiles in (132, 1320)
    )  # fmt: skip
    assert few[8].parts["loop"] == pytest.approx(8 / 5 * few[None].parts["loop"])
    assert many[8].us == many[None].us


def test_unpacking_numbers_of_4_bits() -> None:
    """A product of 8192 x 8192 with weights of 4 bits: bytes alone take 11.5 us, and 15.4 were measured."""
    numbers = 8192.0**2
    bytes_alone, whole = (
        stream_time(StreamWork(numbers * 33 / 64, unpacked=u), H100, FITTED["stream"]) for u in (0.0, numbers)
    )
    assert bytes_alone.us < 12.7
    assert whole.us == pytest.approx(15.38, rel=0.05)
    assert (bytes_alone.bound, whole.bound) == ("memory", "arithmetic")


def test_parts_add_up() -> None:
    tiling = tiled(64, 64, tiles=24, steps=48, stages=8, split=4, residual=True, activation=True)
    found = tiled_time(TiledWork(tiling), H100, FITTED["product"])
    assert sum(found.parts.values()) == pytest.approx(found.us)
    assert min(found.parts.values()) > 0


@pytest.mark.parametrize("name", CARDS)
def test_more_bandwidth_and_more_rate_never_cost_time(name: str) -> None:
    own = CARDS[name]
    faster = dataclasses.replace(
        own, memory=2 * own.memory, tensor={t: 2 * r for t, r in own.tensor.items()}, clock=2 * own.clock
    )
    for row in ROWS[::7]:
        for constants in (FITTED["product"], FITTED["convolution"]):
            if isinstance(row.work, TiledWork):
                assert tiled_time(row.work, faster, constants).us <= tiled_time(row.work, own, constants).us * 1.0001


# ------------------------------------------------------------------------------------------------------------ cards


def test_cards_agree_with_their_data_sheets() -> None:
    """Rates are multiprocessors x clock x operations in a cycle; clocks of tensor cores may be lower."""
    per_cycle = {"sm_80": 2048, "sm_86": 512, "sm_89": 512, "sm_90a": 4096, "sm_100": 8192, "sm_120": 512}
    for c in CARDS.values():
        scale = 2 if c.name in ("a10", "l4", "l40s") else 1  # GeForce cards add up in f32 at half the rate
        peak = c.multiprocessors * c.clock * per_cycle[c.arch] * scale
        assert c.tensor["f16"] == pytest.approx(peak, rel=0.08), c.name
        assert c.source, c.name
    h100, a100 = card("h100"), card("a100")
    assert rate(h100, "wgmma", "i8") == pytest.approx(2 * rate(h100, "wgmma", "f16"), rel=0.001)
    assert rate(a100, "mma", "f8") == rate(a100, "mma", "f16")  # it has none
    assert rate(a100, "ffma", "f32") == pytest.approx(64 * a100.clock / 1e6, rel=0.01)  # multiply-adds in a cycle


def test_usual_cards() -> None:
    assert [usual_card(a).name for a in ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_90", "sm_120", "sm_75")] == [
        "a100", "a10", "l40s", "h100", "h100", "rtx5090", "a100"
    ]  # fmt: skip


def test_a_card_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"title": "Mine", "like": "a100", "memory": 1.5e12, "tensor": {"f16": 3e14}}))
    mine = card(str(path))
    assert (mine.name, mine.title, mine.arch, mine.memory, mine.l2) == ("mine", "Mine", "sm_80", 1.5e12, 40 * 2**20)
    assert mine.tensor == {"f16": 3e14}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is not an object"),
        ('{"like": "gtx480"}', "unknown card 'gtx480': known are h100"),
        ('{"title": "x", "arch": "sm_80"}', "the card has no 'multiprocessors'"),
        ('{"like": "a100", "memory": -1}', "memory is a positive number, not -1"),
        ('{"like": "a100", "memory": true}', "memory is a positive number, not True"),
        ('{"like": "a100", "arch": "volta"}', "'volta' is not an architecture"),
        ('{"like": "a100", "tensor": {"f12": 1}}', "tensor has rates by type: f16, tf32, f8, i8"),
        ('{"like": "a100", "watts": 300}', "a card has no 'watts'"),
    ],
)
def test_descriptions_that_make_no_sense(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        card(str(path))


def test_a_description_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        card(str(tmp_path / "none.json"))
