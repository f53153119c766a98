// The simulator's twin of team.cuh: in order, the first thread of a block is its team, and the others never run.
//
// Products and sums are rounded once, as in a fused multiply-add of the GPU. Elements are read by the kernel's hooks.
// An adverse schedule and checked mode run the kernel's loops by all threads.
#pragma once

template <int THREADS>
struct Team {
  const bool alone = sim_alone();
  const int size = alone ? 1 : THREADS, warps = alone ? 1 : THREADS / 32, lanes = alone ? 1 : 32;
  const int rank = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
};

// Combines the values of a warp's lanes, of which a team of one has one; every lane gets the result.
template <int THREADS, class T, class Op>
ARCWELD_DEVICE T warp_reduce(const Team<THREADS>& team, T v, Op op) {
  return team.alone ? v : warp_reduce(v, op);
}

// The elements that a hook ``(place, k, T (&out)[N])`` gives.
template <class T_, int N>
struct SimElements {
  typedef T_ T;
  static constexpr int COUNT = N;
};
template <class Hook, class I, class J, class T, int N>
SimElements<T, N> sim_elements(void (Hook::*)(I, J, T (&)[N]) const);

// Combines LANES neighbouring rows of ``row`` values, of each of ``warps`` warps, by halves, into the warp's first row.
template <int LANES, class T, class Op>
static inline void sim_combine_lanes(T* v, int warps, int row, Op op) {
  for (int warp = 0; warp < warps; ++warp, v += LANES * row)
    for (int half = LANES / 2; half > 0; half /= 2)
      for (int i = 0; i < half * row; ++i) v[i] = op(v[i], v[i + half * row]);
}

// sums[i] += x * w[i], for eight or four at a time where there are such.
template <int N, class Acc, class X, class W>
static inline void sim_add_products(Acc* sums, X x, const W* w) {
  constexpr int LANES = N % 8 == 0 ? 8 : N % 4 == 0 ? 4 : 1;
  typedef Acc Lanes __attribute__((vector_size(sizeof(Acc) * LANES), may_alias, aligned(4)));
  for (int i = 0; i < N; i += LANES) {
    Lanes v;
    for (int e = 0; e < LANES; ++e) v[e] = (Acc)w[i + e];
    *(Lanes*)(sums + i) += (Acc)x * v;
  }
}

// Columns side by side: each k once, with all columns of the tile. Each sum adds the same products in the same order as
// the threads of a block do: first those of one thread, then the lanes of a warp by halves.
template <class Shares, class Acc, class Index, class LoadRow, class LoadColumn>
SIM_UNCHECKED static void sim_multiply_columns(Acc* partial, int rows, Index depth, Index columns, const Index* column,
                                               LoadRow load_row, LoadColumn load_column) {
  typedef decltype(sim_elements(&LoadRow::operator())) X;
  typedef decltype(sim_elements(&LoadColumn::operator())) W;
  constexpr int ROWS = Shares::ROWS, SPLIT = Shares::SPLIT, LANES = Shares::LANES, SHARES = SPLIT * LANES;
  constexpr int COLUMNS = Shares::COLUMNS, ACROSS = Shares::ACROSS;
  Acc* const sums = (Acc*)sim_scratch(sizeof(Acc) * ROWS * SHARES * COLUMNS);
  for (int i = 0; i < rows * SHARES * COLUMNS; ++i) sums[i] = Acc(0);
  typename W::T w[COLUMNS] = {};
  int share = 0;
  for (Index k = 0; k < depth; ++k) {
    for (int j = 0; j < COLUMNS; j += ACROSS)
      if (column[j] < columns) load_column(column[j], k, *(typename W::T(*)[ACROSS])(w + j));
    for (int m = 0; m < rows; ++m) {
      typename X::T x[1];
      load_row(m, k, x);
      sim_add_products<COLUMNS>(sums + (m * SHARES + share) * COLUMNS, x[0], w);
    }
    if (++share == SHARES) share = 0;
  }
  sim_combine_lanes<LANES>(sums, rows * SPLIT, COLUMNS, [](Acc a, Acc b) { return a + b; });
  for (int m = 0; m < rows; ++m)
    for (int s = 0; s < SPLIT; ++s)
      for (int j = 0; j < COLUMNS; ++j)
        partial[(s * ROWS + m) * COLUMNS + j] = sums[(m * SPLIT + s) * LANES * COLUMNS + j];
}

