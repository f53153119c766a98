// A launch, and the host threads that share its blocks.
#pragma once
#include <fenv.h>

#include <atomic>

#include "state.h"

namespace sim {

// What device.py packs for each launch.
struct LaunchSpec {
  void (*kernel)(const void*);
  const void* params;
  u32 grid[3], block[3];
  u64 shared_bytes;
  u32 cluster;  // blocks of a cluster, along x
  u32 cooperative, pdl, reserved;
  u64 blocks() const { return (u64)grid[0] * grid[1] * grid[2]; }
  u64 block_threads() const { return (u64)block[0] * block[1] * block[2]; }
};

struct Launch {
  const LaunchSpec& spec;
  int seed;
  bool checked;
  int threads;  // host threads that may share the blocks
  u64 units;    // clusters of blocks: each is one host thread's
  char* error;  // why block ``failed`` failed, under the lock of the host threads
  u64 error_bytes;
  std::atomic<u64> next{0};         // the first unit that no host thread has taken
  std::atomic<u64> failed{~0ull};   // the first block that has failed
  fenv_t floats{};                  // the launching thread's rounding and treatment of subnormals

  // Under the lock of the host threads:
  int wanted = 0, helpers = 0;      // workers that may still join, and that have
  Launch* next_open = nullptr;
};

// Runs blocks on a worker's host thread until none is left (launch.cpp). ``sm`` is the worker's.
void help(Launch& launch, Sm& sm);

// ---------------------------------------------------------------- host threads (hosts.cpp)
void hosts_lock();
void hosts_unlock();
Sm* sm_take();             // for the calling thread, which then catches the signals of faults; null if there is no memory
void sm_give_back(Sm* sm);
void invite(Launch& launch, int helpers);  // wakes so many workers, or fewer if other launches run too
void dismiss(Launch& launch);              // waits until no worker is at the launch any more

}  // namespace sim
