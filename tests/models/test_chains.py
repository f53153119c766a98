"""Modelled times of whole models against measured ones, which the model of time was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.cost.model import TiledWork
from arcweld.models.calibrate import MEASURED, measured, relative_errors
from arcweld.models.calibrate import held_out as parts_held_out
from arcweld.models.chains import Chain, held_out, measured_chains

H100, CHAINS = measured_chains(MEASURED / "chains-h100.json")
_, ROWS = measured(MEASURED / "kernels-h100.json")
INT4 = [c for c in CHAINS if "int4" in c.model]


def test_the_error_of_whole_models() -> None:
    """The median is 10.6 % where the fit has seen none of a model's kernels, and 9.6 % else; 8 % was aimed at.

    What keeps it from there: norms of a chain, which take less than those that were measured alone, and attention by
    ``mma.sync`` at batch 32, of which few kernels were measured.
    """
    errors = [abs(c.error(H100, fitted)) for c, fitted in held_out(CHAINS, ROWS, H100)]
    assert len(errors) >= 25
    assert np.median(errors) < 0.11
    seen = [abs(c.error(H100, FITTED)) for c in CHAINS]
    assert np.median(seen) < 0.10
    assert np.quantile(seen, 0.8) < 0.15


def test_unpacking_weights_is_not_modelled() -> None:
    """A step with int4 weights takes longer than their bytes do; all others are within 30 %."""
    assert len(INT4) == 2
    for c in INT4:
        assert -0.45 < c.error(H100, FITTED) < -0.2
    assert max(abs(c.error(H100, FITTED)) for c in CHAINS if c not in INT4) < 0.3


def test_a_decode_step_by_hand() -> None:
    """16 layers of 3072, 2048 and 3 x 8192 columns of 2048, and 128,256 columns: 2.47 GB, at 3 TB/s 0.823 ms."""
    (step,) = (c for c in CHAINS if "bf16" in c.model and c.overlapping)
    weights = 2 * 2048 * (16 * (3072 + 2048 + 3 * 8192) + 128256)
    assert weights == pytest.approx(2.47e9, rel=0.01)
    moved = sum(times * row.work.nbytes for times, row in step.kernels)
    assert moved == pytest.approx(weights + 16 * 2 * 2 * 8 * 64 * 512, rel=0.002)
    assert step.modelled_ms(H100, FITTED) == pytest.approx(step.ms, rel=0.02)


def test_overlap_and_heat() -> None:
    """Kernels that do not overlap take longer; those whose chain keeps the tensor cores busy run at a lower clock."""
    pairs = {(c.model, c.overlapping): c for c in CHAINS}
    for (model, overlapping), c in pairs.items():
        if not overlapping:
            assert c.modelled_ms(H100, FITTED) > pairs[model, True].modelled_ms(H100, FITTED)
            assert c.ms > pairs[model, True].ms
    (large,) = (c for c in CHAINS if c.model == "BERT-base encoder, batch 32 of 128" and c.overlapping)
    times, row = large.kernels[0]
    assert isinstance(row.work, TiledWork)
    assert times == 12
    alone = Chain("alone", True, ((1, row),), row.us)
    many = replace(alone, kernels=((100, row),))
    once, hot = alone.modelled_ms(H100, FITTED), many.modelled_ms(H100, FITTED)
    assert 100 * once < hot < 125 * once


def test_attention_by_mma_that_the_fit_has_not_seen() -> None:
    """Five kernels are few: of those left out, the median error is within a quarter."""
    own = [r for r in ROWS if r.kind == "attention_mma"]
    others = [r for r in ROWS if r.kind != "attention_mma"][::20]
    errors = [
        e
        for part, fitted in parts_held_out([*own, *others], H100, FITTED, 5)
        for e in relative_errors([r for r in part if r.kind == "attention_mma"], H100, fitted)
    ]
    assert len(errors) == 5
    assert np.median(errors) < 0.25
