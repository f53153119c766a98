// mbarriers: arrival counts, expected bytes and phases. Their state lives in a table; shared memory holds a seal that
// shows when something else overwrites the barrier.
#include <stdio.h>

#include "checker.h"
#include "state.h"

namespace sim {
namespace {

struct MBarrier {
  u32 address;
  int expected, pending;  // arrivals of a phase, and those still missing
  i64 bytes;              // transfers expected and not yet complete
  int phase;
  bool published;         // fence_mbar_init or fence_proxy_async since init
  u32 waiting[kMaxWarps];
  VectorClock released, completed;
};
constexpr int kMaxBarriers = 128;
constexpr int kMostBytes = (1 << 20) - 1;  // and arrivals

}  // namespace

struct MBarriers {
  MBarrier table[kMaxBarriers];
  int size;
};

namespace {

u64 seal(u32 address) { return 0x9d5c3a71b2e6f480ull ^ (u64)address << 20; }

MBarrier* lookup(u32 address) {
  MBarriers& all = *sm().mbarriers;
  for (int i = 0; i < all.size; ++i)
    if (all.table[i].address == address) return &all.table[i];
  return nullptr;
}

MBarrier& find(u32 address, const void* pc) {
  u8* p = shared_pointer(address, 8, 8);
  MBarrier* m = lookup(address);
  if (!m) sim_fail("the mbarrier at shared offset %u was never initialised", address - kSharedBase);
  const u64 expected = seal(address);
  if (memcmp(p, &expected, 8)) sim_fail("the mbarrier at shared offset %u was overwritten", address - kSharedBase);
  if (sm().checked && pc) check_shared(p, 8, Access::Atomic, sim_current->linear, pc);
  return *m;
}

void complete_if_done(MBarrier& m) {
  if (m.pending || m.bytes) return;
  m.phase ^= 1;
  m.pending = m.expected;
  m.completed = m.released;
  wake(m.waiting);
}

void arrive(MBarrier& m) {
  if (!m.pending) sim_fail("more than %d arrivals in one phase of the mbarrier at shared offset %u", m.expected, m.address - kSharedBase);
  if (sm().checked) hb_release(m.released, sim_current->linear);
  --m.pending;
  complete_if_done(m);
}

}  // namespace

size_t describe_mbarriers(char* text, size_t size) {
  MBarriers& all = *sm().mbarriers;
  size_t n = 0;
  for (int i = 0; i < all.size && n + 200 < size; ++i) {
    const MBarrier& m = all.table[i];
    bool waited = false;
    for (u32 lanes : m.waiting) waited |= lanes != 0;
    if (waited)
      n += (size_t)snprintf(text + n, size - n, " the mbarrier at shared offset %u waits for %d arrivals and %lld bytes;",
                            m.address - kSharedBase, m.pending, m.bytes);
  }
  return n;
}

void mbarriers_create() { create(sm().mbarriers); }

void mbarriers_reset() { sm().mbarriers->size = 0; }

void mbarriers_check_end() {
  MBarriers& all = *sm().mbarriers;
  for (int i = 0; i < all.size; ++i)
    if (all.table[i].bytes)
      sim_fail("the block ends with %lld bytes unaccounted for on the mbarrier at shared offset %u: expect_tx and the loads disagree",
               all.table[i].bytes, all.table[i].address - kSharedBase);
}

int mbar_agent(u32 bar) {
  const MBarrier& m = find(bar, nullptr);
  if (sm().checked && !m.published)
    sim_fail("a TMA load uses the mbarrier at shared offset %u, but no fence_mbar_init() followed its initialisation", bar - kSharedBase);
  return kLoadAgent + (int)(&m - sm().mbarriers->table) % kLoadAgents;
}

void mbar_complete_bytes(u32 bar, int bytes, int agent, u32 clock) {
  MBarrier& m = find(bar, nullptr);
  m.bytes -= bytes;
  if (sm().checked) hb_join_agent(m.released, agent, clock);
  complete_if_done(m);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_mbar_init(u32 bar, int count) {
  MBarriers& all = *sm().mbarriers;
  u8* p = shared_pointer(bar, 8, 8);
  if (count < 1 || count > kMostBytes) sim_fail("mbarrier count %d", count);
  if (sm().checked) check_shared(p, 8, Access::Write, sim_current->linear, __builtin_return_address(0));
  MBarrier* m = lookup(bar);
  if (!m) {
    if (all.size == kMaxBarriers) sim_fail("more than %d mbarriers", kMaxBarriers);
    m = &all.table[all.size++];
  }
  memset((void*)m, 0, sizeof *m);
  m->address = bar;
  m->expected = m->pending = count;
  const u64 value = seal(bar);
  memcpy(p, &value, 8);
}

void sim_mbar_expect_tx(u32 bar, int bytes) {
  MBarrier& m = find(bar, __builtin_return_address(0));
  m.bytes += bytes;
  if (bytes < 0 || m.bytes > kMostBytes) sim_fail("expect_tx of %d bytes: an mbarrier counts up to %d", bytes, kMostBytes);
  arrive(m);
}

void sim_mbar_arrive(u32 bar) { arrive(find(bar, __builtin_return_address(0))); }

// Like the hardware's polling, a waiter that is woken looks again: it can miss a phase that comes and goes.
void sim_mbar_wait(u32 bar, int parity) {
  MBarrier& m = find(bar, __builtin_return_address(0));
  while (m.phase == (parity & 1)) park(m.waiting);
  if (sm().checked) hb_acquire(sim_current->warp, m.completed);
  maybe_preempt();
}

void sim_fence_mbar_init() {
  MBarriers& all = *sm().mbarriers;
  for (int i = 0; i < all.size; ++i) all.table[i].published = true;
}

void sim_fence_proxy_async() {
  sim_fence_mbar_init();
  if (sm().checked) hb_proxy_fence(sim_current->linear);
}

}  // extern "C"
