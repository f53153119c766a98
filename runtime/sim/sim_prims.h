// The simulator's twin of prims.cuh: the same functions with the same signatures, carried out by the runtime library.
#pragma once
#include "sim_host.h"

#define ARCWELD_DEVICE __forceinline__
// Types that the compiler does not take apart: a 16-byte access stays one access, and its alignment is checked as such.
typedef u32 sim_chunk16 __attribute__((vector_size(16), may_alias));
typedef u64 __attribute__((may_alias)) sim_chunk8;
#define ARCWELD_CHUNK8 sim_chunk8
#define ARCWELD_CHUNK16 sim_chunk16

// ---------------------------------------------------------------- 16-bit floats
ARCWELD_DEVICE f32 f16_bits_to_f32(u16 bits) { return sim_f16_to_f32(bits); }
ARCWELD_DEVICE u16 f32_to_f16_bits(f32 x) { return sim_f32_to_f16(x); }
ARCWELD_DEVICE u16 f32_to_bf16_bits(f32 x) {
  const u32 u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the GPU's canonical NaN
  return (u16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#include "scalars.cuh"

ARCWELD_DEVICE u32 pack2_impl(f32 lo, f32 hi, ScalarTag<f16>) { return sim_f32_to_f16_pair(lo, hi); }
ARCWELD_DEVICE u32 pack2_impl(f32 lo, f32 hi, ScalarTag<bf16>) {
  return (u32)f32_to_bf16_bits(lo) | (u32)f32_to_bf16_bits(hi) << 16;
}

// ---------------------------------------------------------------- indices and divisors that the model computes
ARCWELD_DEVICE i64 strict_index(i64 index, i64 extent) {
  if ((u64)index >= (u64)extent) {
    const i64 given = index < 0 ? index - extent : index;  // a negative one counted from the end
    sim_fail("index %lld is out of range for an axis of %lld elements", (long long)given, (long long)extent);
  }
  return index;
}
ARCWELD_DEVICE i64 index_in(i64 index, i64 extent) {
#ifdef SIM_CHECKED
  strict_index(index, extent);
#endif
  (void)extent;
  return index;
}
template <class T> ARCWELD_DEVICE T strict_divisor(T x) {
  if (x == T(0)) sim_fail("an integer is divided by zero");
  return x;
}
template <class T> ARCWELD_DEVICE T checked_divisor(T x) {
#ifdef SIM_CHECKED
  strict_divisor(x);
#endif
  return x;
}

// ---------------------------------------------------------------- programmatic dependent launch
// Kernels never overlap here; the checked mode still refuses what a kernel may not do before it has waited.
ARCWELD_DEVICE void pdl_wait() {
#ifdef SIM_CHECKED
  sim_pdl_wait();
#endif
}
ARCWELD_DEVICE void pdl_launch_dependents() {}

ARCWELD_DEVICE void prefetch_l2(const void* p) { (void)p; }

// ---------------------------------------------------------------- shared memory and matrix fragments
ARCWELD_DEVICE u32 smem_u32(const void* p) { return sim_shared_address(p); }

ARCWELD_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 addr) {
  SimFragment s{r, addr, 4, 0};
  sim_warp_op(~0u, sim_op_ldmatrix, &s, "ldmatrix");
}
ARCWELD_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 addr) {
  SimFragment s{r, addr, 4, 1};
  sim_warp_op(~0u, sim_op_ldmatrix, &s, "ldmatrix");
}
ARCWELD_DEVICE void ldmatrix_x2(u32 (&r)[2], u32 addr) {
  SimFragment s{r, addr, 2, 0};
  sim_warp_op(~0u, sim_op_ldmatrix, &s, "ldmatrix");
}
ARCWELD_DEVICE void ldmatrix_x2_trans(u32 (&r)[2], u32 addr) {
  SimFragment s{r, addr, 2, 1};
  sim_warp_op(~0u, sim_op_ldmatrix, &s, "ldmatrix");
}
ARCWELD_DEVICE void stmatrix_x4(u32 addr, const u32 (&r)[4]) {
  SimFragment s{const_cast<u32*>(r), addr, 4, 0};
  sim_warp_op(~0u, sim_op_stmatrix, &s, "stmatrix");
}

