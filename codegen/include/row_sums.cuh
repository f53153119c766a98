// Sums of the rows of A, beside the products of 8-bit integers on tensor cores. Include it after contract.cuh.
#pragma once

// Of the rows that a lane has in MI fragments, of bytes of type T: the sums of the lane's own words and, after ``add_up``,
// those of all four lanes that share the rows.
template <class T, int MI>
struct RowSums {
  i32 of[MI][2] = {};
  ARCWELD_DEVICE void add(const u32 (&a)[MI][4]) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) of[i][r % 2] = dp4a<T, u8>(a[i][r], 0x01010101u, of[i][r % 2]);
  }
  // From the first of a fragment's 16 lines of 128 bytes on, whose pieces of 16 bytes may have changed places.
  ARCWELD_DEVICE void add_lines(const unsigned char* lines) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = lane / 4 + h * 8, piece = lane % 4 * 2 + (i ^ row % 2);  // eight lanes read different banks
        const Vec<u32, 4> words = load_vec<4>(reinterpret_cast<const u32*>(lines + row * 128 + piece * 16));
#pragma unroll
        for (int e = 0; e < 4; ++e) of[0][h] = dp4a<T, u8>(words[e], 0x01010101u, of[0][h]);
      }
  }
  ARCWELD_DEVICE void add_up() {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        for (int apart = 1; apart < 4; apart *= 2) of[i][h] += __shfl_xor_sync(0xffffffffu, of[i][h], apart);
  }
};
// The column of the sums acc[i][j][e] and acc[i][j][e + 2] that a lane holds, e < 2, from the warp's first one on.
template <bool PAIRED>
ARCWELD_DEVICE int fragment_column(int j, int e) {
  const int lane = threadIdx.x % 32;
  return PAIRED ? j / 2 * 16 + lane % 4 * 4 + e * 2 + j % 2 : j * 8 + lane % 4 * 2 + e;
}
