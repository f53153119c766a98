// The first keys of a stream of them, in plain CUDA C++. Include it after reduce.cuh, scan.cuh and sort.cuh.
#pragma once

// The least ``keep`` keys, at most KEEP, that a block of THREADS threads has seen, and their places; in shared memory. Of
// equal keys those stay that were seen first. A key no less than the worst of ``keep`` is dropped where it is seen. Others
// wait, ROOM of them at most, behind those that stay, in the order in which they were seen: a stable sort then says which stay.
template <class K, int KEEP, int ROOM, int THREADS>
struct Selection {
  K keys[2][KEEP + ROOM];
  int places[2][KEEP + ROOM];
  int scratch[THREADS / 32];
  u32 flag;

  // What each thread knows of the selection; the same in all threads.
  struct State {
    int count = 0;       // keys that stay or wait
    int side = 0;        // which half of ``keys`` and ``places`` has them
    bool full = false;   // whether ``worst`` is known
    K worst = 0;         // the last of ``keep`` keys that stay
  };

  // Each thread gives ITEMS keys, of which those count that have ``some``; the threads are in the order of their places.
  // All of THREADS * ITEMS keys must have room: ``settle`` makes it.
  template <int ITEMS>
  ARCWELD_DEVICE void offer(State& state, const bool (&some)[ITEMS], const K (&key)[ITEMS], const int (&place)[ITEMS]) {
    bool better[ITEMS];
    int number = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      better[i] = some[i] && (!state.full || key[i] < state.worst);
      number += better[i];
    }
    int at = row_scan<THREADS>(number, state.count, scratch, OpSum());
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (!better[i]) continue;
      keys[state.side][at] = key[i];
      places[state.side][at] = place[i];
      ++at;
    }
  }

  // Sorts all keys that are there, and lets go of those beyond ``keep``. All threads see the result.
  ARCWELD_DEVICE void settle(State& state, int keep) {
    __syncthreads();  // what was offered is written
    for (int length = 1; length < state.count; length *= 2, state.side ^= 1) {
      for (int i = threadIdx.x; i < state.count; i += THREADS) {
        const int place = merged_place(keys[state.side], state.count, length, i);
        keys[state.side ^ 1][place] = keys[state.side][i];
        places[state.side ^ 1][place] = places[state.side][i];
      }
      __syncthreads();
    }
    state.count = min(state.count, keep);
    state.full = state.count == keep;
    if (state.full && keep > 0) state.worst = keys[state.side][keep - 1];
  }
};
