// wgmma's operations: issued, committed in groups, and computed when a thread waits for them.
//
// In checked mode 128 threads meet at issue, and until the operation is waited for its accumulators hold NaN (or -1). In
// the other mode threads only note what they issue; whoever waits for an operation that all have issued computes it and
// those before it. Sums that a later operation goes on with stay dense until then.
#include <stdlib.h>

#include "checker.h"
#include "wgmma.h"

namespace sim {
namespace {

constexpr int kWarpgroups = kMaxThreads / kGroupThreads, kInFlight = 256;

struct Operation {
  Operand operand;
  int arrived, first;  // threads that have issued it, and which did so first
  float* d[kGroupThreads];
  u32 a_registers[kGroupThreads][4];
  float* saved;  // checked mode: the accumulators before they were poisoned, or null
  u32 clock;
};
struct Warpgroup {
  u32 waiting[kMaxWarps];
  Operation* pending;  // checked mode: all of the block; otherwise a ring
  int done, count, capacity;  // [done, count) are still to run
  Sums* sums;
  bool resident;  // the sums of the last operation that ran are not in the registers yet
  Operation& at(int i) { return pending[sm().checked ? i : i % kInFlight]; }
};
struct Groups {  // of one thread: how many operations it has issued, and which ones each committed group ends with
  int end[64];
  int groups, seen, issued;
};

}  // namespace

struct Warpgroups {
  Warpgroup of[kWarpgroups];
  Groups committed[kMaxThreads];
  bool fenced[kMaxThreads];  // a wgmma_fence() since the thread last waited: its registers are ready for wgmma
};

namespace {

void check_operands(const Operand& o, int group, u32 clock, const void* pc) {
  const int agent = kWgmmaAgent + group, first = group * 4;
  auto touch = [&](u32 address) { check_agent(swizzled_chunk(address), 16, Access::Read, agent, clock, first, 4, pc); };
  if (!o.from_registers)
    for (int r = 0; r < 64; ++r)
      for (int c = 0; c < 2; ++c) touch(a_chunk(o, r, c));
  for (int r = 0; r < (o.transposed_b ? 16 : o.n); ++r)
    for (int c = 0; c < (o.transposed_b ? o.n / 8 : 2); ++c) touch(b_chunk(o, r, c));
}

// Saves and poisons the accumulators of the last operation, unless an earlier one on them is pending.
float* hide_accumulators(Warpgroup& g, const Operation& op) {
  for (int i = g.done; i < g.count - 1; ++i)
    if (g.at(i).d[0] == op.d[0]) return nullptr;
  const size_t each = (size_t)op.operand.n / 2;
  float* saved = (float*)allocate(nullptr, kGroupThreads * each * sizeof(float));
  for (int t = 0; t < kGroupThreads; ++t) {
    memcpy(saved + (size_t)t * each, op.d[t], each * sizeof(float));
    memset((void*)op.d[t], 0xff, each * sizeof(float));
  }
  return saved;
}

// Computes the first operation that has not run. ``goes_on``: the next one adds to its sums, and no register is read before.
void run_next(Warpgroup& g, bool goes_on) {
  Operation& op = g.at(g.done++);
  const int n = op.operand.n;
  if (op.saved) {
    const size_t each = (size_t)n / 2;
    for (int t = 0; t < kGroupThreads; ++t) memcpy(op.d[t], op.saved + (size_t)t * each, each * sizeof(float));
    free(op.saved);
    op.saved = nullptr;
  }
  if (!g.sums) g.sums = (Sums*)map_pages(sizeof(Sums));
  if (!op.operand.accumulate) memset((void*)g.sums, 0, sizeof(Sums));
  else if (!g.resident) gather_sums(*g.sums, op.d, n);
  multiply_add(*g.sums, op.operand, op.a_registers);
  g.resident = goes_on;
  if (!goes_on) scatter_sums(*g.sums, op.d, n);
}

// Whether operation ``i``, which some thread has issued, adds to the sums of the one before it.
bool adds_to_last(Warpgroup& g, int i) {
  const Operation &op = g.at(i), &last = g.at(i - 1);
  return op.operand.accumulate && op.operand.n == last.operand.n && op.d[op.first] == last.d[op.first];
}

void check_shape(const Operand& o) {
  const int step = o.is_int8() && o.n > 32 ? 16 : 8;
  if (o.n % step || o.n < 8 || o.n > kMaxN) sim_fail("wgmma: N = %d is not a multiple of %d up to 256", o.n, step);
}

// The operation that the current thread issues, which others may have issued before.
Operation& issued(Warpgroup& g, Groups& mine, const Operand& o) {
  const int i = mine.issued++, t = sim_current->linear % kGroupThreads;
  if (i == g.count) {
    check_shape(o);
    if (!sm().checked && g.count - g.done == kInFlight) sim_fail("more than %d wgmma operations in flight", kInFlight);
    if (!sm().checked && !g.capacity) g.pending = (Operation*)allocate(g.pending, (size_t)(g.capacity = kInFlight) * sizeof(Operation));
    if (sm().checked && g.count == g.capacity) grow(g.pending, g.capacity, kInFlight);
    Operation& op = g.at(g.count++);
    op.operand = o;
    op.arrived = 0;
    op.first = t;
    op.saved = nullptr;
    return op;
  }
  Operation& op = g.at(i);
  if (!(op.operand == o)) sim_fail("wgmma: threads of one warpgroup disagree on the descriptors or the shape");
  return op;
}

}  // namespace

void warpgroups_create() { create(sm().warpgroups); }

void wgmma_reset() {
  for (Warpgroup& g : sm().warpgroups->of) {
    for (int i = g.done; i < g.count; ++i) {
      free(g.at(i).saved);
      g.at(i).saved = nullptr;
    }
    g.done = g.count = 0;
    g.resident = false;
    memset(g.waiting, 0, sizeof g.waiting);
  }
  for (int i = 0; i < sm().thread_count; ++i) {
    Groups& mine = sm().warpgroups->committed[i];
    mine.groups = mine.seen = mine.issued = 0;
    sm().warpgroups->fenced[i] = false;
  }
}

void wgmma_check_exit(const SimThread& thread) {
  const Groups& mine = sm().warpgroups->committed[thread.linear];
  if (mine.groups || mine.seen != mine.issued)
    sim_fail("a thread returned with wgmma operations that it never waited for");
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_wgmma(void* d, int n, u64 a, const u32* a_registers, u64 b, int transposed_b, int accumulate, int type) {
  Sm& s = sm();
  Warpgroups& all = *s.warpgroups;
  s.used_units |= kWgmma;
  const int me = sim_current->linear, group = me / kGroupThreads, t = me % kGroupThreads;
  Warpgroup& g = all.of[group];
  if ((group + 1) * kGroupThreads > s.thread_count) sim_fail("wgmma in a warpgroup that is not complete");
  if (s.checked && !all.fenced[me])
    sim_fail("wgmma without a wgmma_fence() after the start or the last wgmma_wait(): its registers may still be written");
  Operation& op = issued(g, all.committed[me], {a, b, n, transposed_b, accumulate != 0, type, a_registers != nullptr});
  op.d[t] = (float*)d;
  if (a_registers) memcpy(op.a_registers[t], a_registers, sizeof op.a_registers[t]);
  if (++op.arrived == kGroupThreads) {
    if (s.checked) {
      op.clock = agent_tick(kWgmmaAgent + group);
      op.saved = hide_accumulators(g, op);
      check_operands(op.operand, group, op.clock, __builtin_return_address(0));
    }
    wake(g.waiting);
  } else if (s.checked) {
    park(g.waiting);
  }
}

void sim_wgmma_fence() {
  sm().used_units |= kWgmma;
  sm().warpgroups->fenced[sim_current->linear] = true;
}

void sim_wgmma_commit() {
  sm().used_units |= kWgmma;
  Groups& mine = sm().warpgroups->committed[sim_current->linear];
  if (mine.groups == 64) sim_fail("more than 64 wgmma groups in flight");
  mine.end[mine.groups++] = mine.issued;
}

void sim_wgmma_wait(int newest) {
  Warpgroups& all = *sm().warpgroups;
  const int me = sim_current->linear;
  all.fenced[me] = false;
  Warpgroup& g = all.of[me / kGroupThreads];
  Groups& mine = all.committed[me];
  const int finished = mine.groups - newest;
  if (finished <= 0) return;
  const int end = mine.end[finished - 1];
  while (g.done < end && g.at(end - 1).arrived < kGroupThreads) park(g.waiting);
  while (g.done < end) {
    const int next = g.done + 1;
    run_next(g, next < mine.issued && !g.at(next).saved && adds_to_last(g, next));
  }
  if (sm().checked && end) hb_acquire_agent(sim_current->warp, kWgmmaAgent + sim_current->linear / kGroupThreads, g.at(end - 1).clock);
  mine.seen = end;
  for (int i = finished; i < mine.groups; ++i) mine.end[i - finished] = mine.end[i];
  mine.groups -= finished;
}

}  // extern "C"
