// The simulator's twin of tiles.cuh: the first thread of a block does the work of all of them, by vectors.
//
// Each sum of a product adds the same terms in the same order as its thread's own loop, and groups of threads are added up in
// their order. Multiplication and addition are rounded once, as in a fused multiply-add of the GPU. Operands are read, and
// results stored, by the kernel's own hooks. Not here are the shared tiles and their barriers: an adverse schedule and checked
// mode run the kernel's loop. Attention takes keys in steps of its own, in their order, so that its sums differ by rounding.
#pragma once
#include "sim_products.h"

// ---------------------------------------------------------------- products
// The elements of an operand that one block needs, dense, in pieces of PIECE k: [row][k] where neighbours lie along k and
// the rows' sums are made (A), else [k][row]. The k of a group of threads follow each other.
template <class Operand, class Group, class Acc, int BK, bool K_LAST>
struct SimPanel {
  static constexpr int PIECE = 64, ROWS = Operand::ROWS, WIDTH = Operand::WIDTH, SPLIT = Group::SPLITS;
  static constexpr int MOST = 4096;  // k that stay for later blocks; more of them are read again
  Acc* at;

  // Rows [row0, row0 + rows), and ``count`` of the group's k from the ``first`` on.
  template <class Params, class Index>
  void fetch(const Params& p, Index b, Index row0, int rows, int group, Index first, int count) const {
    for (int piece = 0; piece < count; piece += PIECE) {
      const int depth = count - piece < PIECE ? count - piece : PIECE;
      Acc* const to = at + piece * ROWS;
      if constexpr (Operand::ALONG_K && !K_LAST) {
        Acc turned[ROWS * PIECE];
        fetch_piece(p, b, row0, rows, group, first + piece, depth, turned);
        sim_transpose(to, ROWS, turned, PIECE, rows, depth);
      } else {
        fetch_piece(p, b, row0, rows, group, first + piece, depth, to);
      }
    }
  }

 private:
  template <class Params, class Index>
  static void fetch_piece(const Params& p, Index b, Index row0, int rows, int group, Index first, int depth,
                          Acc* __restrict to) {
    for (int from = 0; from < depth;) {  // ``run`` neighbouring k
      const Index i = first + from, k0 = SPLIT == 1 ? i : i / BK * (SPLIT * BK) + group * BK + i % BK;
      const int run = SPLIT == 1 || depth - from < BK ? depth - from : BK;
      if constexpr (Operand::ALONG_K) {
        for (int row = 0; row < rows; ++row)
#pragma GCC ivdep
          for (int k = 0; k < run; k += WIDTH) put(p, b, row0 + row, k0 + k, to + row * PIECE + from + k);
      } else {
        for (int k = 0; k < run; ++k)
#pragma GCC ivdep
          for (int row = 0; row < rows; row += WIDTH) put(p, b, row0 + row, k0 + k, to + (from + k) * ROWS + row);
      }
      from += run;
    }
  }
  template <class Params, class Index>
  static __forceinline__ void put(const Params& p, Index b, Index row, Index k, Acc* __restrict to) {
    typename Operand::Value v[WIDTH];
    Operand::load(p, b, row, k, v);
    for (int e = 0; e < WIDTH; ++e) to[e] = (Acc)v[e];
  }
};

// The k of one of SPLIT groups of threads that take BK in turn.
template <int SPLIT, int BK, class Index>
static inline Index sim_group_depth(Index depth, int group) {
  if (SPLIT == 1) return depth;
  const Index all = depth / (SPLIT * BK), rest = depth - all * (SPLIT * BK) - group * BK;
  return all * BK + (rest < 0 ? 0 : rest < BK ? rest : BK);
}

// The sums of a block's tile, over all k.
template <class Group, class OperandA, class OperandB, int BK, class Acc, class Params, class Tile, class Index>
struct SimBlockProduct {
  static constexpr int BM = OperandA::ROWS, BN = OperandB::ROWS, SPLIT = Group::SPLITS;
  typedef SimPanel<OperandA, Group, Acc, BK, true> PanelA;
  typedef SimPanel<OperandB, Group, Acc, BK, false> PanelB;
  static constexpr int PIECE = PanelA::PIECE, MOST = PanelA::MOST, OWN = 8;  // panels of A: tiles of as many rows take turns
  const Params& p;
  const Tile& t;
  Index depth;
  int rows, columns;

