// Every machine primitive that generated kernels may use: one small function for each instruction, nothing else.
// This side is CUDA (NVRTC or nvcc, no other header). The simulator's twin, sim_prims.h, declares the same names.
#pragma once
#ifdef ARCWELD_SIM
#include "sim_prims.h"
#else

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#define ARCWELD_DEVICE __device__ __forceinline__
#define ARCWELD_CHUNK8 uint2  // what one 8-byte and one 16-byte access moves
#define ARCWELD_CHUNK16 uint4
#define EXPORT_KERNEL(name)
// The block's dynamic shared memory, 1024-byte aligned: the only shared memory that kernels use.
#define DYN_SHARED(T, name) extern __shared__ __align__(1024) T name[]

#ifdef __CUDACC_RTC__  // NVRTC has no math.h
#undef INFINITY
#undef NAN
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

// ---------------------------------------------------------------- indices and divisors that the model computes
// The index or the divisor itself. The first function of each pair takes any: only the simulator's checked mode refuses
// an index out of range, or a 0.
ARCWELD_DEVICE i64 index_in(i64 index, i64 extent) { return index; }
ARCWELD_DEVICE i64 strict_index(i64 index, i64 extent) {
  if ((u64)index >= (u64)extent) __trap();
  return index;
}
template <class T> ARCWELD_DEVICE T checked_divisor(T x) { return x; }
template <class T> ARCWELD_DEVICE T strict_divisor(T x) {
  if (x == T(0)) __trap();
  return x;
}

// ---------------------------------------------------------------- 16-bit floats
ARCWELD_DEVICE f32 f16_bits_to_f32(u16 bits) {
  f32 r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
ARCWELD_DEVICE u16 f32_to_f16_bits(f32 x) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
ARCWELD_DEVICE u16 f32_to_bf16_bits(f32 x) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}

#include "scalars.cuh"

ARCWELD_DEVICE u32 pack2_impl(f32 lo, f32 hi, ScalarTag<f16>) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
ARCWELD_DEVICE u32 pack2_impl(f32 lo, f32 hi, ScalarTag<bf16>) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

// ---------------------------------------------------------------- programmatic dependent launch
// Waits until every predecessor's writes are visible; before sm_90 kernels never overlap and it does nothing.
ARCWELD_DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
ARCWELD_DEVICE void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Brings the 128 bytes at p to the L2 cache; nothing waits for it.
ARCWELD_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory"); }

// ---------------------------------------------------------------- shared memory and matrix fragments
ARCWELD_DEVICE u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }

