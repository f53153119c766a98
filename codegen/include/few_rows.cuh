// Products of few rows on tensor cores, in plain CUDA C++. Include it after prims.cuh.
//
// The matrix takes the 16 rows of the instruction's tile, the few rows its 8 columns: so the tile is filled by what has to be
// read. A lane holds 16 bytes of one column of the matrix (and of the one 8 further), which are neighbours in k, and the
// same k of one row. Which k an instruction's places stand for does not matter, as long as both operands agree.
#pragma once

typedef Vec<u32, 4> Piece;  // eight neighbours in k, of 16 bits each

// acc += 32 of k. ``low`` and ``high``: lane / 4-th column and the one 8 further; x: row lane / 4 of each 8.
template <class T, int TILES>
ARCWELD_DEVICE void multiply_piece(float (&acc)[1][TILES][4], const Piece& low, const Piece& high, const Piece (&x)[TILES]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const u32 a[1][4] = {{low[i], high[i], low[i + 1], high[i + 1]}};
    u32 b[TILES][2];
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      b[j][0] = x[j][i];
      b[j][1] = x[j][i + 1];
    }
    mma_tile<T, 1, TILES>(acc, a, b);
  }
}

// The sums of a warp to ``partial``: ROWS rows of OWN columns, whose rows are PITCH apart.
template <int ROWS, int OWN, int PITCH, int TILES>
ARCWELD_DEVICE void put_sums(float* partial, const float (&acc)[1][TILES][4], int lane) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int e = 0; e < OWN / 4; ++e) {
      const int row = j * 8 + lane % 4 * 2 + e % 2, column = lane / 4 + e / 2 * 8;
      if (row < ROWS) partial[row * PITCH + column] = acc[0][j][e];
    }
}

// What rounding x to T leaves; nothing where that is infinite, so that infinite values stay what they are.
template <class T>
ARCWELD_DEVICE float remainder_of(float x) {
  const float rest = x - to_f32(from_f32<T>(x));
  return rest - rest == 0.0f ? rest : 0.0f;
}

// Eight values as T; or, of each, what that rounding leaves.
template <class T>
ARCWELD_DEVICE Piece rounded(const float (&x)[8]) {
  Piece r;
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
  return r;
}
template <class T>
ARCWELD_DEVICE Piece remainders(const float (&x)[8]) {
  float rest[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) rest[i] = remainder_of<T>(x[i]);
  return rounded<T>(rest);
}
