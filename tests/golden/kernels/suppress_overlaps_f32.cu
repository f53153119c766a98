// suppress_suppressoverlaps: a block goes through a row of boxes in the order given, 128 at a time. A box stays unless it
// overlaps one that stays by more than the limit. Those that stay are kept in memory, and compared with all later tiles.
#include "prims.cuh"
#include "math.cuh"
#include "suppress.cuh"

struct Params {
  const f32* in0;
  const bool* in1;
  const f32* in2;
  const i64* in3;
  bool* out0;
  f32* kept;
};

__device__ __forceinline__ void load_y0(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 320 + col * 4];
  out[0] = t0;
}

__device__ __forceinline__ void load_x0(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 320 + col * 4 + 1];
  out[0] = t0;
}

__device__ __forceinline__ void load_y1(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 320 + col * 4 + 2];
  out[0] = t0;
}

__device__ __forceinline__ void load_x1(const Params& p, int row, int col, f32 (&out)[1]) {
  const f32 t0 = p.in0[row * 320 + col * 4 + 3];
  out[0] = t0;
}

__device__ __forceinline__ void load_open(const Params& p, int row, int col, bool (&out)[1]) {
  const bool t0 = p.in1[row * 80 + col];
  out[0] = t0;
}

__device__ __forceinline__ void load_overlap(const Params& p, int row, f32 (&out)[1]) {
  const f32 t0 = p.in2[0];
  out[0] = t0;
}

__device__ __forceinline__ void load_most(const Params& p, int row, i64 (&out)[1]) {
  const i64 t0 = p.in3[0];
  out[0] = t0;
}

__device__ __forceinline__ void store_out(const Params& p, int row, int col, const bool (&acc)[1]) {
  p.out0[row * 80 + col] = acc[0];
}

extern "C" __global__ void __launch_bounds__(128) suppress_suppressoverlaps_9b1a7402(const __grid_constant__ Params p) {
  constexpr int THREADS = 128;
  pdl_launch_dependents();
  DYN_SHARED(BoxTile<THREADS>, shared);
  BoxTile<THREADS>& tile = shared[0];
  const int thread = threadIdx.x, row = blockIdx.x;
  const int cols = 80;
  pdl_wait();

  f32 limit[1];
  i64 most[1];
  load_overlap(p, row, limit);
  load_most(p, row, most);
  const int room = i32(most[0] < 0 ? 0 : most[0] < cols ? most[0] : cols);
  Box* const kept = reinterpret_cast<Box*>(p.kept) + i64(row) * cols;
  int count = 0;
  for (int first = 0; first < cols; first += THREADS) {
    const int col = first + thread;
    bool open[1] = {};
    Box box = {};
    if (col < cols && count < room) load_open(p, row, col, open);
    if (open[0]) {
      f32 y0[1], x0[1], y1[1], x1[1];
      load_y0(p, row, col, y0);
      load_x0(p, row, col, x0);
      load_y1(p, row, col, y1);
      load_x1(p, row, col, x1);
      box = Box{y0[0], x0[0], y1[0], x1[0]};
    }
    // boxes of earlier tiles that stay
    for (int begin = 0; begin < count; begin += THREADS) {
      const int end = min(THREADS, count - begin);
      if (thread < end) tile.boxes[thread] = kept[begin + thread];
      __syncthreads();
      for (int i = 0; open[0] && i < end; ++i) open[0] = !overlap_beyond(tile.boxes[i], box, limit[0]);
      __syncthreads();
    }
    // the boxes of this tile with each other
    tile.boxes[thread] = box;
    const u32 word = __ballot_sync(0xffffffffu, open[0]);
    if (thread % 32 == 0) tile.open[thread / 32] = word;
    __syncthreads();
    if (open[0]) tile.compare(thread, limit[0]);
    __syncthreads();
    if (thread < 32) tile.choose(room - count);
    __syncthreads();
    const bool acc[1] = {bool(tile.stay[thread / 32] >> thread % 32 & 1u)};
    if (acc[0]) kept[count + tile.staying(thread)] = box;
    if (col < cols) store_out(p, row, col, acc);
    count += tile.staying(THREADS);
    __syncthreads();
  }
}
EXPORT_KERNEL(suppress_suppressoverlaps_9b1a7402)