ARCWELD_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
ARCWELD_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
ARCWELD_DEVICE void ldmatrix_x2(u32 (&r)[2], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}
ARCWELD_DEVICE void ldmatrix_x2_trans(u32 (&r)[2], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}
// sm_90
ARCWELD_DEVICE void stmatrix_x4(u32 addr, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---------------------------------------------------------------- tensor cores, one warp
ARCWELD_DEVICE void mma_m16n8k16_impl(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], ScalarTag<f16>) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
ARCWELD_DEVICE void mma_m16n8k16_impl(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], ScalarTag<bf16>) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += a * b with T = f16 or bf16 and f32 accumulation.
template <class T>
ARCWELD_DEVICE void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  mma_m16n8k16_impl(d, a, b, ScalarTag<T>());
}
ARCWELD_DEVICE void mma_m16n8k8_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#define ARCWELD_INT8(A, B, PTX_A, PTX_B)                                                                               \
  ARCWELD_DEVICE void mma_m16n8k32_impl(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], ScalarTag<A>, ScalarTag<B>) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." PTX_A "8." PTX_B                                               \
                 "8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                           \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                    \
  }                                                                                                                      \
  ARCWELD_DEVICE i32 dp4a_impl(u32 a, u32 b, i32 c, ScalarTag<A>, ScalarTag<B>) {                                        \
    i32 r;                                                                                                               \
    asm("dp4a." PTX_A "32." PTX_B "32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));                              \
    return r;                                                                                                            \
  }
ARCWELD_INT8(i8, i8, "s", "s")
ARCWELD_INT8(i8, u8, "s", "u")
ARCWELD_INT8(u8, i8, "u", "s")
ARCWELD_INT8(u8, u8, "u", "u")
#undef ARCWELD_INT8
// d += a * b, exact in i32 with A and B = i8 or u8; in f32 with f8e4m3fn or f8e5m2.
template <class A, class B, class D>
ARCWELD_DEVICE void mma_m16n8k32(D (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  mma_m16n8k32_impl(d, a, b, ScalarTag<A>(), ScalarTag<B>());
}
// c plus the products of four elements each of A and B = i8 or u8: ordinary arithmetic.
template <class A, class B>
ARCWELD_DEVICE i32 dp4a(u32 a, u32 b, i32 c) {
  return dp4a_impl(a, b, c, ScalarTag<A>(), ScalarTag<B>());
}
// A register tile of MI x NJ fragments: MI * NJ instructions here, one rendezvous in the simulator.
template <class T, int MI, int NJ>
ARCWELD_DEVICE void mma_tile(f32 (&d)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NJ; ++j) mma_m16n8k16<T>(d[i][j], a[i], b[j]);
}
// The same of 8-bit types.
template <class A, class B, class D, int MI, int NJ>
ARCWELD_DEVICE void mma_tile_bytes(D (&d)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NJ; ++j) mma_m16n8k32<A, B>(d[i][j], a[i], b[j]);
}
// f32 rounded to tf32 (nearest, ties away), as the operand registers of mma_m16n8k8_tf32.
ARCWELD_DEVICE u32 f32_to_tf32(f32 x) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// ---------------------------------------------------------------- asynchronous copies, global to shared
// Copies src_bytes and fills the rest of the 16, 8 or 4 bytes with zeros. src must be aligned even when src_bytes is 0.
ARCWELD_DEVICE void cp_async16(u32 dst, const void* src, int src_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
ARCWELD_DEVICE void cp_async8(u32 dst, const void* src, int src_bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
ARCWELD_DEVICE void cp_async4(u32 dst, const void* src, int src_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
ARCWELD_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
ARCWELD_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------- barriers
// ``threads`` counts every thread that arrives or waits, a multiple of 32; barrier 0 belongs to __syncthreads.
ARCWELD_DEVICE void named_bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
ARCWELD_DEVICE void named_bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
ARCWELD_DEVICE void mbar_init(u32 bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
// Arrives once and adds ``bytes`` to what the current phase waits for.
ARCWELD_DEVICE void mbar_expect_tx(u32 bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
ARCWELD_DEVICE void mbar_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Waits until the phase of this parity has completed. With ARCWELD_DEBUG a lost arrival gives wrong results after a tenth
// of a second instead of a hang. No trap: with one in the loop ptxas ignores setmaxnreg, and it would end the whole process.
ARCWELD_DEVICE void mbar_wait(u32 bar, int parity) {
#ifdef ARCWELD_DEBUG
  const i64 start = clock64();
#endif
  while (true) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(bar), "r"(parity)
        : "memory");
    if (done) break;
#ifdef ARCWELD_DEBUG
    if (clock64() - start > 200000000) break;
#endif
  }
}
// Makes mbar_init visible to the asynchronous copies; before the __syncthreads that publishes the barriers.
ARCWELD_DEVICE void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Orders this thread's ordinary shared accesses before later accesses by TMA and wgmma.
ARCWELD_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
ARCWELD_DEVICE void threadfence() { __threadfence(); }

// ---------------------------------------------------------------- TMA (sm_90); x0 is the innermost coordinate
ARCWELD_DEVICE void tma_prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
ARCWELD_DEVICE void tma_load_2d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4}], [%2];" ::"r"(dst),
      "l"(map), "r"(bar), "r"(x0), "r"(x1)
      : "memory");
}
ARCWELD_DEVICE void tma_load_3d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1, int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5}], [%2];" ::"r"(
          dst),
      "l"(map), "r"(bar), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
ARCWELD_DEVICE void tma_load_4d(u32 dst, const TensorMap* map, u32 bar, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6}], [%2];" ::
          "r"(dst),
      "l"(map), "r"(bar), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
ARCWELD_DEVICE void tma_store_2d(const TensorMap* map, u32 src, int x0, int x1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2,%3}], [%1];" ::"l"(map), "r"(src), "r"(x0),
               "r"(x1)
               : "memory");
}
ARCWELD_DEVICE void tma_store_3d(const TensorMap* map, u32 src, int x0, int x1, int x2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2,%3,%4}], [%1];" ::"l"(map), "r"(src),
               "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}
