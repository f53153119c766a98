// Weights of few rows that are stored in 8, 6, 5, 4 or 2 bits: from their bytes to pairs of 16-bit numbers, exactly. Include it
// after few_rows.cuh.
//
// A lane holds eight neighbours in k: two words of 8-bit numbers, one of 4-bit ones, half a word of 2-bit ones. An integer q is put into the mantissa of a
// power of two whose last bit counts ones, and that power and the zero point are subtracted at once. A float's exponent and
// mantissa are shifted into place, and a product with a power of two makes up for the other bias. Integers of 5 and 6 bits lie
// in two planes, ``Planes<u4, u1>`` and ``Planes<u4, u2>``: a lane's upper bits are one or two bytes, in a word of their own.
#pragma once
#include "storage.cuh"

template <class T> struct Pairs;  // of two equal numbers
template <> struct Pairs<f16> { static constexpr u32 ONE = 0x3c003c00u, MAGIC = 0x64006400u; };   // 2^10
template <> struct Pairs<bf16> { static constexpr u32 ONE = 0x3f803f80u, MAGIC = 0x43004300u; };  // 2^7
constexpr u32 MINUS_ZEROS = 0x80008000u, MAGIC32 = 0x4b000000u;                                  // 2^23 in f32

template <int BITS> struct WordOf { typedef u32 type; };
template <> struct WordOf<2> { typedef u16 type; };
// Eight elements lie in WORDS words. Signed integers are shifted by SHIFT, so that none is negative: their sign is flipped.
template <int BITS_, bool INTEGER_ = false, bool SIGNED = false>
struct StoredTraits {
  typedef typename WordOf<BITS_>::type Word;
  static constexpr int BITS = BITS_, WORDS = BITS == 8 ? 2 : 1;
  static constexpr bool INTEGER = INTEGER_;
  static constexpr u32 SHIFT = SIGNED ? 1u << (BITS - 1) : 0u;
};
template <class S> struct StoredForm : StoredTraits<8> {};
template <> struct StoredForm<f4e2m1> : StoredTraits<4> {};
template <> struct StoredForm<u8> : StoredTraits<8, true> {};
template <> struct StoredForm<i8> : StoredTraits<8, true, true> {};
template <> struct StoredForm<u4> : StoredTraits<4, true> {};
template <> struct StoredForm<i4> : StoredTraits<4, true, true> {};
template <> struct StoredForm<u2> : StoredTraits<2, true> {};
template <> struct StoredForm<i2> : StoredTraits<2, true, true> {};
template <class S> using StoredWords = Vec<typename StoredForm<S>::Word, StoredForm<S>::WORDS>;

// The lower bits in one array, the upper ones in another.
template <class Low, class High> struct Planes {};
template <> struct StoredForm<Planes<u4, u1>> : StoredTraits<5, true> { typedef u8 High; static constexpr int HIGH = 1; };
template <> struct StoredForm<Planes<u4, u2>> : StoredTraits<6, true> { typedef u16 High; static constexpr int HIGH = 2; };
template <class S> struct PlaneWords { u32 low, high; };  // eight elements: 4 bits of each, and those above

// This lane's elements of the i-th 32 of k in a line of shared memory.
template <class S>
ARCWELD_DEVICE StoredWords<S> load_stored(const unsigned char* line, int i, int lane) {
  typedef StoredForm<S> F;
  return load_vec<F::WORDS>(reinterpret_cast<const typename F::Word*>(line + (i * 4 + lane % 4) * F::BITS));
}

template <class S>
ARCWELD_DEVICE PlaneWords<S> load_planes(const unsigned char* low, const unsigned char* high, int i, int lane) {
  typedef typename StoredForm<S>::High High;
  const int at = i * 4 + lane % 4;
  return {reinterpret_cast<const u32*>(low)[at], reinterpret_cast<const High*>(high)[at]};
}

// The i-th two neighbours of a word of nibbles, each in the lowest bits of 16 with others above.
ARCWELD_DEVICE u32 nibbles_of(u32 word, int i) { return __byte_perm(word, word >> 4, 0x4400u + 0x1111u * i); }
// The same of fields of two bits.
ARCWELD_DEVICE u32 fields_of(u32 word, int i) { return (word | word << 14) >> 4 * i; }
// The same of fields of one bit.
ARCWELD_DEVICE u32 flags_of(u32 word, int i) { return (word | word << 15) >> 2 * i; }
// Bytes i and i + 1 of a word, each in the upper bits of 16.
ARCWELD_DEVICE u32 bytes_above(u32 word, int i) { return __byte_perm(word, 0u, 0x1404u + 0x1010u * i); }