// ---------------------------------------------------------------- tensor cores, one warp
ARCWELD_DEVICE SimWarpOp sim_mma_op(ScalarTag<f16>) { return sim_op_mma_f16; }
ARCWELD_DEVICE SimWarpOp sim_mma_op(ScalarTag<bf16>) { return sim_op_mma_bf16; }
template <class T>
ARCWELD_DEVICE void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  SimMma s{d, a, b, 1, 1, 0, 0};
  sim_warp_op(~0u, sim_mma_op(ScalarTag<T>()), &s, "mma_m16n8k16");
}
ARCWELD_DEVICE void mma_m16n8k8_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  SimMma s{d, a, b, 1, 1, 0, 0};
  sim_warp_op(~0u, sim_op_mma_tf32, &s, "mma_m16n8k8_tf32");
}
// What tells 8-bit types apart: of integers whether they are signed, of floats which form they have. D is the type of the sums.
ARCWELD_DEVICE int sim_byte_form(ScalarTag<i8>) { return 1; }
ARCWELD_DEVICE int sim_byte_form(ScalarTag<u8>) { return 0; }
ARCWELD_DEVICE int sim_byte_form(ScalarTag<f8e4m3fn>) { return 0; }
ARCWELD_DEVICE int sim_byte_form(ScalarTag<f8e5m2>) { return 1; }
ARCWELD_DEVICE SimWarpOp sim_byte_op(const i32*) { return sim_op_mma_int8; }
ARCWELD_DEVICE SimWarpOp sim_byte_op(const f32*) { return sim_op_mma_float8; }
template <class A, class B, class D>
ARCWELD_DEVICE void mma_m16n8k32(D (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  SimMma s{d, a, b, 1, 1, sim_byte_form(ScalarTag<A>()), sim_byte_form(ScalarTag<B>())};
  sim_warp_op(~0u, sim_byte_op(d), &s, "mma_m16n8k32");
}
template <class A, class B, class D, int MI, int NJ>
ARCWELD_DEVICE void mma_tile_bytes(D (&d)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
  SimMma s{&d[0][0][0], &a[0][0], &b[0][0], MI, NJ, sim_byte_form(ScalarTag<A>()), sim_byte_form(ScalarTag<B>())};
  sim_warp_op(~0u, sim_byte_op(&d[0][0][0]), &s, "mma_tile_bytes");
}
template <class A, class B>
ARCWELD_DEVICE i32 dp4a(u32 a, u32 b, i32 c) {
  u32 sum = (u32)c;
  for (int i = 0; i < 32; i += 8) sum += (u32)((i32)(A)(a >> i) * (i32)(B)(b >> i));
  return (i32)sum;
}
template <class T, int MI, int NJ>
ARCWELD_DEVICE void mma_tile(f32 (&d)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
  SimMma s{&d[0][0][0], &a[0][0], &b[0][0], MI, NJ, 0, 0};
  sim_warp_op(~0u, sim_mma_op(ScalarTag<T>()), &s, "mma_tile");
}
ARCWELD_DEVICE u32 f32_to_tf32(f32 x) {
  const u32 u = __float_as_uint(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return u;  // infinity and NaN
  return (u + 0x1000u) & 0xffffe000u;
}

// ---------------------------------------------------------------- asynchronous copies, global to shared
ARCWELD_DEVICE void cp_async16(u32 dst, const void* src, int src_bytes = 16) { sim_cp_async(dst, src, 16, src_bytes); }
ARCWELD_DEVICE void cp_async8(u32 dst, const void* src, int src_bytes = 8) { sim_cp_async(dst, src, 8, src_bytes); }
ARCWELD_DEVICE void cp_async4(u32 dst, const void* src, int src_bytes = 4) { sim_cp_async(dst, src, 4, src_bytes); }
ARCWELD_DEVICE void cp_async_commit() { sim_cp_async_commit(); }
template <int N>
ARCWELD_DEVICE void cp_async_wait() {
  sim_cp_async_wait(N);
}

// ---------------------------------------------------------------- barriers
ARCWELD_DEVICE void named_bar_sync(int id, int threads) { sim_bar_sync(id, threads); }
ARCWELD_DEVICE void named_bar_arrive(int id, int threads) { sim_bar_arrive(id, threads); }
ARCWELD_DEVICE void mbar_init(u32 bar, int count) { sim_mbar_init(bar, count); }
ARCWELD_DEVICE void mbar_expect_tx(u32 bar, int bytes) { sim_mbar_expect_tx(bar, bytes); }
ARCWELD_DEVICE void mbar_arrive(u32 bar) { sim_mbar_arrive(bar); }
ARCWELD_DEVICE void mbar_wait(u32 bar, int parity) { sim_mbar_wait(bar, parity); }
ARCWELD_DEVICE void fence_mbar_init() { sim_fence_mbar_init(); }
ARCWELD_DEVICE void fence_proxy_async() { sim_fence_proxy_async(); }
ARCWELD_DEVICE void threadfence() { sim_threadfence(); }

// ---------------------------------------------------------------- TMA
ARCWELD_DEVICE void tma_prefetch_map(const TensorMap*) {}
ARCWELD_DEVICE void tma_load_2d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1) {
  sim_tma_load(dst, map, bar, 2, x0, x1, 0, 0);
}
ARCWELD_DEVICE void tma_load_3d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1, int x2) {
  sim_tma_load(dst, map, bar, 3, x0, x1, x2, 0);
}
ARCWELD_DEVICE void tma_load_4d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1, int x2, int x3) {
  sim_tma_load(dst, map, bar, 4, x0, x1, x2, x3);
}
ARCWELD_DEVICE void tma_store_2d(const TensorMap* map, u32 src, int x0, int x1) {
  sim_tma_store(map, src, 2, x0, x1, 0, 0);
}
ARCWELD_DEVICE void tma_store_3d(const TensorMap* map, u32 src, int x0, int x1, int x2) {
  sim_tma_store(map, src, 3, x0, x1, x2, 0);
}
ARCWELD_DEVICE void tma_store_4d(const TensorMap* map, u32 src, int x0, int x1, int x2, int x3) {
  sim_tma_store(map, src, 4, x0, x1, x2, x3);
}
ARCWELD_DEVICE void tma_store_commit() { sim_tma_store_commit(); }
template <int N>
ARCWELD_DEVICE void tma_store_wait() {
  sim_tma_store_wait(N);
}
template <int N>
ARCWELD_DEVICE void tma_store_wait_read() {
  sim_tma_store_wait(N);
}

