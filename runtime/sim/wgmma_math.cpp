// The arithmetic of wgmma m64nNk16, and k32 of 8-bit types, on dense copies of the operands.
#include "half.h"
#include "wgmma.h"

namespace sim {
namespace {

constexpr u64 kDescriptorBits = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;

struct Descriptor {
  u32 start, leading, stride;
  explicit Descriptor(u64 bits)
      : start((u32)(bits & 0x3fff) << 4), leading((u32)(bits >> 16 & 0x3fff) << 4), stride((u32)(bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) sim_fail("wgmma: only descriptors with the 128-byte swizzle are modelled");
    if (bits & ~kDescriptorBits) sim_fail("wgmma: the descriptor 0x%llx has bits outside its fields, or a base offset", bits);
    if (start & 0x380) sim_fail("wgmma: the operand at shared address %u does not start at a line of the swizzle's 1024 bytes", start);
  }
  // 16-byte chunk ``c`` (of 2) of row ``r``: K-major operands.
  u32 k_major(int r, int c) const { return start + (u32)(r / 8) * stride + (u32)(r % 8) * 128 + (u32)c * 16; }
  // 16-byte chunk ``c`` (of n / 8) of line ``k``: N-major operands, in blocks of 64 columns.
  u32 n_major(int k, int c) const {
    return start + (u32)(c / 8) * leading + (u32)(k / 8) * stride + (u32)(k % 8) * 128 + (u32)(c % 8) * 16;
  }
};

void widen_chunk(float* to, const u16* from, bool bf16) {
  if (bf16) widen8<true>(to, from);
  else widen8<false>(to, from);
}

}  // namespace

// The operands of one operation as numbers.
struct Dense {
  alignas(64) float a[64][16];
  alignas(64) float b[16][kMaxN];
  alignas(64) int whole_a[64][32];
  alignas(64) int whole_b[32][kMaxN];
  alignas(64) float byte_a[64][32];  // of 8-bit floats
  alignas(64) float byte_b[32][kMaxN];
};

void dense_create() { create(sm().dense); }

namespace {

void read_a(const Operand& o, const u32 (*registers)[4]) {
  Dense& dense = *sm().dense;
  const bool bf16 = o.is_bf16();
  if (o.from_registers) {
    for (int t = 0; t < kGroupThreads; ++t)
      for (int r = 0; r < 4; ++r) {
        const int row = t / 32 * 16 + t % 32 / 4 + (r & 1) * 8, k = t % 4 * 2 + (r >> 1) * 8;
        dense.a[row][k] = widen((u16)registers[t][r], bf16);
        dense.a[row][k + 1] = widen((u16)(registers[t][r] >> 16), bf16);
      }
    return;
  }
  const Descriptor a(o.a);
  for (int r = 0; r < 64; ++r)
    for (int c = 0; c < 2; ++c) widen_chunk(&dense.a[r][c * 8], swizzled_chunk(a.k_major(r, c)), bf16);
}

void read_b(const Operand& o) {
  Dense& dense = *sm().dense;
  const Descriptor b(o.b);
  if (o.transposed_b) {
    for (int k = 0; k < 16; ++k)
      for (int c = 0; c < o.n / 8; ++c) widen_chunk(&dense.b[k][c * 8], swizzled_chunk(b.n_major(k, c)), o.is_bf16());
    return;
  }
  for (int r = 0; r < o.n; ++r)
    for (int c = 0; c < 2; ++c) {
      alignas(32) float eight[8];
      widen_chunk(eight, swizzled_chunk(b.k_major(r, c)), o.is_bf16());
      for (int i = 0; i < 8; ++i) dense.b[c * 8 + i][r] = eight[i];
    }
}

// 16 bytes as numbers, by their form.
void widen_bytes(int (&to)[16], u32 address, bool is_signed) {
  const u8* from = (const u8*)swizzled_chunk(address);
  for (int i = 0; i < 16; ++i) to[i] = is_signed ? (int)(i8)from[i] : (int)from[i];
}
void widen_bytes(float (&to)[16], u32 address, bool e5m2) {
  const u8* from = (const u8*)swizzled_chunk(address);
  for (int i = 0; i < 16; ++i) to[i] = float8_table.of[e5m2][from[i]];
}

template <class T>
void read_bytes(const Operand& o, T (&to_a)[64][32], T (&to_b)[32][kMaxN]) {
  const Descriptor a(o.a), b(o.b);
  T sixteen[16];
  for (int c = 0; c < 2; ++c) {
    for (int r = 0; r < 64; ++r) {
      widen_bytes(sixteen, a.k_major(r, c), o.type & 2);
      memcpy(&to_a[r][c * 16], sixteen, sizeof sixteen);
    }
    for (int r = 0; r < o.n; ++r) {
      widen_bytes(sixteen, b.k_major(r, c), o.type & 1);
      for (int i = 0; i < 16; ++i) to_b[c * 16 + i][r] = sixteen[i];
    }
  }
}

// 64 rows of c += A times B, a vector of columns at a time.
template <class T, int K>
void multiply(T (*c)[kMaxN], const T (&a)[64][K], const T (&b)[K][kMaxN], int n) {
  typedef T Vector __attribute__((vector_size(SIM_VECTOR_BYTES)));
  for (int j = 0; j < n; j += SIM_VECTOR_BYTES / 4)
    for (int row = 0; row < 64; row += 8) {
      Vector sum[8];
      for (int i = 0; i < 8; ++i) sum[i] = *(const Vector*)&c[row + i][j];
      for (int k = 0; k < K; ++k) {
        const Vector line = *(const Vector*)&b[k][j];
        for (int i = 0; i < 8; ++i) sum[i] += line * a[row + i][k];
      }
      for (int i = 0; i < 8; ++i) *(Vector*)&c[row + i][j] = sum[i];
    }
}

// The registers of thread t that hold sums, two neighbouring ones at a time: visit(t, its j-th pair, row, column).
template <class Visit>
void each_pair(int n, Visit visit) {
  for (int t = 0; t < kGroupThreads; ++t) {
    const int row = t / kLanes * 16 + t % kLanes / 4, column = t % 4 * 2;
    for (int j = 0; j < n / 8; ++j) {
      visit(t, 2 * j, row, column + j * 8);
      visit(t, 2 * j + 1, row + 8, column + j * 8);
    }
  }
}

}  // namespace

const u16* swizzled_chunk(u32 address) { return (const u16*)shared_pointer(address ^ ((address >> 7 & 7) << 4), 16, 16); }

u32 a_chunk(const Operand& o, int row, int c) { return Descriptor(o.a).k_major(row, c); }

u32 b_chunk(const Operand& o, int line, int c) {
  const Descriptor b(o.b);
  return o.transposed_b ? b.n_major(line, c) : b.k_major(line, c);
}

void gather_sums(Sums& sums, float* const* d, int n) {
  each_pair(n, [&](int t, int pair, int row, int column) { memcpy(&sums.of[row][column], d[t] + 2 * pair, 8); });
}

void scatter_sums(const Sums& sums, float* const* d, int n) {
  each_pair(n, [&](int t, int pair, int row, int column) { memcpy(d[t] + 2 * pair, &sums.of[row][column], 8); });
}

void multiply_add(Sums& sums, const Operand& o, const u32 (*a_registers)[4]) {
  Dense& dense = *sm().dense;
  if (o.is_int8()) {
    read_bytes(o, dense.whole_a, dense.whole_b);
    multiply((int(*)[kMaxN])sums.of, dense.whole_a, dense.whole_b, o.n);
  } else if (o.is_float8()) {  // exact products, f32 sums
    read_bytes(o, dense.byte_a, dense.byte_b);
    multiply(sums.of, dense.byte_a, dense.byte_b, o.n);
  } else {
    read_a(o, a_registers);
    read_b(o);
    multiply(sums.of, dense.a, dense.b, o.n);
  }
}

}  // namespace sim