// ---------------------------------------------------------------- integers
// What ``unpack`` adds to integers with that zero point: two numbers of type T, or for 8 bits in bf16 one of f32.
template <class T, class S>
ARCWELD_DEVICE u32 minus_zero(int zero) {
  const u32 less = (u32)zero + StoredForm<S>::SHIFT;
  if constexpr (StoredForm<S>::BITS == 8 && Pairs<T>::MAGIC == Pairs<bf16>::MAGIC) return (MAGIC32 | 0x80000000u) + less;
  return (Pairs<T>::MAGIC | MINUS_ZEROS) + 0x00010001u * less;
}
// Two elements in the lowest bits of 16, whatever is above them.
template <class T, class S>
ARCWELD_DEVICE u32 field_pair(u32 x, u32 minus) {
  constexpr u32 both = 0x00010001u, mask = ((1u << StoredForm<S>::BITS) - 1) * both;
  return fma2<T>(and_xor(x, mask, Pairs<T>::MAGIC | StoredForm<S>::SHIFT * both), Pairs<T>::ONE, minus);
}
// Bytes i and i + 1 of a word.
ARCWELD_DEVICE u32 byte_pair(u32 word, int i, u32 minus, ScalarTag<f16>) {
  return fma2<f16>(__byte_perm(word, Pairs<f16>::MAGIC, 0x7170u + 0x0101u * i), Pairs<f16>::ONE, minus);
}
// bf16 has no room for 8 bits above their ones: f32 has.
ARCWELD_DEVICE u32 byte_pair(u32 word, int i, u32 minus, ScalarTag<bf16>) {
  const f32 less = __uint_as_float(minus);
  const f32 low = __uint_as_float(__byte_perm(word, MAGIC32, 0x7440u + i));
  const f32 high = __uint_as_float(__byte_perm(word, MAGIC32, 0x7441u + i));
  return pack2<bf16>(low + less, high + less);
}

// ---------------------------------------------------------------- floats: pairs whose bits lie at the top of 16
// A pattern of all ones in front of the mantissa, or everywhere, becomes one of T: an infinity or a NaN.
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f8e4m3fn>, ScalarTag<f16>) {
  const u32 magnitude = x >> 1 & 0x3f803f80u;
  return fma2<f16>(x & MINUS_ZEROS | magnitude | magnitude + 0x00800080u & 0x40004000u, 0x5c005c00u, MINUS_ZEROS);  // 2^8
}
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f8e4m3fn>, ScalarTag<bf16>) {
  const u32 magnitude = x >> 4 & 0x07f007f0u, special = (magnitude + 0x00100010u & 0x08000800u) * 15;
  return fma2<bf16>(x & MINUS_ZEROS | magnitude | special, 0x7b807b80u, MINUS_ZEROS);  // 2^120
}
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f8e5m2>, ScalarTag<f16>) { return x; }
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f8e5m2>, ScalarTag<bf16>) {
  const u32 magnitude = x >> 3 & 0x0fe00fe0u, special = (magnitude + 0x00800080u & 0x10001000u) * 7;
  return fma2<bf16>(x & MINUS_ZEROS | magnitude | special, 0x77807780u, MINUS_ZEROS);  // 2^112
}
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f4e2m1>, ScalarTag<f16>) {
  return fma2<f16>((x & 0x00080008u) << 12 | (x & 0x00070007u) << 9, 0x74007400u, MINUS_ZEROS);  // 2^14
}
ARCWELD_DEVICE u32 float_pair(u32 x, ScalarTag<f4e2m1>, ScalarTag<bf16>) {
  return fma2<bf16>((x & 0x00080008u) << 12 | (x & 0x00070007u) << 6, 0x7e807e80u, MINUS_ZEROS);  // 2^126
}

