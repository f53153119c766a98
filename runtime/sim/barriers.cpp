// Where threads meet: __syncthreads, named barriers, and the warp operations that every lane enters together.
#include <stdio.h>

#include "checker.h"
#include "state.h"

namespace sim {

struct Barriers {
  NamedBarrier named[kNamedBarriers];
  void* block_slots[kMaxThreads];  // of a block operation, by thread
};

namespace {

// ``also`` is the warp of the thread that completed the barrier by waiting on it, or -1.
void release_all(NamedBarrier& b, int also) {
  if (sm().checked) {
    for (int w = 0; w < sm().warp_count; ++w)
      if (b.waiting[w] || w == also) hb_acquire(w, b.released);
    memset(&b.released, 0, sizeof b.released);
  }
  wake(b.waiting);
  b.count = 0;
  b.site = nullptr;
}

// Counts the current thread in. True if that completes the barrier.
bool arrive(Sm& s, NamedBarrier& b, int id, int threads, const char* site) {
  s.used_units |= kNamed;
  if (id < 0 || id >= kNamedBarriers) sim_fail("named barrier %d does not exist (0 to 15)", id);
  if (threads <= 0 || threads > kMaxThreads || (id && threads % kLanes))
    sim_fail("named barrier %d: %d threads is not a multiple of 32", id, threads);
  if (b.count == 0) {
    b.threads = threads;
    b.site = site;
  } else if (b.threads != threads) {
    sim_fail("named barrier %d: threads disagree on the count (%d and %d)", id, b.threads, threads);
  } else if (b.site != site) {
    sim_fail("divergent __syncthreads: some threads wait at %s, others at %s", b.site ? b.site : "a named barrier 0",
             site ? site : "a named barrier 0");
  }
  if (s.checked) hb_release(b.released, sim_current->linear);
  return ++b.count == threads;
}

void sync(int id, int threads, const char* site) {
  Sm& s = sm();
  if (s.used_units & kAlone) return;
  NamedBarrier& b = s.barriers->named[id & 15];
  if (arrive(s, b, id, threads, site)) {
    release_all(b, sim_current->warp);
    maybe_preempt();
  } else {
    park(b.waiting);
  }
}

}  // namespace

void barriers_create() { create(sm().barriers); }

void barriers_reset() { memset((void*)sm().barriers->named, 0, sizeof sm().barriers->named); }

void barriers_save(NamedBarrier* into) { memcpy((void*)into, sm().barriers->named, sizeof sm().barriers->named); }

void barriers_restore(const NamedBarrier* from) { memcpy((void*)sm().barriers->named, from, sizeof sm().barriers->named); }

void describe_waiting(char* text, size_t size) {
  size_t n = 0;
  text[0] = 0;
  for (int i = 0; i < kNamedBarriers && n + 200 < size; ++i)
    if (const NamedBarrier& b = sm().barriers->named[i]; b.count)
      n += (size_t)snprintf(text + n, size - n, " barrier %d has %d of %d threads%s%s;", i, b.count, b.threads,
                            b.site ? " at " : "", b.site ? b.site : "");
  n += describe_mbarriers(text + n, size - n);
  for (int i = 0; i < sm().warp_count && n + 200 < size; ++i) {
    const Warp& w = sm().warps[i];
    const u32 waiting = w.all & ~w.done & ~w.ready;
    if (waiting || w.done)
      n += (size_t)snprintf(text + n, size - n, " warp %d: waiting %08x, in %s %08x, returned %08x;", i, waiting,
                            w.arrived ? w.name : "a warp operation", w.arrived, w.done);
  }
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_syncthreads(const char* site) { sync(0, sm().thread_count, site); }

void sim_block_op(SimBlockOp op, void* slot, const char* name) {
  Sm& s = sm();
  NamedBarrier& b = s.barriers->named[0];
  s.barriers->block_slots[sim_current->linear] = slot;
  if (!arrive(s, b, 0, s.thread_count, name)) {
    park(b.waiting);
    return;
  }
  op(s.barriers->block_slots);
  release_all(b, sim_current->warp);
}

bool sim_alone() {
  Sm& s = sm();
  if (!sim_in_order || s.cooperative || sim_current->linear) return false;
  for (int i = 0; i < s.warp_count; ++i)
    if (s.warps[i].unstarted != (s.warps[i].all & ~(u32)(i == 0))) return false;  // another thread has begun
  take_block(s);
  s.used_units |= kAlone;
  return true;
}

void sim_bar_sync(int id, int threads) { sync(id, threads, nullptr); }

void sim_bar_arrive(int id, int threads) {
  NamedBarrier& b = sm().barriers->named[id & 15];
  if (arrive(sm(), b, id, threads, nullptr)) release_all(b, -1);
}

void sim_warp_op(u32 mask, SimWarpOp op, void* slot, const char* name) {
  SimThread* me = sim_current;
  Warp& w = sm().warps[me->warp];
  const u32 bit = 1u << me->lane;
  mask &= w.all;
  if (!(mask & bit)) sim_fail("lane %d calls %s with mask %08x, which omits it", me->lane, name, mask);
  if (w.arrived) {
    const int other = __builtin_ctz(w.arrived);
    if ((mask & w.mask[other]) && (w.op != op || w.mask[other] != mask || w.name != name))
      sim_fail("divergent warp operation: lane %d is in %s (mask %08x), lane %d in %s (mask %08x)", other, w.name,
               w.mask[other], me->lane, name, mask);
  }
  if (mask & w.done) sim_fail("%s names lanes %08x that have returned", name, mask & w.done);
  w.slot[me->lane] = slot;
  w.mask[me->lane] = mask;
  w.site[me->lane] = __builtin_return_address(0);
  w.op = op;
  w.name = name;
  w.arrived |= bit;
  if ((w.arrived & mask) != mask) {
    park(nullptr);
    return;
  }
  op(w.slot, mask);
  w.arrived &= ~mask;
  w.ready |= mask;
  maybe_preempt();
}

// Orders the warp's memory accesses, which no other warp operation does.
void sim_op_syncwarp(void**, u32 mask) {
  if (sm().checked && mask == sm().warps[sim_current->warp].all) hb_warp_sync(sim_current->warp);
}

void sim_op_shuffle(void** slots, u32 mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    SimShuffle* s = (SimShuffle*)slots[lane];
    const int width = s->width, base = lane & ~(width - 1), x = s->operand;
    int source = lane;
    if (s->mode == 0) source = base + (x & (width - 1));
    if (s->mode == 1 && lane - x >= base) source = lane - x;
    if (s->mode == 2 && lane + x < base + width) source = lane + x;
    if (s->mode == 3 && (lane ^ x) < base + width) source = lane ^ x;
    if (!(mask >> source & 1)) sim_fail("a shuffle reads lane %d, which is outside its mask %08x", source, mask);
    s->result = ((SimShuffle*)slots[source])->value;
  }
}

void sim_op_vote(void** slots, u32 mask) {
  u32 ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) ballot |= (u32)(((SimVote*)slots[lane])->predicate != 0) << lane;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) ((SimVote*)slots[lane])->ballot = ballot;
}

}  // extern "C"
