// The launch of a grid: its blocks, one after another on each of the host threads that share them.
#include "launch.h"

#include <stdio.h>
#include <time.h>

#include "checker.h"

namespace sim {
namespace {

constexpr int kStacks = kMaxThreads + 8;
constexpr int kMostTogether = 1 << 16;   // threads of a cooperative launch
constexpr double kWorthwhile = 100'000;  // nanoseconds of work for which another host thread is woken
constexpr u64 kShares = 4;               // how often a host thread comes back for blocks, at least

u64 now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1'000'000'000 + (u64)t.tv_nsec;
}

void start_threads() {
  Sm& s = sm();
  const u32 bx = sim_place.block_dim.x, by = sim_place.block_dim.y;
  for (int i = 0; i < s.thread_count; ++i) {
    SimThread& t = s.threads[i];
    t.linear = i;
    t.warp = i / kLanes;
    t.lane = i % kLanes;
    t.index = {(u32)i % bx, (u32)i / bx % by, (u32)i / (bx * by)};
  }
}

// Resets what the last block used, of a launch that has not changed the number of threads yet.
void reset_units() {
  Sm& s = sm();
  if (s.used_units & kNamed) barriers_reset();
  if (s.used_units & kCopies) cp_async_reset();
  if (s.used_units & kStores) tma_stores_reset();
  if (s.used_units & kWgmma) wgmma_reset();
  if (s.used_units & kClusters) cluster_reset();
  s.used_units = 0;
}

void start_block() {
  Sm& s = sm();
  memset(sim_place.dynamic_shared, 0xff, s.shared_bytes);  // NaN in every float format: uninitialised reads show
  s.done_count = 0;
  if (!s.cooperative) stacks_reset();
  for (int i = 0; i < s.warp_count; ++i) {
    Warp& w = s.warps[i];
    const int lanes = s.thread_count - i * kLanes;
    w.all = w.ready = w.unstarted = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
    w.done = w.arrived = 0;
    w.rotation = s.seed ? (int)(random_bits() & 31) : 0;
  }
  reset_units();
  mbarriers_reset();
  tma_reset();
  cluster_block_start();
  if (s.cooperative) grid_block_start();
  checker_block_start();
}

// Memory that the host thread needs, unless it has it from an earlier launch.
void create_state(const LaunchSpec& spec) {
  Sm& s = sm();
  if (!s.shared) {
    void* raw = allocate(nullptr, kMaxShared + 2048);
    s.shared = (u8*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  }
  const u64 together = spec.cooperative ? spec.blocks() * spec.block_threads() : 0;
  stacks_create(together > kMaxThreads ? (int)together + 8 : kStacks);
  barriers_create();
  copies_create();
  mbarriers_create();
  tma_create();
  cluster_create();
  warpgroups_create();
  dense_create();
  if (spec.cooperative) grid_create();
}

// Makes the host thread ready for the launch's blocks. Fails where there is no memory.
void prepare(const Launch& launch) {
  Sm& s = sm();
  const LaunchSpec& spec = launch.spec;
  s.seed = launch.seed;
  s.checked = launch.checked;
  s.cooperative = spec.cooperative;
  sim_place.block_index = {};
  create_state(spec);
  sim_place.dynamic_shared = s.shared;
  sim_place.grid_dim = {spec.grid[0], spec.grid[1], spec.grid[2]};
  sim_place.block_dim = {spec.block[0], spec.block[1], spec.block[2]};
  sim_in_order = !launch.seed;
  ++s.launch_number;
  s.kernel = spec.kernel;
  s.kernel_params = spec.params;
  s.cluster_size = (int)spec.cluster;
  s.random_state = 88172645463325252ull ^ ((u64)launch.seed * 0x9E3779B97F4A7C15ull);
  if (!s.random_state) s.random_state = 1;
  for (int i = 0; i < 4; ++i) random_bits();
  reset_units();
  s.thread_count = (int)spec.block_threads();
  s.warp_count = (s.thread_count + kLanes - 1) / kLanes;
  s.shared_bytes = spec.shared_bytes;
  start_threads();
}

// Keeps the reason of the block's failure, unless a block before it has failed.
void note_failure(Launch& launch) {
  const dim3 grid = sim_place.grid_dim;
  const uint3 at = sim_place.block_index;
  const u64 block = ((u64)at.z * grid.y + at.y) * grid.x + at.x;
  hosts_lock();
  if (block < launch.failed) {
    snprintf(launch.error, launch.error_bytes, "%s", sm().error_text);
    launch.failed = block;
  }
  hosts_unlock();
}

// Takes the next units, in order: at most ``most``, and a share of what is left. Returns how many.
u64 take(Launch& launch, u64 most, u64& first) {
  first = launch.next.load(std::memory_order_relaxed);
  for (;;) {
    if (first == launch.units || launch.failed.load(std::memory_order_relaxed) != ~0ull) return 0;
    const u64 share = (launch.units - first) / (kShares * (u64)launch.threads);
    const u64 count = share < 1 ? 1 : share < most ? share : most;
    if (launch.next.compare_exchange_weak(first, first + count, std::memory_order_relaxed)) return count;
  }
}

// Runs ``count`` units from the unit ``first`` on. False if a block fails, here or earlier in the grid.
bool run_units(Launch& launch, u64 first, u64 count) {
  const u64 x = sim_place.grid_dim.x, y = sim_place.grid_dim.y, begin = first * launch.spec.cluster;
  uint3& at = sim_place.block_index;
  at = {(u32)(begin % x), (u32)(begin / x % y), (u32)(begin / x / y)};
  for (u64 block = begin; block < begin + count * launch.spec.cluster; ++block) {
    if (block > launch.failed.load(std::memory_order_relaxed)) return false;
    start_block();
    if (!run_block()) {
      note_failure(launch);
      return false;
    }
    if (++at.x < x) continue;
    at.x = 0;
    if (++at.y < y) continue;
    at.y = 0;
    ++at.z;
  }
  return true;
}

// Invites as many workers as the rest of the launch is worth, to judge by what is done. False if it is not worth one.
bool shares(Launch& launch, u64 began, u64 done) {
  const u64 rest = launch.units - launch.next.load(std::memory_order_relaxed);
  const double others = (double)(now() - began) * (double)rest / (double)done / kWorthwhile;
  if (others < 1) return false;
  const u64 most = rest < (u64)launch.threads - 1 ? rest : (u64)launch.threads - 1;
  fegetenv(&launch.floats);
  invite(launch, others < (double)most ? (int)others : (int)most);
  return true;
}

// The launching thread's part: it begins alone, and looks after 1, 2, 4, ... units if the rest is worth sharing.
void run_in_order(Launch& launch) {
  bool alone = launch.threads > 1;
  const u64 began = alone ? now() : 0;
  u64 first, count, done = 0;
  while ((count = take(launch, alone && done ? done : alone ? 1 : ~0ull, first)) && run_units(launch, first, count)) {
    done += count;
    if (alone && shares(launch, began, done)) alone = false;
  }
}

// Runs all blocks of a cooperative launch, each until it waits. False if one failed.
bool run_together() {
  const dim3 grid = sim_place.grid_dim;
  const int count = (int)(grid.x * grid.y * grid.z);
  stacks_reset();
  grid_start(count);
  for (int i = 0; i < count; ++i) {
    grid_select(i);
    sim_place.block_index = {(u32)i % grid.x, (u32)i / grid.x % grid.y, (u32)i / (grid.x * grid.y)};
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

// What is wrong with the launch's numbers, in ``error``. False if nothing is.
bool is_invalid(const LaunchSpec& spec, char* error, u64 bytes) {
  const u64 threads = spec.block_threads(), together = spec.cooperative ? spec.blocks() * threads : 0;
  if (threads == 0 || threads > (u64)kMaxThreads || spec.shared_bytes > kMaxShared) {
    snprintf(error, bytes, "invalid launch: %llu threads a block (1 to 1024), %llu bytes of shared memory (at most %zu)", threads,
             spec.shared_bytes, kMaxShared);
    return true;
  }
  if (together > (u64)kMostTogether) {
    snprintf(error, bytes, "the simulator runs at most %d threads at once, the cooperative launch has %llu", kMostTogether, together);
    return true;
  }
  return false;
}

void run(Launch& launch, int buffer_count, const u64* buffers) {
  if (setjmp(sm().setting_up)) {
    note_failure(launch);
    return;
  }
  prepare(launch);
  checker_launch_start(buffer_count, buffers, launch.spec.pdl);
  if (!launch.spec.cooperative) run_in_order(launch);
  else if (!run_together()) note_failure(launch);
  const char* problem = launch.failed == ~0ull ? checker_launch_end() : nullptr;
  if (!problem) return;
  snprintf(launch.error, launch.error_bytes, "%s", problem);
  launch.failed = 0;
}

}  // namespace

void help(Launch& launch, Sm& mine) {
  sim_place.sm = &mine;
  volatile bool ready = false;
  if (setjmp(mine.setting_up)) {
    if (ready) note_failure(launch);  // else there was no memory: the other host threads do its work
  } else {
    fesetenv(&launch.floats);
    prepare(launch);
    ready = true;
    u64 first, count;
    while ((count = take(launch, ~0ull, first)) && run_units(launch, first, count)) {
    }
  }
  sim_place.sm = nullptr;
}

}  // namespace sim

using namespace sim;

extern "C" {

// Runs the grid: blocks in index order with ``threads`` = 1, else shared by so many host threads, in no order beyond that of
// clusters. Returns 0, or 1 with the reason in ``error``: that of the first block that fails. ``seed`` and ``checked`` as in
// device.py; of such launches, and of cooperative ones, all blocks are the calling thread's. One checked launch at a time.
// ``buffers``: as in checker_launch_start.
int sim_launch(const LaunchSpec* spec, int seed, int threads, int checked, int buffer_count, const u64* buffers, char* error,
               u64 error_bytes) {
  if (is_invalid(*spec, error, error_bytes)) return 1;
  const bool in_turn = seed || checked || spec->cooperative;
  Launch launch{*spec, seed, checked != 0, in_turn ? 1 : threads, spec->blocks() / spec->cluster, error, error_bytes};
  Sm* const s = sm_take();
  if (!s) {
    snprintf(error, error_bytes, "the simulator has not enough memory: %zu bytes", sizeof(Sm));
    return 1;
  }
  run(launch, buffer_count, buffers);
  if (launch.threads > 1) dismiss(launch);
  sm_give_back(s);
  return launch.failed != ~0ull;
}

}  // extern "C"
