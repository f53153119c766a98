"""Shifts, signs, angles and extrema against eager torch, at the values where their formulas change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch_oracle import Functions, check, rand, run_graph

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.importer import import_module

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -3.0, 1e-30, -1e30, 3e38, float("inf"), float("-inf"), float("nan")]


def pairs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of the edges, as two columns."""
    both = torch.tensor(list(itertools.product(EDGES, EDGES)), dtype=torch.float64).to(dtype)
    return both[:, 0].contiguous(), both[:, 1].contiguous()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_shifts(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 2, 5, 100, 127] + ([-1, -7, -128] if dtype.is_signed else [255])).to(dtype)
    check(
        {
            "left": lambda a: a << 2, "right": lambda a: a >> 1, "none": lambda a: a << 0,
            "floor": lambda a: a >> 6, "function": lambda a: torch.bitwise_right_shift(a, 3),
        },
        x,
    )  # fmt: skip


def test_shifts_that_are_refused() -> None:
    for fn in (lambda a: a >> a, lambda a: a << 31):
        with pytest.raises(UnsupportedError, match="shift"):
            import_module(Functions({"y": fn}), (torch.tensor([1, 2], dtype=torch.int32),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_angles_signs_and_extrema(dtype: torch.dtype) -> None:
    a, b = pairs(dtype)
    numbers = ~(a.isnan() | b.isnan())  # the sign of a NaN is nobody's
    check({"signbit": torch.signbit, "copysign": lambda x: torch.copysign(x, -1.0)}, a[~a.isnan()])
    check(
        {"copysign": torch.copysign, "atan2": torch.atan2},
        a[numbers],
        b[numbers],
        rtol=2e-3 if dtype.itemsize < 4 else 2e-6,
    )
    check({"fmax": torch.fmax, "fmin": torch.fmin}, a, b)


def test_signs_of_zeros() -> None:
    a, b = torch.tensor([0.0, -0.0, 0.0, -0.0]), torch.tensor([0.0, 0.0, -0.0, -0.0])
    graph = import_module(Functions({"angle": torch.atan2, "copy": torch.copysign}), (a, b))
    for found, expected in zip(run_graph(graph, (a, b)), (torch.atan2(a, b), torch.copysign(a, b))):
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected.numpy()))


def test_hypot() -> None:
    a, b = pairs()
    finite = ~(a.isnan() | b.isnan())
    check({"hypot": torch.hypot}, a[finite], b[finite], rtol=1e-6)
    check({"hypot": torch.hypot}, rand(50), rand(50, seed=1), rtol=1e-6)


@pytest.mark.parametrize("decimals", [2, 0, -1])
def test_rounding_to_decimals(decimals: int) -> None:
    check({"round": lambda x: torch.round(x, decimals=decimals)}, torch.tensor([1.234, -0.555, 25.5, 17.0, 0.0]))


@pytest.mark.parametrize("largest", [True, False])
def test_the_first_of_a_row(largest: bool) -> None:
    x = torch.randperm(60, generator=torch.Generator().manual_seed(0)).float().reshape(3, 20)
    check(
        {
            "last": lambda x: torch.topk(x, 4, largest=largest), "first axis": lambda x: x.topk(2, 0, largest),
            "integers": lambda x: x.long().topk(3, largest=largest), "all": lambda x: x.topk(20, largest=largest),
            "scalar": lambda x: x[0, 0].topk(1),
        },
        x,
    )  # fmt: skip


def test_long_rows_are_left_to_sorting() -> None:
    check({"few": lambda x: x.topk(5)}, torch.linspace(-9, 9, 5000).sin())
    with pytest.raises(UnsupportedError, match="the first 900 of 5000 elements"):
        import_module(Functions({"y": lambda x: x.topk(900)}), (rand(5000),))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_sampling_a_grid(mode: str, padding: str) -> None:
    check(
        {
            f"corners {aligned}": lambda x, g, aligned=aligned: torch.nn.functional.grid_sample(
                x, g, mode=mode, padding_mode=padding, align_corners=aligned
            )
            for aligned in (False, True)
        },
        rand(2, 3, 6, 5), rand(2, 4, 4, 2, scale=0.8),
    )  # fmt: skip


def test_operators_that_torch_decomposes() -> None:
    x = rand(2, 3, 6, 6)
    check(
        {
            "statistics of the batch": lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
            "bucketize": lambda x: torch.bucketize(x, torch.linspace(-1, 1, 5)),
            "triangle": lambda x: x[..., torch.tril_indices(6, 6)[0], torch.tril_indices(6, 6)[1]],
        },
        x,
    )
