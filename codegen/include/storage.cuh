// Types that values are only stored in: 8-bit and narrower floats (OCP 8-bit floating point and microscaling formats,
// ONNX's fnuz variants), and integers of 4 bits and fewer. A packed type's struct is one byte, which holds several elements,
// the first one in the lowest bits.
#pragma once

struct f8e4m3fn { u8 bits; };
struct f8e4m3fnuz { u8 bits; };
struct f8e5m2 { u8 bits; };
struct f8e5m2fnuz { u8 bits; };
struct f8e8m0 { u8 bits; };
struct f4e2m1 { u8 bits; };
struct i4 { u8 bits; };
struct u4 { u8 bits; };
struct i2 { u8 bits; };
struct u2 { u8 bits; };
struct u1 { u8 bits; };

// A float of a sign, some exponent bits with a BIAS and MANTISSA bits, as a pattern of BITS bits. LARGEST: the pattern of
// the largest number. ABOVE: the pattern that larger numbers and infinity become.
template <int BITS_, int MANTISSA_, int BIAS_, u32 LARGEST_, u32 ABOVE_, u32 NOT_A_NUMBER_, bool NEGATIVE_ZERO_>
struct FloatForm {
  static constexpr int BITS = BITS_, MANTISSA = MANTISSA_, BIAS = BIAS_;
  static constexpr u32 LARGEST = LARGEST_, ABOVE = ABOVE_, NOT_A_NUMBER = NOT_A_NUMBER_;
  static constexpr bool NEGATIVE_ZERO = NEGATIVE_ZERO_;
};
template <class T> struct Form;
template <> struct Form<f8e4m3fn> : FloatForm<8, 3, 7, 0x7e, 0x7f, 0x7f, true> {};
template <> struct Form<f8e4m3fnuz> : FloatForm<8, 3, 8, 0x7f, 0x80, 0x80, false> {};
template <> struct Form<f8e5m2> : FloatForm<8, 2, 15, 0x7b, 0x7c, 0x7e, true> {};
template <> struct Form<f8e5m2fnuz> : FloatForm<8, 2, 16, 0x7f, 0x80, 0x80, false> {};
template <> struct Form<f4e2m1> : FloatForm<4, 1, 1, 7, 7, 8, true> {};

// The number that a pattern stands for. Shifted into an f32's fields, its exponent is off by the difference of the
// biases, also where it is subnormal.
template <class T>
ARCWELD_DEVICE f32 decode(u32 pattern) {
  typedef Form<T> F;
  const u32 sign = pattern >> (F::BITS - 1), magnitude = pattern & ((1u << (F::BITS - 1)) - 1);
  const f32 scale = __uint_as_float((u32)(254 - F::BIAS) << 23);  // 2^(127 - BIAS)
  f32 x = __uint_as_float(magnitude << (23 - F::MANTISSA)) * scale;
  if (F::NEGATIVE_ZERO) {
    if (F::BITS == 8 && magnitude > F::LARGEST) x = magnitude == F::ABOVE && F::ABOVE != F::NOT_A_NUMBER ? INFINITY : NAN;
  } else if (pattern == F::NOT_A_NUMBER) {
    return NAN;
  }
  return sign ? -x : x;
}
// The pattern of the nearest number, of the even one of two.
template <class T>
ARCWELD_DEVICE u32 encode(f32 x) {
  typedef Form<T> F;
  const u32 bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu, sign = bits >> 31;
  constexpr int drop = 23 - F::MANTISSA;
  const u32 sign_bit = sign << (F::BITS - 1);
  if (magnitude > 0x7f800000u) return F::NOT_A_NUMBER ^ (F::NEGATIVE_ZERO ? sign_bit : 0u);
  u32 pattern;
  if (magnitude < (u32)(128 - F::BIAS) << 23) {  // subnormal: a multiple of the least number
    pattern = (u32)rintf(__uint_as_float(magnitude) * __uint_as_float((u32)(126 + F::BIAS + F::MANTISSA) << 23));
  } else {
    pattern = (magnitude + ((1u << (drop - 1)) - 1) + ((magnitude >> drop) & 1)) >> drop;
    pattern -= (u32)(127 - F::BIAS) << F::MANTISSA;
  }
  if (pattern > F::LARGEST) pattern = F::ABOVE;
  if (!F::NEGATIVE_ZERO) return pattern == 0 || pattern == F::NOT_A_NUMBER ? pattern : pattern | sign_bit;
  return pattern | sign_bit;
}
// A power of two between 2^-127 and 2^127, or NaN: nothing else has a pattern. Between two, the nearer one; the larger
// one of the two least.
template <>
ARCWELD_DEVICE f32 decode<f8e8m0>(u32 pattern) {
  return pattern == 255u ? NAN : pattern ? __uint_as_float(pattern << 23) : __uint_as_float(0x00400000u);
}
template <>
ARCWELD_DEVICE u32 encode<f8e8m0>(f32 x) {
  const u32 bits = __float_as_uint(x);
  if (bits - 1u >= 0x7f7fffffu) return 255u;  // 0, negative, infinite or NaN
  if (bits < 0x00800000u) return bits > 0x00400000u ? 1u : 0u;
  const u32 pattern = (bits + 0x00400000u) >> 23;  // ties go up
  return pattern > 254u ? 255u : pattern;
}

