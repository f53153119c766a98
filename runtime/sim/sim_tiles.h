// The simulator's twin of tiles.cuh: the last thread of a block that arrives computes the sums of all of them by vectors.
//
// Each sum adds the same products in the same order as its thread's own loop. Product and sum are rounded once, as in a
// fused multiply-add of the GPU. Operands are read by the kernel's own hooks. Not here are the shared tiles and their
// barriers: an adverse schedule and checked mode run the kernel's loop.
#pragma once

// Elements k of a tile's rows, ``row * ROW + k * K`` apart. Memory of the simulator, not of the block.
template <class Acc, int ROW, int K>
struct SimTile {
  Acc* at;
  // Rows [row0, row0 + rows) and k in [k0, k0 + depth) of an operand, in the order in which they lie in memory.
  template <class Operand, class Params, class Index>
  void fetch(const Params& p, Index b, Index row0, Index k0, int rows, int depth) const {
    constexpr int WIDTH = Operand::WIDTH;
    if constexpr (Operand::ALONG_K) {
      for (int row = 0; row < rows; ++row)
        for (int k = 0; k < depth; k += WIDTH) put<Operand, K>(p, b, row0 + row, k0 + k, at + row * ROW + k * K);
    } else {
      for (int k = 0; k < depth; ++k)
        for (int row = 0; row < rows; row += WIDTH) put<Operand, ROW>(p, b, row0 + row, k0 + k, at + row * ROW + k * K);
    }
  }
  template <class Operand, int STEP, class Params, class Index>
  static void put(const Params& p, Index b, Index row, Index k, Acc* to) {
    typename Operand::Value v[Operand::WIDTH];
    Operand::load(p, b, row, k, v);
    for (int e = 0; e < Operand::WIDTH; ++e) to[e * STEP] = (Acc)v[e];
  }
};

// Sums of R rows and of ``columns`` columns, rounded up to a vector: sums[r][j] += a[r][k] * b[k][j] for k < depth.
template <int R, int BN, class Acc, int ROW, int K>
static inline void sim_multiply_rows(Acc* sums, SimTile<Acc, ROW, K> a, const Acc* b, int columns, int depth) {
  constexpr int LANES = BN * sizeof(Acc) % 32 ? 1 : 32 / sizeof(Acc), MANY = BN % (2 * LANES) ? 1 : 2;
  typedef Acc Lanes __attribute__((vector_size(LANES * sizeof(Acc)), may_alias));
  for (int j = 0; j < columns; j += LANES * MANY) {
    Lanes c[R][MANY];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int i = 0; i < MANY; ++i) c[r][i] = *(const Lanes*)(sums + r * BN + j + i * LANES);
    for (int k = 0; k < depth; ++k) {
      Lanes x[MANY];
#pragma GCC unroll 2
      for (int i = 0; i < MANY; ++i) x[i] = *(const Lanes*)(b + k * BN + j + i * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Acc w = a.at[r * ROW + k * K];
#pragma GCC unroll 2
        for (int i = 0; i < MANY; ++i) c[r][i] += w * x[i];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int i = 0; i < MANY; ++i) *(Lanes*)(sums + r * BN + j + i * LANES) = c[r][i];
  }
}

template <class Acc, int TM, int TN, class Params, class Tile, class Index>
struct SimProduct {
  Acc (*acc)[TN];
  const Params* p;
  const Tile* t;
  Index depth;
};

template <class Work, class Group, class OperandA, class OperandB, int BK, class Slot, class Acc, int TM, int TN>
SIM_UNCHECKED static void sim_op_product(void** slots) {
  constexpr int BM = OperandA::ROWS, BN = OperandB::ROWS, SPLIT = Group::SPLITS, R = 4;
  // k in a step: tiles stay in the L1 cache. A group of several takes BK of each SPLIT * BK.
  constexpr int PIECE = (BM + BN) * sizeof(Acc) > 1024 ? 2 * BK : 4 * BK, RUN = SPLIT > 1 ? BK : PIECE;
  constexpr int ROW = OperandA::ALONG_K ? PIECE : 1, K = OperandA::ALONG_K ? 1 : BM;
  const Slot& first = *(const Slot*)slots[0];
  const auto& p = *first.p;
  const auto t = *first.t;
  const auto all = first.depth;
  const auto left_m = OperandA::rows(p) - t.m, left_n = OperandB::rows(p) - t.n;
  const int rows = left_m < BM ? (int)left_m : BM, columns = left_n < BN ? (int)left_n : BN;
  Acc* const sums = (Acc*)sim_scratch(sizeof(Acc) * (BM * BN + (BM + BN) * PIECE));
  const SimTile<Acc, ROW, K> a = {sums + BM * BN};
  const SimTile<Acc, 1, BN> b = {sums + BM * BN + BM * PIECE};
  for (int i = 0; i < (BM + BN) * PIECE; ++i) a.at[i] = Acc(0);  // past the edges
  for (int group = 0; group < SPLIT; ++group) {
    for (int i = 0; i < BM * BN; ++i) sums[i] = Acc(0);
    for (auto k = (decltype(all))(group * BK); k < all;) {
      int depth = 0;
      for (; depth < PIECE && k < all; k += SPLIT * RUN) {
        const int run = all - k < RUN ? (int)(all - k) : RUN;
        SimTile<Acc, ROW, K>{a.at + depth * K}.template fetch<OperandA>(p, t.b, t.m, k, rows, run);
        SimTile<Acc, 1, BN>{b.at + depth * BN}.template fetch<OperandB>(p, t.b, t.n, k, columns, run);
        depth += run;
      }
      for (int row = 0; row < rows; row += R)
        sim_multiply_rows<R, BN>(sums + row * BN, SimTile<Acc, ROW, K>{a.at + row * ROW}, b.at, columns, depth);
    }
    for (int thread = 0; thread < Group::COUNT; ++thread) {
      Acc(*acc)[TN] = ((const Slot*)slots[group * Group::COUNT + thread])->acc;
      for (int i = 0; i < TM; ++i)
        for (int j = 0; j < TN; ++j)
          acc[i][j] = sums[(Work::row_of(i / Work::VM, thread) + i % Work::VM) * BN + Work::column_of(j / Work::VN, thread) + j % Work::VN];
    }
  }
}

