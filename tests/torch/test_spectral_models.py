"""Models that use complex numbers and Fourier transforms compile completely by torch.compile, and equal eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backend_oracle import compiled, same
from torch import fft, nn

from arcweld.torch.report import clear_report, torch_report


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    clear_report()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Rotary(nn.Module):
    """Attention scores after Llama's original rotation: pairs of features times points of the unit circle."""

    def __init__(self, dim: int = 8, length: int = 6) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(0, dim, 2) / dim))
        self.register_buffer("freqs", torch.polar(torch.ones_like(angles), angles))

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.freqs[: x.shape[1], None]).flatten(3).type_as(x)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bqhd,bkhd->bhqk", self.rotated(q), self.rotated(k)).softmax(-1)


class FourierLayer(nn.Module):
    """A layer of a Fourier neural operator: the low frequencies of each image times complex weights, and a 1x1 path."""

    def __init__(self, width: int = 3, modes: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(width, width, modes, modes, dtype=torch.cfloat) / width) for _ in range(2)]
        )
        self.path = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum, m = fft.rfft2(x), self.modes
        out = torch.zeros(x.shape[0], x.shape[1], x.shape[2], x.shape[3] // 2 + 1, dtype=torch.cfloat)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.weights[0])
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.weights[1])
        return nn.functional.gelu(fft.irfft2(out, s=x.shape[-2:]) + self.path(x))


