// Products of 8-bit floats on the tensor cores of GPUs that don't multiply them: in f16, which holds the numbers of both
// types exactly. Included by prims.cuh, or after it.
#pragma once

// The 8-bit floats in the lower bytes of two halves, as f16. One is an f16 without its last bits; the other has a smaller
// exponent, whose bias is 8 less, and one magnitude that is NaN.
ARCWELD_DEVICE u32 widen_halves(u32 pair, ScalarTag<f8e5m2>) { return pair << 8; }
ARCWELD_DEVICE u32 widen_halves(u32 pair, ScalarTag<f8e4m3fn>) {
  const u32 magnitude = pair << 7 & 0x3f803f80u, nan = (magnitude + 0x00800080u) & 0x40004000u;
  return fma2<f16>(magnitude, 0x5c005c00u, 0u) | (pair << 8 & 0x80008000u) | nan | (nan - (nan >> 5));
}
// mma_m16n8k32 in two steps of 16. The four neighbours in k of a lane become two of each half of such a step: any order of k
// will do that both operands have.
template <class A, class B>
ARCWELD_DEVICE void mma_m16n8k32_in_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    u32 x[4], y[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 bytes = half ? 0x4342u : 0x4140u;
      x[2 * half] = widen_halves(__byte_perm(a[2 * step], 0u, bytes), ScalarTag<A>());
      x[2 * half + 1] = widen_halves(__byte_perm(a[2 * step + 1], 0u, bytes), ScalarTag<A>());
      y[half] = widen_halves(__byte_perm(b[step], 0u, bytes), ScalarTag<B>());
    }
    mma_m16n8k16<f16>(d, x, y);
  }
}
