// Cooperative launches: all blocks are alive at once. One runs until its threads wait for other blocks; then what the
// runtime holds of it is put away, and the next block's is fetched. Its stacks, its shared memory and the shadow of that
// stay where they are.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "checker.h"
#include "state.h"

namespace sim {

namespace {

// A block that does not run.
struct Block {
  uint3 index;
  int done;
  u32 units;
  const u32* awaited;  // what its threads ``waiting`` wait for: the number there is to be ``least`` or more
  u32 least;
  u32 waiting[kMaxWarps];
  SimThread* threads;
  Warp* warps;
  NamedBarrier barriers[kNamedBarriers];
  CheckerBlock checker;
};

}  // namespace

struct Grid {
  Block* blocks;
  int block_count, block_capacity;
  int current;              // the block that runs
  char* shared_area;        // each block's shared memory
  size_t shared_stride, shared_area_bytes;
  const u32* awaited;       // of the block that runs, as in Block
  u32 least;
  u32 waiting[kMaxWarps];
};

namespace {

size_t aligned(size_t bytes) { return (bytes + 4095) & ~(size_t)4095; }

bool has_waiters(const u32* lanes) {
  for (int w = 0; w < sm().warp_count; ++w)
    if (lanes[w]) return true;
  return false;
}

}  // namespace

void grid_create() { create(sm().grid); }

void grid_start(int count) {
  Grid& g = *sm().grid;
  if (count > g.block_capacity) {
    g.blocks = (Block*)allocate((void*)g.blocks, (size_t)count * sizeof(Block));
    memset((void*)(g.blocks + g.block_capacity), 0, (size_t)(count - g.block_capacity) * sizeof(Block));
    g.block_capacity = count;
  }
  g.block_count = count;
  g.shared_stride = aligned(sm().shared_bytes + 1);
  const size_t needed = g.shared_stride * (size_t)count;
  if (needed > g.shared_area_bytes) {
    if (g.shared_area) munmap(g.shared_area, g.shared_area_bytes);
    g.shared_area = nullptr;
    g.shared_area = (char*)map_pages(needed);
    g.shared_area_bytes = needed;
  }
  for (int i = 0; i < count; ++i) {
    g.blocks[i].threads = (SimThread*)allocate((void*)g.blocks[i].threads, sizeof(SimThread) * (size_t)sm().thread_count);
    g.blocks[i].warps = (Warp*)allocate((void*)g.blocks[i].warps, sizeof(Warp) * (size_t)sm().warp_count);
  }
}

void grid_select(int block) {
  Grid& g = *sm().grid;
  g.current = block;
  sim_place.dynamic_shared = (u8*)g.shared_area + g.shared_stride * (size_t)block;
  checker_block_select(block);
}

void grid_block_start() {
  Grid& g = *sm().grid;
  g.awaited = nullptr;
  memset(g.waiting, 0, sizeof g.waiting);
}

void grid_put_away() {
  Grid& g = *sm().grid;
  Block& b = g.blocks[g.current];
  if (sm().used_units & ~kNamed) sim_fail("a block of a cooperative launch uses asynchronous copies, wgmma or clusters");
  b.index = sim_place.block_index;
  b.done = sm().done_count;
  b.units = sm().used_units;
  b.awaited = g.awaited;
  b.least = g.least;
  memcpy(b.waiting, g.waiting, sizeof g.waiting);
  memcpy((void*)b.threads, sm().threads, sizeof(SimThread) * (size_t)sm().thread_count);
  memcpy((void*)b.warps, sm().warps, sizeof(Warp) * (size_t)sm().warp_count);
  if (sm().used_units & kNamed) barriers_save(b.barriers);
  if (sm().checked) checker_save(b.checker);
}

void grid_fetch(int block) {
  Grid& g = *sm().grid;
  grid_select(block);
  Block& b = g.blocks[block];
  sim_place.block_index = b.index;
  sm().done_count = b.done;
  sm().used_units = b.units;
  g.awaited = b.awaited;
  g.least = b.least;
  memcpy(g.waiting, b.waiting, sizeof g.waiting);
  memcpy((void*)sm().threads, b.threads, sizeof(SimThread) * (size_t)sm().thread_count);
  memcpy((void*)sm().warps, b.warps, sizeof(Warp) * (size_t)sm().warp_count);
  if (sm().used_units & kNamed) barriers_restore(b.barriers);
  if (sm().checked) checker_restore(b.checker);
}

// A block can go on if what it waits for has come. One that has just been put away and waits for nothing is stuck.
int grid_next(int after) {
  Grid& g = *sm().grid;
  const int first = sm().seed ? (int)(random_bits() % (u64)g.block_count) : after + 1;
  for (int i = 0; i < g.block_count; ++i) {
    const int k = (first + i) % g.block_count;
    const Block& b = g.blocks[k];
    if (b.done < sm().thread_count && b.awaited && *b.awaited >= b.least) return k;
  }
  return -1;
}

bool grid_over() {
  Grid& g = *sm().grid;
  for (int i = 0; i < g.block_count; ++i)
    if (g.blocks[i].done < sm().thread_count) return false;
  return true;
}

void grid_stuck() {
  Grid& g = *sm().grid;
  for (int i = 0; i < g.block_count; ++i) {
    const Block& b = g.blocks[i];
    if (b.done == sm().thread_count || b.awaited) continue;
    grid_fetch(i);
    return;
  }
  int ended = 0, waits = -1;
  for (int i = 0; i < g.block_count; ++i) g.blocks[i].done == sm().thread_count ? (void)++ended : (void)(waits = i);
  const Block& b = g.blocks[waits];
  sim_place.block_index = b.index;
  sim_fail("deadlock: the block waits for a number to be %u, which is %u; %d of %d blocks have ended", b.least, *b.awaited,
           ended, g.block_count);
}

void grid_wake() {
  Grid& g = *sm().grid;
  if (g.awaited && *g.awaited < g.least) return;
  g.awaited = nullptr;
  wake(g.waiting);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_add_release(u32* p, u32 v) {
  if (sm().checked) check_global_range(p, 4, true, __builtin_return_address(0));
  if (sm().checked && sm().cooperative) blocks_release(p, *p + v);
  __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
  maybe_preempt();
}

void sim_wait_acquire(const u32* p, u32 wanted) {
  Grid& g = *sm().grid;
  if (sm().checked) check_global_range(p, 4, false, __builtin_return_address(0));
  while (*p < wanted) {
    if (!sm().cooperative)
      sim_fail("a block waits for a number to be %u, which is %u: only in a cooperative launch are all blocks there", wanted, *p);
    if (has_waiters(g.waiting) && (g.awaited != p || g.least != wanted))
      sim_fail("threads of one block wait for different numbers in global memory");
    g.awaited = p;
    g.least = wanted;
    park(g.waiting);
  }
  if (sm().checked && sm().cooperative) blocks_acquire(p, wanted);
}
}