  // Adds the sums over ``group``'s k to ``sums``.
  void add(Acc* sums, int group, const PanelA& all_a, const PanelB& all_b, bool has_a, bool has_b) const {
    const Index end = sim_group_depth<SPLIT, BK>(depth, group);
    Index before = 0;
    if (depth <= MOST)
      for (int g = 0; g < group; ++g) before += (sim_group_depth<SPLIT, BK>(depth, g) + PIECE - 1) / PIECE * PIECE;
    for (Index first = 0; first < end; first += MOST) {
      const int count = end - first < MOST ? (int)(end - first) : MOST;
      const PanelA a = {all_a.at + before * BM};
      const PanelB b = {all_b.at + before * BN};
      if (!has_a) a.fetch(p, t.b, t.m, rows, group, first, count);
      if (!has_b) b.fetch(p, t.b, t.n, columns, group, first, count);
      constexpr int A_ROW = OperandA::ALONG_K ? PIECE : 1, A_K = OperandA::ALONG_K ? 1 : BM;
      for (int k = 0; k < count; k += PIECE)
        sim_multiply(SimProduct<Acc>{sums, a.at + k * BM, b.at + k * BN, BN, A_ROW, A_K, BN, rows, columns,
                                     count - k < PIECE ? count - k : PIECE});
    }
  }
  // BM x BN sums, valid until the next operation of the simulator.
  Acc* sums() const {
    Acc* const total = (Acc*)sim_scratch(sizeof(Acc) * BM * BN * (SPLIT > 1 ? 2 : 1));
    const bool keeps = depth <= MOST;
    const u64 room = sizeof(Acc) * (u64)(keeps ? (depth + SPLIT * PIECE) : MOST);
    bool has_a, has_b;
    const PanelA a = {(Acc*)sim_panel((int)(t.m / BM % OWN), room * BM, (i64)t.b << 32 ^ (i64)t.m, &has_a)};
    const PanelB b = {(Acc*)sim_panel(OWN, room * BN, (i64)t.b << 32 ^ (i64)t.n, &has_b)};
    has_a &= keeps, has_b &= keeps;
    for (int i = 0; i < BM * BN; ++i) total[i] = Acc(0);
    add(total, 0, a, b, has_a, has_b);
    for (int group = 1; group < SPLIT; ++group) {
      Acc* const own = total + BM * BN;
      for (int i = 0; i < BM * BN; ++i) own[i] = Acc(0);
      add(own, group, a, b, has_a, has_b);
      for (int i = 0; i < BM * BN; ++i) total[i] += own[i];
    }
    return total;
  }
};

template <class Group, class OperandA, class OperandB, class Result, int BK, class Acc, class Params, class Tile,
          class Index>
SIM_UNCHECKED static __noinline__ void sim_store_product(const Params& p, const Tile& t, Index end, Index depth) {
  constexpr int BM = OperandA::ROWS, BN = OperandB::ROWS, WIDTH = Result::WIDTH;
  const Index left_m = end - t.m, left_n = OperandB::rows(p) - t.n;
  const int rows = left_m < BM ? (int)left_m : BM, columns = left_n < BN ? (int)left_n : BN;
  typedef SimBlockProduct<Group, OperandA, OperandB, BK, Acc, Params, Tile, Index> Product;
  const Acc* const sums = Product{p, t, depth, rows, columns}.sums();
  for (int i = 0; i < rows; ++i)
#pragma GCC ivdep
    for (int j = 0; j < columns; j += WIDTH) {
      Acc x[WIDTH];
      for (int e = 0; e < WIDTH; ++e) x[e] = sums[i * BN + j + e];
      Result::store(p, t.b, (Index)(t.m + i), (Index)(t.n + j), x);
    }
}
// Whether all of this block's work is done already, the product of its tile and what is stored of it: true unless the
// schedule is an adverse one. Rows from ``end`` on are not stored.
template <class Work, class Group, class OperandA, class OperandB, class Result, int BK, class Params, class Tile, class End,
          class Index>
