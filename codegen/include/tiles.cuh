// The main loop of a whole block, which the simulator may run in one go instead of thread after thread. A GPU never does:
// there the loop that the kernel shows is the only one. This side is CUDA; the simulator's twin, sim_tiles.h, declares the
// same names. Include it after ffma.cuh.
#pragma once

#if defined(ARCWELD_SIM) && !defined(SIM_CHECKED)
#include "sim_tiles.h"
#else

// Whether all of this block's work is done already, the product of its tile and what is stored of it. Rows from ``end`` on are
// not stored.
template <class Work, class Group, class OperandA, class OperandB, class Result, int BK, class Params, class Tile, class End,
          class Index>
ARCWELD_DEVICE bool block_product(const Params& p, const Tile& t, End end, Index depth) {
  return false;
}

// Whether all of this block's work is done already: attention of the queries from s0 on to the first ``visible`` keys.
template <class Attention, class Params>
ARCWELD_DEVICE bool block_attention(const Params& p, int b, int h, int s0, int queries, int visible) {
  return false;
}

// The keys that a block takes, of which ``share`` are an even share of all.
template <class Team>
ARCWELD_DEVICE int block_keys(const Team& team, int share) {
  return share;
}

// Whether a team of one has done the work of all of a block's slices, attention of the ROWS queries to the keys from
// ``begin`` on and before ``end``. Then ``results``, [ROWS][PITCH], and ``states``, [ROWS], are those of one slice.
template <class Attention, int PITCH, class Team, class Params>
ARCWELD_DEVICE bool team_attention(const Team& team, const Params& p, int b, int h, int begin, int end, f32* results,
                                   f32* states) {
  return false;
}

#endif
