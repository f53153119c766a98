// Matrix products by ordinary arithmetic: shared tiles with k outermost, and each thread's part of the result. Include it
// after contract.cuh.
#pragma once

// A thread's part of an operand's tile, as chunks of WIDTH neighbours.
template <class Operand, class Group, int BK>
struct Chunks {
  typedef typename Operand::Value Value;
  static constexpr int ROWS = Operand::ROWS, WIDTH = Operand::WIDTH;
  static constexpr int COUNT = ROWS * BK / WIDTH, EACH = Group::template SHARES<COUNT>;
  static constexpr int ROW_STEP = Operand::ALONG_K ? 0 : 1, K_STEP = Operand::ALONG_K ? 1 : 0;  // between neighbours
  Value v[EACH][WIDTH];
  // The row and the k, inside the tile, of this thread's i-th chunk.
  static ARCWELD_DEVICE int row(int i) {
    return Operand::ROWS_FIRST ? Group::share(i) % (ROWS / WIDTH) * WIDTH : Group::share(i) / (BK / WIDTH);
  }
  static ARCWELD_DEVICE int k(int i) {
    return Operand::ROWS_FIRST ? Group::share(i) / (ROWS / WIDTH) : Group::share(i) % (BK / WIDTH) * WIDTH;
  }
  static ARCWELD_DEVICE bool exists(int i) { return Group::template has_share<COUNT>(i); }
  // Loads the chunks of the tile at (row0, k0); zeros past the edges.
  template <class Params, class Index, class Depth>
  ARCWELD_DEVICE void fetch(const Params& p, Index b, Index row0, Index k0, Depth depth) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (exists(i) && row0 + row(i) < Operand::rows(p) && k0 + k(i) < depth.value) {
        Operand::load(p, b, row0 + row(i), k0 + k(i), v[i]);
      } else {
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) v[i][e] = Value(0);
      }
    }
  }
};
// Registers to shared memory, with k outermost: the inner loop then reads neighbouring rows at once.
template <class Acc, class Chunks>
ARCWELD_DEVICE void stash(Acc* tile, int pitch, const Chunks& c, int row_step, int k_step) {
#pragma unroll
  for (int i = 0; i < Chunks::EACH; ++i)
    if (Chunks::exists(i)) {
#pragma unroll
      for (int e = 0; e < Chunks::WIDTH; ++e)
        tile[(Chunks::k(i) + e * k_step) * pitch + Chunks::row(i) + e * row_step] = (Acc)c.v[i][e];
    }
}

// The part of a block's BM x BN that a thread computes: TM rows x TN columns, in groups of VM and VN neighbours that one
// access takes. Groups lie a whole stripe apart, so that a warp reads neighbouring banks.
template <class Group, class Acc, int BM, int BN, int BK, int TM, int TN>
struct ThreadTile {
  typedef Acc Element;
  static constexpr int MOST = 16 / sizeof(Acc), VM = TM < MOST ? TM : MOST, VN = TN < MOST ? TN : MOST;
  static constexpr int PITCH_A = BM + MOST, PITCH_B = BN + MOST;
  static constexpr int TILE_A = BK * PITCH_A, BUFFER = TILE_A + BK * PITCH_B;  // elements of shared memory: A, then B

  // First row (or column) of a thread's group.
  static ARCWELD_DEVICE int row_of(int group, int thread) { return group * (BM / (TM / VM)) + thread / (BN / TN) * VM; }
  static ARCWELD_DEVICE int row_of(int group) { return row_of(group, Group::thread()); }
  static ARCWELD_DEVICE int column_of(int group, int thread) { return group * (BN / (TN / VN)) + thread % (BN / TN) * VN; }
  static ARCWELD_DEVICE int column_of(int group) { return column_of(group, Group::thread()); }

  static ARCWELD_DEVICE void multiply(Acc (&acc)[TM][TN], const Acc* buffer) {
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      Acc a[TM], b[TN];
#pragma unroll
      for (int g = 0; g < TM / VM; ++g) {
        const Vec<Acc, VM> v = load_vec<VM>(buffer + k * PITCH_A + row_of(g));
#pragma unroll
        for (int e = 0; e < VM; ++e) a[g * VM + e] = v[e];
      }
#pragma unroll
      for (int g = 0; g < TN / VN; ++g) {
        const Vec<Acc, VN> v = load_vec<VN>(buffer + TILE_A + k * PITCH_B + column_of(g));
#pragma unroll
        for (int e = 0; e < VN; ++e) b[g * VN + e] = v[e];
      }
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) acc[i][j] += a[i] * b[j];
    }
  }
};
