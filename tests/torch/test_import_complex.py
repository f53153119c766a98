"""Complex tensors imported from PyTorch as pairs of reals, against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_oracle import Functions, check, compare, run_graph

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.context import COMPLEX, HANDLERS, full_name
from arcweld.compiler.torch.handlers.complex_parts import BY_PARTS
from arcweld.compiler.torch.importer import import_exported, import_module


def _complex(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


Z, W = _complex(3, 5), _complex(3, 5, seed=1)
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda z, w, x: z + w * x,
    "alpha": lambda z, w, x: torch.add(z, x, alpha=2.5),
    "rsub": lambda z, w, x: (1 - 2j) - z,
    "mul": lambda z, w, x: z * w,
    "div": lambda z, w, x: z / w,
    "div_by_real": lambda z, w, x: z / (x + 4),
    "real_over_complex": lambda z, w, x: x / w,
    "reciprocal": lambda z, w, x: w.reciprocal(),
    "addcmul": lambda z, w, x: torch.addcmul(z, w, z, value=0.5),
    "eq": lambda z, w, x: (z == w, z == z, z != w, z.real == z),
    "truth": lambda z, w, x: (torch.logical_not(z), (z * 0).any(), z.bool().all()),
    "conj": lambda z, w, x: (z.conj() * w, z.conj().imag, z.imag, z.real),
    "scalars": lambda z, w, x: x * 2j + 1,
    "promotion": lambda z, w, x: x + z,
    "constant": lambda z, w, x: z * torch.tensor([1j, 2, 3, 4, 5]),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{n: (lambda z, w, x, n=n: getattr(torch, n)(z)) for n in (
        "abs", "angle", "sgn", "exp", "log", "log2", "log10", "sqrt", "rsqrt", "sin", "cos", "tan", "sinh", "cosh",
        "tanh", "sigmoid", "square", "isnan", "isfinite", "asin", "acos", "atan", "asinh", "acosh", "atanh", "expm1",
        "log1p",
    )},
    "cube": lambda z, w, x: z**3,
    "inverse_square": lambda z, w, x: z**-2,
    "ldexp": lambda z, w, x: (torch.ldexp(z, x), torch.ldexp(x, w)),
    "power": lambda z, w, x: (z**w, z**0.5, z**1.7, 2.0**z, (z * 0) ** w, (z * 0) ** 0),
    "polar": lambda z, w, x: torch.polar(x.abs(), x),
    "complex": lambda z, w, x: torch.complex(x, x + 1),
}  # fmt: skip
MOVEMENT: dict[str, Callable[..., Any]] = {
    "views": lambda z, w, x: (z.reshape(5, 3).T, z[:, 1:4:2], z[1], z.unsqueeze(1).expand(3, 2, 5), z.flip(0)),
    "split": lambda z, w, x: (z.split([2, 3], 1), z.split(9), torch.split_with_sizes_copy(z, [1, 4], 1), z.unbind()),
    "joined": lambda z, w, x: (torch.cat([z, w], 1), torch.stack([z, w]), torch.cat([z, x + 0j])),
    "index": lambda z, w, x: (z[torch.tensor([2, 0])], torch.where(x > 0, z, w), z.masked_fill(x > 0, 1 - 1j)),
    "pad": lambda z, w, x: torch.nn.functional.pad(z, (1, 2)),
    "sums": lambda z, w, x: (z.sum(1), z.mean(), z.cumsum(0)),
    "products": lambda z, w, x: (z.prod(1), z.prod(), z.prod(0, keepdim=True), z.cumprod(1), z[:1].cumprod(0)),
    "spread": lambda z, w, x: (z.var(1), z.std(), torch.var_mean(z, 0, correction=0)),
    "norms": lambda z, w, x: (torch.linalg.vector_norm(z, dim=1), z.norm(1), torch.dist(z, w)),
    "identity": lambda z, w, x: torch.eye(3, dtype=z.dtype) @ z,
    "new": lambda z, w, x: (torch.zeros_like(z) + torch.ones_like(z), torch.full((2,), 1 + 2j)),
    "casts": lambda z, w, x: (x.to(torch.complex64), z.to(torch.complex128), torch.view_as_real(z) * 2),
    "as_complex": lambda z, w, x: torch.view_as_complex(torch.stack([x, x + 1], -1)),
}
PRODUCTS: dict[str, Callable[..., Any]] = {
    "mm": lambda z, w, x: z @ w.T,
    "mv": lambda z, w, x: z @ w[0],
    "vm": lambda z, w, x: w[:, 0] @ z,
    "dot": lambda z, w, x: (torch.dot(z[0], w[0]), torch.vdot(z[0], w[0])),
    "bmm": lambda z, w, x: torch.einsum("ij,kj,ki->ij", z, w, z @ w.T),
    "addmm": lambda z, w, x: torch.addmm(z[:, :3], z, w.T, beta=0.5, alpha=1 - 1j),
    "linear": lambda z, w, x: torch.nn.functional.linear(z, w, z[0, :3]),
}


@pytest.mark.parametrize("functions", [ARITHMETIC, FUNCTIONS, MOVEMENT, PRODUCTS], ids=["sums", "fns", "moves", "mm"])
def test_operators(functions: dict[str, Callable[..., Any]]) -> None:
    check(functions, Z, W, X)


def test_operators_in_double_precision() -> None:
    z, w, x = _complex(3, 5, dtype=torch.complex128), _complex(3, 5, seed=1, dtype=torch.complex128), X.double()
    check(ARITHMETIC | {"log": lambda z, w, x: z.log(), "mm": lambda z, w, x: z @ w.T}, z, w, x, rtol=1e-12, atol=1e-12)


def test_quotients_and_sizes_neither_overflow_nor_vanish() -> None:
    z = torch.tensor([3e30 + 4e30j, 3e-30 - 4e-30j, -1e38 + 1e38j, 1e-20j, 2e19 + 0j], dtype=torch.complex64)
    check({"abs": lambda z: z.abs(), "one": lambda z: z / z, "root": lambda z: z.sqrt(), "log": lambda z: z.log()}, z)


def test_a_logarithm_near_the_unit_circle_does_not_cancel() -> None:
    """Rounding the absolute value, which is near 1, would alone make an error of up to 6e-8."""
    z = torch.polar(torch.tensor([1.0, 1.0001, 0.9999, 1.01]), torch.tensor([0.1, 2.0, -1.0, 3.0]))
    found = np.log(z.numpy().astype(np.complex128))
    graph = import_module(Functions({"log": lambda z: z.log()}), (z,))
    (ours,) = run_graph(graph, [z])
    np.testing.assert_allclose(ours[..., 0], found.real, rtol=1e-6, atol=2e-8)
    np.testing.assert_allclose(ours[..., 1], found.imag, rtol=1e-6)


@pytest.mark.parametrize("name", ["asin", "acos", "atan", "asinh", "acosh", "atanh", "sqrt", "log", "expm1", "log1p"])
def test_functions_far_out_near_zero_and_near_their_branch_points(name: str) -> None:
    """Against numpy in f64, which libm computes; with an error of a few units of rounding of the result's size."""
    sizes = torch.tensor([1e-6, 1e-3, 0.9, 0.9999, 1.0001, 1.1, 3.0, 1e3, 1e6])
    z = torch.polar(sizes[:, None], torch.linspace(-3.1, 3.1, 12)[None])
    if name == "expm1":
        z = z[:7]
    wide = z.numpy().astype(np.complex128)
    exact = getattr(np, {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
                         "atanh": "arctanh"}.get(name, name))(wide)  # fmt: skip
    (found,) = run_graph(import_module(Functions({"f": lambda z: getattr(torch, name)(z)}), (z,)), [z])
    error = np.abs(found[..., 0] + 1j * found[..., 1] - exact)
    assert (error / np.maximum(np.abs(exact), 1e-30)).max() < 1e-6


