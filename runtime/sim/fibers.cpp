// Threads as fibers: stacks, the context switch, the scheduler and the launch of a grid.
//
// A fiber runs threads one after another; only when a thread blocks does the next one get a stack of its own. A kernel
// without barriers therefore never switches. A warp runs until it blocks: the greatest skew between warps is what exposes
// a missing barrier. A seed other than 0 also picks random warps and lanes and preempts at rendezvous points.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "checker.h"
#include "state.h"

extern "C" {
SimThread* sim_current;
uint3 sim_block_index;
dim3 sim_block_dim, sim_grid_dim;
u8* sim_dynamic_shared;
bool sim_in_order;
void sim_switch(void** save, void* to);
}

// Saves the callee-saved registers and the stack pointer in *save and continues on the stack ``to``.
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch,@function
sim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size sim_switch,.-sim_switch
)");

namespace sim {

SimThread threads[kMaxThreads];
Warp warps[kMaxWarps];
int thread_count, warp_count, seed, done_count;
size_t shared_bytes;
bool running;
u32 used_units;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 65 * kPage;  // no power of two, or all stacks would fall into the same sets of the L2 cache
constexpr int kStacks = kMaxThreads + 8;
constexpr int kMostTogether = 1 << 16;  // threads of a cooperative launch
constexpr int kGuarded = 1 << 14;  // stacks with a page below that nobody may touch: a process has few mappings

char* stack_area;
void** free_stacks;
int stack_count, free_count, used_count;
void* dead_stack;        // the stack of a thread that returned: freed once execution has left it
void* launch_stack_pointer;
void (*kernel)(const void*);
const void* kernel_params;
u64 random_state;
char error_text[4096];

jmp_buf setting_up;      // where a failure goes that no thread of the kernel makes

// Room for ``count`` stacks, none of which is in use.
void create_stacks(int count) {
  if (!sim_dynamic_shared) {
    void* raw = allocate(nullptr, kMaxShared + 2048);
    sim_dynamic_shared = (u8*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  }
  if (count <= stack_count) return;
  if (stack_area) munmap(stack_area, kStackBytes * (size_t)stack_count);
  stack_area = nullptr;
  stack_count = 0;
  stack_area = (char*)map_pages(kStackBytes * (size_t)count);
  stack_count = count;
  free_stacks = (void**)allocate((void*)free_stacks, sizeof(void*) * (size_t)count);
  for (int i = 0; i < count && i < kGuarded; ++i) mprotect(stack_area + (size_t)i * kStackBytes, kPage, PROT_NONE);
}

void* take_stack() {
  if (free_count) return free_stacks[--free_count];
  if (used_count == stack_count) abort();
  return stack_area + kStackBytes * (size_t)used_count++;
}

void free_dead_stack() {
  if (!dead_stack) return;
  free_stacks[free_count++] = dead_stack;
  dead_stack = nullptr;
}

inline SimThread* first_ready_lane(int w, u32 ready) {
  const u32 r = (u32)warps[w].rotation;
  const u32 turned = ready >> r | ready << (-r & 31);
  return &threads[w * kLanes + ((__builtin_ctz(turned) + r) & 31)];
}

// The next thread to run, of any warp. Null if none can.
SimThread* pick() {
  int w = seed ? (int)(random_bits() % (u64)warp_count) : 0;
  for (int i = 0; i < warp_count; ++i) {
    if (warps[w].ready) return first_ready_lane(w, warps[w].ready);
    if (++w == warp_count) w = 0;
  }
  return nullptr;
}

[[noreturn]] void deadlock() {
  char text[1500];
  describe_waiting(text, sizeof text);
  sim_fail("deadlock: no thread can run;%s", text);
}

// As pick, but lets a pending TMA load complete when nobody can run: loads land as late as they possibly can. Null if the
// next thread is one of another block.
SimThread* pick_or_land() {
  for (;;) {
    if (SimThread* next = pick()) return next;
    if (cooperative) return nullptr;
    if (!tma_land_one()) deadlock();
  }
}

// The next thread to run when one of ``warp`` can't go on: of the same warp, if one can.
inline SimThread* after(int warp, u32 ready) { return ready ? first_ready_lane(warp, ready) : pick_or_land(); }

// Marks a thread as started. False if it was.
inline bool begins(SimThread* thread) {
  Warp& w = warps[thread->warp];
  const u32 bit = 1u << thread->lane;
  if (!(w.unstarted & bit)) return false;
  w.unstarted &= ~bit;
  return true;
}

void finish_thread(SimThread& thread) {
  if (used_units & kCopies) cp_async_check_exit(thread);
  if (used_units & kStores) tma_check_exit(thread);
  if (used_units & kWgmma) wgmma_check_exit(thread);
  const u32 bit = 1u << thread.lane;
  Warp& w = warps[thread.warp];
  w.ready &= ~bit;
  w.done |= bit;
  if (++done_count == thread_count) {
    tma_check_block_end();
    cluster_block_end();
  }
  if (w.arrived && (w.mask[__builtin_ctz(w.arrived)] & bit))
    sim_fail("a thread returned while other lanes of its warp wait in %s, whose mask names it", w.name);
}

void fiber_main() {
  for (;;) {
    free_dead_stack();
    kernel(kernel_params);
    SimThread* me = sim_current;
    void* stack = me->stack;
    finish_thread(*me);
    void* unused;
    if (done_count == thread_count) {
      dead_stack = stack;
      sim_switch(&unused, launch_stack_pointer);
    }
    SimThread* next = after(me->warp, warps[me->warp].ready);
    if (next && begins(next)) {  // goes on on this stack: no switch at all
      next->stack = stack;
      sim_current = next;
      continue;
    }
    dead_stack = stack;
    if (next) sim_current = next;
    sim_switch(&unused, next ? next->stack_pointer : launch_stack_pointer);
  }
}

// Gives a thread a stack whose first frame is fiber_main.
__attribute__((noinline)) void start(SimThread* thread) {
  thread->stack = take_stack();
  // Lanes start at different offsets so that their variables do not fall into the same cache sets.
  uintptr_t top = (uintptr_t)thread->stack + kStackBytes - 256 - (size_t)(thread->linear & 63) * 192;
  void** sp = (void**)(top & ~(uintptr_t)63);
  *--sp = nullptr;
  *--sp = (void*)fiber_main;
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  thread->stack_pointer = sp;
}

// Leaves the current context, saved in *save, and runs ``next``.
inline void resume(SimThread* next, void** save) {
  if (begins(next)) start(next);
  sim_current = next;
  sim_switch(save, next->stack_pointer);
}

inline void switch_to(SimThread* next) {
  SimThread* const me = sim_current;
  if (next == me) return;
  if (next) resume(next, &me->stack_pointer);
  else sim_switch(&me->stack_pointer, launch_stack_pointer);
  free_dead_stack();
}

}  // namespace

char* scratch;
size_t scratch_bytes;

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
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void park(u32* waiting) {
  SimThread* const me = sim_current;
  Warp& w = warps[me->warp];
  const u32 bit = 1u << me->lane, others = w.ready & ~bit;
  w.ready = others;
  if (waiting) waiting[me->warp] |= bit;
  switch_to(after(me->warp, others));
}

void wake(u32* waiting) {
  for (int w = 0; w < warp_count; ++w) {
    warps[w].ready |= waiting[w];
    waiting[w] = 0;
  }
}

void maybe_preempt() {
  if (!seed) return;
  const u64 bits = random_bits();
  if ((bits & 15) == 0) switch_to(pick());
  if ((bits & 0xf0) == 0) tma_land_one();
}

bool in_fiber_stack(const void* p) { return (size_t)((const char*)p - stack_area) < kStackBytes * (size_t)stack_count; }

namespace {

struct sigaction old_actions[3];
const int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
alignas(64) char signal_stack[64 << 10];

void on_signal(int signal, siginfo_t* info, void*) {
  if (!running) {  // not ours: give it back and fault again
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
    return;
  }
  if (signal == SIGFPE) sim_fail("integer division by zero");
  sim_fail("invalid or misaligned memory access (address %p); checked mode tells the line", info->si_addr);
}

struct SignalScope {
  stack_t old_stack;
  SignalScope() {
    stack_t alternate = {};
    alternate.ss_sp = signal_stack;
    alternate.ss_size = sizeof signal_stack;
    sigaltstack(&alternate, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
  }
  ~SignalScope() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
    sigaltstack(&old_stack, nullptr);
  }
};

void start_threads() {
  const u32 bx = sim_block_dim.x, by = sim_block_dim.y;
  for (int i = 0; i < thread_count; ++i) {
    SimThread& t = threads[i];
    t.linear = i;
    t.warp = i / kLanes;
    t.lane = i % kLanes;
    t.index = {(u32)i % bx, (u32)i / bx % by, (u32)i / (bx * by)};
  }
}

// Resets what the last block used, of a launch that has not changed the number of threads yet.
void reset_units() {
  if (used_units & kNamed) barriers_reset();
  if (used_units & kCopies) cp_async_reset();
  if (used_units & kStores) tma_stores_reset();
  if (used_units & kWgmma) wgmma_reset();
  if (used_units & kClusters) cluster_reset();
  used_units = 0;
}

void stacks_reset() {
  free_count = used_count = 0;
  dead_stack = nullptr;
}

void start_block() {
  memset(sim_dynamic_shared, 0xff, shared_bytes);  // NaN in every float format: uninitialised reads show
  done_count = 0;
  if (!cooperative) stacks_reset();
  for (int i = 0; i < warp_count; ++i) {
    Warp& w = warps[i];
    const int lanes = thread_count - i * kLanes;
    w.all = w.ready = w.unstarted = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
    w.done = w.arrived = 0;
    w.rotation = seed ? (int)(random_bits() & 31) : 0;
  }
  reset_units();
  mbarriers_reset();
  tma_reset();
  cluster_block_start();
  grid_block_start();
  checker_block_start();
}

// Runs the block until its threads have returned or, in a cooperative launch, wait for other blocks. False if one failed.
bool run_block() {
  running = true;
  resume(pick(), &launch_stack_pointer);
  if (!running) return false;
  running = false;
  return true;
}

// Runs all blocks of a cooperative launch, each until it waits. False if one failed.
bool run_together() {
  const dim3 grid = sim_grid_dim;
  const int count = (int)(grid.x * grid.y * grid.z);
  stacks_reset();
  grid_start(count);
  for (int i = 0; i < count; ++i) {
    grid_select(i);
    sim_block_index = {(u32)i % grid.x, (u32)i / grid.x % grid.y, (u32)i / (grid.x * grid.y)};
    start_block();
    if (!run_block()) return false;
    grid_put_away();
  }
  for (int i = count - 1; !grid_over();) {
    i = grid_next(i);
    if (i < 0) {
      grid_stuck();
      deadlock();
    }
    grid_fetch(i);
    grid_wake();
    if (!run_block()) return false;
    grid_put_away();
  }
  return true;
}

}  // namespace
}  // namespace sim