// ---------------------------------------------------------------- bulk copies
ARCWELD_DEVICE u64 evict_first_policy() { return 0; }
ARCWELD_DEVICE void bulk_load(u32 dst, const void* src, int bytes, u32 bar, u64 policy) {
  (void)policy;
  sim_bulk_load(dst, src, bytes, bar);
}

// ---------------------------------------------------------------- wgmma
ARCWELD_DEVICE int sim_is_bf16(ScalarTag<f16>) { return 0; }
ARCWELD_DEVICE int sim_is_bf16(ScalarTag<bf16>) { return 1; }
template <class T, int N, int TRANS_B>
ARCWELD_DEVICE void wgmma_ss(f32 (&d)[N / 2], u64 a, u64 b, int accumulate) {
  sim_wgmma(d, N, a, nullptr, b, TRANS_B, accumulate, sim_is_bf16(ScalarTag<T>()));
}
template <class T, int N, int TRANS_B>
ARCWELD_DEVICE void wgmma_rs(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate) {
  sim_wgmma(d, N, 0, a, b, TRANS_B, accumulate, sim_is_bf16(ScalarTag<T>()));
}
ARCWELD_DEVICE int sim_byte_type(const i32*) { return SIM_INT8; }
ARCWELD_DEVICE int sim_byte_type(const f32*) { return SIM_FLOAT8; }
template <class TA, class TB, int N, class D>
ARCWELD_DEVICE void wgmma_ss_bytes(D (&d)[N / 2], u64 a, u64 b, int accumulate) {
  const int type = sim_byte_type(d) + 2 * sim_byte_form(ScalarTag<TA>()) + sim_byte_form(ScalarTag<TB>());
  sim_wgmma(d, N, a, nullptr, b, 0, accumulate, type);
}
ARCWELD_DEVICE void wgmma_fence() { sim_wgmma_fence(); }
ARCWELD_DEVICE void wgmma_commit() { sim_wgmma_commit(); }
template <int N>
ARCWELD_DEVICE void wgmma_wait() {
  sim_wgmma_wait(N);
}
template <int N>
ARCWELD_DEVICE void wgmma_pin(f32 (&d)[N]) {}
template <int N>
ARCWELD_DEVICE void wgmma_pin(i32 (&d)[N]) {}
template <int N>
ARCWELD_DEVICE void setmaxnreg_inc() {}
template <int N>
ARCWELD_DEVICE void setmaxnreg_dec() {}

