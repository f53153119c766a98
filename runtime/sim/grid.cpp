// Cooperative launches: all blocks are alive at once. One runs until its threads wait for other blocks; then what the
// runtime holds of it is put away, and the next block's is fetched. Its stacks, its shared memory and the shadow of that
// stay where they are.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "checker.h"
#include "state.h"

namespace sim {

bool cooperative;

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
Block* blocks;
int block_count, block_capacity;
int current;              // the block that runs
char* shared_area;        // each block's shared memory
size_t shared_stride, shared_area_bytes;
u8* usual_shared;         // the shared memory of ordinary launches

const u32* awaited;       // of the block that runs, as in Block
u32 least;
u32 waiting[kMaxWarps];

size_t aligned(size_t bytes) { return (bytes + 4095) & ~(size_t)4095; }

bool has_waiters(const u32* lanes) {
  for (int w = 0; w < warp_count; ++w)
    if (lanes[w]) return true;
  return false;
}

}  // namespace

void grid_start(int count) {
  if (count > block_capacity) {
    blocks = (Block*)allocate((void*)blocks, (size_t)count * sizeof(Block));
    memset((void*)(blocks + block_capacity), 0, (size_t)(count - block_capacity) * sizeof(Block));
    block_capacity = count;
  }
  block_count = count;
  shared_stride = aligned(shared_bytes + 1);
  const size_t needed = shared_stride * (size_t)count;
  if (needed > shared_area_bytes) {
    if (shared_area) munmap(shared_area, shared_area_bytes);
    shared_area = nullptr;
    shared_area = (char*)map_pages(needed);
    shared_area_bytes = needed;
  }
  for (int i = 0; i < count; ++i) {
    blocks[i].threads = (SimThread*)allocate((void*)blocks[i].threads, sizeof(SimThread) * (size_t)thread_count);
    blocks[i].warps = (Warp*)allocate((void*)blocks[i].warps, sizeof(Warp) * (size_t)warp_count);
  }
  usual_shared = sim_dynamic_shared;
}

void grid_select(int block) {
  current = block;
  sim_dynamic_shared = (u8*)shared_area + shared_stride * (size_t)block;
  checker_block_select(block);
}

void grid_end() { sim_dynamic_shared = usual_shared; }

void grid_block_start() {
  awaited = nullptr;
  memset(waiting, 0, sizeof waiting);
}

void grid_put_away() {
  Block& b = blocks[current];
  if (used_units & ~kNamed) sim_fail("a block of a cooperative launch uses asynchronous copies, wgmma or clusters");
  b.index = sim_block_index;
  b.done = done_count;
  b.units = used_units;
  b.awaited = awaited;
  b.least = least;
  memcpy(b.waiting, waiting, sizeof waiting);
  memcpy((void*)b.threads, threads, sizeof(SimThread) * (size_t)thread_count);
  memcpy((void*)b.warps, warps, sizeof(Warp) * (size_t)warp_count);
  if (used_units & kNamed) barriers_save(b.barriers);
  if (checked) checker_save(b.checker);
}

void grid_fetch(int block) {
  grid_select(block);
  Block& b = blocks[block];
  sim_block_index = b.index;
  done_count = b.done;
  used_units = b.units;
  awaited = b.awaited;
  least = b.least;
  memcpy(waiting, b.waiting, sizeof waiting);
  memcpy((void*)threads, b.threads, sizeof(SimThread) * (size_t)thread_count);
  memcpy((void*)warps, b.warps, sizeof(Warp) * (size_t)warp_count);
  if (used_units & kNamed) barriers_restore(b.barriers);
  if (checked) checker_restore(b.checker);
}

// A block can go on if what it waits for has come. One that has just been put away and waits for nothing is stuck.
int grid_next(int after) {
  const int first = seed ? (int)(random_bits() % (u64)block_count) : after + 1;
  for (int i = 0; i < block_count; ++i) {
    const int k = (first + i) % block_count;
    const Block& b = blocks[k];
    if (b.done < thread_count && b.awaited && *b.awaited >= b.least) return k;
  }
  return -1;
}

bool grid_over() {
  for (int i = 0; i < block_count; ++i)
    if (blocks[i].done < thread_count) return false;
  return true;
}

void grid_stuck() {
  for (int i = 0; i < block_count; ++i) {
    const Block& b = blocks[i];
    if (b.done == thread_count || b.awaited) continue;
    grid_fetch(i);
    return;
  }
  int ended = 0, waits = -1;
  for (int i = 0; i < block_count; ++i) blocks[i].done == thread_count ? (void)++ended : (void)(waits = i);
  const Block& b = blocks[waits];
  sim_block_index = b.index;
  sim_fail("deadlock: the block waits for a number to be %u, which is %u; %d of %d blocks have ended", b.least, *b.awaited,
           ended, block_count);
}

void grid_wake() {
  if (awaited && *awaited < least) return;
  awaited = nullptr;
  wake(waiting);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_set_cooperative(int on) { cooperative = on != 0; }

void sim_add_release(u32* p, u32 v) {
  if (checked) check_global_range(p, 4, true, __builtin_return_address(0));
  if (checked && cooperative) blocks_release(p, *p + v);
  *p += v;
  maybe_preempt();
}

void sim_wait_acquire(const u32* p, u32 wanted) {
  if (checked) check_global_range(p, 4, false, __builtin_return_address(0));
  while (*p < wanted) {
    if (!cooperative)
      sim_fail("a block waits for a number to be %u, which is %u: only in a cooperative launch are all blocks there", wanted, *p);
    if (has_waiters(waiting) && (awaited != p || least != wanted))
      sim_fail("threads of one block wait for different numbers in global memory");
    awaited = p;
    least = wanted;
    park(waiting);
  }
  if (checked && cooperative) blocks_acquire(p, wanted);
}
}
