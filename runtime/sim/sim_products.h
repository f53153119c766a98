// What the runtime library does for a kernel whose block runs in one go (sim_tiles.h): products of dense tiles, memory that
// lasts from block to block, and the end of the block's other threads.
#pragma once
#include "sim_api.h"

// One product of dense matrices: c[i][j] += a[i][k] * b[k][j] for k = 0, 1, … in this order; product and sum are rounded
// once, as in a fused multiply-add. ``a`` has the element (i, k) at i * a_row + k * a_k, one of which is 1.
template <class T>
struct SimProduct {
  T* c;
  const T *a, *b;
  i64 c_row, a_row, a_k, b_row;  // elements from one row to the next
  int rows, columns, depth;
};

extern "C" {
extern bool sim_uses_avx512;  // whether products are made by 64-byte vectors: at first, if the CPU has them
void sim_multiply_f32(const SimProduct<f32>* p);
void sim_multiply_f64(const SimProduct<f64>* p);
void sim_multiply_u32(const SimProduct<u32>* p);  // integers with and without sign: sums wrap
void sim_multiply_u64(const SimProduct<u64>* p);

// to[k][row] = from[row][k], of elements of 4 bytes.
void sim_transpose_words(u32* to, i64 to_row, const u32* from, i64 from_row, int rows, int columns);

// Memory of the host thread, 64-byte aligned, number ``slot`` of SIM_PANELS. ``*filled``: it holds what an earlier block of
// this launch put there under the same key. Valid until the next call with this slot.
constexpr int SIM_PANELS = 16;
void* sim_panel(int slot, u64 bytes, i64 key, bool* filled);

// Whether the current thread is to do the rest of its block's work: so in the ordinary schedule. The others, whether they
// have begun or not, then count as returned.
bool sim_takes_block();
}

static inline void sim_multiply(const SimProduct<f32>& p) { sim_multiply_f32(&p); }
static inline void sim_multiply(const SimProduct<f64>& p) { sim_multiply_f64(&p); }
template <class T>
static inline void sim_multiply(const SimProduct<T>& p) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "integers of 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) sim_multiply_u32((const SimProduct<u32>*)&p);
  else sim_multiply_u64((const SimProduct<u64>*)&p);
}
template <class T>
static inline void sim_transpose(T* to, i64 to_row, const T* from, i64 from_row, int rows, int columns) {
  if constexpr (sizeof(T) == 4) {
    sim_transpose_words((u32*)to, to_row, (const u32*)from, from_row, rows, columns);
  } else {
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < columns; ++k) to[k * to_row + row] = from[row * from_row + k];
  }
}