// ---------------------------------------------------------------- clusters
ARCWELD_DEVICE void cluster_arrive() { sim_cluster_arrive(); }
ARCWELD_DEVICE void cluster_wait() { sim_cluster_wait(); }
ARCWELD_DEVICE void cluster_store(u32 addr, int rank, f32 a, f32 b, f32 c, f32 d) { sim_cluster_store(addr, rank, a, b, c, d); }

// ---------------------------------------------------------------- the compiler
ARCWELD_DEVICE int opaque(int x) { return x; }

// ---------------------------------------------------------------- approximate math
// tanh with the relative error that the GPU's instruction may have, 2**-11; powers of two are exact here.
ARCWELD_DEVICE f32 tanh_approx(f32 x) {
  const f32 exact = tanhf(x);
  return exact == exact ? __uint_as_float((__float_as_uint(exact) + 0x1000u) & ~0x1fffu) : exact;
}
ARCWELD_DEVICE f32 ex2_approx(f32 x) { return exp2f(x); }

// ---------------------------------------------------------------- atomics; each returns the old value
ARCWELD_DEVICE f32 atomic_add(f32* p, f32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE f64 atomic_add(f64* p, f64 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE i32 atomic_add(i32* p, i32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE u32 atomic_add(u32* p, u32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE i64 atomic_add(i64* p, i64 v) { return atomicAdd(p, v); }
template <class T> SIM_ATOMIC(T, sim_atomic_add16, from_f32<T>(to_f32(old) + to_f32(v)))
ARCWELD_DEVICE f16 atomic_add(f16* p, f16 v) { return sim_atomic_add16(p, v); }
ARCWELD_DEVICE bf16 atomic_add(bf16* p, bf16 v) { return sim_atomic_add16(p, v); }
ARCWELD_DEVICE u32 atomic_inc(u32* p, u32 last) { return atomicInc(p, last); }
ARCWELD_DEVICE i32 atomic_max(i32* p, i32 v) { return atomicMax(p, v); }
ARCWELD_DEVICE i32 atomic_min(i32* p, i32 v) { return atomicMin(p, v); }
ARCWELD_DEVICE i64 atomic_max(i64* p, i64 v) { return atomicMax(p, v); }
ARCWELD_DEVICE i64 atomic_min(i64* p, i64 v) { return atomicMin(p, v); }
SIM_ATOMIC(f32, sim_atomic_max, !(old >= v) && old == old ? v : old)
SIM_ATOMIC(f32, sim_atomic_min, !(old <= v) && old == old ? v : old)
ARCWELD_DEVICE f32 atomic_max(f32* p, f32 v) { return sim_atomic_max(p, v); }
ARCWELD_DEVICE f32 atomic_min(f32* p, f32 v) { return sim_atomic_min(p, v); }

// ---------------------------------------------------------------- pairs of 16-bit floats
// x + y rounded to odd: rounding that once more, to 16 bits, gives what rounding the exact sum gives.
ARCWELD_DEVICE f32 sim_odd_sum(f64 x, f64 y) {
  const f64 sum = x + y, part = sum - x, rest = (x - (sum - part)) + (y - part);
  const f32 near = (f32)sum;
  const f64 left = (sum - (f64)near) + rest;
  u32 bits = __float_as_uint(near);
  if ((bits & 0x7fffffffu) >= 0x7f800000u || left == 0.0) return near;
  if (near != 0.0f && (left < 0.0) != (near < 0.0f)) bits -= 1;
  return __uint_as_float(bits | 1u);
}
template <class T>
ARCWELD_DEVICE u32 fma2(u32 a, u32 b, u32 c) {
  f32 x[2], y[2], z[2];
  unpack2<T>(a, x[0], x[1]);
  unpack2<T>(b, y[0], y[1]);
  unpack2<T>(c, z[0], z[1]);
  u32 r = 0;
  for (int i = 0; i < 2; ++i) {
    const f32 sum = sim_odd_sum((f64)x[i] * (f64)y[i], z[i]);
    r |= (sum == sum ? pack2<T>(sum, 0.0f) & 0xffffu : 0x7fffu) << 16 * i;  // the GPU's canonical NaN
  }
  return r;
}
ARCWELD_DEVICE u32 and_xor(u32 a, u32 b, u32 c) { return (a & b) ^ c; }
