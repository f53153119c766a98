"""The simulator's own functions of f32, which vectors can compute: all kinds of numbers against f64."""

from __future__ import annotations

import math

import numpy as np
from prim_cases import hard_floats
from sim_harness import In, Out, image, run

from arcweld.runtime.device import Device

NAMES = ("expf", "exp2f", "tanhf", "erff")
MOST = 0.51  # units in the last place
SOURCE = """#include "prims.cuh"
struct Params { const f32* x; f32* y; };
extern "C" __global__ void functions(const __grid_constant__ Params p) {
  const int first = (blockIdx.x * 256 + threadIdx.x) * 4;
  const Vec<f32, 4> x = load_vec<4>(p.x + first);
  Vec<f32, 4> y;
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) y.v[lane] = FUNCTION(x.v[lane]);
  store_vec<4>(p.y + first, y);
}
EXPORT_KERNEL(functions)
"""


def errors(device: Device, name: str) -> np.ndarray:
    """Errors in units in the last place of f32, where the exact result rounds to a finite number.

    Fails where infinities, NaNs or the sign of zeros are wrong.
    """
    grid = np.concatenate([np.linspace(-10, 10, 1 << 15), np.linspace(-160, 130, 1 << 15)]).astype(np.float32)
    x = np.concatenate([hard_floats(), grid])
    x[:5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    kernel = image(SOURCE.replace("FUNCTION", name), "functions")
    (got,) = run(device, kernel, (x.size // 1024,), (256,), [In(x), Out(x)])
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exact = np.vectorize(math.erf)(wide) if name == "erff" else getattr(np, name[:-1])(wide)
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])
    zero = rounded == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(rounded[zero]))
    _, exponent = np.frexp(exact[finite])
    return np.abs(got[finite] - exact[finite]) / np.ldexp(1.0, np.maximum(exponent, -125) - 24)
