// The first keys of a stream of them, in plain CUDA C++. Include it after reduce.cuh, scan.cuh and sort.cuh.
#pragma once

// The least ``keep`` keys that a block of THREADS threads has seen, and their places; in shared memory. Of equal keys those
// stay that were seen first. A key no less than the worst of ``keep`` is dropped where it is seen. Others wait behind those
// that stay, in the order in which they were seen: a stable sort then says which stay. There are ITEMS for each thread.
template <class K, int ITEMS, int THREADS>
struct Selection {
  static constexpr int SIZE = ITEMS * THREADS;
  K keys[SIZE];
  int places[SIZE];
  int scratch[THREADS / 32];
  u32 flag;

  // What each thread knows of the selection; the same in all threads.
  struct State {
    int count = 0;      // keys that stay or wait
    bool full = false;  // whether ``worst`` is known
    K worst = 0;        // the last of ``keep`` keys that stay
  };

  // Each thread gives WIDTH keys, of which those count that have ``some``; the threads are in the order of their places.
  // If not all of them have room, those that wait are sorted first, so ``keep`` must leave that room.
  template <int WIDTH>
  ARCWELD_DEVICE void offer(
      State& state, int keep, const bool (&some)[WIDTH], const K (&key)[WIDTH], const int (&place)[WIDTH]) {
    if (state.count > SIZE - WIDTH * THREADS) settle(state, keep);
    bool better[WIDTH];
    int number = 0;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      better[i] = some[i] && (!state.full || key[i] < state.worst);
      number += better[i];
    }
    int at = row_scan<THREADS>(number, state.count, scratch, OpSum());
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      if (!better[i]) continue;
      keys[at] = key[i];
      places[at] = place[i];
      ++at;
    }
  }

  // Sorts all keys that are there, and lets go of those beyond ``keep``. All threads see the result.
  ARCWELD_DEVICE void settle(State& state, int keep) {
    __syncthreads();  // what was offered is written
    sort_in_block<THREADS, ITEMS>(keys, places, state.count);
    state.count = min(state.count, keep);
    state.full = state.count == keep;
    if (state.full && keep > 0) state.worst = keys[keep - 1];
  }
};