def test_powers_far_out_are_as_exact_as_their_type() -> None:
    """The exponent of a large power, rounded to f32, would alone make an error of 2e-6."""
    z, w = 30 * Z, 6 * W
    (found,) = run_graph(import_module(Functions({"f": lambda z, w: z**w}), (z, w)), [z, w])
    exact = z.numpy().astype(np.complex128) ** w.numpy().astype(np.complex128)
    error = np.abs(found[..., 0] + 1j * found[..., 1] - exact) / np.abs(exact)
    assert np.abs(np.log10(np.abs(exact))).max() > 8
    assert error.max() < 2e-7


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_complex_weights(kind: str) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = _complex(5, 4, seed=3)
            if kind == "parameter":
                self.w = torch.nn.Parameter(w)
            else:
                self.register_buffer("w", w)

        def forward(self, z: torch.Tensor) -> Any:
            return z @ self.w, (z * self.w[:, 0].conj()).abs()

    module = Scaled()
    graph = import_module(module, (Z,))
    compare(graph, module, (Z,))
    assert [v.shape for v in graph.inputs] == [(3, 5, 2)]


def test_state_that_is_complex() -> None:
    class Phase(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.ones(4, dtype=torch.complex64))

        def forward(self, step: torch.Tensor) -> torch.Tensor:
            self.phase.mul_(torch.polar(torch.ones_like(step), step))
            return self.phase.real + 1

    program = torch.export.export(Phase(), (torch.randn(4),), strict=True)
    graph = import_exported(program)
    (state,) = graph.initial.values()
    assert np.array_equal(state.data, np.stack([np.ones(4), np.zeros(4)], 1))


def test_parts_of_16_bits_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.complex32 is not supported"):
        import_module(Functions({"f": lambda x: torch.view_as_real(x.to(torch.complex32)) * 2}), (X.half(),))


def test_an_operator_without_a_complex_form_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no such operator in Arcweld for complex tensors"):
        import_module(Functions({"f": lambda z: z.logcumsumexp(0)}), (Z,))


def test_every_operator_by_parts_has_a_real_handler() -> None:
    assert {full_name(n) for n in BY_PARTS} <= set(HANDLERS)
    assert {full_name(n) for n in BY_PARTS} <= set(COMPLEX)
