// Clusters of blocks, as far as blocks that run one after another can be a cluster: only its last block may receive stores
// from the others, and sees them when it has waited for the phase after which they were made.
#include <stdlib.h>

#include "checker.h"
#include "state.h"

namespace sim {
namespace {

struct RemoteStore {
  u32 address;
  int visible;  // the phase whose completion makes it visible
  f32 value[4];
  const void* pc;
};

}  // namespace

struct Cluster {
  RemoteStore* stores;
  int store_count, store_capacity;
  int first_phases;  // how many phases the cluster's first block went through
  int phase, arrived_count;  // of this block
  int arrived_phases[kMaxThreads], waited_phases[kMaxThreads];
  u32 waiting[kMaxWarps];
  VectorClock released;
};

namespace {

int rank() { return (int)(sim_place.block_index.x % (u32)sm().cluster_size); }
bool is_last() { return rank() == sm().cluster_size - 1; }

void deliver(const RemoteStore& s) {
  u8* to = shared_pointer(s.address, 16, 16);
  for (int i = 0; i < 16; ++i)
    if (to[i] != 0xff)
      sim_fail("a block of the cluster stores at shared address %u, which this block uses for something else", s.address);
  if (sm().checked) check_shared(to, 16, Access::Write, sim_current->linear, s.pc);
  memcpy(to, s.value, 16);
}

void complete_phase() {
  Cluster& c = *sm().cluster;
  ++c.phase;
  c.arrived_count = 0;
  if (sm().checked) hb_acquire(sim_current->warp, c.released);
  if (is_last())
    for (int i = 0; i < c.store_count; ++i)
      if (c.stores[i].visible == c.phase) deliver(c.stores[i]);
  if (sm().checked) hb_release(c.released, sim_current->linear);
  wake(c.waiting);
}

}  // namespace

void cluster_create() { create(sm().cluster); }

void cluster_block_start() {
  if (rank() == 0) sm().cluster->store_count = 0;
}

void cluster_reset() {
  Cluster& c = *sm().cluster;
  memset(c.waiting, 0, sizeof c.waiting);
  memset(c.arrived_phases, 0, sizeof c.arrived_phases);
  memset(c.waited_phases, 0, sizeof c.waited_phases);
  memset(&c.released, 0, sizeof c.released);
  c.phase = c.arrived_count = 0;
}

void cluster_block_end() {
  Cluster& c = *sm().cluster;
  if (sm().cluster_size == 1) return;
  if (c.arrived_count) sim_fail("%d of %d threads arrive at the cluster barrier", c.arrived_count, sm().thread_count);
  for (int i = 0; is_last() && i < c.store_count; ++i)
    if (c.stores[i].visible > c.phase)
      sim_fail("a remote store at shared address %u that no cluster barrier follows: its target may have ended", c.stores[i].address);
  if (rank() == 0) c.first_phases = c.phase;
  if (c.phase != c.first_phases)
    sim_fail("the cluster barrier: this block goes through %d phases, the first one of its cluster through %d", c.phase, c.first_phases);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_cluster_arrive() {
  Cluster& c = *sm().cluster;
  sm().used_units |= kClusters;
  const int me = sim_current->linear;
  if (c.arrived_phases[me] != c.waited_phases[me]) sim_fail("a thread arrives twice at the cluster barrier without waiting");
  ++c.arrived_phases[me];
  if (sm().checked) hb_release(c.released, me);
  if (++c.arrived_count == sm().thread_count) complete_phase();
}

void sim_cluster_wait() {
  Cluster& c = *sm().cluster;
  const int me = sim_current->linear;
  if (c.arrived_phases[me] == c.waited_phases[me]) sim_fail("a thread waits at the cluster barrier without having arrived");
  ++c.waited_phases[me];
  if (c.phase < c.waited_phases[me]) park(c.waiting);
  if (sm().checked) hb_acquire(sim_current->warp, c.released);
}

void sim_cluster_store(u32 address, int to, f32 a, f32 b, f32 c, f32 d) {
  Cluster& all = *sm().cluster;
  const int me = sim_current->linear;
  if (to < 0 || to >= sm().cluster_size) sim_fail("block %d of a cluster of %d", to, sm().cluster_size);
  if (to != sm().cluster_size - 1 || is_last())
    sim_fail("the simulator runs a cluster's blocks in order: only the others can store, and only to the last one");
  if (all.waited_phases[me] == 0) sim_fail("a remote store before the cluster barrier: its target may not have started");
  if (all.store_count == all.store_capacity) grow(all.stores, all.store_capacity, 1024);
  if (all.arrived_phases[me] != all.waited_phases[me]) sim_fail("a remote store between arriving and waiting at the cluster barrier");
  all.stores[all.store_count++] = {address, all.arrived_phases[me] + 1, {a, b, c, d}, __builtin_return_address(0)};
}
}
