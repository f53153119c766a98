"""Every primitive on the sim device against numpy, and against the stored results of a GPU where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from function_cases import MOST, NAMES, errors
from prim_cases import PrimCase, warp_level_cases
from prim_cases_async import async_cases
from prim_cases_lanes import lane_cases

from arcweld.runtime.sim.device import SimDevice

CASES = [*warp_level_cases(), *lane_cases(), *async_cases()]
GOLDEN = Path(__file__).parents[2] / "golden" / "prims"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_primitive_matches_numpy(case: PrimCase) -> None:
    for device in (SimDevice(), SimDevice(seed=5), SimDevice(checked=True), SimDevice(checked=True, seed=3)):
        case.check(case.run(device), case.reference)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_primitive_matches_the_gpu(case: PrimCase) -> None:
    path = GOLDEN / f"{case.name}.npz"
    if not path.exists():
        pytest.skip("no stored results of a GPU")
    with np.load(path) as stored:
        expected = [stored[f"output{i}"] for i in range(len(case.reference))]
    outputs = [output.view(want.dtype) for output, want in zip(case.run(SimDevice()), expected, strict=True)]
    # Tensor cores and approximate functions round differently, within the case's own tolerance.
    case.check(outputs, expected, case.tolerance)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_rounded_once(name: str) -> None:
    for device in (SimDevice(), SimDevice(checked=True)):
        assert errors(device, name).max() <= MOST
