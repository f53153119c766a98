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
int cluster_size = 1;
RemoteStore* stores;
int store_count, store_capacity;
int first_phases;                  // how many phases the cluster's first block went through
int phase, arrived_count;          // of this block
int arrived_phases[kMaxThreads], waited_phases[kMaxThreads];
u32 waiting[kMaxWarps];
VectorClock released;

int rank() { return (int)(sim_block_index.x % (u32)cluster_size); }
bool is_last() { return rank() == cluster_size - 1; }

void deliver(const RemoteStore& s) {
  u8* to = shared_pointer(s.address, 16, 16);
  for (int i = 0; i < 16; ++i)
    if (to[i] != 0xff)
      sim_fail("a block of the cluster stores at shared address %u, which this block uses for something else", s.address);
  if (checked) check_shared(to, 16, Access::Write, sim_current->linear, s.pc);
  memcpy(to, s.value, 16);
}

void complete_phase() {
  ++phase;
  arrived_count = 0;
  if (checked) hb_acquire(sim_current->warp, released);
  if (is_last())
    for (int i = 0; i < store_count; ++i)
      if (stores[i].visible == phase) deliver(stores[i]);
  if (checked) hb_release(released, sim_current->linear);
  wake(waiting);
}

}  // namespace

void cluster_block_start() {
  if (rank() == 0) store_count = 0;
}

void cluster_reset() {
  memset(waiting, 0, sizeof waiting);
  memset(arrived_phases, 0, sizeof arrived_phases);
  memset(waited_phases, 0, sizeof waited_phases);
  memset(&released, 0, sizeof released);
  phase = arrived_count = 0;
}

void cluster_block_end() {
  if (cluster_size == 1) return;
  if (arrived_count) sim_fail("%d of %d threads arrive at the cluster barrier", arrived_count, thread_count);
  for (int i = 0; is_last() && i < store_count; ++i)
    if (stores[i].visible > phase)
      sim_fail("a remote store at shared address %u that no cluster barrier follows: its target may have ended", stores[i].address);
  if (rank() == 0) first_phases = phase;
  if (phase != first_phases)
    sim_fail("the cluster barrier: this block goes through %d phases, the first one of its cluster through %d", phase, first_phases);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_set_cluster(int size) { cluster_size = size; }

void sim_cluster_arrive() {
  used_units |= kClusters;
  const int me = sim_current->linear;
  if (arrived_phases[me] != waited_phases[me]) sim_fail("a thread arrives twice at the cluster barrier without waiting");
  ++arrived_phases[me];
  if (checked) hb_release(released, me);
  if (++arrived_count == thread_count) complete_phase();
}

void sim_cluster_wait() {
  const int me = sim_current->linear;
  if (arrived_phases[me] == waited_phases[me]) sim_fail("a thread waits at the cluster barrier without having arrived");
  ++waited_phases[me];
  if (phase < waited_phases[me]) park(waiting);
  if (checked) hb_acquire(sim_current->warp, released);
}

void sim_cluster_store(u32 address, int to, f32 a, f32 b, f32 c, f32 d) {
  const int me = sim_current->linear;
  if (to < 0 || to >= cluster_size) sim_fail("block %d of a cluster of %d", to, cluster_size);
  if (to != cluster_size - 1 || is_last())
    sim_fail("the simulator runs a cluster's blocks in order: only the others can store, and only to the last one");
  if (waited_phases[me] == 0) sim_fail("a remote store before the cluster barrier: its target may not have started");
  if (store_count == store_capacity) grow(stores, store_capacity, 1024);
  if (arrived_phases[me] != waited_phases[me]) sim_fail("a remote store between arriving and waiting at the cluster barrier");
  stores[store_count++] = {address, arrived_phases[me] + 1, {a, b, c, d}, __builtin_return_address(0)};
}
}
