// The threads that share the work of a block out, in loops that a team of one runs too. On a GPU a team is the block.
// On the simulator it may be one thread, which needs no exchange with others and sums by vectors. This side is CUDA;
// the simulator's twin, sim_team.h, declares the same names. Include it after reduce.cuh.
#pragma once

// How a block shares a product of ROWS rows and COLUMNS columns out: SPLIT warps share k, and so do the LANES of a warp
// that have the same columns. Each takes PIECE neighbours of k at a time, of ACROSS neighbouring columns.
template <int ROWS_, int COLUMNS_, int SPLIT_, int LANES_, int PIECE_, int ACROSS_>
struct SharedDepth {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, SPLIT = SPLIT_, LANES = LANES_;
  static constexpr int PIECE = PIECE_, ACROSS = ACROSS_;
};

// ``row_reduce`` by the threads of the block.
template <int LANES, int WIDTH, bool FRESH, class Team, class T, class Index, class Op, class Terms>
ARCWELD_DEVICE T row_reduce_impl(const Team& team, T part, Index columns, T* scratch, Op op, Terms terms) {
#pragma unroll 4
  for (int col = (LANES > 32 ? team.rank : team.lane) * WIDTH; col < columns; col += LANES * WIDTH) {
    T term[WIDTH];
    terms(col, term);
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) part = op(part, term[e]);
  }
  if constexpr (LANES > 32) return block_reduce<LANES, FRESH>(part, scratch, op);
  else return warp_reduce(part, op);
}

#if defined(ARCWELD_SIM) && !defined(SIM_CHECKED)
#include "sim_team.h"
#else

// Loops over elements go from ``rank`` by steps of ``size``, those over rows from ``warp`` by steps of ``warps``, and
// within a row from ``lane`` by steps of ``lanes``.
template <int THREADS>
struct Team {
  static constexpr int size = THREADS, warps = THREADS / 32, lanes = 32;
  const int rank = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
};

// Combines the values of a warp's lanes; every lane gets the result.
template <int THREADS, class T, class Op>
ARCWELD_DEVICE T warp_reduce(const Team<THREADS>& team, T v, Op op) {
  return warp_reduce(v, op);
}

// Whether the sums of the product of ``rows`` rows over all k < depth are in ``partial``, [SPLIT][ROWS][COLUMNS],
// already. The hooks are (row, k, elements) and (column, k, elements), and of zero points (column, zero). column_at(j)
// is column j of the tile; those from ``columns`` on do not exist.
template <class Shares, int THREADS, class Acc, class Index, class N, class ColumnAt, class LoadRow, class LoadColumn,
          class... Zero>
ARCWELD_DEVICE bool team_product(const Team<THREADS>& team, Acc* partial, int rows, Index depth, N columns,
                                 ColumnAt column_at, LoadRow load_row, LoadColumn load_column, Zero... zero) {
  return false;
}

// Combines what ``terms(col, T (&term)[WIDTH])`` gives for a row's columns, WIDTH at a time; every thread gets the
// result. LANES threads share the row: 32, a warp, or all of the block, with ``scratch`` as block_reduce has it.
// ``part`` is the identity of ``op``.
template <int LANES, int WIDTH, bool FRESH = false, class Team, class T, class Index, class Op, class Terms>
ARCWELD_DEVICE T row_reduce(const Team& team, T part, Index columns, T* scratch, Op op, Terms terms) {
  return row_reduce_impl<LANES, WIDTH, FRESH>(team, part, columns, scratch, op, terms);
}

// Eight neighbours of 16 bits in f32.
template <class T>
ARCWELD_DEVICE void widen(const Vec<u32, 4>& piece, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) unpack2<T>(piece[i], x[2 * i], x[2 * i + 1]);
}

#endif