ARCWELD_DEVICE bool block_product(const Params& p, const Tile& t, End end, Index depth) {
  if (!sim_takes_block()) return false;
  sim_store_product<Group, OperandA, OperandB, Result, BK, typename Work::Element>(p, t, (Index)end, depth);
  return true;
}

// ---------------------------------------------------------------- attention
// Keys and values of a head, dense, in steps of STEP keys.
template <class Attention>
struct SimKeys {
  typedef typename Attention::Number T;
  static constexpr int SIZE = Attention::SIZE, VALUE_SIZE = Attention::VALUE_SIZE, STEP = 128;
  static constexpr int SLOT = SIM_PANELS - 3;  // of three panels
  T *keys, *values;  // [step][SIZE][STEP] and [key][VALUE_SIZE]

  // The first ``visible`` ones, which the next blocks of the same head find again.
  template <class Params>
  static SimKeys of_head(const Params& p, int b, int h, int visible) {
    constexpr int LINE = 64;
    const int steps = (visible + STEP - 1) / STEP;
    bool found_keys, found_values;
    const i64 key = (i64)b << 32 | h;
    char* const keys = (char*)sim_panel(SLOT + 1, LINE + sizeof(T) * (u64)steps * STEP * SIZE, key, &found_keys);
    char* const values = (char*)sim_panel(SLOT + 2, LINE + sizeof(T) * (u64)visible * VALUE_SIZE, key, &found_values);
    const SimKeys all = {(T*)(keys + LINE), (T*)(values + LINE)};
    int& filled = *(int*)keys;  // keys that are there
    if (found_keys && found_values && filled >= visible) return all;
    for (int first = 0; first < visible; first += STEP)
      all.step(first).fetch(p, b, h, first, visible - first < STEP ? visible - first : STEP);
    filled = visible;
    return all;
  }
  // Room for a step, which is to be fetched.
  static SimKeys room() {
    bool found;
    T* const keys = (T*)sim_panel(SLOT + 1, sizeof(T) * STEP * SIZE, -1, &found);
    return {keys, (T*)sim_panel(SLOT + 2, sizeof(T) * STEP * VALUE_SIZE, -1, &found)};
  }
  // The keys from the ``first`` on, a multiple of STEP.
  SimKeys step(int first) const { return {keys + first * (i64)SIZE, values + first * (i64)VALUE_SIZE}; }
  // Reads ``count`` keys from the ``first`` on to the first step.
  template <class Params>
  void fetch(const Params& p, int b, int h, int first, int count) const {
    constexpr int K_WIDTH = Attention::K_WIDTH, V_WIDTH = Attention::V_WIDTH;
    bool found;
    T* const rows = (T*)sim_panel(SLOT, sizeof(T) * STEP * SIZE, -1, &found);
    for (int i = 0; i < count; ++i) {
      T key[SIZE], value[VALUE_SIZE];  // no operand lies there: what is the same for all of a row is computed once
#pragma GCC ivdep
      for (int d = 0; d < SIZE; d += K_WIDTH) {
        T x[K_WIDTH];
        Attention::key(p, b, h, first + i, d, x);
        for (int e = 0; e < K_WIDTH; ++e) key[d + e] = x[e];
      }
#pragma GCC ivdep
      for (int d = 0; d < VALUE_SIZE; d += V_WIDTH) {
        T x[V_WIDTH];
        Attention::value(p, b, h, first + i, d, x);
        for (int e = 0; e < V_WIDTH; ++e) value[d + e] = x[e];
      }
      for (int d = 0; d < SIZE; ++d) rows[i * SIZE + d] = key[d];
      for (int d = 0; d < VALUE_SIZE; ++d) values[i * VALUE_SIZE + d] = value[d];
    }
    sim_transpose(keys, STEP, rows, SIZE, count, SIZE);
  }
};

static __forceinline__ f32 sim_exp2(f32 x) { return exp2f(x); }
static __forceinline__ f64 sim_exp2(f64 x) { return exp2(x); }

// Online softmax of a query over the keys of a step.
template <class T>
struct SimSoftmax {
  static constexpr int LANES = 16;  // partial results, which vectors hold
  T top, total;

