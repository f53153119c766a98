// Warp-wide matrix operations on shared memory and registers: ldmatrix, stmatrix and mma.sync.
//
// The fragment layouts are those of the PTX manual: with g = lane / 4 and t = lane % 4, a 16-bit 8x8 matrix gives lane
// (g, t) the elements (g, 2t) and (g, 2t + 1).
#include "checker.h"
#include "half.h"
#include "state.h"

using namespace sim;

namespace {

const u16* matrix_row(void** slots, int matrix, int row, Access access) {
  const int lane = matrix * 8 + row;
  const u8* p = shared_pointer(((SimFragment*)slots[lane])->address, 16, 16);
  if (sm().checked) check_shared(p, 16, access, sim_current->warp * kLanes + lane, sm().warps[sim_current->warp].site[lane]);
  return (const u16*)p;
}

// Dense operands of one warp: A is m x k, B is k x 8, both as f32 (or i32) for all the tile's fragments.
struct Operands {
  const u32 *a[kLanes], *b[kLanes];
  char* d[kLanes];
  int mi, nj;
};

Operands gather(void** slots) {
  Operands o;
  for (int l = 0; l < kLanes; ++l) {
    const SimMma* m = (const SimMma*)slots[l];
    o.a[l] = m->a;
    o.b[l] = m->b;
    o.d[l] = (char*)m->d;
  }
  o.mi = ((SimMma*)slots[0])->mi;
  o.nj = ((SimMma*)slots[0])->nj;
  return o;
}

// c[16][8] += a[16][K] * b[K][8].
template <class T, int K>
void multiply_tile(T (&c)[16][8], const T (&a)[16][K], const T (&b)[K][8]) {
  typedef T Vector __attribute__((vector_size(SIM_VECTOR_BYTES)));
  for (int half = 0; half < 16; half += 8)
    for (int j = 0; j < 8; j += SIM_VECTOR_BYTES / 4) {
      Vector sum[8];
      for (int i = 0; i < 8; ++i) sum[i] = *(const Vector*)&c[half + i][j];
      for (int k = 0; k < K; ++k) {
        const Vector row = *(const Vector*)&b[k][j];
        for (int i = 0; i < 8; ++i) sum[i] += row * a[half + i][k];
      }
      for (int i = 0; i < 8; ++i) *(Vector*)&c[half + i][j] = sum[i];
    }
}

template <class T>
void read_accumulator(T (&c)[16][8], const Operands& o, int fragment) {
  for (int l = 0; l < kLanes; ++l) {
    const T* d = (const T*)o.d[l] + fragment * 4;
    memcpy(&c[l / 4][l % 4 * 2], d, 8);
    memcpy(&c[l / 4 + 8][l % 4 * 2], d + 2, 8);
  }
}
template <class T>
void write_accumulator(const T (&c)[16][8], const Operands& o, int fragment) {
  for (int l = 0; l < kLanes; ++l) {
    T* d = (T*)o.d[l] + fragment * 4;
    memcpy(d, &c[l / 4][l % 4 * 2], 8);
    memcpy(d + 2, &c[l / 4 + 8][l % 4 * 2], 8);
  }
}

constexpr int kMaxTile = 16;  // fragments along n that one mma_tile may have

template <bool BF16>
void mma_half(void** slots) {
  const Operands o = gather(slots);
  alignas(64) u16 raw_a[16][16], raw_b[16][8];
  alignas(64) float a[16][16], b[kMaxTile][16][8], c[16][8];
  if (o.nj > kMaxTile) sim_fail("mma_tile is at most %d fragments wide in the simulator", kMaxTile);
  for (int j = 0; j < o.nj; ++j) {
    for (int l = 0; l < kLanes; ++l)
      for (int r = 0; r < 2; ++r) {
        const u32 pair = o.b[l][2 * j + r];
        const int k = l % 4 * 2 + r * 8;
        raw_b[k][l / 4] = (u16)pair;
        raw_b[k + 1][l / 4] = (u16)(pair >> 16);
      }
    for (int k = 0; k < 16; ++k) widen8<BF16>(b[j][k], raw_b[k]);
  }
  for (int i = 0; i < o.mi; ++i) {
    for (int l = 0; l < kLanes; ++l)
      for (int r = 0; r < 4; ++r) memcpy(&raw_a[l / 4 + (r & 1) * 8][l % 4 * 2 + (r >> 1) * 8], &o.a[l][4 * i + r], 4);
    for (int row = 0; row < 16; ++row) {
      widen8<BF16>(a[row], raw_a[row]);
      widen8<BF16>(a[row] + 8, raw_a[row] + 8);
    }
    for (int j = 0; j < o.nj; ++j) {
      read_accumulator(c, o, i * o.nj + j);
      multiply_tile(c, a, b[j]);
      write_accumulator(c, o, i * o.nj + j);
    }
  }
}

// Products of bytes; ``element`` is the number of one, by its form.
template <class T, class Element>
void mma_bytes(void** slots, Element element) {
  const Operands o = gather(slots);
  const SimMma& first = *(const SimMma*)slots[0];
  if (o.nj > kMaxTile) sim_fail("mma_tile_bytes is at most %d fragments wide in the simulator", kMaxTile);
  alignas(64) T a[16][32], b[kMaxTile][32][8], c[16][8];
  for (int j = 0; j < o.nj; ++j)
    for (int l = 0; l < kLanes; ++l)
      for (int byte = 0; byte < 4; ++byte)
        for (int r = 0; r < 2; ++r)
          b[j][l % 4 * 4 + byte + r * 16][l / 4] = element((u8)(o.b[l][2 * j + r] >> (8 * byte)), first.form_b);
  for (int i = 0; i < o.mi; ++i) {
    for (int l = 0; l < kLanes; ++l)
      for (int byte = 0; byte < 4; ++byte)
        for (int r = 0; r < 4; ++r)
          a[l / 4 + (r & 1) * 8][l % 4 * 4 + byte + (r >> 1) * 16] = element((u8)(o.a[l][4 * i + r] >> (8 * byte)), first.form_a);
    for (int j = 0; j < o.nj; ++j) {
      read_accumulator(c, o, i * o.nj + j);
      multiply_tile(c, a, b[j]);
      write_accumulator(c, o, i * o.nj + j);
    }
  }
}

}  // namespace

