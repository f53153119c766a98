// Checked mode: dependences between the blocks of one launch. The simulator runs blocks in index order, a GPU in any
// order, so a block may neither read what another block of the launch wrote nor overwrite what another one read.
// Atomics are exempt. So is the "last block finishes the sum" scheme: the writer calls threadfence() after writing, then an
// atomic; the reader an atomic, then threadfence(). In a cooperative launch a block may use what came before the additions
// that it has waited for.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checker.h"

namespace sim {
namespace {

struct Touch {  // block numbers from 1, in a cooperative launch with the block's phase above them; 0 is nobody
  u32 writer, readers[2];  // of more readers without an order, two are kept
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

// In a cooperative launch a block has phases, which end as it releases a number. ``known[a * blocks + b]`` is the phase of
// block b up to which block a may use what b did; a number that blocks release has such phases too.
constexpr u32 kPhase = 12, kBlockMask = (1u << kPhase) - 1, kMostPhases = 1u << (32 - kPhase);
struct Released {
  const u32* number;
  u32* phases;   // after each of the last ``kept`` additions, as many as blocks that are one barrier apart make
  u32* values;   // ... and the number then
  u64 additions;
};
u32* known;
Released* released;
int launch_blocks, known_capacity, released_count, released_capacity;

u32 this_block() {
  return (sim_place.block_index.z * sim_place.grid_dim.y + sim_place.block_index.y) * sim_place.grid_dim.x + sim_place.block_index.x + 1;
}

u32* phases_of(u32 block) { return known + (size_t)(block - 1) * (size_t)launch_blocks; }

// The running block as it is written into Touch.
u32 stamp() {
  const u32 me = this_block();
  return sm().cooperative ? phases_of(me)[me - 1] << kPhase | me : me;
}

// Whether the running block may count on what another one did.
bool is_ordered(u32 touch) {
  const u32 block = touch & kBlockMask;
  return sm().cooperative && phases_of(this_block())[block - 1] >= touch >> kPhase;
}

u32 block_of(u32 touch) { return sm().cooperative ? touch & kBlockMask : touch; }

void raise(u32* to, const u32* from) {
  for (int i = 0; i < launch_blocks; ++i) to[i] = from[i] > to[i] ? from[i] : to[i];
}

int kept() { return 2 * launch_blocks + 2; }

u32* phases_after(const Released& r, u64 addition) {
  return r.phases + (size_t)(addition % (u64)kept()) * (size_t)launch_blocks;
}

Released& released_number(const u32* p) {
  for (int i = 0; i < released_count; ++i)
    if (released[i].number == p) return released[i];
  if (released_count == released_capacity) grow(released, released_capacity, 8);
  const size_t bytes = (size_t)kept() * (size_t)launch_blocks * sizeof(u32);
  u32* phases = (u32*)allocate(nullptr, bytes);
  memset(phases, 0, bytes);
  return released[released_count++] = {p, phases, (u32*)allocate(nullptr, (size_t)kept() * sizeof(u32)), 0};
}

void phases_start(int blocks) {
  for (int i = 0; i < released_count; ++i) {
    free(released[i].phases);
    free(released[i].values);
  }
  released_count = 0;
  launch_blocks = blocks;
  if (!sm().cooperative) return;
  if ((u32)blocks >= kBlockMask) sim_fail("checked mode takes fewer than %u blocks of a cooperative launch", kBlockMask);
  if (blocks * blocks > known_capacity) {
    known_capacity = blocks * blocks;
    known = (u32*)allocate(known, (size_t)known_capacity * sizeof(u32));
  }
  memset(known, 0, (size_t)(blocks * blocks) * sizeof(u32));
  for (u32 i = 1; i <= (u32)blocks; ++i) phases_of(i)[i - 1] = 1;
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
  const size_t blocks = (size_t)sim_place.grid_dim.x * sim_place.grid_dim.y * sim_place.grid_dim.z + 1;
  while ((size_t)writes_capacity < blocks) grow(writes_of, writes_capacity, 1024);
  memset(writes_of, 0, blocks);
  phases_start((int)blocks - 1);
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

void blocks_release(const u32* p, u32 value) {
  const u32 me = this_block();
  u32* mine = phases_of(me);
  Released& r = released_number(p);
  u32* now = phases_after(r, r.additions);
  if (r.additions) memcpy(now, phases_after(r, r.additions - 1), (size_t)launch_blocks * sizeof(u32));
  raise(now, mine);
  r.values[r.additions++ % (u64)kept()] = value;
  if (++mine[me - 1] == kMostPhases) sim_fail("checked mode takes fewer than %u phases of a block", kMostPhases);
}

// A GPU may have let the block go on as soon as the number was ``least``: later additions tell it nothing.
void blocks_acquire(const u32* p, u32 least) {
  const Released& r = released_number(p);
  for (u64 i = r.additions > (u64)kept() ? r.additions - (u64)kept() : 0; i < r.additions; ++i)
    if (r.values[i % (u64)kept()] >= least) {
      raise(phases_of(this_block()), phases_after(r, i));
      return;
    }
}

void blocks_access(const void* address, size_t bytes, bool write, const void* pc) {
  Region* r = region_of((uintptr_t)address);
  if (!r) return;
  const u32 me = this_block(), mine = stamp();
  Touch* t = r->touches + ((uintptr_t)address - r->begin);
  for (size_t i = 0; i < bytes && (uintptr_t)address + i < r->end; ++i) {
    if (write) {
      for (const u32 touch : t[i].readers) {
        const u32 reader = block_of(touch);
        if (reader && reader != me && !is_ordered(touch))
          sim_fail("block number %u writes at %s what block number %u of the same launch has read: their order is not defined",
                   me - 1, Where(pc).text, reader - 1);
      }
      t[i].writer = mine;
      writes_of[me] = Writes::Open;
    } else {
      const u32 writer = block_of(t[i].writer);
      if (writer && writer != me && !is_ordered(t[i].writer) && (!fenced || writes_of[writer] != Writes::Published))
        sim_fail("block number %u reads at %s what block number %u of the same launch has written: their order is not defined",
                 me - 1, Where(pc).text, writer - 1);
      for (u32& touch : t[i].readers)
        if (!touch || block_of(touch) == me || is_ordered(touch)) {
          touch = mine;
          break;
        }
    }
  }
}

}  // namespace sim
