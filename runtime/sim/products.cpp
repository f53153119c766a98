// Blocks that run in one go: products of dense tiles by the widest vectors that this CPU has, panels, and the end of a
// block's other threads.
#include "sim_products.h"

#include <stdlib.h>

#include "state.h"

extern "C" {
#ifdef __x86_64__
bool sim_uses_avx512 =
    __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
bool sim_uses_avx512 = false;
#endif
}

namespace sim {
namespace {

inline f32 fused(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
inline f64 fused(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
template <class T>
T fused(T a, T b, T c) {
  return a * b + c;
}

// Sixteen registers of 32 bytes hold eight sums and what they need; thirty-two of 64 bytes hold sixteen.
#define TARGET
#define BYTES 32
#define ROWS 4
namespace usual {
#include "product_rows.h"
}
#undef TARGET
#undef BYTES
#undef ROWS

#ifdef __x86_64__
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,fma")))
#define BYTES 64
#define ROWS 8
namespace avx512 {
#include "product_rows.h"
}
#undef TARGET
#undef BYTES
#undef ROWS
#endif

template <class T>
void multiply(const SimProduct<T>& p) {
#ifdef __x86_64__
  if (sim_uses_avx512) return avx512::multiply(p);
#endif
  usual::multiply(p);
}

}  // namespace
}  // namespace sim

using namespace sim;

extern "C" {

void sim_multiply_f32(const SimProduct<f32>* p) { multiply(*p); }
void sim_multiply_f64(const SimProduct<f64>* p) { multiply(*p); }
void sim_multiply_u32(const SimProduct<u32>* p) { multiply(*p); }
void sim_multiply_u64(const SimProduct<u64>* p) { multiply(*p); }

void sim_transpose_words(u32* to, i64 to_row, const u32* from, i64 from_row, int rows, int columns) {
  typedef u32 Four __attribute__((vector_size(16), aligned(4), may_alias));
  int row = 0;
#if __has_builtin(__builtin_shufflevector)
  for (; row + 4 <= rows; row += 4) {
    const u32* const at = from + row * from_row;
    int k = 0;
    for (; k + 4 <= columns; k += 4) {
      const Four a = *(const Four*)(at + k), b = *(const Four*)(at + from_row + k);
      const Four c = *(const Four*)(at + 2 * from_row + k), d = *(const Four*)(at + 3 * from_row + k);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      u32* const out = to + k * to_row + row;
      *(Four*)out = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
      *(Four*)(out + to_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      *(Four*)(out + 2 * to_row) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
      *(Four*)(out + 3 * to_row) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
    }
    for (; k < columns; ++k)
      for (int i = 0; i < 4; ++i) to[k * to_row + row + i] = at[i * from_row + k];
  }
#endif
  for (; row < rows; ++row)
    for (int k = 0; k < columns; ++k) to[k * to_row + row] = from[row * from_row + k];
}

void* sim_panel(int slot, u64 bytes, i64 key, bool* filled) {
  Sm& s = sm();
  Panel& panel = s.panels[slot];
  *filled = panel.launch == s.launch_number && panel.key == key && panel.bytes >= bytes;
  if (panel.bytes < bytes) {
    panel.memory = (char*)allocate(panel.memory, bytes + 64);
    panel.bytes = bytes;
  }
  panel.launch = s.launch_number;
  panel.key = key;
  return (void*)(((uintptr_t)panel.memory + 63) & ~(uintptr_t)63);
}

bool sim_takes_block() {
  if (!sim_in_order) return false;
  take_block(sm());
  return true;
}

}  // extern "C"
