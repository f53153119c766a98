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


def test_first_of_long_rows() -> None:
    x = torch.linspace(-9, 9, 5000).sin()
    check({"few": lambda x: x.topk(5), "many": lambda x: x.topk(900)[0], "most": lambda x: x.topk(1500)[0]}, x)


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


def test_special_functions() -> None:
    sp = torch.special
    functions = {
        "gamma": lambda x: (torch.lgamma(x), torch.digamma(x), torch.polygamma(0, x), torch.polygamma(3, x)),
        "several gammas": lambda x: torch.mvlgamma(x + 3, 3),
        "zeta": lambda x: (sp.zeta(x + 1, 2.0), sp.zeta(3.0, x), sp.zeta(x + 2, x)),
        "parts": lambda x: (sp.gammainc(x, x * 2), sp.gammaincc(x, x + 1)),
        "erf": lambda x: (torch.erfc(x), sp.erfcx(x), sp.ndtri(x / 5), sp.log_ndtr(-x * 9), torch.erfinv(x / 5)),
        "bessel": lambda x: (torch.i0(x), sp.i1(x), sp.i0e(x), sp.i1e(x), sp.bessel_j0(x), sp.bessel_y1(x)),
        "spherical": lambda x: sp.spherical_bessel_j0(x - 1.5),
        "degrees": lambda x: sp.chebyshev_polynomial_t(x, torch.tensor([[0.0], [3.0], [7.9], [-1.0]])),
        "one degree": lambda x: (sp.hermite_polynomial_h(x, 3), sp.shifted_chebyshev_polynomial_w(x / 5, 4)),
        "one point": lambda x: sp.legendre_polynomial_p(0.3, x * 3),
        "of integers": lambda x: torch.erfc((x * 3).int()),
    }
    x = torch.linspace(0.1, 4.9, 40).view(4, 10)
    check(functions, x, rtol=1e-5, atol=1e-6)
    check({"wide": lambda x: (torch.lgamma(x), torch.digamma(x), sp.erfcx(x))}, x.double(), rtol=1e-12)


def test_parts_of_floats_and_common_divisors() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -3.5, 1e-40, -1e-45, 3e38, float("inf"), -float("inf"), float("nan"), 0.3])
    functions = {
        "parts": lambda x: torch.frexp(x),
        "up": lambda x: torch.nextafter(x, torch.tensor(float("inf"))),
        "to zero": lambda x: torch.nextafter(x, torch.tensor(0.0)),
        "angle": lambda x: torch.angle(x),
        "scaled": lambda x: torch.ldexp(x, torch.tensor(3)),
    }
    for dtype in (torch.float32, torch.float64):
        check(functions, x.to(dtype), rtol=0, atol=0)
    a = torch.tensor([12, -12, 0, 0, 7, 100], dtype=torch.int64)
    b = torch.tensor([18, 18, 5, 0, -21, -75], dtype=torch.int64)
    check({"gcd": lambda a, b: torch.gcd(a, b), "lcm": lambda a, b: torch.lcm(a, b)}, a, b)
