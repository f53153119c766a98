// wgmma's arithmetic: what the operands' descriptors name, and sums over the 64 rows of a warpgroup's tile.
#pragma once
#include "state.h"

namespace sim {

constexpr int kGroupThreads = 128, kMaxN = 256;

struct Operand {  // of one operation, as each thread passes it
  u64 a, b;
  int n, transposed_b, accumulate, type, from_registers;
  bool is_float8() const { return type >= SIM_FLOAT8; }
  bool is_int8() const { return type >= SIM_INT8 && !is_float8(); }
  bool is_bf16() const { return type == 1; }
  bool operator==(const Operand& o) const {
    return (from_registers || a == o.a) && b == o.b && n == o.n && transposed_b == o.transposed_b &&
           accumulate == o.accumulate && type == o.type && from_registers == o.from_registers;
  }
};
struct Sums {  // f32 or i32
  alignas(64) float of[64][kMaxN];
};

const u16* swizzled_chunk(u32 address);
u32 a_chunk(const Operand& o, int row, int c);    // the shared address of 16 bytes of A, before the swizzle
u32 b_chunk(const Operand& o, int line, int c);   // ... of B, whose lines are k if ``transposed_b``, else columns
// Between the dense sums and the threads' registers ``d``.
void gather_sums(Sums& sums, float* const* d, int n);
void scatter_sums(const Sums& sums, float* const* d, int n);
// sums += A x B; ``a_registers``: of each thread, if A is in registers.
void multiply_add(Sums& sums, const Operand& o, const u32 (*a_registers)[4]);

}  // namespace sim