  // The first ``count`` scores become probabilities, of which one more is ``unit`` times as many powers of two. Gives the
  // factor for what was summed before.
  T add(T* score, int count, T unit) {
    T best[LANES], sum[LANES];
    for (int i = 0; i < LANES; ++i) best[i] = top, sum[i] = T(0);
    int j = 0;
    for (; j + LANES <= count; j += LANES)
      for (int i = 0; i < LANES; ++i) best[i] = score[j + i] > best[i] ? score[j + i] : best[i];
    for (; j < count; ++j) best[0] = score[j] > best[0] ? score[j] : best[0];
    for (int i = 1; i < LANES; ++i) best[0] = best[i] > best[0] ? best[i] : best[0];
    const T base = best[0] == -(T)INFINITY ? T(0) : best[0];  // no key yet: all terms stay 0
    const T fade = sim_exp2((top - base) * unit);
    for (int i = 0; i < count; ++i) score[i] = sim_exp2((score[i] - base) * unit);
    for (j = 0; j + LANES <= count; j += LANES)
      for (int i = 0; i < LANES; ++i) sum[i] += score[j + i];
    for (int i = 0; j < count; ++i, ++j) sum[i] += score[j];  // as others: masked keys behind them change nothing
    for (int i = 1; i < LANES; ++i) sum[0] += sum[i];
    top = best[0];
    total = total * fade + sum[0];
    return fade;
  }
};

// Attention of the queries from s0 on, ``rows`` of them, to keys that are added step after step.
template <class Attention>
struct SimQueries {
  typedef typename Attention::Number T;
  typedef SimKeys<Attention> Keys;
  static constexpr int ROWS = Attention::ROWS, SIZE = Keys::SIZE, VALUE_SIZE = Keys::VALUE_SIZE, STEP = Keys::STEP;
  int s0, rows;
  SimSoftmax<T> softmax[ROWS];
  T *query, *score, *out;  // [row][SIZE], [row][STEP], [row][VALUE_SIZE]: not yet divided by the sum

  // Valid until the next operation of the simulator but panels.
  template <class Params>
  SimQueries(const Params& p, int b, int h, int s0_, int rows_) : s0(s0_), rows(rows_) {
    constexpr int Q_WIDTH = Attention::Q_WIDTH;
    query = (T*)sim_scratch(sizeof(T) * ROWS * (SIZE + STEP + VALUE_SIZE));
    score = query + ROWS * SIZE, out = score + ROWS * STEP;
    for (int i = 0; i < rows; ++i) {
      softmax[i] = {-(T)INFINITY, T(0)};
#pragma GCC ivdep
      for (int d = 0; d < SIZE; d += Q_WIDTH) {
        T x[Q_WIDTH];
        Attention::query(p, b, h, s0 + i, d, x);
        for (int e = 0; e < Q_WIDTH; ++e) query[i * SIZE + d + e] = x[e];
      }
    }
    for (int i = 0; i < rows * VALUE_SIZE; ++i) out[i] = T(0);
  }
  // Adds ``count`` keys from the ``first`` on; those from ``end`` on count for no query.
  template <class Params>
  void add(const Params& p, int b, int h, const Keys& step, int first, int count, int end) {
    for (int i = 0; i < rows * STEP; ++i) score[i] = T(0);
    sim_multiply(SimProduct<T>{score, query, step.keys, STEP, SIZE, 1, STEP, rows, count, SIZE});
    for (int i = 0; i < rows; ++i) {
      T *const own = score + i * STEP, *const sums = out + i * VALUE_SIZE;
      const int left = Attention::seen(p, s0 + i, end) - first, seen = left < 0 ? 0 : left < count ? left : count;
      for (int j = 0; j < seen; ++j) own[j] = Attention::score(p, b, h, s0 + i, first + j, own[j]);
      for (int j = seen; j < count; ++j) own[j] = -(T)INFINITY;
      const T fade = softmax[i].add(own, count, Attention::UNIT);
      for (int j = 0; j < count; ++j) own[j] = Attention::weight(own[j]);
      for (int e = 0; e < VALUE_SIZE; ++e) sums[e] *= fade;
    }
    sim_multiply(SimProduct<T>{out, score, step.values, VALUE_SIZE, STEP, 1, VALUE_SIZE, rows, VALUE_SIZE, count});
  }
};