// ---------------------------------------------------------------- 8 bits: loaded and stored like other scalars
#define ARCWELD_STORED_FLOAT(T)                               \
  ARCWELD_DEVICE f32 to_f32(T x) { return decode<T>(x.bits); } \
  ARCWELD_DEVICE T from_f32_impl(f32 x, ScalarTag<T>) {        \
    T r;                                                      \
    r.bits = (u8)encode<T>(x);                                \
    return r;                                                 \
  }                                                           \
  ARCWELD_DEVICE T cvt_impl(f32 x, ScalarTag<T> tag) { return from_f32_impl(x, tag); }
ARCWELD_STORED_FLOAT(f8e4m3fn)
ARCWELD_STORED_FLOAT(f8e4m3fnuz)
ARCWELD_STORED_FLOAT(f8e5m2)
ARCWELD_STORED_FLOAT(f8e5m2fnuz)
ARCWELD_STORED_FLOAT(f8e8m0)

// ---------------------------------------------------------------- packed: elements are fields of a byte
template <class T> struct PackedForm;
template <> struct PackedForm<f4e2m1> { typedef f32 Value; static constexpr int BITS = 4; };
template <> struct PackedForm<i4> { typedef i8 Value; static constexpr int BITS = 4; };
template <> struct PackedForm<u4> { typedef u8 Value; static constexpr int BITS = 4; };
template <> struct PackedForm<i2> { typedef i8 Value; static constexpr int BITS = 2; };
template <> struct PackedForm<u2> { typedef u8 Value; static constexpr int BITS = 2; };
template <> struct PackedForm<u1> { typedef u8 Value; static constexpr int BITS = 1; };

ARCWELD_DEVICE f32 field_value(u32 field, ScalarTag<f4e2m1>) { return decode<f4e2m1>(field); }
ARCWELD_DEVICE i8 field_value(u32 field, ScalarTag<i4>) { return (i8)((i32)(field << 28) >> 28); }
ARCWELD_DEVICE u8 field_value(u32 field, ScalarTag<u4>) { return (u8)field; }
ARCWELD_DEVICE i8 field_value(u32 field, ScalarTag<i2>) { return (i8)((i32)(field << 30) >> 30); }
ARCWELD_DEVICE u8 field_value(u32 field, ScalarTag<u2>) { return (u8)field; }
ARCWELD_DEVICE u8 field_value(u32 field, ScalarTag<u1>) { return (u8)field; }

// The bits of an element. Integers keep their lowest ones.
template <class T>
ARCWELD_DEVICE u32 field_of(typename PackedForm<T>::Value x, ScalarTag<T>) {
  return (u32)x & ((1u << PackedForm<T>::BITS) - 1);
}
ARCWELD_DEVICE u32 field_of(f32 x, ScalarTag<f4e2m1>) { return encode<f4e2m1>(x); }

// Element ``i`` of a packed array.
template <class T, class Index>
ARCWELD_DEVICE typename PackedForm<T>::Value packed_at(const T* p, Index i) {
  constexpr int bits = PackedForm<T>::BITS, per = 8 / bits;
  return field_value(((u32)p[i / per].bits >> (int)(i % per) * bits) & ((1u << bits) - 1), ScalarTag<T>());
}
// N neighbouring elements of a packed array, at most 32 bits.
template <class T, int N>
struct PackedVec {
  u32 bits = 0;
  ARCWELD_DEVICE typename PackedForm<T>::Value operator[](int i) const {
    constexpr int width = PackedForm<T>::BITS;
    return field_value((bits >> i * width) & ((1u << width) - 1), ScalarTag<T>());
  }
};
// The elements in some bytes.
template <class T, int BYTES>
ARCWELD_DEVICE PackedVec<T, BYTES * 8 / PackedForm<T>::BITS> packed_of(const Vec<T, BYTES>& raw) {
  PackedVec<T, BYTES * 8 / PackedForm<T>::BITS> r;
#pragma unroll
  for (int i = 0; i < BYTES; ++i) r.bits |= (u32)raw.v[i].bits << 8 * i;
  return r;
}
// N elements from ``p`` on, where they begin with a byte and a multiple of N.
template <int N, class T>
ARCWELD_DEVICE PackedVec<T, N> load_packed(const T* p) {
  return packed_of(load_vec<N * PackedForm<T>::BITS / 8>(p));
}
template <int N, class T>
ARCWELD_DEVICE PackedVec<T, N> load_packed_stream(const T* p) {
  return packed_of(load_vec_stream<N * PackedForm<T>::BITS / 8>(p));
}

// ---------------------------------------------------------------- what is left of a value when it is stored
template <class T>
ARCWELD_DEVICE f32 narrow_impl(f32 x, ScalarTag<T>) { return decode<T>(encode<T>(x)); }
ARCWELD_DEVICE i8 narrow_impl(i8 x, ScalarTag<i4> tag) { return field_value((u32)(u8)x & 15u, tag); }
ARCWELD_DEVICE u8 narrow_impl(u8 x, ScalarTag<u4> tag) { return field_value((u32)x & 15u, tag); }
ARCWELD_DEVICE i8 narrow_impl(i8 x, ScalarTag<i2> tag) { return field_value((u32)(u8)x & 3u, tag); }
ARCWELD_DEVICE u8 narrow_impl(u8 x, ScalarTag<u2> tag) { return field_value((u32)x & 3u, tag); }
ARCWELD_DEVICE u8 narrow_impl(u8 x, ScalarTag<u1> tag) { return field_value((u32)x & 1u, tag); }
template <class T, class S>
ARCWELD_DEVICE auto narrow(S x) { return narrow_impl(x, ScalarTag<T>()); }