// sums[r][i] += x[r][k + i] * w[k + i] for k = 0, RUN, … < ``count``, of R rows: the sums stay in registers over all k.
template <int R, int RUN, class Acc>
static inline void sim_add_runs(Acc* sums, const Acc* x, i64 x_row, const Acc* w, int count) {
  constexpr int LANES = 8, PARTS = RUN / LANES;
  typedef Acc Lanes __attribute__((vector_size(sizeof(Acc) * LANES), may_alias));
  Lanes sum[R][PARTS];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < PARTS; ++i) sum[r][i] = *(const Lanes*)(sums + r * RUN + i * LANES);
  for (int k = 0; k < count; k += RUN)
#pragma GCC unroll 8
    for (int i = 0; i < PARTS; ++i) {
      const Lanes own = *(const Lanes*)(w + k + i * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][i] += *(const Lanes*)(x + r * x_row + k + i * LANES) * own;
    }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < PARTS; ++i) *(Lanes*)(sums + r * RUN + i * LANES) = sum[r][i];
}

// All rows, dense and in ``whole`` elements each: those from ``depth`` on are zeros.
template <class Acc, class Index, class LoadRow>
static inline void sim_read_rows(Acc* x, int rows, Index depth, Index whole, LoadRow load_row) {
  typedef decltype(sim_elements(&LoadRow::operator())) X;
  for (int m = 0; m < rows; ++m) {
    for (Index k = depth; k < whole; ++k) x[m * whole + k] = Acc(0);
    for (Index k = 0; k < depth; k += X::COUNT) {
      typename X::T v[X::COUNT];
      load_row(m, k, v);
      for (int e = 0; e < X::COUNT; ++e) x[m * whole + k + e] = (Acc)v[e];
    }
  }
}

// Columns one after another. Sum i of 32 takes every 32nd product from k = i on; then they are added by halves. The pieces of
// a run of 32 are unrolled and inlined, so that what they share, such as a scale and where it lies, is read and widened once.
template <class Shares, class Acc, class Index, class LoadRow, class LoadColumn>
SIM_UNCHECKED static __attribute__((flatten)) void sim_multiply_depth(Acc* partial, int rows, Index depth, Index columns,
                                                                      const Index* column, LoadRow load_row,
                                                                      LoadColumn load_column) {
  typedef decltype(sim_elements(&LoadColumn::operator())) W;
  constexpr int ROWS = Shares::ROWS, COLUMNS = Shares::COLUMNS, PIECE = W::COUNT, RUN = 32, STEP = 32 * RUN;
  const Index whole = (depth + RUN - 1) / RUN * RUN;
  Acc* const x = (Acc*)sim_scratch(sizeof(Acc) * (u64)rows * (u64)whole);  // the rows, which every column needs
  sim_read_rows(x, rows, depth, whole, load_row);
  for (int i = 0; i < Shares::SPLIT * ROWS * COLUMNS; ++i) partial[i] = Acc(0);
  for (int j = 0; j < COLUMNS; ++j) {
    if (column[j] >= columns) continue;
    alignas(64) Acc sums[ROWS * RUN] = {};
    for (Index k = 0; k < depth; k += STEP) {
      alignas(64) Acc w[STEP];
      const int left = depth - k < STEP ? (int)(depth - k) : STEP, count = (left + RUN - 1) / RUN * RUN;
      int at = 0;
      for (; at + RUN <= left; at += RUN) {
        const Index first = k + at;
        if (first < 0 || first % RUN) __builtin_unreachable();
#pragma GCC unroll 32
        for (int i = 0; i < RUN; i += PIECE) {
          typename W::T v[PIECE];
          load_column(column[j], first | i, v);
          for (int e = 0; e < PIECE; ++e) w[at + i + e] = (Acc)v[e];
        }
      }
      for (; at < left; at += PIECE) {
        typename W::T v[PIECE];
        load_column(column[j], k + at, v);
        for (int e = 0; e < PIECE; ++e) w[at + e] = (Acc)v[e];
      }
      for (int i = left; i < count; ++i) w[i] = Acc(0);
      int m = 0;
      for (; m + 2 <= rows; m += 2) sim_add_runs<2, RUN>(sums + m * RUN, x + m * whole + k, whole, w, count);
      if (m < rows) sim_add_runs<1, RUN>(sums + m * RUN, x + m * whole + k, whole, w, count);
    }
    sim_combine_lanes<RUN>(sums, rows, 1, [](Acc a, Acc b) { return a + b; });
    for (int m = 0; m < rows; ++m) partial[m * COLUMNS + j] = sums[m * RUN];
  }
}

