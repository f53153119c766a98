// Numbers in global memory by which the blocks of a cooperative launch wait for each other.
// The simulator's twin, sim_prims_grid.h, declares the same functions. Include it after prims.cuh.
#pragma once
#ifdef ARCWELD_SIM
#include "sim_prims_grid.h"
#else

// Adds to a number, after all that this thread did or saw other threads do.
ARCWELD_DEVICE void add_release(u32* p, u32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Waits until a number is ``least`` or more; what came before those additions is then visible. The blocks that add must be
// on the GPU: only a cooperative launch is sure of it. With ARCWELD_DEBUG a lost addition gives wrong results after a tenth
// of a second instead of a hang, as in mbar_wait.
ARCWELD_DEVICE void wait_acquire(const u32* p, u32 least) {
#ifdef ARCWELD_DEBUG
  const i64 start = clock64();
#endif
  while (true) {
    u32 found;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(p) : "memory");
    if (found >= least) break;
#ifdef ARCWELD_DEBUG
    if (clock64() - start > 200000000) break;
#endif
  }
}

#endif
