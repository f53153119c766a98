// The inner loop of products.cpp, for vectors of up to BYTES bytes: included once for each instruction set, in a namespace
// of its own, with TARGET as the functions' attribute.

// The first COUNT vectors of ``columns`` of R rows: their sums stay in registers over all k.
template <class T, int LANES, int COUNT, int R, bool ALONG_K>
TARGET static inline void multiply_strip(const SimProduct<T>& p, int row, int column) {
  typedef T Lanes __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias));
  T* const c = p.c + row * p.c_row + column;
  const T* b = p.b + column;
  const T* a[R];
  for (int r = 0; r < R; ++r) a[r] = ALONG_K ? p.a + (row + r) * p.a_row : p.a + row + r;
  Lanes sum[R][COUNT];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) sum[r][i] = *(const Lanes*)(c + r * p.c_row + i * LANES);
  const i64 step = ALONG_K ? 1 : p.a_k;
  i64 at = 0;
  for (int k = 0; k < p.depth; ++k, at += step, b += p.b_row) {
    Lanes x[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) x[i] = *(const Lanes*)(b + i * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T w = ALONG_K ? a[r][at] : a[0][at + r];
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; ++i) {
        if constexpr (R * COUNT > 1) {
          sum[r][i] += w * x[i];
        } else {  // one chain of sums: GCC's usual tuning keeps product and sum apart there
          for (int lane = 0; lane < LANES; ++lane) sum[r][i][lane] = fused(w, x[i][lane], sum[r][i][lane]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) *(Lanes*)(c + r * p.c_row + i * LANES) = sum[r][i];
}

// R rows: as many strips of COUNT vectors as there are, then narrower ones for what is left.
template <class T, int LANES, int COUNT, int R, bool ALONG_K>
TARGET static void multiply_rows(const SimProduct<T>& p, int row, int column) {
  for (; column + LANES * COUNT <= p.columns; column += LANES * COUNT)
    multiply_strip<T, LANES, COUNT, R, ALONG_K>(p, row, column);
  if (column == p.columns) return;
  if constexpr (COUNT > 1) multiply_rows<T, LANES, COUNT / 2, R, ALONG_K>(p, row, column);
  else if constexpr (LANES > 1) multiply_rows<T, (LANES > 4 ? LANES / 2 : 1), 1, R, ALONG_K>(p, row, column);
}

template <class T, bool ALONG_K>
TARGET static void multiply_all(const SimProduct<T>& p) {
  constexpr int LANES = BYTES / sizeof(T);
  int row = 0;
  for (; row + ROWS <= p.rows; row += ROWS) multiply_rows<T, LANES, 2, ROWS, ALONG_K>(p, row, 0);
  if constexpr (ROWS > 4)
    if (row + 4 <= p.rows) {
      multiply_rows<T, LANES, 2, 4, ALONG_K>(p, row, 0);
      row += 4;
    }
  for (; row < p.rows; ++row) multiply_rows<T, LANES, 2, 1, ALONG_K>(p, row, 0);
}

template <class T>
TARGET static void multiply(const SimProduct<T>& p) {
  if (p.a_k == 1) multiply_all<T, true>(p);
  else multiply_all<T, false>(p);
}