// Whether the sums of this block's tile, over all k, are in ``acc`` already: true unless the schedule is an adverse one.
template <class Work, class Group, class OperandA, class OperandB, int BK, class Acc, int TM, int TN, class Params, class Tile,
          class Index>
ARCWELD_DEVICE bool block_product(Acc (&acc)[TM][TN], const Params& p, const Tile& t, Index depth) {
  if (!sim_in_order) return false;
  typedef SimProduct<Acc, TM, TN, Params, Tile, Index> Slot;
  Slot mine{acc, &p, &t, depth};
  sim_block_op(sim_op_product<Work, Group, OperandA, OperandB, BK, Slot, Acc, TM, TN>, &mine, "block_product");
  return true;
}

// ---------------------------------------------------------------- attention: what a block's threads hold of a shared tile
template <class T>
struct SimPart {
  T* mine;
  const T *a, *b;
};
// sums[row][column] += a[row][k] * b[k][column], for all rows of a block's tile.
template <int ROWS, int COLUMNS, int A_PITCH, class T>
static inline void sim_multiply_tile(T* sums, const T* a, const T* b, int depth) {
  constexpr int R = ROWS % 4 == 0 ? 4 : ROWS % 2 == 0 ? 2 : 1;
  for (int row = 0; row < ROWS; row += R)
    sim_multiply_rows<R, COLUMNS>(sums + row * COLUMNS, SimTile<T, A_PITCH, 1>{(T*)a + row * A_PITCH}, b, COLUMNS, depth);
}

template <class Work, class T, int ROW_TILE, int KEY_TILE>
SIM_UNCHECKED static void sim_op_scores(void** slots) {
  constexpr int ROWS = Work::ROWS, KEYS = Work::KEYS, DEPTH = Work::DEPTH;
  const SimPart<T>& first = *(const SimPart<T>*)slots[0];
  T* const sums = (T*)sim_scratch(sizeof(T) * (ROWS * KEYS + DEPTH * KEYS));
  T* const turned = sums + ROWS * KEYS;
  for (int i = 0; i < ROWS * KEYS; ++i) sums[i] = T(0);
  for (int key = 0; key < KEYS; ++key)
    for (int d = 0; d < DEPTH; ++d) turned[d * KEYS + key] = first.b[key * Work::K_PITCH + d];
  sim_multiply_tile<ROWS, KEYS, Work::K_PITCH>(sums, first.a, turned, DEPTH);
  for (int y = 0; y < Work::DOWN; ++y)
    for (int x = 0; x < Work::ACROSS; ++x) {
      T* const score = ((const SimPart<T>*)slots[y * Work::ACROSS + x])->mine;
      for (int i = 0; i < ROW_TILE; ++i)
        for (int j = 0; j < KEY_TILE; ++j) score[i * KEY_TILE + j] = sums[(y + Work::DOWN * i) * KEYS + x + Work::ACROSS * j];
    }
}
// Whether the scores of the block's queries and a tile's keys are in ``score`` already.
template <class Work, class T, int ROW_TILE, int KEY_TILE>
ARCWELD_DEVICE bool block_scores(T (&score)[ROW_TILE][KEY_TILE], const T* queries, const T* keys) {
  if (!sim_in_order) return false;
  SimPart<T> part{&score[0][0], queries, keys};
  sim_block_op(sim_op_scores<Work, T, ROW_TILE, KEY_TILE>, &part, "block_scores");
  return true;
}

template <class Work, class T, int ROW_TILE, int GROUPS>
SIM_UNCHECKED static void sim_op_weighted_sums(void** slots) {
  constexpr int ROWS = Work::ROWS, COLUMNS = Work::V_PITCH;
  const SimPart<T>& first = *(const SimPart<T>*)slots[0];
  T* const sums = (T*)sim_scratch(sizeof(T) * ROWS * COLUMNS);
  for (int way = 0; way < 2; ++way) {  // from the threads, and back to them
    if (way) sim_multiply_tile<ROWS, COLUMNS, Work::P_PITCH>(sums, first.a, first.b, Work::KEYS);
    for (int y = 0; y < Work::DOWN; ++y)
      for (int x = 0; x < Work::ACROSS; ++x) {
        T* const out = ((const SimPart<T>*)slots[y * Work::ACROSS + x])->mine;
        for (int i = 0; i < ROW_TILE; ++i)
          for (int g = 0; g < GROUPS; ++g) {
            T* const row = sums + (y + Work::DOWN * i) * COLUMNS + 4 * (x + Work::ACROSS * g);
            T* const own = out + (i * GROUPS + g) * 4;
            for (int c = 0; c < 4; ++c) (way ? own : row)[c] = (way ? row : own)[c];
          }
      }
  }
}
// Whether the tile's values, weighted by the probabilities, have been added to ``out`` already.
template <class Work, class T, int ROW_TILE, int GROUPS>
ARCWELD_DEVICE bool block_weighted_sums(T (&out)[ROW_TILE][GROUPS][4], const T* weights, const T* values) {
  if (!sim_in_order) return false;
  SimPart<T> part{&out[0][0][0], weights, values};
  sim_block_op(sim_op_weighted_sums<Work, T, ROW_TILE, GROUPS>, &part, "block_weighted_sums");
  return true;
}