// ---------------------------------------------------------------- pairs, and eight elements
// The i-th two neighbours in k of a word: of four bytes, or of eight elements of fewer bits. ``minus``: of integers only, what
// ``minus_zero`` gives.
template <class T, class S>
ARCWELD_DEVICE u32 pair_of(u32 word, int i, u32 minus) {
  typedef StoredForm<S> F;
  if constexpr (F::BITS == 8 && F::INTEGER) {
    return byte_pair(word ^ F::SHIFT * 0x01010101u, 2 * i, minus, ScalarTag<T>());
  } else if constexpr (F::INTEGER) {
    return field_pair<T, S>(F::BITS == 4 ? nibbles_of(word, i) : fields_of(word, i), minus);
  } else {
    return float_pair(F::BITS == 4 ? nibbles_of(word, i) : bytes_above(word, 2 * i), ScalarTag<S>(), ScalarTag<T>());
  }
}
template <class T, class S>
ARCWELD_DEVICE Piece unpack(const StoredWords<S>& w, u32 minus) {
  Piece r;
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i] = StoredForm<S>::BITS == 8 ? pair_of<T, S>(w[i / 2], i % 2, minus) : pair_of<T, S>(w[0], i, minus);
  return r;
}

// The same of integers in two planes.
template <class T, class S>
ARCWELD_DEVICE u32 pair_of(const PlaneWords<S>& w, int i, u32 minus) {
  constexpr u32 both = 0x00010001u, mask = StoredForm<S>::HIGH == 2 ? 0x30 * both : 0x10 * both;
  const u32 above = (StoredForm<S>::HIGH == 2 ? fields_of(w.high, i) : flags_of(w.high, i)) << 4 & mask;
  return fma2<T>(and_xor(nibbles_of(w.low, i), 15 * both, Pairs<T>::MAGIC) | above, Pairs<T>::ONE, minus);
}
template <class T, class S>
ARCWELD_DEVICE Piece unpack(const PlaneWords<S>& w, u32 minus) {
  Piece r;
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i] = pair_of<T, S>(w, i, minus);
  return r;
}

// ---------------------------------------------------------------- fragments of wgmma's A
// The i-th 16 of k of one of a warp's rows, lane / 4 or 8 further, in a swizzled line of 128 bytes: the words that hold this
// lane's pairs, which are ``lane % 4`` of the first and of the second eight elements.
template <class S>
ARCWELD_DEVICE Vec<u32, 2> words_at_step(const unsigned char* line, int i, int lane) {
  constexpr int BITS = StoredForm<S>::BITS, EACH = 8 / BITS;  // steps of 16 bytes
  const unsigned char* at = line + (i / EACH ^ lane / 4) * 16 + i % EACH * (2 * BITS);
  if constexpr (BITS == 8) {
    const u32* words = reinterpret_cast<const u32*>(at) + lane % 4 / 2;
    return {words[0], words[2]};
  } else if constexpr (BITS == 4) {
    return load_vec<2>(reinterpret_cast<const u32*>(at));
  } else {
    const u32 word = *reinterpret_cast<const u32*>(at);
    return {word & 0xffffu, word >> 16};
  }
}
// 16 rows of STEPS steps of 16 of k, from step ``first`` of their lines on, less the zero points of both of a lane's rows.
template <class T, class S, int STEPS>
ARCWELD_DEVICE void stored_fragments(u32 (*a)[4], const unsigned char* lines, int first, int lane, u32 low, u32 high) {
  const unsigned char* const line = lines + lane / 4 * 128;
  const int pair = StoredForm<S>::BITS == 8 ? lane % 2 : lane % 4;
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    const Vec<u32, 2> upper = words_at_step<S>(line, first + i, lane), lower = words_at_step<S>(line + 1024, first + i, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[i][2 * half] = pair_of<T, S>(upper[half], pair, low);
      a[i][2 * half + 1] = pair_of<T, S>(lower[half], pair, high);
    }
  }
}
// The same of integers in two planes: ``upper`` are the upper bits of these rows beside the 256 of k of a line.
template <class T, class S, int STEPS>
ARCWELD_DEVICE void plane_fragments(u32 (*a)[4], const unsigned char* lines, const unsigned char* upper, int first, int lane, u32 low, u32 high) {
  constexpr int EACH = StoredForm<S>::HIGH * 2, BITS = 8 * StoredForm<S>::HIGH;  // bytes of a step, bits of half a step
  const unsigned char* const line = lines + lane / 4 * 128;
  const unsigned char* const at = upper + lane / 4 * (16 * EACH) + first * EACH;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const Vec<unsigned char, STEPS * EACH> above = load_vec<STEPS * EACH>(at + row * (8 * 16 * EACH));
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const Vec<u32, 2> words = words_at_step<u4>(line + row * 1024, first + i, lane);
      u32 both = 0;
#pragma unroll
      for (int j = 0; j < EACH; ++j) both |= (u32)above[i * EACH + j] << 8 * j;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a[i][2 * half + row] = pair_of<T, S>(PlaneWords<S>{words[half], both >> BITS * half & ((1u << BITS) - 1)}, lane % 4, row ? high : low);
    }
  }
}

