// The last of several blocks to arrive, which puts together what each has left in global memory. Include it after prims.cuh.
#pragma once

// True in the last of ``blocks`` blocks to call it with one ``counter``, which is 0 before and again after. Every thread
// calls it. What all threads of these blocks wrote before is then visible. ``flag`` is shared memory that no thread uses
// from the barrier before the call to the one after.
ARCWELD_DEVICE bool is_last_block(u32* counter, u32 blocks, u32* flag) {
  __syncthreads();  // the whole block has written
  if (threadIdx.x == 0) {
    threadfence();  // its writes come before its arrival
    *flag = atomic_inc(counter, blocks - 1);
    threadfence();  // the others' arrivals come before its reads
  }
  __syncthreads();
  return *flag == blocks - 1;
}
