"""ATen's Fourier transforms, which all of torch.fft becomes: real to complex, complex to real, complex to complex."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.fourier import Signal, real_inverse, transform
from arcweld.compiler.torch.context import AtenContext, Pair, Result, aten, complex_aten

_EXPONENTS = {0: 0.0, 1: -0.5, 2: -1.0}  # of the number of elements, by torch's code of a normalisation


@complex_aten("_fft_r2c")
def real_to_complex(c: AtenContext) -> Result:
    """The last of the axes is transformed first, because its elements are real and its spectrum may be one-sided."""
    x, axes = c["self"], [c.axis(d) for d in c["dim"]]
    scale = _scale(c, [x.shape[a] for a in axes])
    first = transform(c, Signal(x), axes[-1], onesided=c["onesided"], scale=scale)
    return _along(c, Pair(*first), axes[:-1], inverse=False)


@complex_aten("_fft_c2c")
def complex_to_complex(c: AtenContext) -> Result:
    x, axes = c["self"], [c.axis(d) for d in c["dim"]]
    return _along(c, x, axes, inverse=not c["forward"], scale=_scale(c, [x.shape[a] for a in axes]))


@complex_aten("_fft_c2r")
def complex_to_real(c: AtenContext) -> Result:
    x, axes, length = c["self"], [c.axis(d) for d in c["dim"]], c["last_dim_size"]
    scale = _scale(c, [*(x.shape[a] for a in axes[:-1]), length])
    x = _along(c, x, axes[:-1], inverse=True)
    return real_inverse(c, Signal(x.re, x.im), axes[-1], length, scale)


@aten("fft_fftfreq")
def frequencies(c: AtenContext) -> Result:
    """The frequency of each place of a spectrum, negative from its middle on."""
    return _frequencies(c, np.fft.fftfreq)


@aten("fft_rfftfreq")
def positive_frequencies(c: AtenContext) -> Result:
    """The frequency of each place of a one-sided spectrum."""
    return _frequencies(c, np.fft.rfftfreq)


def _frequencies(c: AtenContext, of: Callable[[int, float], np.ndarray]) -> Value:
    n, spacing = c["n"], c["d"]
    if isinstance(n, IntExpr) or isinstance(spacing, IntExpr):
        raise c.fail(f"the frequencies of a transform of {n} elements, {spacing} apart")
    return c.const(of(n, spacing), c.out.dtype)


def _along(c: AtenContext, x: Pair, axes: Sequence[int], *, inverse: bool, scale: float = 1.0) -> Pair:
    """``x`` transformed along each of the axes."""
    for k, axis in enumerate(axes):
        x = Pair(*transform(c, Signal(x.re, x.im), axis, inverse=inverse, scale=scale if k == 0 else 1.0))
    return x


def _scale(c: AtenContext, lengths: Sequence[Dim]) -> float:
    count = 1.0
    for n in lengths:
        if not isinstance(n, int):
            raise c.fail(f"a Fourier transform along the symbolic dimension {n}")
        count *= n
    return float(count ** _EXPONENTS[c["normalization"]])
