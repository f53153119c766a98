// The simulator's twin of prims_grid.cuh: a thread that waits for another block gives way to it.
#pragma once

ARCWELD_DEVICE void add_release(u32* p, u32 v) { sim_add_release(p, v); }
ARCWELD_DEVICE void wait_acquire(const u32* p, u32 least) { sim_wait_acquire(p, least); }