namespace sim {

u8* shared_pointer(u32 address, int bytes, int alignment) {
  if (address & (u32)(alignment - 1))
    sim_fail("misaligned shared address 0x%x: this access needs %d bytes of alignment", address, alignment);
  const u64 offset = (u64)address - kSharedBase;
  if (address < kSharedBase || offset + (u64)bytes > sm().shared_bytes)
    sim_fail("shared access out of bounds: offset %lld, %d bytes, of %zu", (long long)address - kSharedBase, bytes, sm().shared_bytes);
  return sim_place.dynamic_shared + offset;
}

}  // namespace sim

extern "C" {

u32 sim_shared_address(const void* p) {
  const size_t offset = (size_t)((const u8*)p - sim_place.dynamic_shared);
  if (offset > sm().shared_bytes) sim_fail("smem_u32 of a pointer that is not into the block's %zu bytes of shared memory", sm().shared_bytes);
  return kSharedBase + (u32)offset;
}

void sim_op_ldmatrix(void** slots, u32) {
  const SimFragment* first = (SimFragment*)slots[0];
  const int count = first->count, transposed = first->transposed;
  u32 out[4][kLanes];
  for (int i = 0; i < count; ++i) {
    const u16* row[8];
    for (int r = 0; r < 8; ++r) row[r] = matrix_row(slots, i, r, Access::Read);
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, t = l % 4 * 2;
      const u16 lo = transposed ? row[t][g] : row[g][t], hi = transposed ? row[t + 1][g] : row[g][t + 1];
      out[i][l] = (u32)lo | (u32)hi << 16;
    }
  }
  for (int l = 0; l < kLanes; ++l)
    for (int i = 0; i < count; ++i) ((SimFragment*)slots[l])->registers[i] = out[i][l];
}

void sim_op_stmatrix(void** slots, u32) {
  const int count = ((SimFragment*)slots[0])->count;
  for (int i = 0; i < count; ++i)
    for (int r = 0; r < 8; ++r) {
      u16* row = const_cast<u16*>(matrix_row(slots, i, r, Access::Write));
      for (int t = 0; t < 4; ++t) memcpy(row + 2 * t, &((SimFragment*)slots[r * 4 + t])->registers[i], 4);
    }
}

void sim_op_mma_f16(void** slots, u32) { mma_half<false>(slots); }
void sim_op_mma_bf16(void** slots, u32) { mma_half<true>(slots); }

void sim_op_mma_tf32(void** slots, u32) {
  const Operands o = gather(slots);
  alignas(64) float a[16][8], b[8][8], c[16][8];
  for (int l = 0; l < kLanes; ++l) {
    for (int r = 0; r < 4; ++r) a[l / 4 + (r & 1) * 8][l % 4 + (r >> 1) * 4] = tf32(o.a[l][r]);
    for (int r = 0; r < 2; ++r) b[l % 4 + r * 4][l / 4] = tf32(o.b[l][r]);
  }
  read_accumulator(c, o, 0);
  multiply_tile(c, a, b);
  write_accumulator(c, o, 0);
}

void sim_op_mma_int8(void** slots, u32) {
  mma_bytes<int>(slots, [](u8 bits, bool is_signed) { return is_signed ? (int)(i8)bits : (int)bits; });
}
// Exact products, f32 sums.
void sim_op_mma_float8(void** slots, u32) {
  mma_bytes<float>(slots, [](u8 bits, bool e5m2) { return float8_table.of[e5m2][bits]; });
}

}  // extern "C"
