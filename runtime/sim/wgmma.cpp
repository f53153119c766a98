// wgmma m64nNk16, and k32 of 8-bit types: 128 threads meet at issue. In the checked mode the product is computed only when
// it is waited for, and until then the accumulators hold NaN (or -1); otherwise it is computed at issue.
#include <stdlib.h>

#include "checker.h"
#include "half.h"
#include "state.h"

namespace sim {
namespace {

constexpr int kGroupThreads = 128, kMaxN = 256, kWarpgroups = kMaxThreads / kGroupThreads;

struct Operand {  // what one thread passes
  float* d;
  u64 a, b;
  u32 a_registers[4];
  int n, transposed_b, accumulate, type, from_registers;
  bool is_float8() const { return type >= SIM_FLOAT8; }
  bool is_int8() const { return type >= SIM_INT8 && !is_float8(); }
  bool is_bf16() const { return type == 1; }
};
struct Operation {
  Operand of[kGroupThreads];
  float* saved;  // the accumulators before they were poisoned, or null
  u32 clock;
};
struct Warpgroup {
  int arrived;
  u32 waiting[kMaxWarps];
  Operand of[kGroupThreads];
  Operation* pending;  // ring-less queue: [done, count) are still to run
  int done, count, capacity;
};
struct Groups {  // of one thread: which operations each committed group ends with
  int end[64];
  int groups, seen;
};
Warpgroup warpgroups[kWarpgroups];
Groups committed[kMaxThreads];
bool fenced[kMaxThreads];  // a wgmma_fence() since the thread last waited: its registers are ready for wgmma

const u16* swizzled_chunk(u32 address) { return (const u16*)shared_pointer(address ^ ((address >> 7 & 7) << 4), 16, 16); }

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

alignas(64) float dense_a[64][16], dense_b[16][kMaxN], dense_c[16][kMaxN];
alignas(64) int whole_a[64][32], whole_b[32][kMaxN], whole_c[16][kMaxN];
alignas(64) float byte_a[64][32], byte_b[32][kMaxN];  // of 8-bit floats

void read_a(const Operand* of) {
  const bool bf16 = of[0].is_bf16();
  if (of[0].from_registers) {
    for (int t = 0; t < kGroupThreads; ++t)
      for (int r = 0; r < 4; ++r) {
        const int row = t / 32 * 16 + t % 32 / 4 + (r & 1) * 8, k = t % 4 * 2 + (r >> 1) * 8;
        dense_a[row][k] = widen((u16)of[t].a_registers[r], bf16);
        dense_a[row][k + 1] = widen((u16)(of[t].a_registers[r] >> 16), bf16);
      }
    return;
  }
  const Descriptor a(of[0].a);
  for (int r = 0; r < 64; ++r)
    for (int c = 0; c < 2; ++c) widen_chunk(&dense_a[r][c * 8], swizzled_chunk(a.k_major(r, c)), bf16);
}

void read_b(const Operand& o) {
  const Descriptor b(o.b);
  if (o.transposed_b) {
    for (int k = 0; k < 16; ++k)
      for (int c = 0; c < o.n / 8; ++c) widen_chunk(&dense_b[k][c * 8], swizzled_chunk(b.n_major(k, c)), o.is_bf16());
    return;
  }
  for (int r = 0; r < o.n; ++r)
    for (int c = 0; c < 2; ++c) {
      alignas(32) float eight[8];
      widen_chunk(eight, swizzled_chunk(b.k_major(r, c)), o.is_bf16());
      for (int i = 0; i < 8; ++i) dense_b[c * 8 + i][r] = eight[i];
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

// c[16][n] += 16 rows of A times B, eight columns at a time. Vector is 8 floats or 8 ints.
template <class Vector, class T, int K>
void multiply(T (&c)[16][kMaxN], const T (*a)[K], const T (&b)[K][kMaxN], int n) {
  for (int j = 0; j < n; j += 8)
    for (int half = 0; half < 16; half += 8) {
      Vector sum[8];
      for (int i = 0; i < 8; ++i) sum[i] = *(const Vector*)&c[half + i][j];
      for (int k = 0; k < K; ++k) {
        const Vector row = *(const Vector*)&b[k][j];
        for (int i = 0; i < 8; ++i) sum[i] += row * a[half + i][k];
      }
      for (int i = 0; i < 8; ++i) *(Vector*)&c[half + i][j] = sum[i];
    }
}

template <class Vector, class T, int K>
void multiply_add(const Operand* of, T (&c)[16][kMaxN], const T (&a)[64][K], const T (&b)[K][kMaxN]) {
  const int n = of[0].n;
  for (int w = 0; w < 4; ++w) {
    if (!of[0].accumulate) memset(c, 0, sizeof c);
    else
      for (int l = 0; l < kLanes; ++l)
        for (int j = 0; j < n / 8; ++j) {
          memcpy(&c[l / 4][j * 8 + l % 4 * 2], of[w * 32 + l].d + j * 4, 8);
          memcpy(&c[l / 4 + 8][j * 8 + l % 4 * 2], of[w * 32 + l].d + j * 4 + 2, 8);
        }
    multiply<Vector, T, K>(c, a + w * 16, b, n);
    for (int l = 0; l < kLanes; ++l)
      for (int j = 0; j < n / 8; ++j) {
        memcpy(of[w * 32 + l].d + j * 4, &c[l / 4][j * 8 + l % 4 * 2], 8);
        memcpy(of[w * 32 + l].d + j * 4 + 2, &c[l / 4 + 8][j * 8 + l % 4 * 2], 8);
      }
  }
}

void compute(const Operand* of) {
  if (of[0].is_int8()) {
    read_bytes(of[0], whole_a, whole_b);
    multiply_add<Int8, int, 32>(of, whole_c, whole_a, whole_b);
  } else if (of[0].is_float8()) {  // exact products, f32 sums
    read_bytes(of[0], byte_a, byte_b);
    multiply_add<Float8, float, 32>(of, dense_c, byte_a, byte_b);
  } else {
    read_a(of);
    read_b(of[0]);
    multiply_add<Float8, float, 16>(of, dense_c, dense_a, dense_b);
  }
}

void check_operands(const Operand* of, int group, u32 clock, const void* pc) {
  const int agent = kWgmmaAgent + group, first = group * 4;
  auto touch = [&](u32 address) { check_agent(swizzled_chunk(address), 16, Access::Read, agent, clock, first, 4, pc); };
  const Operand& o = of[0];
  if (!o.from_registers)
    for (int r = 0; r < 64; ++r)
      for (int c = 0; c < 2; ++c) touch(Descriptor(o.a).k_major(r, c));
  const Descriptor b(o.b);
  for (int r = 0; r < (o.transposed_b ? 16 : o.n); ++r)
    for (int c = 0; c < (o.transposed_b ? o.n / 8 : 2); ++c) touch(o.transposed_b ? b.n_major(r, c) : b.k_major(r, c));
}

// Saves and poisons the accumulators, unless an operation on them is already pending.
float* hide_accumulators(const Warpgroup& g) {
  for (int i = g.done; i < g.count; ++i)
    if (g.pending[i].of[0].d == g.of[0].d) return nullptr;
  const size_t each = (size_t)g.of[0].n / 2;
  float* saved = (float*)allocate(nullptr, kGroupThreads * each * sizeof(float));
  for (int t = 0; t < kGroupThreads; ++t) {
    memcpy(saved + (size_t)t * each, g.of[t].d, each * sizeof(float));
    memset((void*)g.of[t].d, 0xff, each * sizeof(float));
  }
  return saved;
}

void run(Operation& op) {
  if (op.saved) {
    const size_t each = (size_t)op.of[0].n / 2;
    for (int t = 0; t < kGroupThreads; ++t) memcpy(op.of[t].d, op.saved + (size_t)t * each, each * sizeof(float));
    free(op.saved);
    op.saved = nullptr;
  }
  compute(op.of);
}

void check_uniform(const Operand* of) {
  for (int t = 1; t < kGroupThreads; ++t)
    if ((!of[0].from_registers && of[t].a != of[0].a) || of[t].b != of[0].b || of[t].accumulate != of[0].accumulate ||
        of[t].n != of[0].n || of[t].transposed_b != of[0].transposed_b || of[t].type != of[0].type ||
        of[t].from_registers != of[0].from_registers)
      sim_fail("wgmma: threads of one warpgroup disagree on the descriptors or the shape");
  const int step = of[0].is_int8() && of[0].n > 32 ? 16 : 8;
  if (of[0].n % step || of[0].n < 8 || of[0].n > kMaxN) sim_fail("wgmma: N = %d is not a multiple of %d up to 256", of[0].n, step);
}

void issue(Warpgroup& g, int group, const void* pc) {
  check_uniform(g.of);
  if (!checked) {
    compute(g.of);
    ++g.count;
    g.done = g.count;
    return;
  }
  if (g.count == g.capacity) grow(g.pending, g.capacity, 16);
  Operation& op = g.pending[g.count];
  memcpy((void*)op.of, (const void*)g.of, sizeof g.of);
  op.clock = agent_tick(kWgmmaAgent + group);
  op.saved = hide_accumulators(g);
  check_operands(g.of, group, op.clock, pc);
  ++g.count;
}

}  // namespace

void wgmma_reset() {
  for (Warpgroup& g : warpgroups) {
    for (int i = g.done; i < g.count && g.pending; ++i) free(g.pending[i].saved);
    g.arrived = g.done = g.count = 0;
    memset(g.waiting, 0, sizeof g.waiting);
  }
  for (int i = 0; i < thread_count; ++i) {
    committed[i].groups = committed[i].seen = 0;
    fenced[i] = false;
  }
}

void wgmma_check_exit(const SimThread& thread) {
  const Groups& mine = committed[thread.linear];
  if (mine.groups || mine.seen != warpgroups[thread.linear / kGroupThreads].count)
    sim_fail("a thread returned with wgmma operations that it never waited for");
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_wgmma(void* d, int n, u64 a, const u32* a_registers, u64 b, int transposed_b, int accumulate, int type) {
  used_units |= kWgmma;
  const int group = sim_current->linear / kGroupThreads;
  Warpgroup& g = warpgroups[group];
  if ((group + 1) * kGroupThreads > thread_count) sim_fail("wgmma in a warpgroup that is not complete");
  if (checked && !fenced[sim_current->linear])
    sim_fail("wgmma without a wgmma_fence() after the start or the last wgmma_wait(): its registers may still be written");
  Operand& o = g.of[sim_current->linear % kGroupThreads];
  o = {(float*)d, a, b, {0, 0, 0, 0}, n, transposed_b, accumulate != 0, type, a_registers != nullptr};
  if (a_registers) memcpy(o.a_registers, a_registers, sizeof o.a_registers);
  if (++g.arrived < kGroupThreads) {
    park(g.waiting);
    return;
  }
  g.arrived = 0;
  issue(g, group, __builtin_return_address(0));
  wake(g.waiting);
}

void sim_wgmma_fence() {
  used_units |= kWgmma;
  fenced[sim_current->linear] = true;
}

void sim_wgmma_commit() {
  used_units |= kWgmma;
  Groups& mine = committed[sim_current->linear];
  if (mine.groups == 64) sim_fail("more than 64 wgmma groups in flight");
  mine.end[mine.groups++] = warpgroups[sim_current->linear / kGroupThreads].count;
}

void sim_wgmma_wait(int newest) {
  fenced[sim_current->linear] = false;
  Warpgroup& g = warpgroups[sim_current->linear / kGroupThreads];
  Groups& mine = committed[sim_current->linear];
  const int finished = mine.groups - newest;
  if (finished <= 0) return;
  const int end = mine.end[finished - 1];
  for (; g.done < end; ++g.done) run(g.pending[g.done]);
  if (checked && end) hb_acquire_agent(sim_current->warp, kWgmmaAgent + sim_current->linear / kGroupThreads, g.pending[end - 1].clock);
  mine.seen = end;
  for (int i = finished; i < mine.groups; ++i) mine.end[i - finished] = mine.end[i];
  mine.groups -= finished;
}

}  // extern "C"