// Takes the zero points times the sums of the rows away.
template <class Shares, class Acc, class Index, class LoadRow, class LoadZero>
SIM_UNCHECKED static void sim_less_zero(Acc* partial, int rows, Index depth, Index columns, const Index* column,
                                        LoadRow load_row, LoadZero load_zero) {
  typedef decltype(sim_elements(&LoadRow::operator())) X;
  for (int m = 0; m < rows; ++m) {
    Acc total = 0;
    for (Index k = 0; k < depth; k += X::COUNT) {
      typename X::T x[X::COUNT];
      load_row(m, k, x);
      for (int e = 0; e < X::COUNT; ++e) total += x[e];
    }
    for (int j = 0; j < Shares::COLUMNS; ++j) {
      i32 zero[1] = {};
      if (column[j] < columns) load_zero(column[j], zero);
      partial[m * Shares::COLUMNS + j] -= total * zero[0];
    }
  }
}

// Whether the sums of the product of ``rows`` rows over all k < depth are in ``partial``, [SPLIT][ROWS][COLUMNS],
// already.
template <class Shares, int THREADS, class Acc, class Index, class N, class ColumnAt, class LoadRow, class LoadColumn,
          class... Zero>
ARCWELD_DEVICE bool team_product(const Team<THREADS>& team, Acc* partial, int rows, Index depth, N columns,
                                 ColumnAt column_at, LoadRow load_row, LoadColumn load_column, Zero... zero) {
  if (!team.alone) return false;
  Index column[Shares::COLUMNS];
  for (int j = 0; j < Shares::COLUMNS; ++j) column[j] = column_at(j);
  if constexpr (Shares::ACROSS == 1)
    sim_multiply_depth<Shares>(partial, rows, depth, (Index)columns, column, load_row, load_column);
  else
    sim_multiply_columns<Shares>(partial, rows, depth, (Index)columns, column, load_row, load_column);
  (sim_less_zero<Shares>(partial, rows, depth, (Index)columns, column, load_row, zero), ...);
  return true;
}

// Combines what ``terms(col, T (&term)[WIDTH])`` gives for a row's columns. The order is that of a block's threads:
// first the terms of one thread, then the lanes of a warp by halves, then the warps.
template <int LANES, int WIDTH, bool FRESH = false, class Team, class T, class Index, class Op, class Terms>
ARCWELD_DEVICE T row_reduce(const Team& team, T part, Index columns, T* scratch, Op op, Terms terms) {
  if (!team.alone) return row_reduce_impl<LANES, WIDTH, FRESH>(team, part, columns, scratch, op, terms);
  T own[LANES];
  for (int i = 0; i < LANES; ++i) own[i] = part;
  int thread = 0;
  for (int col = 0; col < columns; col += WIDTH) {
    T term[WIDTH];
    terms(col, term);
    for (int e = 0; e < WIDTH; ++e) own[thread] = op(own[thread], term[e]);
    if (++thread == LANES) thread = 0;
  }
  sim_combine_lanes<32>(own, LANES / 32, 1, op);
  part = own[0];
  for (int warp = 1; warp < LANES / 32; ++warp) part = op(part, own[warp * 32]);
  return part;
}

// Eight neighbours of 16 bits in f32.
ARCWELD_DEVICE void sim_widen(const u16* from, float* to, ScalarTag<bf16>) {
  typedef u16 Narrow __attribute__((vector_size(16), may_alias, aligned(2)));
  typedef u32 Wide __attribute__((vector_size(32), may_alias, aligned(4)));
  *(Wide*)to = __builtin_convertvector(*(const Narrow*)from, Wide) << 16;
}
ARCWELD_DEVICE void sim_widen(const u16* from, float* to, ScalarTag<f16>) {
#if defined(__F16C__) && __has_builtin(__builtin_ia32_vcvtph2ps256)
  typedef short Narrow __attribute__((vector_size(16), may_alias, aligned(2)));
  typedef float Wide __attribute__((vector_size(32), may_alias, aligned(4)));
  *(Wide*)to = __builtin_ia32_vcvtph2ps256(*(const Narrow*)from);
#else
  for (int i = 0; i < 8; ++i) to[i] = f16_bits_to_f32(from[i]);
#endif
}
template <class T>
ARCWELD_DEVICE void widen(const Vec<u32, 4>& piece, float (&x)[8]) {
  sim_widen((const u16*)&piece, x, ScalarTag<T>());
}
