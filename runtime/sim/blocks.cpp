// Checked mode: dependences between the blocks of one launch. The simulator runs blocks in index order, a GPU in any
// order, so a block may neither read what another block of the launch wrote nor overwrite what another one read.
// Atomics are exempt. So is the "last block finishes the sum" scheme: the writer calls threadfence() after writing, then an
// atomic; the reader an atomic, then threadfence().
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checker.h"

namespace sim {
namespace {

struct Touch {  // block numbers from 1; 0 is nobody
  u32 writer, reader;
};
struct Region {
  uintptr_t begin, end;
  Touch* touches;  // one a byte, given by the system page by page
};
Region* regions;
int region_count, region_capacity, last_region;
bool fenced;        // whether the running block has called threadfence() since its last atomic
enum class Writes : u8 { None, Open, Fenced, Published };  // after a write, a threadfence(), an atomic
Writes* writes_of;  // by block number
int writes_capacity;

u32 this_block() {
  return (sim_block_index.z * sim_grid_dim.y + sim_block_index.y) * sim_grid_dim.x + sim_block_index.x + 1;
}

Region* region_of(uintptr_t p) {
  for (int i = 0, k = last_region; i < region_count; ++i) {
    if (p >= regions[k].begin && p < regions[k].end) {
      last_region = k;
      return &regions[k];
    }
    if (++k == region_count) k = 0;
  }
  return nullptr;
}

void add_region(uintptr_t begin, uintptr_t end) {
  if (region_count == region_capacity) grow(regions, region_capacity, 16);
  void* touches = map_pages((end - begin) * sizeof(Touch));
  regions[region_count++] = {begin, end, (Touch*)touches};
}

}  // namespace

void blocks_launch_start(int count, const u64* triples) {
  for (int i = 0; i < region_count; ++i)
    munmap((void*)regions[i].touches, (regions[i].end - regions[i].begin) * sizeof(Touch));
  region_count = last_region = 0;
  const size_t blocks = (size_t)sim_grid_dim.x * sim_grid_dim.y * sim_grid_dim.z + 1;
  while ((size_t)writes_capacity < blocks) grow(writes_of, writes_capacity, 1024);
  memset(writes_of, 0, blocks);
  for (int i = 0; i < count; ++i)
    if ((triples[3 * i + 2] & 1) && triples[3 * i + 1]) add_region(triples[3 * i], triples[3 * i] + triples[3 * i + 1]);
}

void blocks_block_start() { fenced = false; }

void blocks_atomic() {
  fenced = false;
  Writes& mine = writes_of[this_block()];
  if (mine == Writes::Fenced) mine = Writes::Published;
}

void blocks_fence() {
  fenced = true;
  Writes& mine = writes_of[this_block()];
  if (mine == Writes::Open) mine = Writes::Fenced;
}

void blocks_access(const void* address, size_t bytes, bool write, const void* pc) {
  Region* r = region_of((uintptr_t)address);
  if (!r) return;
  const u32 me = this_block();
  Touch* t = r->touches + ((uintptr_t)address - r->begin);
  for (size_t i = 0; i < bytes && (uintptr_t)address + i < r->end; ++i) {
    if (write) {
      if (t[i].reader && t[i].reader != me)
        sim_fail("block number %u writes at %s what block number %u of the same launch has read: their order is not defined",
                 me - 1, Where(pc).text, t[i].reader - 1);
      t[i].writer = me;
      writes_of[me] = Writes::Open;
    } else {
      if (t[i].writer && t[i].writer != me && (!fenced || writes_of[t[i].writer] != Writes::Published))
        sim_fail("block number %u reads at %s what block number %u of the same launch has written: their order is not defined",
                 me - 1, Where(pc).text, t[i].writer - 1);
      t[i].reader = me;
    }
  }
}

}  // namespace sim
