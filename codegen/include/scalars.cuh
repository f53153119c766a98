// Scalar types, conversions and vector accesses, shared by the GPU (prims.cuh) and the simulator (sim_prims.h).
// Each defines the type names, the conversions of 16-bit patterns and the chunk types before including this file.
#pragma once

struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};
struct f8e4m3fn;  // storage.cuh
struct f8e5m2;

// ---------------------------------------------------------------- conversions
ARCWELD_DEVICE f32 to_f32(f16 x) { return f16_bits_to_f32(x.bits); }
ARCWELD_DEVICE f32 to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
ARCWELD_DEVICE f32 to_f32(f32 x) { return x; }
ARCWELD_DEVICE f32 to_f32(f64 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(i8 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(u8 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(i16 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(u16 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(i32 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(u32 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(i64 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(u64 x) { return (f32)x; }
ARCWELD_DEVICE f32 to_f32(bool x) { return x ? 1.0f : 0.0f; }

template <class T>
struct ScalarTag {};

// f32 -> T, round to nearest even for the floating types, towards zero for integers, "not zero" for bool.
template <class T>
ARCWELD_DEVICE T from_f32_impl(f32 x, ScalarTag<T>) {
  return (T)x;
}
ARCWELD_DEVICE f16 from_f32_impl(f32 x, ScalarTag<f16>) {
  f16 r;
  r.bits = f32_to_f16_bits(x);
  return r;
}
ARCWELD_DEVICE bf16 from_f32_impl(f32 x, ScalarTag<bf16>) {
  bf16 r;
  r.bits = f32_to_bf16_bits(x);
  return r;
}
template <class T>
ARCWELD_DEVICE T from_f32(f32 x) {
  return from_f32_impl(x, ScalarTag<T>());
}

// Generic conversion between any two scalar types; the 16-bit floats go through f32.
template <class T>
ARCWELD_DEVICE T cvt_impl(f16 x, ScalarTag<T>) {
  return from_f32<T>(to_f32(x));
}
template <class T>
ARCWELD_DEVICE T cvt_impl(bf16 x, ScalarTag<T>) {
  return from_f32<T>(to_f32(x));
}
template <class T, class S>
ARCWELD_DEVICE T cvt_impl(S x, ScalarTag<T>) {
  return (T)x;
}
template <class S>
ARCWELD_DEVICE f16 cvt_impl(S x, ScalarTag<f16> tag) {
  return from_f32_impl(to_f32(x), tag);
}
template <class S>
ARCWELD_DEVICE bf16 cvt_impl(S x, ScalarTag<bf16> tag) {
  return from_f32_impl(to_f32(x), tag);
}
ARCWELD_DEVICE f16 cvt_impl(f16 x, ScalarTag<f16>) { return x; }
ARCWELD_DEVICE bf16 cvt_impl(bf16 x, ScalarTag<bf16>) { return x; }
ARCWELD_DEVICE bf16 cvt_impl(f16 x, ScalarTag<bf16> tag) { return from_f32_impl(to_f32(x), tag); }
ARCWELD_DEVICE f16 cvt_impl(bf16 x, ScalarTag<f16> tag) { return from_f32_impl(to_f32(x), tag); }
template <class T, class S>
ARCWELD_DEVICE T cvt(S x) {
  return cvt_impl(x, ScalarTag<T>());
}

// ---------------------------------------------------------------- vectors
// N elements, aligned so that up to 16 bytes move in one access. sizeof(T) * N must be a power of two.
template <class T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Vec {
  T v[N];
  ARCWELD_DEVICE T& operator[](int i) { return v[i]; }
  ARCWELD_DEVICE const T& operator[](int i) const { return v[i]; }
};

template <int BYTES>
struct VecChunk;  // the machine type of one access
template <>
struct VecChunk<1> {
  typedef unsigned char type;
};
template <>
struct VecChunk<2> {
  typedef unsigned short type;
};
template <>
struct VecChunk<4> {
  typedef unsigned int type;
};
template <>
struct VecChunk<8> {
  typedef ARCWELD_CHUNK8 type;
};
template <>
struct VecChunk<16> {
  typedef ARCWELD_CHUNK16 type;
};

template <int N, class T>
ARCWELD_DEVICE Vec<T, N> load_vec(const T* p) {
  constexpr int bytes = sizeof(T) * N, step = bytes < 16 ? bytes : 16;
  typedef typename VecChunk<step>::type Chunk;
  Vec<T, N> r;
#pragma unroll
  for (int i = 0; i < bytes / step; ++i) reinterpret_cast<Chunk*>(&r)[i] = reinterpret_cast<const Chunk*>(p)[i];
  return r;
}
template <int N, class T>
ARCWELD_DEVICE void store_vec(T* p, const Vec<T, N>& x) {
  constexpr int bytes = sizeof(T) * N, step = bytes < 16 ? bytes : 16;
  typedef typename VecChunk<step>::type Chunk;
#pragma unroll
  for (int i = 0; i < bytes / step; ++i) reinterpret_cast<Chunk*>(p)[i] = reinterpret_cast<const Chunk*>(&x)[i];
}
// The same with the evict-first hint, for data that is touched once (global memory only).
template <int N, class T>
ARCWELD_DEVICE Vec<T, N> load_vec_stream(const T* p) {
  constexpr int bytes = sizeof(T) * N, step = bytes < 16 ? bytes : 16;
  typedef typename VecChunk<step>::type Chunk;
  Vec<T, N> r;
#pragma unroll
  for (int i = 0; i < bytes / step; ++i) reinterpret_cast<Chunk*>(&r)[i] = __ldcs(reinterpret_cast<const Chunk*>(p) + i);
  return r;
}
template <int N, class T>
ARCWELD_DEVICE void store_vec_stream(T* p, const Vec<T, N>& x) {
  constexpr int bytes = sizeof(T) * N, step = bytes < 16 ? bytes : 16;
  typedef typename VecChunk<step>::type Chunk;
#pragma unroll
  for (int i = 0; i < bytes / step; ++i) __stcs(reinterpret_cast<Chunk*>(p) + i, reinterpret_cast<const Chunk*>(&x)[i]);
}

// ---------------------------------------------------------------- pairs of 16-bit floats in one register
template <class T>
ARCWELD_DEVICE u32 pack2(f32 lo, f32 hi) {
  return pack2_impl(lo, hi, ScalarTag<T>());
}
ARCWELD_DEVICE void unpack2_impl(u32 v, f32& lo, f32& hi, ScalarTag<f16>) {
  lo = f16_bits_to_f32((u16)v);
  hi = f16_bits_to_f32((u16)(v >> 16));
}
ARCWELD_DEVICE void unpack2_impl(u32 v, f32& lo, f32& hi, ScalarTag<bf16>) {
  lo = __uint_as_float(v << 16);
  hi = __uint_as_float(v & 0xffff0000u);
}
template <class T>
ARCWELD_DEVICE void unpack2(u32 v, f32& lo, f32& hi) {
  unpack2_impl(v, lo, hi, ScalarTag<T>());
}

// ---------------------------------------------------------------- TMA descriptor, wgmma descriptor
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// Shared-memory matrix descriptor with the 128-byte swizzle. ``lbo`` and ``sbo`` are the leading and the stride byte offset:
// K-major operands have sbo = 1024 (8 rows of 128 bytes) and ignore lbo; MN-major ones have sbo = 1024 and lbo = the
// distance between chunks of 64 columns.
ARCWELD_DEVICE u64 wgmma_desc(u32 addr, u32 lbo_bytes, u32 sbo_bytes) {
  return (u64)((addr & 0x3ffffu) >> 4) | (u64)((lbo_bytes >> 4) & 0x3fffu) << 16 | (u64)((sbo_bytes >> 4) & 0x3fffu) << 32 |
         (u64)1 << 62;
}
