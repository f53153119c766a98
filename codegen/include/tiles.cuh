// The main loop of a whole block, which the simulator may run in one go instead of thread after thread. A GPU never does:
// there the loop that the kernel shows is the only one. This side is CUDA; the simulator's twin, sim_tiles.h, declares the
// same names. Include it after ffma.cuh.
#pragma once

// How a block of attention shares its work out: the thread in column x of ACROSS and row y of DOWN takes queries y + DOWN i,
// keys x + ACROSS j, and the columns of the result from 4 (x + ACROSS g) on. The pitches are those of shared tiles.
template <int DOWN_, int ACROSS_, int ROW_TILE, int KEY_TILE, int GROUPS, int DEPTH_, int K_PITCH_, int V_PITCH_, int P_PITCH_>
struct AttentionTile {
  static constexpr int DOWN = DOWN_, ACROSS = ACROSS_, ROWS = DOWN * ROW_TILE, KEYS = ACROSS * KEY_TILE, DEPTH = DEPTH_;
  static constexpr int K_PITCH = K_PITCH_, V_PITCH = V_PITCH_, P_PITCH = P_PITCH_;
};

#if defined(ARCWELD_SIM) && !defined(SIM_CHECKED)
#include "sim_tiles.h"
#else

// Whether the sums of this block's tile, over all k, are in ``acc`` already.
template <class Work, class Group, class OperandA, class OperandB, int BK, class Acc, int TM, int TN, class Params, class Tile,
          class Index>
ARCWELD_DEVICE bool block_product(Acc (&acc)[TM][TN], const Params& p, const Tile& t, Index depth) {
  return false;
}

// Whether the scores of the block's queries and a tile's keys are in ``score`` already.
template <class Work, class T, int ROW_TILE, int KEY_TILE>
ARCWELD_DEVICE bool block_scores(T (&score)[ROW_TILE][KEY_TILE], const T* queries, const T* keys) {
  return false;
}

// Whether the tile's values, weighted by the probabilities, have been added to ``out`` already.
template <class Work, class T, int ROW_TILE, int GROUPS>
ARCWELD_DEVICE bool block_weighted_sums(T (&out)[ROW_TILE][GROUPS][4], const T* weights, const T* values) {
  return false;
}

#endif