class GlobalFilter(nn.Module):
    """GFNet's layer: a learnt filter, stored as pairs of reals, on the spectrum of all tokens."""

    def __init__(self, side: int = 6, dim: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(side, side // 2 + 1, dim, 2) * 0.5)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        side = int(n**0.5)
        y = fft.rfft2(self.norm(x).view(b, side, side, c), dim=(1, 2), norm="ortho")
        y = y * torch.view_as_complex(self.weight)
        return x + fft.irfft2(y, s=(side, side), dim=(1, 2), norm="ortho").reshape(b, n, c)


class SpectralGate(nn.Module):
    """A sequence filtered by frequency: rfft, a complex gate, irfft."""

    def __init__(self, length: int = 20, dim: int = 4) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(length // 2 + 1, dim, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + fft.irfft(fft.rfft(x, dim=1) * self.gate, n=x.shape[1], dim=1).relu()


class FrontEnd(nn.Module):
    """The logarithm of a magnitude spectrogram."""

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(64)
        return torch.stft(signal, 64, 16, window=window, return_complex=True).abs().clamp_min(1e-5).log()


def mixing(x: torch.Tensor) -> torch.Tensor:
    """FNet's mixing of tokens."""
    return nn.functional.layer_norm(x + fft.fft2(x, dim=(-2, -1)).real, x.shape[-1:])


MODELS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "rotary": (Rotary(), [(2, 6, 2, 8), (2, 6, 2, 8)]),
    "operator": (FourierLayer(), [(2, 3, 8, 10)]),
    "filter": (GlobalFilter(), [(2, 36, 4)]),
    "gate": (SpectralGate(), [(2, 20, 4)]),
    "spectrogram": (FrontEnd(), [(2, 400)]),
    "mixing": (mixing, [(2, 12, 10)]),
}


def _whole() -> None:
    reports = torch_report()
    assert reports
    assert [(g.left, g.eager) for g in reports if g.left or g.eager] == []
    assert all(b.fallback is None for g in reports for b in g.blocks)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model, shapes = MODELS[name]
    args = [torch.randn(s) for s in shapes]
    with torch.no_grad():
        same(compiled(model, min_block_size=1)(*args), model(*args))
    _whole()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_on_the_simulator(name: str) -> None:
    model, shapes = MODELS[name]
    args = [torch.randn(s) for s in shapes]
    with torch.no_grad():
        fast = torch.compile(model, backend="arcweld", options={"device": "sim", "require_full_compilation": True})
        same(fast(*args), model(*args))
    _whole()


def test_fnet_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.FNetConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=24
    )
    model, tokens = transformers.FNetModel(config).eval(), torch.randint(0, 50, (2, 24))
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        same(compiled(model, min_block_size=1)(tokens).last_hidden_state, expected)
    _whole()


@pytest.mark.parametrize("name", ["operator", "filter", "gate"])
def test_a_training_step(name: str) -> None:
    """The loss, and the gradients of inputs and of complex weights."""
    model, shapes = MODELS[name]
    assert isinstance(model, nn.Module)
    args = [torch.randn(s, requires_grad=True) for s in shapes]

    def gradients(fn: Callable[..., Any]) -> list[torch.Tensor]:
        loss = fn(*args).square().mean()
        return [loss, *torch.autograd.grad(loss, [*args, *model.parameters()])]

    expected = gradients(model)
    for found, wanted in zip(gradients(compiled(model, min_block_size=1)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    _whole()


def test_complex_inputs_and_results_cross_as_they_lie() -> None:
    """Contiguous, transposed, conjugated: the values and the strides are eager's."""

    def fn(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c = a.exp() * b
        return c, c.t() + 1j, (a * b).conj(), c.abs()

    a, b = (torch.randn(3, 4, dtype=torch.complex64) for _ in range(2))
    for x, y in ((a, b), (a.t().contiguous().t(), b.conj()), (a.t(), b.t())):
        torch._dynamo.reset()
        for found, wanted in zip(compiled(fn, min_block_size=1)(x, y), fn(x, y), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            assert found.stride() == wanted.stride()


def test_a_complex_argument_is_written_where_it_is() -> None:
    def fn(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        state.mul_(torch.polar(torch.ones_like(x), x))
        return state.abs() + x

    x = torch.randn(5)
    for turn in (lambda s: s, lambda s: s[::2], lambda s: s.conj()):
        torch._dynamo.reset()
        ours, eager = (torch.ones(10 if turn(torch.ones(4)).shape[0] == 2 else 5, dtype=torch.cfloat) for _ in range(2))
        ours, eager = turn(ours), turn(eager)
        fast = compiled(fn, min_block_size=1)
        for _ in range(3):
            torch.testing.assert_close(fast(ours, x), fn(eager, x))
        torch.testing.assert_close(ours, eager)


def test_complex_parameters_that_change_are_packed_again() -> None:
    model = SpectralGate()
    fast, x = compiled(model, min_block_size=1), torch.randn(2, 20, 4)
    with torch.no_grad():
        for _ in range(2):
            same(fast(x), model(x))
            model.gate.mul_(1j)


@pytest.mark.slow
def test_complex_parameters_and_state_of_engines() -> None:
    """On the simulator: a changed parameter is packed into the same engine, and state is written where it is."""
    model, x = SpectralGate(), torch.randn(2, 20, 4)
    options = {"device": "sim", "require_full_compilation": True}
    fast = torch.compile(model, backend="arcweld", options=options)
    with torch.no_grad():
        for _ in range(2):
            same(fast(x), model(x))
            model.gate.mul_(1j)
    (block,) = torch_report()[0].blocks
    assert (block.builds, block.updates) == (1, 1)

    def turn(state: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        state.mul_(torch.polar(torch.ones_like(by), by))
        return state.abs() + by

    ours, eager, by = torch.ones(8, dtype=torch.cfloat), torch.ones(8, dtype=torch.cfloat), torch.randn(8)
    fast = torch.compile(turn, backend="arcweld", options=options)
    for _ in range(3):
        same(fast(ours, by), turn(eager, by))
    same(ours, eager)


def test_what_has_no_complex_form_stays_with_pytorch() -> None:
    def fn(z: torch.Tensor) -> torch.Tensor:
        return (z * 2).logcumsumexp(1).abs() + 1

    z = torch.randn(3, 4, dtype=torch.complex64)
    torch.testing.assert_close(compiled(fn, min_block_size=1)(z), fn(z))
    ((_, why),) = torch_report()[0].left
    assert why == "no such operator in Arcweld for complex tensors"