// The same products of few rows as ``multiply_piece``, of two groups of 16 of k: this lane's k belong to group ``mine`` alone.
template <class T, int TILES>
ARCWELD_DEVICE void multiply_halves(float (&sums)[2][1][TILES][4], const Piece& low, const Piece& high, const Piece (&x)[TILES], int mine) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Piece own[TILES];
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) own[j][e] = mine == half ? x[j][e] : 0u;
    multiply_piece<T, TILES>(sums[half], low, high, own);
  }
}

// acc += the sums of a group times its scale: of the lane / 4-th column, and of the one 8 further.
template <int TILES>
ARCWELD_DEVICE void add_scaled(float (&acc)[1][TILES][4], const float (&sums)[1][TILES][4], float low, float high) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[0][j][e] += (e < 2 ? low : high) * sums[0][j][e];
}
// The same of wgmma's sums of a warp's rows, which begin again at 0.
template <int COUNT>
ARCWELD_DEVICE void add_scaled(float (&acc)[COUNT], float (&sums)[COUNT], float low, float high) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    acc[i] += (i % 4 < 2 ? low : high) * sums[i];
    sums[i] = 0.0f;
  }
}

// ---------------------------------------------------------------- in registers
// Lanes that differ in ``bit`` exchange a number: that without it gets the other's ``low`` for its ``high``.
ARCWELD_DEVICE void exchange(u32& low, u32& high, int lane, int bit) {
  const bool upper = lane & bit;
  const u32 got = __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
  low = upper ? got : low;
  high = upper ? high : got;
}
// Four lanes that hold neighbouring pieces of 16 bytes exchange words, so that each has its part of every 32 of k. Where a
// piece is 32 of k (4 bits), words i are those of the i-th lane. Else lanes 0, 2, 1, 3 have neighbours: of two pieces (8 bits),
// or of half a piece (2 bits, whose halves of words are exchanged too).
template <class S>
ARCWELD_DEVICE Piece shared_out(Piece w, int lane) {
  if constexpr (StoredForm<S>::BITS < 8) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) exchange(w[i], w[i + 1], lane, 1);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) exchange(w[i], w[i + 2], lane, 2);
  if constexpr (StoredForm<S>::BITS == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 low = w[i] & 0xffffu, high = w[i] >> 16;
      exchange(low, high, lane, 2);
      w[i] = low | high << 16;
    }
  }
  return w;
}
// This lane's words of the i-th 32 of k.
template <class S>
ARCWELD_DEVICE StoredWords<S> words_of(const Piece& w, int i) {
  typedef StoredForm<S> F;
  StoredWords<S> r;
#pragma unroll
  for (int j = 0; j < F::WORDS; ++j) r[j] = F::BITS == 2 ? w[i / 2] >> 16 * (i % 2) : w[i * F::WORDS + j];
  return r;
}

// The upper bits of 32 neighbours. Four lanes that hold neighbours exchange them, so that each has those of its part of every 32
// of k.
ARCWELD_DEVICE Vec<u32, 1> upper_shared_out(const Vec<u32, 1>& w, int lane) {
  u32 low = w[0] & 0xffffu, high = w[0] >> 16;
  exchange(low, high, lane, 2);
  u32 even = __byte_perm(low, high, 0x4040u), odd = __byte_perm(low, high, 0x5151u);
  exchange(even, odd, lane, 1);
  return {__byte_perm(even, odd, 0x5140u)};
}
ARCWELD_DEVICE Vec<u32, 2> upper_shared_out(Vec<u32, 2> w, int lane) {
  exchange(w[0], w[1], lane, 2);
  u32 even = __byte_perm(w[0], w[1], 0x5410u), odd = __byte_perm(w[0], w[1], 0x7632u);
  exchange(even, odd, lane, 1);
  return {__byte_perm(even, odd, 0x5410u), __byte_perm(even, odd, 0x7632u)};
}
// This lane's words of the i-th 32 of k, of both planes.
template <class S, int HIGH>
ARCWELD_DEVICE PlaneWords<S> planes_of(const Piece& w, const Vec<u32, HIGH>& upper, int i) {
  constexpr int each = 4 / HIGH, bits = 8 * HIGH;
  return {w[i], upper[i / each] >> i % each * bits & ((1u << bits) - 1)};
}
