"""torch.fft, stft and istft, imported and compared with eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fft
from torch_oracle import Functions, check, compare, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.importer import import_module

Z = torch.complex(rand(3, 6), rand(3, 6, seed=1))
X = rand(3, 6, seed=2)

ONE_AXIS: dict[str, Callable[..., Any]] = {
    "fft": lambda z, x: (fft.fft(z), fft.fft(x), fft.fft(z, n=4, dim=0, norm="ortho")),
    "ifft": lambda z, x: (fft.ifft(z), fft.ifft(x, n=9, norm="forward")),
    "rfft": lambda z, x: (fft.rfft(x), fft.rfft(x, n=5, dim=0, norm="forward")),
    "irfft": lambda z, x: (fft.irfft(z), fft.irfft(z, n=7, norm="ortho"), fft.irfft(z, n=4, dim=0)),
    "hfft": lambda z, x: (fft.hfft(z), fft.ihfft(x), fft.hfft(z, n=5, norm="forward")),
}
MORE_AXES: dict[str, Callable[..., Any]] = {
    "fft2": lambda z, x: (fft.fft2(z), fft.ifft2(x, norm="ortho")),
    "fftn": lambda z, x: (fft.fftn(x), fft.ifftn(z, dim=(1, 0)), fft.fftn(z, s=(2, 4))),
    "rfftn": lambda z, x: (fft.rfft2(x), fft.rfftn(x, dim=(1, 0), norm="ortho")),
    "irfftn": lambda z, x: (fft.irfft2(z), fft.irfftn(z, s=(4, 5)), fft.irfft2(z, norm="forward")),
    "hfftn": lambda z, x: (fft.hfft2(z), fft.ihfftn(x)),
    "shift": lambda z, x: (fft.fftshift(fft.fft(z)), fft.ifftshift(z, dim=0)),
    "frequencies": lambda z, x: (fft.fftfreq(5) + x[0, 0], fft.rfftfreq(6, 0.5) + x[0, 0]),
}


@pytest.mark.parametrize("functions", [ONE_AXIS, MORE_AXES], ids=["one axis", "more axes"])
def test_transforms(functions: dict[str, Callable[..., Any]]) -> None:
    check(functions, Z, X)


def test_the_imaginary_part_of_a_constant_does_not_count() -> None:
    """Neither that of frequency 0 nor, of an even length, that of the highest one: a real signal has none."""
    z = torch.full((2, 4), 1 + 5j)
    check({"even": lambda z: fft.irfft(z, n=6), "odd": lambda z: fft.irfft(z, n=7)}, z)


@pytest.mark.parametrize("n", [640, 521])
def test_long_transforms(n: int) -> None:
    x = rand(2, n)
    check({"round": lambda x: fft.irfft(fft.rfft(x) * 2, n=x.shape[-1]), "fft": lambda x: fft.fft(x)}, x, atol=1e-4)


def test_frames() -> None:
    signal, window = rand(2, 400), torch.hann_window(64)
    check(
        {
            "magnitude": lambda s: torch.stft(s, 64, 16, window=window, return_complex=True).abs(),
            "two_sided": lambda s: torch.stft(s, 32, 8, onesided=False, return_complex=True),
            "narrow": lambda s: torch.stft(s, 64, 16, 32, window[:32], False, normalized=True, return_complex=True),
            "one": lambda s: torch.stft(s[0], 64, return_complex=True).real,
            "back": lambda s: torch.istft(
                torch.stft(s, 64, 16, window=window, return_complex=True) * 2, 64, 16, window=window, length=400
            ),
        },
        signal,
    )


def test_frames_are_windows_of_the_signal() -> None:
    """No table of places is made, which would be as large as all frames."""
    graph = import_module(Functions({"f": lambda s: torch.stft(s, 64, 16, return_complex=True)}), (rand(1, 4000),))
    assert "WindowTaps" in {n.op for n in graph.nodes}
    assert not {"Gather", "GatherND"} & {n.op for n in graph.nodes}


def test_windows() -> None:
    x, i = rand(2, 3, 40), torch.arange(20).reshape(2, 10)
    check(
        {
            "last": lambda x, i: x.unfold(2, 8, 3),
            "first": lambda x, i: x.unfold(0, 2, 1) * 2,
            "middle": lambda x, i: x.unfold(1, 2, 2),
            "integers": lambda x, i: i.unfold(1, 4, 4),
            "strided": lambda x, i: torch.as_strided(x[0, 0] + 0, (5, 8), (4, 1)) * 2,
            "complex": lambda x, i: torch.complex(x, x).unfold(2, 5, 5),
        },
        x, i,
    )  # fmt: skip


def test_an_open_batch() -> None:
    module = Functions({"filter": lambda x: fft.irfft(fft.rfft(x) * torch.tensor([1, 1j, 0, 2]), n=6)})
    graph = import_module(module, (X,), dynamic_shapes=(({0: torch.export.Dim("batch", min=1, max=64)},),))
    for rows in (1, 5):
        compare(graph, module, (rand(rows, 6),))


def test_an_open_length_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a Fourier transform along the symbolic dimension"):
        import_module(
            Functions({"f": lambda x: fft.fft(x).real}), (X,), dynamic_shapes=(({1: torch.export.Dim("n", min=2)},),)
        )
