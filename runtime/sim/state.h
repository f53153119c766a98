// The state of the one block that a host thread runs, shared by the runtime's files. One host thread runs all fibers of a
// block: this state needs no locks.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sim_products.h"

namespace sim {

constexpr int kLanes = 32, kMaxWarps = 32, kMaxThreads = kLanes * kMaxWarps;
constexpr size_t kMaxShared = 227 * 1024;   // what a block may ask for on sm_90
constexpr u32 kSharedBase = 1024;           // the shared address of the first dynamic byte

// ---------------------------------------------------------------- happens-before (checker.cpp)
// Who can touch shared memory: 32 warps, and the asynchronous units, which are agents of their own: wgmma of each of 8
// warpgroups, TMA loads by mbarrier, TMA stores. One more agent stands for the kernels that ran before.
constexpr int kWgmmaAgent = 32, kLoadAgent = 40, kLoadAgents = 22, kPdlAgent = 62, kStoreAgent = 63, kAgents = 64;
struct VectorClock {
  u32 at[kAgents];
};

// ---------------------------------------------------------------- threads and warps
struct Warp {
  u32 all;      // the lanes that exist
  u32 ready;    // ... that can run
  u32 unstarted;
  u32 done;     // ... that have returned
  u32 arrived;  // ... that wait in a warp operation
  int rotation; // which ready lane runs first
  void* slot[kLanes];
  u32 mask[kLanes];
  const void* site[kLanes];  // the code that entered the operation
  SimWarpOp op;
  const char* name;
};

struct NamedBarrier {
  int count, threads;
  u32 waiting[kMaxWarps];
  const char* site;
  VectorClock released;
};
constexpr int kNamedBarriers = 16;

// Units with state of their own. What a block has not used needs no reset, and no look when a thread returns.
constexpr u32 kNamed = 1, kCopies = 2, kStores = 4, kWgmma = 8, kClusters = 16, kAlone = 32;  // kAlone: see sim_alone

// ---------------------------------------------------------------- a host thread's part
// Stacks of fibers (fibers.cpp).
struct Stacks {
  char* area;
  void** free;
  int count, free_count, used_count;
  int guarded;   // so many have a page below that nobody may touch
  void* dead;    // the stack of a thread that returned: freed once execution has left it
};

// Memory that keeps what the blocks of one launch put there (products.cpp).
struct Panel {
  char* memory;
  u64 bytes, launch;
  i64 key;
};

// Each file's own state, which it makes in NAME_create().
struct Barriers;
struct Copies;
struct MBarriers;
struct Tma;
struct Cluster;
struct Grid;
struct Warpgroups;
struct Dense;

// What a host thread needs to run one block at a time: a streaming multiprocessor, in the GPU's words. A launch takes one for
// its own thread, and the workers have one each. It begins as zeros.
struct Sm {
  SimThread threads[kMaxThreads];
  Warp warps[kMaxWarps];
  int thread_count, warp_count;
  int done_count;     // threads of the block that have returned
  size_t shared_bytes;
  u32 used_units;
  int seed, cluster_size;
  bool running;       // a kernel's code is on the CPU
  bool checked;       // checked mode
  bool cooperative;   // all blocks of the launch are alive: they may wait for each other

  void (*kernel)(const void*);
  const void* kernel_params;
  u64 random_state;
  void* launch_stack_pointer;
  Stacks stacks;
  u8* shared;         // the shared memory of ordinary launches
  char* scratch;      // sim_scratch
  size_t scratch_bytes;
  Panel panels[SIM_PANELS];
  u64 launch_number;  // counts the launches in which this host thread has had a part
  jmp_buf setting_up; // where a failure goes that no thread of the kernel makes
  char error_text[4096];
  alignas(64) char signal_stack[64 << 10];
  stack_t old_signal_stack;  // the thread's own

  Barriers* barriers;
  Copies* copies;
  MBarriers* mbarriers;
  Tma* tma;
  Cluster* cluster;
  Grid* grid;
  Warpgroups* warpgroups;
  Dense* dense;
  Sm* next_free;      // hosts.cpp
};
inline Sm& sm() { return *sim_place.sm; }

// ---------------------------------------------------------------- cooperative launches (grid.cpp)
void grid_create();
void grid_start(int count);       // before the first block of a launch of ``count``
void grid_select(int block);      // the block that starts or goes on has this number
void grid_block_start();
void grid_put_away();             // of the block that ran: what the runtime holds of it
void grid_fetch(int block);       // the reverse
int grid_next(int after);         // a block that can go on, the first one behind ``after``; -1 if there is none
bool grid_over();                 // every block has ended
void grid_stuck();                // fetches a block whose threads wait for each other; fails if they wait for other blocks
void grid_wake();                 // makes the threads ready whose number has come

// ---------------------------------------------------------------- scheduler (fibers.cpp)
void stacks_create(int count);    // room for ``count`` stacks at least, none of which is in use
void stacks_reset();
bool run_block();                 // until its threads have returned or, in a cooperative launch, wait for other blocks; false if one failed
[[noreturn]] void deadlock();
u64 random_bits();
void park(u32* waiting);          // the current thread waits; its bit is added to waiting[its warp]
void wake(u32* waiting);          // makes every thread of waiting[] ready and clears it
void take_block(Sm& s);           // the current thread alone goes on with the block: the others are dropped as they are
void maybe_preempt();             // with a seed: sometimes lets another thread run
bool in_fiber_stack(const void* p);

// ---------------------------------------------------------------- each file's part of starting a block
void barriers_create();
void copies_create();
void mbarriers_create();
void tma_create();
void cluster_create();
void warpgroups_create();
void dense_create();
void barriers_reset();
void barriers_save(NamedBarrier* into);
void barriers_restore(const NamedBarrier* from);
void cp_async_reset();
void cp_async_check_exit(const SimThread& thread);
void mbarriers_reset();
void tma_reset();
void tma_stores_reset();
void tma_check_exit(const SimThread& thread);
bool tma_land_one();              // completes one pending TMA load; false if there is none
void tma_check_block_end();
void cluster_reset();
void cluster_block_start();
void cluster_block_end();
void wgmma_reset();
void wgmma_check_exit(const SimThread& thread);
void describe_waiting(char* text, size_t size);
size_t describe_mbarriers(char* text, size_t size);

// ---------------------------------------------------------------- the simulator's own memory (fibers.cpp)
// ``bytes`` more bytes for ``old``, or new ones if that is null; and zeroed pages. Where there is no memory the launch fails.
void* allocate(void* old, size_t bytes);
void* map_pages(size_t bytes);

// Makes a file's state of this host thread, all zeros, unless it is there.
template <class T> void create(T*& state) {
  if (!state) state = (T*)map_pages(sizeof(T));
}

// Makes room for more than ``capacity`` elements, ``first`` of them at first.
template <class T> void grow(T*& array, int& capacity, int first) {
  const int larger = capacity ? capacity * 2 : first;
  array = (T*)allocate((void*)array, (size_t)larger * sizeof(T));
  capacity = larger;
}

// Checked pointer to ``bytes`` of shared memory at a shared address.
u8* shared_pointer(u32 address, int bytes, int alignment);

// ---------------------------------------------------------------- mbarriers (mbarrier.cpp)
void mbar_complete_bytes(u32 bar, int bytes, int agent, u32 clock);
int mbar_agent(u32 bar);          // the agent of the TMA loads that complete on this mbarrier

}  // namespace sim