template <class Attention, class Params>
SIM_UNCHECKED static __noinline__ void sim_attend(const Params& p, int b, int h, int s0, int queries, int visible) {
  typedef typename Attention::Number T;
  typedef SimKeys<Attention> Keys;
  constexpr int ROWS = Attention::ROWS, VALUE_SIZE = Keys::VALUE_SIZE, STEP = Keys::STEP;
  constexpr int OUT_WIDTH = Attention::OUT_WIDTH;
  const Keys keys = Keys::of_head(p, b, h, visible > 0 ? visible : 0);
  SimQueries<Attention> all(p, b, h, s0, queries - s0 < ROWS ? queries - s0 : ROWS);
  for (int first = 0; first < visible; first += STEP)
    all.add(p, b, h, keys.step(first), first, visible - first < STEP ? visible - first : STEP, visible);
  for (int i = 0; i < all.rows; ++i) {
    const SimSoftmax<T>& softmax = all.softmax[i];
    const T base = softmax.top == -(T)INFINITY ? T(0) : softmax.top;
    const T sum = softmax.total + sim_exp2((Attention::sink(p, b, h, s0 + i) - base) * Attention::UNIT);
    const T inverse = sum == T(0) ? T(0) : T(1) / sum;
#pragma GCC ivdep
    for (int e = 0; e < VALUE_SIZE; e += OUT_WIDTH) {
      T x[OUT_WIDTH];
      for (int lane = 0; lane < OUT_WIDTH; ++lane) x[lane] = all.out[i * VALUE_SIZE + e + lane] * inverse;
      Attention::store(p, b, h, s0 + i, e, x);
    }
  }
}
// Whether all of this block's work is done already, attention of the queries from s0 on to the first ``visible`` keys: true
// unless the schedule is an adverse one.
template <class Attention, class Params>
ARCWELD_DEVICE bool block_attention(const Params& p, int b, int h, int s0, int queries, int visible) {
  if (!sim_takes_block()) return false;
  sim_attend<Attention>(p, b, h, s0, queries, visible);
  return true;
}

template <class Attention, int PITCH, class Params>
SIM_UNCHECKED static __noinline__ void sim_attend_part(const Params& p, int b, int h, int begin, int end, f32* results,
                                                       f32* states) {
  typedef SimKeys<Attention> Keys;
  constexpr int ROWS = Attention::ROWS, VALUE_SIZE = Keys::VALUE_SIZE, STEP = Keys::STEP;
  const Keys keys = Keys::room();
  SimQueries<Attention> all(p, b, h, 0, ROWS);
  for (int first = begin; first < end; first += STEP) {
    const int count = end - first < STEP ? end - first : STEP;
    keys.fetch(p, b, h, first, count);
    all.add(p, b, h, keys, first, count, end);
  }
  for (int i = 0; i < ROWS; ++i) {
    states[2 * i] = all.softmax[i].top * Attention::TOP_UNIT, states[2 * i + 1] = all.softmax[i].total;
    for (int e = 0; e < PITCH; ++e) results[i * PITCH + e] = e < VALUE_SIZE ? all.out[i * VALUE_SIZE + e] : 0.f;
  }
}
// The keys that a block takes, of which ``share`` are an even share of all: fewer than the least are not worth a block here,
// and blocks without keys have nothing to do.
template <class Team>
ARCWELD_DEVICE int block_keys(const Team& team, int share) {
  constexpr int LEAST = 512;
  return team.alone && share < LEAST ? LEAST : share;
}
// Whether a team of one has done the work of all of a block's slices, attention of the ROWS queries to the keys from
// ``begin`` on and before ``end``. Then ``results``, [ROWS][PITCH], and ``states``, [ROWS], are those of one slice.
template <class Attention, int PITCH, class Team, class Params>
ARCWELD_DEVICE bool team_attention(const Team& team, const Params& p, int b, int h, int begin, int end, f32* results,
                                   f32* states) {
  if (!team.alone) return false;
  sim_attend_part<Attention, PITCH>(p, b, h, begin, end, results, states);
  return true;
}
