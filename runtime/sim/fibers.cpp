// Threads as fibers: stacks, the context switch and the scheduler.
//
// A fiber runs threads one after another; only when a thread blocks does the next one get a stack of its own. A kernel
// without barriers therefore never switches. A warp runs until it blocks: the greatest skew between warps is what exposes
// a missing barrier. A seed other than 0 also picks random warps and lanes and preempts at rendezvous points.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>

#include "state.h"
#include "switch.h"

extern "C" {
__thread SimPlace sim_place = {};
}

namespace sim {
namespace {

#if defined(__aarch64__)
constexpr size_t kPage = 64 << 10;  // the largest page that machines may have
#else
constexpr size_t kPage = 4 << 10;
#endif
constexpr size_t kStackBytes = (256 << 10) + kPage;  // no power of two, or all stacks would fall into the same sets of the L2 cache
constexpr int kGuarded = 1 << 14;  // a process has few mappings

std::atomic<int> guards;  // pages that nobody may touch, below the stacks of all host threads

bool takes_guard() {
  if (guards.fetch_add(1, std::memory_order_relaxed) < kGuarded) return true;
  guards.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

void* take_stack(Stacks& s) {
  if (s.free_count) return s.free[--s.free_count];
  if (s.used_count == s.count) abort();
  char* stack = s.area + kStackBytes * (size_t)s.used_count++;
  if (s.used_count == s.guarded + 1 && takes_guard()) {
    mprotect(stack, kPage, PROT_NONE);
    ++s.guarded;
  }
  return stack;
}

inline void free_dead_stack(Stacks& s) {
  if (!s.dead) return;
  s.free[s.free_count++] = s.dead;
  s.dead = nullptr;
}

inline SimThread* first_ready_lane(Sm& s, int w, u32 ready) {
  const u32 r = (u32)s.warps[w].rotation;
  const u32 turned = ready >> r | ready << (-r & 31);
  return &s.threads[w * kLanes + ((__builtin_ctz(turned) + r) & 31)];
}

// The next thread to run, of any warp. Null if none can.
SimThread* pick(Sm& s) {
  int w = s.seed ? (int)(random_bits() % (u64)s.warp_count) : 0;
  for (int i = 0; i < s.warp_count; ++i) {
    if (s.warps[w].ready) return first_ready_lane(s, w, s.warps[w].ready);
    if (++w == s.warp_count) w = 0;
  }
  return nullptr;
}

// As pick, but lets a pending TMA load complete when nobody can run: loads land as late as they possibly can. Null if the
// next thread is one of another block.
SimThread* pick_or_land(Sm& s) {
  for (;;) {
    if (SimThread* next = pick(s)) return next;
    if (s.cooperative) return nullptr;
    if (!tma_land_one()) deadlock();
  }
}

// The next thread to run when one of ``warp`` can't go on: of the same warp, if one can.
inline SimThread* after(Sm& s, int warp, u32 ready) { return ready ? first_ready_lane(s, warp, ready) : pick_or_land(s); }

// Marks a thread as started. False if it was.
inline bool begins(Sm& s, SimThread* thread) {
  Warp& w = s.warps[thread->warp];
  const u32 bit = 1u << thread->lane;
  if (!(w.unstarted & bit)) return false;
  w.unstarted &= ~bit;
  return true;
}

void finish_thread(Sm& s, SimThread& thread) {
  if (s.used_units & kCopies) cp_async_check_exit(thread);
  if (s.used_units & kStores) tma_check_exit(thread);
  if (s.used_units & kWgmma) wgmma_check_exit(thread);
  const u32 bit = 1u << thread.lane;
  Warp& w = s.warps[thread.warp];
  w.ready &= ~bit;
  w.done |= bit;
  if (++s.done_count == s.thread_count) {
    tma_check_block_end();
    cluster_block_end();
  }
  if (w.arrived && (w.mask[__builtin_ctz(w.arrived)] & bit))
    sim_fail("a thread returned while other lanes of its warp wait in %s, whose mask names it", w.name);
}

// Runs lanes of a warp after ``me``, which has returned, on its stack: as long as each is straight code, so that no lane of the
// warp has waited for anything. Returns the last one, which is still to be finished.
SimThread* run_straight_lanes(Sm& s, SimThread* me) {
  Warp& w = s.warps[me->warp];
  void* const stack = me->stack;
  u32 bit = 1u << me->lane;
  while (!s.used_units && !w.arrived && !w.rotation && w.unstarted && (w.ready & ~bit) == w.unstarted) {
    w.ready &= ~bit;
    w.done |= bit;
    ++s.done_count;
    me = &s.threads[me->warp * kLanes + __builtin_ctz(w.unstarted)];
    bit = w.unstarted & -w.unstarted;
    w.unstarted &= ~bit;
    me->stack = stack;
    sim_current = me;
    s.kernel(s.kernel_params);
  }
  return me;
}

void fiber_main() {
  Sm& s = sm();
  for (;;) {
    free_dead_stack(s.stacks);
    s.kernel(s.kernel_params);
    SimThread* me = run_straight_lanes(s, sim_current);
    void* stack = me->stack;
    finish_thread(s, *me);
    void* unused;
    if (s.done_count == s.thread_count) {
      s.stacks.dead = stack;
      sim_switch(&unused, s.launch_stack_pointer);
    }
    SimThread* next = after(s, me->warp, s.warps[me->warp].ready);
    if (next && begins(s, next)) {  // goes on on this stack: no switch at all
      next->stack = stack;
      sim_current = next;
      continue;
    }
    s.stacks.dead = stack;
    if (next) sim_current = next;
    sim_switch(&unused, next ? next->stack_pointer : s.launch_stack_pointer);
  }
}

// Gives a thread a stack whose first frame is fiber_main.
__attribute__((noinline)) void start(Sm& s, SimThread* thread) {
  thread->stack = take_stack(s.stacks);
  // Lanes start at different offsets so that their variables do not fall into the same cache sets.
  thread->stack_pointer = first_frame((uintptr_t)thread->stack + kStackBytes - 256 - (size_t)(thread->linear & 63) * 192, fiber_main);
}

// Leaves the current context, saved in *save, and runs ``next``.
inline void resume(Sm& s, SimThread* next, void** save) {
  if (begins(s, next)) start(s, next);
  sim_current = next;
  sim_switch(save, next->stack_pointer);
}

inline void switch_to(Sm& s, SimThread* me, SimThread* next) {
  if (next == me) return;
  if (next) resume(s, next, &me->stack_pointer);
  else sim_switch(&me->stack_pointer, s.launch_stack_pointer);
  free_dead_stack(s.stacks);
}

}  // namespace

void* allocate(void* old, size_t bytes) {
  void* found = realloc(old, bytes);
  if (!found) sim_fail("the simulator has not enough memory: %zu bytes", bytes);
  return found;
}

void* map_pages(size_t bytes) {
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) sim_fail("the simulator has not enough memory: %zu bytes", bytes);
  return found;
}

u64 random_bits() {
  u64& state = sm().random_state;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void park(u32* waiting) {
  Sm& s = sm();
  SimThread* const me = sim_current;
  Warp& w = s.warps[me->warp];
  const u32 bit = 1u << me->lane, others = w.ready & ~bit;
  w.ready = others;
  if (waiting) waiting[me->warp] |= bit;
  switch_to(s, me, after(s, me->warp, others));
}

void wake(u32* waiting) {
  Sm& s = sm();
  for (int w = 0; w < s.warp_count; ++w) {
    s.warps[w].ready |= waiting[w];
    waiting[w] = 0;
  }
}

void take_block(Sm& s) {
  const SimThread& me = *sim_current;
  for (int i = 0; i < s.warp_count; ++i) {
    Warp& w = s.warps[i];
    w.all = w.ready = i == me.warp ? 1u << me.lane : 0;
    w.unstarted = w.arrived = w.done = 0;
  }
  s.done_count = s.thread_count - 1;
}

void maybe_preempt() {
  Sm& s = sm();
  if (!s.seed) return;
  const u64 bits = random_bits();
  if ((bits & 15) == 0) switch_to(s, sim_current, pick(s));
  if ((bits & 0xf0) == 0) tma_land_one();
}

bool in_fiber_stack(const void* p) {
  return (size_t)((const char*)p - sm().stacks.area) < kStackBytes * (size_t)sm().stacks.count;
}

void deadlock() {
  char text[1500];
  describe_waiting(text, sizeof text);
  sim_fail("deadlock: no thread can run;%s", text);
}

void stacks_create(int count) {
  Stacks& s = sm().stacks;
  if (count <= s.count) return;
  if (s.area) munmap(s.area, kStackBytes * (size_t)s.count);
  guards.fetch_sub(s.guarded, std::memory_order_relaxed);
  s.area = nullptr;
  s.count = s.guarded = 0;
  s.area = (char*)map_pages(kStackBytes * (size_t)count);
  s.count = count;
  s.free = (void**)allocate((void*)s.free, sizeof(void*) * (size_t)count);
}

void stacks_reset() {
  Stacks& s = sm().stacks;
  s.free_count = s.used_count = 0;
  s.dead = nullptr;
}

bool run_block() {
  Sm& s = sm();
  s.running = true;
  resume(s, pick(s), &s.launch_stack_pointer);
  if (!s.running) return false;
  s.running = false;
  return true;
}

}  // namespace sim

using namespace sim;

void sim_fail(const char* format, ...) {
  Sm& s = sm();
  const uint3 block = sim_place.block_index, thread = sim_current ? sim_current->index : uint3{};
  const int n = snprintf(s.error_text, 200, "block (%u,%u,%u) thread (%u,%u,%u): ", block.x, block.y, block.z, thread.x,
                         thread.y, thread.z);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(s.error_text + n, sizeof s.error_text - (size_t)n, format, arguments);
  va_end(arguments);
  if (!s.running) longjmp(s.setting_up, 1);
  s.running = false;
  void* unused;
  sim_switch(&unused, s.launch_stack_pointer);  // back to run_block; the fibers are dropped as they are
  __builtin_unreachable();
}

extern "C" {

void* sim_scratch(u64 bytes) {
  Sm& s = sm();
  if (bytes > s.scratch_bytes) {
    s.scratch = (char*)allocate(s.scratch, bytes + 64);
    s.scratch_bytes = bytes;
  }
  return (void*)(((uintptr_t)s.scratch + 63) & ~(uintptr_t)63);
}

}  // extern "C"
