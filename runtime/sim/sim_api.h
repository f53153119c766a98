// The binary interface between compiled kernels and the simulator's runtime library. C linkage, no other header.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

struct uint3 {
  u32 x, y, z;
};
struct dim3 {
  u32 x = 1, y = 1, z = 1;
};

// One CUDA thread of the running block.
struct SimThread {
  uint3 index;            // threadIdx
  int linear, warp, lane;
  void* stack_pointer;    // where to resume, while suspended
  void* stack;            // the stack it runs on
};

// A warp operation: called once, by the last lane that arrives, with every lane's argument block.
typedef void (*SimWarpOp)(void** slots, u32 mask);

// An operation of a whole block: called once, by the last thread that arrives, with every thread's argument block.
typedef void (*SimBlockOp)(void** slots);

struct SimShuffle {
  u64 value, result;
  int operand, mode, width;  // mode: 0 indexed, 1 up, 2 down, 3 xor
};
struct SimVote {
  int predicate;
  u32 ballot;
};
struct SimFragment {  // ldmatrix and stmatrix
  u32* registers;
  u32 address;
  int count, transposed;
};
struct SimMma {
  void* d;
  const u32 *a, *b;
  int mi, nj;
  int form_a, form_b;  // of 8-bit types: sim_byte_form
};

namespace sim {
struct Sm;
}

// What code asks for at every turn. Each host thread has its own, as it runs one block at a time.
struct SimPlace {
  SimThread* current;
  uint3 block_index;
  dim3 block_dim, grid_dim;
  u8* dynamic_shared;
  sim::Sm* sm;    // all that the runtime library keeps for this host thread
  bool in_order;  // the schedule is the ordinary one: operations of a block may run in their short form
};
// The few words have a fixed distance from the host thread's pointer: they are as near as a global variable.
extern "C" __thread SimPlace sim_place __attribute__((tls_model("initial-exec")));
#define sim_current sim_place.current
#define sim_in_order sim_place.in_order

extern "C" {
[[noreturn]] void sim_fail(const char* format, ...);

// Rendezvous of threads and of lanes.
void sim_syncthreads(const char* site);
void sim_bar_sync(int id, int threads);
void sim_bar_arrive(int id, int threads);
void sim_warp_op(u32 mask, SimWarpOp op, void* slot, const char* name);
void sim_block_op(SimBlockOp op, void* slot, const char* name);
// Whether the calling thread, the first of its block, does the work of all: the others have not begun and never will, and
// it waits at no barrier. False if the schedule is an adverse one. Call it before anything that waits.
bool sim_alone();
void* sim_scratch(u64 bytes);  // memory of the simulator, 64-byte aligned, until the next call
void sim_op_syncwarp(void** slots, u32 mask);
void sim_op_shuffle(void** slots, u32 mask);
void sim_op_vote(void** slots, u32 mask);
void sim_op_ldmatrix(void** slots, u32 mask);
void sim_op_stmatrix(void** slots, u32 mask);
void sim_op_mma_f16(void** slots, u32 mask);
void sim_op_mma_bf16(void** slots, u32 mask);
void sim_op_mma_tf32(void** slots, u32 mask);
void sim_op_mma_int8(void** slots, u32 mask);
void sim_op_mma_float8(void** slots, u32 mask);

// Shared addresses are 1024 + the offset in the block's dynamic shared memory.
u32 sim_shared_address(const void* p);

// Asynchronous copies.
void sim_cp_async(u32 dst, const void* src, int bytes, int src_bytes);
void sim_cp_async_commit();
void sim_cp_async_wait(int newest);
void sim_mbar_init(u32 bar, int count);
void sim_mbar_expect_tx(u32 bar, int bytes);
void sim_mbar_arrive(u32 bar);
void sim_mbar_wait(u32 bar, int parity);
void sim_fence_mbar_init();
void sim_fence_proxy_async();
void sim_tma_load(u32 dst, const void* map, u32 bar, int rank, int x0, int x1, int x2, int x3);
void sim_bulk_load(u32 dst, const void* src, int bytes, u32 bar);
void sim_tma_store(const void* map, u32 src, int rank, int x0, int x1, int x2, int x3);
void sim_tma_store_commit();
void sim_tma_store_wait(int newest);

// wgmma: ``a`` is a descriptor, or ``a_registers`` four registers.
// ``type``: 0 f16, 1 bf16; SIM_INT8 or SIM_FLOAT8, and 2 * sim_byte_form (A) and sim_byte_form (B) more.
constexpr int SIM_INT8 = 4, SIM_FLOAT8 = 8;
void sim_wgmma(void* d, int n, u64 a, const u32* a_registers, u64 b, int transposed_b, int accumulate, int type);
void sim_wgmma_commit();
void sim_wgmma_fence();
void sim_wgmma_wait(int newest);

// The cluster barrier and stores to another block's shared memory (cluster.cpp).
void sim_cluster_arrive();
void sim_cluster_wait();
void sim_cluster_store(u32 address, int to, f32 a, f32 b, f32 c, f32 d);

// Numbers in global memory by which the blocks of a cooperative launch wait for each other (grid.cpp).
void sim_add_release(u32* p, u32 v);
void sim_wait_acquire(const u32* p, u32 least);

void sim_pdl_wait();
void sim_threadfence();

// Told of every atomic access before it happens; does nothing outside the checked mode.
void sim_atomic_access(const void* p, int bytes);
}