using namespace sim;

void sim_fail(const char* format, ...) {
  const SimThread* t = sim_current;
  int n = snprintf(error_text, 200, "block (%u,%u,%u) thread (%u,%u,%u): ", sim_block_index.x, sim_block_index.y,
                   sim_block_index.z, t ? t->index.x : 0, t ? t->index.y : 0, t ? t->index.z : 0);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error_text + n, sizeof error_text - (size_t)n, format, arguments);
  va_end(arguments);
  if (!running) longjmp(setting_up, 1);
  running = false;
  void* unused;
  sim_switch(&unused, launch_stack_pointer);  // back to sim_launch; the fibers are dropped as they are
  __builtin_unreachable();
}

extern "C" {

void* sim_scratch(u64 bytes) {
  if (bytes > scratch_bytes) {
    scratch = (char*)allocate(scratch, bytes + 64);
    scratch_bytes = bytes;
  }
  return (void*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
}

const char* sim_error() { return error_text; }

// Runs the grid, block after block in index order. Returns 0, or 1 with the reason in sim_error().
int sim_launch(void (*entry)(const void*), const void* params, const u32* grid, const u32* block, u64 dynamic_bytes,
               int scheduling_seed) {
  SignalScope signals;
  if (setjmp(setting_up)) {
    if (cooperative) grid_end();
    return 1;
  }
  const u64 block_threads = (u64)block[0] * block[1] * block[2];
  if (block_threads == 0 || block_threads > (u64)kMaxThreads || dynamic_bytes > kMaxShared) {
    snprintf(error_text, sizeof error_text, "invalid launch: %llu threads a block (1 to 1024), %llu bytes of shared memory (at most %zu)",
             block_threads, dynamic_bytes, kMaxShared);
    return 1;
  }
  const u64 count = (u64)grid[0] * grid[1] * grid[2];
  if (cooperative && count * block_threads > (u64)kMostTogether) {
    snprintf(error_text, sizeof error_text, "the simulator runs at most %d threads at once, the cooperative launch has %llu",
             kMostTogether, count * block_threads);
    return 1;
  }
  create_stacks(cooperative && count * block_threads > kMaxThreads ? (int)(count * block_threads) + 8 : kStacks);
  kernel = entry;
  kernel_params = params;
  seed = scheduling_seed;
  sim_in_order = !seed;
  random_state = 88172645463325252ull ^ ((u64)scheduling_seed * 0x9E3779B97F4A7C15ull);
  if (!random_state) random_state = 1;
  for (int i = 0; i < 4; ++i) random_bits();
  sim_grid_dim = {grid[0], grid[1], grid[2]};
  sim_block_dim = {block[0], block[1], block[2]};
  reset_units();
  thread_count = (int)block_threads;
  warp_count = (thread_count + kLanes - 1) / kLanes;
  shared_bytes = dynamic_bytes;
  start_threads();
  checker_launch_start();
  if (cooperative) {
    const bool ran = run_together();
    grid_end();
    if (!ran) return 1;
  } else {
    for (u32 z = 0; z < grid[2]; ++z)
      for (u32 y = 0; y < grid[1]; ++y)
        for (u32 x = 0; x < grid[0]; ++x) {
          sim_block_index = {x, y, z};
          start_block();
          if (!run_block()) return 1;
        }
  }
  if (const char* problem = checker_launch_end()) {
    snprintf(error_text, sizeof error_text, "%s", problem);
    return 1;
  }
  return 0;
}

}  // extern "C"