ARCWELD_DEVICE void tma_store_4d(const TensorMap* map, u32 src, int x0, int x1, int x2, int x3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2,%3,%4,%5}], [%1];" ::"l"(map), "r"(src),
               "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}
ARCWELD_DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until all but the newest N groups are written to global memory.
template <int N>
ARCWELD_DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
// Waits until all but the newest N groups have read their shared memory, so that it may be overwritten.
template <int N>
ARCWELD_DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------- bulk copies (sm_90)
// The cache policy of what is read once: it leaves the L2 cache first.
ARCWELD_DEVICE u64 evict_first_policy() {
  u64 r;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(r));
  return r;
}
// Copies ``bytes`` from global to shared memory, and completes them on the mbarrier. Addresses and size: multiples of 16.
ARCWELD_DEVICE void bulk_load(u32 dst, const void* src, int bytes, u32 bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(bar), "l"(policy)
      : "memory");
}

// ---------------------------------------------------------------- wgmma (sm_90a): 128 threads
// Shapes come from wgmma.cuh.j2, which specialises WgmmaShape for each N that a kernel uses.
template <int N>
struct WgmmaShape;
// d (+)= A * B, m64nNk16, T = f16 or bf16. A and B are shared-memory descriptors; B is [N][K] (K-major), or with TRANS_B
// [K][N] (N-major). accumulate 0 overwrites d.
template <class T, int N, int TRANS_B>
ARCWELD_DEVICE void wgmma_ss(f32 (&d)[N / 2], u64 a, u64 b, int accumulate) {
  WgmmaShape<N>::template ss<TRANS_B>(d, a, b, accumulate, ScalarTag<T>());
}
// The same with A, 64 x 16, in registers (the layout of mma_m16n8k16's A for each warp's 16 rows).
template <class T, int N, int TRANS_B>
ARCWELD_DEVICE void wgmma_rs(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate) {
  WgmmaShape<N>::template rs<TRANS_B>(d, a, b, accumulate, ScalarTag<T>());
}
// d (+)= A * B of 8-bit types, m64nNk32, both K-major; TA and TB = i8 or u8 and D = i32, or f8e4m3fn or f8e5m2 and f32.
template <class TA, class TB, int N, class D>
ARCWELD_DEVICE void wgmma_ss_bytes(D (&d)[N / 2], u64 a, u64 b, int accumulate) {
  WgmmaShape<N>::ss_bytes(d, a, b, accumulate, ScalarTag<TA>(), ScalarTag<TB>());
}
ARCWELD_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ARCWELD_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
ARCWELD_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving uses of accumulators to before the wait that precedes this call.
template <int N>
ARCWELD_DEVICE void wgmma_pin(f32 (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
ARCWELD_DEVICE void wgmma_pin(i32 (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int N>
ARCWELD_DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
ARCWELD_DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---------------------------------------------------------------- clusters (sm_90)
// Every thread of every block of the cluster arrives, then waits, in turn; what was stored before arriving is visible after.
ARCWELD_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
ARCWELD_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// Stores 16 bytes at ``addr`` in the shared memory of block ``rank`` of the cluster, which must have started.
ARCWELD_DEVICE void cluster_store(u32 addr, int rank, f32 a, f32 b, f32 c, f32 d) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n}" ::"r"(addr),
      "r"(rank), "f"(a), "f"(b), "f"(c), "f"(d)
      : "memory");
}

// ---------------------------------------------------------------- the compiler
// x itself, but nobody can tell: what is computed from it is computed where it stands. Without that, an epilogue's indices
// are computed before the loop that it stands in and take registers all through that.
ARCWELD_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---------------------------------------------------------------- approximate math
ARCWELD_DEVICE f32 tanh_approx(f32 x) {
  f32 r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
ARCWELD_DEVICE f32 ex2_approx(f32 x) {
  f32 r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// ---------------------------------------------------------------- atomics; each returns the old value
ARCWELD_DEVICE f32 atomic_add(f32* p, f32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE f64 atomic_add(f64* p, f64 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE i32 atomic_add(i32* p, i32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE u32 atomic_add(u32* p, u32 v) { return atomicAdd(p, v); }
ARCWELD_DEVICE i64 atomic_add(i64* p, i64 v) { return (i64)atomicAdd((u64*)p, (u64)v); }
ARCWELD_DEVICE f16 atomic_add(f16* p, f16 v) {
  f16 r;
  asm volatile("atom.add.noftz.f16 %0, [%1], %2;" : "=h"(r.bits) : "l"(p), "h"(v.bits) : "memory");
  return r;
}
ARCWELD_DEVICE bf16 atomic_add(bf16* p, bf16 v) {
  bf16 old, want;
  u16 seen = *(volatile u16*)p;
  do {
    old.bits = seen;
    want = from_f32<bf16>(to_f32(old) + to_f32(v));
    seen = atomicCAS((u16*)p, old.bits, want.bits);
  } while (seen != old.bits);
  return old;
}
// Adds one; from ``last`` it goes to 0.
ARCWELD_DEVICE u32 atomic_inc(u32* p, u32 last) { return atomicInc(p, last); }
ARCWELD_DEVICE i32 atomic_max(i32* p, i32 v) { return atomicMax(p, v); }
ARCWELD_DEVICE i32 atomic_min(i32* p, i32 v) { return atomicMin(p, v); }
ARCWELD_DEVICE i64 atomic_max(i64* p, i64 v) { return atomicMax(p, v); }
ARCWELD_DEVICE i64 atomic_min(i64* p, i64 v) { return atomicMin(p, v); }
// A compare-and-swap loop, so that a NaN wins as it does in fmaxf-free reductions: once NaN, always NaN.
ARCWELD_DEVICE f32 atomic_max(f32* p, f32 v) {
  i32 old = *(volatile i32*)p;
  while (!(__int_as_float(old) >= v) && __int_as_float(old) == __int_as_float(old)) {
    const i32 seen = atomicCAS((i32*)p, old, __float_as_int(v));
    if (seen == old) break;
    old = seen;
  }
  return __int_as_float(old);
}
ARCWELD_DEVICE f32 atomic_min(f32* p, f32 v) {
  i32 old = *(volatile i32*)p;
  while (!(__int_as_float(old) <= v) && __int_as_float(old) == __int_as_float(old)) {
    const i32 seen = atomicCAS((i32*)p, old, __float_as_int(v));
    if (seen == old) break;
    old = seen;
  }
  return __int_as_float(old);
}

// ---------------------------------------------------------------- pairs of 16-bit floats
ARCWELD_DEVICE u32 fma2_impl(u32 a, u32 b, u32 c, ScalarTag<f16>) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
ARCWELD_DEVICE u32 fma2_impl(u32 a, u32 b, u32 c, ScalarTag<bf16>) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// a * b + c of two numbers each of type T, rounded once.
template <class T>
ARCWELD_DEVICE u32 fma2(u32 a, u32 b, u32 c) {
  return fma2_impl(a, b, c, ScalarTag<T>());
}
// (a & b) ^ c in one instruction, also where b and c are literals.
ARCWELD_DEVICE u32 and_xor(u32 a, u32 b, u32 c) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// ---------------------------------------------------------------- 8-bit floats on tensor cores, since sm_89
#include "float8.cuh"
#if __CUDA_ARCH__ >= 890
#define ARCWELD_FLOAT8(A, B, PTX_A, PTX_B)                                                                             \
  ARCWELD_DEVICE void mma_m16n8k32_impl(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], ScalarTag<A>, ScalarTag<B>) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32." PTX_A "." PTX_B                                                \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                            \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                    \
  }
ARCWELD_FLOAT8(f8e4m3fn, f8e4m3fn, "e4m3", "e4m3")
ARCWELD_FLOAT8(f8e4m3fn, f8e5m2, "e4m3", "e5m2")
ARCWELD_FLOAT8(f8e5m2, f8e4m3fn, "e5m2", "e4m3")
ARCWELD_FLOAT8(f8e5m2, f8e5m2, "e5m2", "e5m2")
#undef ARCWELD_FLOAT8
#else
template <class A, class B>
ARCWELD_DEVICE void mma_m16n8k32_impl(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], ScalarTag<A>, ScalarTag<B>) {
  mma_m16n8k32_in_f16<A, B>(d, a, b);
}
#endif

#endif  // ARCWELD_SIM
