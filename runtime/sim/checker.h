// The checked mode: what the other files tell the checker, always under ``if (sm().checked)``. Its state is that of the one
// checked launch which runs at a time.
#pragma once
#include "state.h"

namespace sim {

enum class Access : u8 { Read, Write, Atomic };

// ``triples``: (begin, bytes, flags) of each buffer that the launch may touch; flag 1 writable, 2 written by an earlier kernel.
// ``pdl``: the launch may overlap its predecessors.
void checker_launch_start(int count, const u64* triples, bool pdl);
void checker_block_start();
const char* checker_launch_end();  // what is wrong with the launch as a whole, or null

// What the checker knows of one block of a cooperative launch. The shadow of its shared memory is in an area of its own.
struct CheckerBlock {
  u32 start[kAgents], pdl;
  VectorClock view[kMaxWarps], fenced_view[kMaxWarps];
  u32 fenced_clock[kMaxThreads];
};
void checker_block_select(int block);  // before the block starts or goes on
void checker_save(CheckerBlock& into);
void checker_restore(const CheckerBlock& from);

// Shared access by a thread through the generic proxy; ``pc`` is the code that made it.
void check_shared(const void* p, int bytes, Access access, int thread, const void* pc);
// Global access; fails if it is outside the launch's buffers, writes one that is read-only, or comes before pdl_wait()
// though an earlier kernel may still use the buffer.
void check_global(const void* p, size_t bytes, bool write, const void* pc);
void check_global_range(const void* p, size_t bytes, bool write, const void* pc);  // atomics: without the rule for blocks

// cp.async: between issue and wait the destination may not be touched.
void check_copy_issue(const void* p, int bytes, int thread, const void* pc);
void check_copy_landed(const void* p, int bytes, int thread);

// An asynchronous unit (TMA, wgmma) touches shared memory. ``clock`` is the agent's tick for the operation, ``issuers`` the
// warps [first, first + count) on whose behalf it runs: what they do not know of may not be touched.
u32 agent_tick(int agent);
void check_agent(const void* p, int bytes, Access access, int agent, u32 clock, int first, int count, const void* pc);

// Blocks of one launch (blocks.cpp). ``pc`` as in check_global.
void blocks_launch_start(int count, const u64* triples);
void blocks_block_start();
void blocks_fence();
void blocks_atomic();
// What the block did until now becomes visible to those that wait for ``p``, which becomes ``value``; the reverse.
void blocks_release(const u32* p, u32 value);
void blocks_acquire(const u32* p, u32 least);
void blocks_access(const void* p, size_t bytes, bool write, const void* pc);

// "file+offset" of a code address, which the Python side turns into file:line.
struct Where {
  char text[600];
  explicit Where(const void* pc);
};

// Happens-before edges.
void hb_release(VectorClock& into, int thread);  // what the thread's warp did until now becomes visible through ``into``
void hb_acquire(int warp, const VectorClock& from);
void hb_acquire_agent(int warp, int agent, u32 clock);
void hb_join_agent(VectorClock& into, int agent, u32 clock);
void hb_warp_sync(int warp);
void hb_proxy_fence(int thread);

}  // namespace sim
