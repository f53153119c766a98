// TMA tile copies between global memory and (swizzled) shared memory, and bulk copies of bytes to shared memory.
//
// A load poisons its destination at issue and lands when no thread can run, or at a random point with a seed. A store
// happens only when it is waited for. Out-of-range elements are zero on loads and skipped on stores.
#include <stdlib.h>

#include "checker.h"
#include "state.h"

namespace sim {
namespace {

constexpr int kMaxRank = 4;
constexpr u64 kMagic = 0x50414d5f4d495341ull;

// The simulator's own content of the 128 bytes of a TensorMap; written by encode_tensor_map in device.py.
struct Map {
  u64 magic, address;
  u32 rank, element_bytes, swizzle, reserved;
  u64 dims[kMaxRank];          // elements, innermost first
  u64 strides[kMaxRank - 1];   // bytes, of dimensions 1 and up
  u16 box[kMaxRank];           // elements traversed
  u16 step[kMaxRank];          // element strides
};
static_assert(sizeof(Map) <= 128, "fits a TensorMap");

struct Tile {
  Map map;  // of a bulk copy only ``address``, and ``dims[0]``: bytes; its rank is 0
  u32 shared;
  int x[kMaxRank];
  u32 bar;
  int agent;
  u32 clock;
  int count(int d) const { return (map.box[d] + map.step[d] - 1) / map.step[d]; }
  int row_bytes() const { return count(0) * (int)map.element_bytes; }
  int rows() const {
    int n = 1;
    for (u32 d = 1; d < map.rank; ++d) n *= count((int)d);
    return n;
  }
  int bytes() const { return map.rank ? rows() * row_bytes() : (int)map.dims[0]; }
};

constexpr int kMaxPending = 4096;

struct StoreQueue {  // of one thread
  Tile* tiles;
  int count, capacity, groups;
  int group_end[64];
};

}  // namespace

struct Tma {
  Tile loads[kMaxPending];
  int load_count;
  StoreQueue stores[kMaxThreads];
};

namespace {

u32 swizzled(u32 address, u32 swizzle) {
  const u32 mask = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
  return address ^ ((address >> 7 & mask) << 4);
}

Tile make_tile(const void* map, u32 shared, int rank, const int* x, const char* what) {
  Tile t;
  memcpy((void*)&t.map, map, sizeof(Map));
  if (t.map.magic != kMagic) sim_fail("%s: the tensor map was not made for the simulator", what);
  if ((int)t.map.rank != rank) sim_fail("%s: a %d-dimensional copy with a tensor map of rank %u", what, rank, t.map.rank);
  if ((uintptr_t)map & 63) sim_fail("%s: the tensor map is not 64-byte aligned", what);
  t.shared = shared;
  for (int d = 0; d < kMaxRank; ++d) t.x[d] = x[d];
  shared_pointer(shared, t.bytes(), 128);
  return t;
}

// Global address of row ``r`` of the tile, or null if it lies outside; and the range [first, last) of valid elements in it.
char* global_row(const Tile& t, int r, int& first, int& last) {
  const Map& m = t.map;
  u64 address = m.address;
  for (u32 d = 1; d < m.rank; ++d) {
    const i64 c = (i64)t.x[d] + (i64)(r % t.count((int)d)) * m.step[d];
    r /= t.count((int)d);
    if (c < 0 || c >= (i64)m.dims[d]) return nullptr;
    address += (u64)c * m.strides[d - 1];
  }
  const i64 begin = t.x[0] < 0 ? -(i64)t.x[0] : 0;
  i64 end = (i64)m.dims[0] - t.x[0];
  if (end > t.count(0)) end = t.count(0);
  if (begin >= end) return nullptr;
  first = (int)begin;
  last = (int)end;
  return (char*)(address + (u64)((i64)t.x[0] * m.element_bytes));
}

void land_bytes(const Tile& t) {
  memcpy(shared_pointer(t.shared, t.bytes(), 16), (const void*)t.map.address, (size_t)t.bytes());
  mbar_complete_bytes(t.bar, t.bytes(), t.agent, t.clock);
}

void land(const Tile& t) {
  if (!t.map.rank) return land_bytes(t);
  alignas(16) u8 row[4096];
  const int bytes = t.row_bytes(), size = (int)t.map.element_bytes;
  for (int r = 0; r < t.rows(); ++r) {
    int first = 0, last = 0;
    const char* from = global_row(t, r, first, last);
    memset(row, 0, (size_t)bytes);
    if (from) memcpy(row + first * size, from + first * size, (size_t)((last - first) * size));
    for (int c = 0; c < bytes; c += 16)
      memcpy(shared_pointer(swizzled(t.shared + (u32)(r * bytes + c), t.map.swizzle), 16, 16), row + c, 16);
  }
  mbar_complete_bytes(t.bar, t.bytes(), t.agent, t.clock);
}

void store(const Tile& t) {
  alignas(16) u8 row[4096];
  const int bytes = t.row_bytes(), size = (int)t.map.element_bytes;
  for (int r = 0; r < t.rows(); ++r) {
    int first = 0, last = 0;
    char* to = global_row(t, r, first, last);
    if (!to) continue;
    for (int c = 0; c < bytes; c += 16)
      memcpy(row + c, shared_pointer(swizzled(t.shared + (u32)(r * bytes + c), t.map.swizzle), 16, 16), 16);
    memcpy(to + first * size, row + first * size, (size_t)((last - first) * size));
  }
}

void check_tile(const Tile& t, bool is_store, const void* pc) {
  const int bytes = t.row_bytes(), size = (int)t.map.element_bytes, w = sim_current->warp;
  for (int r = 0; r < t.rows(); ++r) {
    int first = 0, last = 0;
    const char* row = global_row(t, r, first, last);
    if (row) check_global(row + first * size, (size_t)((last - first) * size), is_store, pc);
  }
  check_agent(shared_pointer(t.shared, bytes * t.rows(), 16), bytes * t.rows(), is_store ? Access::Read : Access::Write, t.agent,
              t.clock, w, 1, pc);
}

}  // namespace

void tma_create() { create(sm().tma); }

void tma_reset() { sm().tma->load_count = 0; }

void tma_stores_reset() {
  for (int i = 0; i < sm().thread_count; ++i) {
    StoreQueue& q = sm().tma->stores[i];
    q.count = q.groups = 0;
  }
}

bool tma_land_one() {
  Tma& all = *sm().tma;
  if (!all.load_count) return false;
  const int i = sm().seed ? (int)(random_bits() % (u64)all.load_count) : 0;
  const Tile t = all.loads[i];
  --all.load_count;
  for (int k = i; k < all.load_count; ++k) all.loads[k] = all.loads[k + 1];
  land(t);
  return true;
}

void mbarriers_check_end();

void tma_check_block_end() {
  Tma& all = *sm().tma;
  if (all.load_count) sim_fail("the block ends with %d TMA loads that nobody waited for", all.load_count);
  mbarriers_check_end();
}

void tma_check_exit(const SimThread& thread) {
  if (sm().tma->stores[thread.linear].count) sim_fail("a thread returned with TMA stores that it never waited for");
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_tma_load(u32 dst, const void* map, u32 bar, int rank, int x0, int x1, int x2, int x3) {
  Tma& all = *sm().tma;
  const int x[kMaxRank] = {x0, x1, x2, x3};
  if (all.load_count == kMaxPending) sim_fail("more than %d TMA loads in flight", kMaxPending);
  Tile& t = all.loads[all.load_count];
  t = make_tile(map, dst, rank, x, "TMA load");
  t.bar = bar;
  t.agent = mbar_agent(bar);
  if (sm().checked) {
    t.clock = agent_tick(t.agent);
    check_tile(t, false, __builtin_return_address(0));
  }
  memset(shared_pointer(dst, t.bytes(), 128), 0xff, (size_t)t.bytes());
  ++all.load_count;
}

void sim_bulk_load(u32 dst, const void* src, int bytes, u32 bar) {
  Tma& all = *sm().tma;
  if (bytes < 1 || ((uintptr_t)src | dst | (u32)bytes) & 15)
    sim_fail("a bulk copy of %d bytes from %p to shared address %u: all three must be multiples of 16", bytes, src, dst);
  if (all.load_count == kMaxPending) sim_fail("more than %d TMA loads in flight", kMaxPending);
  u8* p = shared_pointer(dst, bytes, 16);
  Tile& t = all.loads[all.load_count];
  t = {};
  t.map.address = (u64)src;
  t.map.dims[0] = (u64)bytes;
  t.shared = dst;
  t.bar = bar;
  t.agent = mbar_agent(bar);
  if (sm().checked) {
    const void* pc = __builtin_return_address(0);
    t.clock = agent_tick(t.agent);
    check_global(src, (size_t)bytes, false, pc);
    check_agent(p, bytes, Access::Write, t.agent, t.clock, sim_current->warp, 1, pc);
  }
  memset(p, 0xff, (size_t)bytes);
  ++all.load_count;
}

void sim_tma_store(const void* map, u32 src, int rank, int x0, int x1, int x2, int x3) {
  const int x[kMaxRank] = {x0, x1, x2, x3};
  sm().used_units |= kStores;
  StoreQueue& q = sm().tma->stores[sim_current->linear];
  if (q.count == q.capacity) grow(q.tiles, q.capacity, 16);
  Tile t = make_tile(map, src, rank, x, "TMA store");
  t.agent = kStoreAgent;
  if (sm().checked) {
    t.clock = agent_tick(kStoreAgent);
    check_tile(t, true, __builtin_return_address(0));
  }
  q.tiles[q.count++] = t;
}

void sim_tma_store_commit() {
  sm().used_units |= kStores;
  StoreQueue& q = sm().tma->stores[sim_current->linear];
  if (q.groups == 64) sim_fail("more than 64 TMA store groups in flight");
  q.group_end[q.groups++] = q.count;
}

void sim_tma_store_wait(int newest) {
  StoreQueue& q = sm().tma->stores[sim_current->linear];
  const int finished = q.groups - newest;
  if (finished <= 0) return;
  const int end = q.group_end[finished - 1];
  for (int i = 0; i < end; ++i) {
    store(q.tiles[i]);
    if (sm().checked) hb_acquire_agent(sim_current->warp, kStoreAgent, q.tiles[i].clock);
  }
  for (int i = end; i < q.count; ++i) q.tiles[i - end] = q.tiles[i];
  q.count -= end;
  for (int i = finished; i < q.groups; ++i) q.group_end[i - finished] = q.group_end[i] - end;
  q.groups -= finished;
}

}  // extern "C"
