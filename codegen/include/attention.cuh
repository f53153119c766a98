// The steps of attention kernels, in plain CUDA C++: masks, online softmax, merging of results, products by wgmma. Include
// it after prims.cuh and reduce.cuh.
#pragma once

// ---------------------------------------------------------------- masks, for scores in units of log2
template <class T>
ARCWELD_DEVICE T with_mask(T score, bool attend, T fill) {
  return attend ? score : fill;
}
// A mask of the lowest finite values must not become -infinity: its rows are averages, not empty.
template <class T>
ARCWELD_DEVICE T with_mask(T score, T bias) {
  return score + (bias < T(-1e38) ? bias : bias * T(1.4426950408889634));  // log2(e)
}
// cap * tanh(x / 2 / log2(e)), which is off by a rounding of cap at most.
ARCWELD_DEVICE f32 soft_capped(f32 x, f32 cap) { return cap - 2.f * cap / (ex2_approx(x) + 1.f); }
// What a sink adds to the sum of a query's probabilities; ``sink`` and the largest score ``top`` in units of log2.
ARCWELD_DEVICE f32 sink_term(f32 sink, f32 top) { return ex2_approx(sink - (top == -INFINITY ? 0.f : top)); }
// 1 / sum; a query without keys gives zeros.
template <class T>
ARCWELD_DEVICE T inverse_or_zero(T sum) {
  return sum == T(0) ? T(0) : T(1) / sum;
}

// ---------------------------------------------------------------- fragments of a warp's 16 queries
// Those of mma and of wgmma are alike: values 2 r and 2 r + 1 of fragment n are row lane / 4 + 8 r, columns
// 8 n + 2 (lane % 4) and the next.

// Online softmax of row r of a tile: scores become probabilities, up to the sum over all keys. ``scale`` brings scores to
// units of log2, ``top`` is the row's largest score so far and ``total`` this lane's share of its sum, which CHAINS
// independent chains add up. Gives the factor for what was summed before.
template <int CHAINS, int N>
ARCWELD_DEVICE f32 soften_row(f32 (&score)[N][4], int r, f32 scale, f32& top, f32& total) {
  f32 best = top;
#pragma unroll
  for (int n = 0; n < N; ++n) best = fmaxf(best, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
  best = lanes_reduce<4>(best, OpMax());
  const f32 base = best == -INFINITY ? 0.f : best * scale;  // no key yet: all terms stay 0
  const f32 fade = ex2_approx(top * scale - base);
  top = best;
  f32 sum[CHAINS] = {};
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      f32& x = score[n][2 * r + u];
      x = ex2_approx(x * scale - base);
      sum[u % CHAINS] += x;
    }
  total = total * fade + (CHAINS == 2 ? sum[0] + sum[CHAINS - 1] : sum[0]);
  return fade;
}
template <int N>
ARCWELD_DEVICE void scale_row(f32 (&out)[N][4], int r, f32 factor) {
#pragma unroll
  for (int n = 0; n < N; ++n) out[n][2 * r] *= factor, out[n][2 * r + 1] *= factor;
}

// ---------------------------------------------------------------- warps that share out the keys of the same queries
// Each leaves its result in shared memory as a slice, [fragment][lane] of 16 bytes each; the last fragment holds top and
// total. The slices follow one another.
template <int DEPTH>
ARCWELD_DEVICE f32* slice_of(void* smem, int warp, int lane) {
  return reinterpret_cast<f32*>(smem) + (warp * (DEPTH / 8 + 1) * 32 + lane) * 4;
}
template <int GROUPS, int N>
ARCWELD_DEVICE void put_slice(f32* slice, const f32 (&out)[GROUPS][1][N][4], const f32 (&top)[2], const f32 (&total)[2]) {
#pragma unroll
  for (int g = 0; g < GROUPS; ++g)
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const Vec<f32, 4> part = {{out[g][0][n][0], out[g][0][n][1], out[g][0][n][2], out[g][0][n][3]}};
      store_vec(slice + (g * N + n) * 128, part);
    }
  const Vec<f32, 4> state = {{top[0], top[1], total[0], total[1]}};
  store_vec(slice + GROUPS * N * 128, state);
}
// What each slice contributes to the result, divided by the sum over all slices and the terms of the sinks, if such are given
// (of both queries, in units of log2).
template <int DEPTH, int WARPS, class... Sinks>
ARCWELD_DEVICE void slice_shares(const f32* slices, f32 scale, f32 (&share)[WARPS][2], const Sinks&... sinks) {
  constexpr int EACH = (DEPTH / 8 + 1) * 128, STATE = DEPTH / 8 * 128;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    f32 best = -INFINITY, sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) best = fmaxf(best, slices[w * EACH + STATE + r]);
    const f32 base = best == -INFINITY ? 0.f : best;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const f32* const state = slices + w * EACH + STATE;
      share[w][r] = ex2_approx((state[r] - base) * scale);
      sum += state[2 + r] * share[w][r];
    }
    if constexpr (sizeof...(Sinks) > 0) sum += (sink_term(sinks[r], base * scale) + ...);
    const f32 inverse = inverse_or_zero(sum);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) share[w][r] *= inverse;
  }
}

// ---------------------------------------------------------------- parts of the keys, each with results of all ROWS queries
// A part's state for a query: its largest score and the sum of its probabilities.
typedef Vec<f32, 2> State;

// The share of each of ``count`` parts in each query's result, and the state of the whole. ``unit`` brings scores to units
// of log2. Each warp of a team takes some of the queries.
template <int ROWS, class Team>
ARCWELD_DEVICE void part_shares(const Team& team, const f32* states, int count, f32 unit, f32* share, f32* whole) {
  for (int row = team.warp; row < ROWS; row += team.warps) {
    f32 best = -INFINITY, sum = 0.f;
    for (int i = team.lane; i < count; i += team.lanes) best = fmaxf(best, states[(i * ROWS + row) * 2]);
    best = warp_reduce(team, best, OpMax());
    const f32 base = best == -INFINITY ? 0.f : best;
    for (int i = team.lane; i < count; i += team.lanes) {
      const State state = load_vec<2>(states + (i * ROWS + row) * 2);
      const f32 factor = ex2_approx((state[0] - base) * unit);
      share[i * ROWS + row] = factor;
      sum += state[1] * factor;
    }
    sum = warp_reduce(team, sum, OpSum());
    if (team.lane == 0) store_vec(whole + row * 2, State{{best, sum}});
  }
}
// Columns e, e + 1, … of a query's result over all parts, in the order of the parts; not yet divided by the sum.
template <int WIDTH, int ROWS, int PITCH>
ARCWELD_DEVICE Vec<f32, WIDTH> merged(const f32* parts, const f32* share, int count, int row, int e) {
  Vec<f32, WIDTH> sum = {};
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const Vec<f32, WIDTH> part = load_vec<WIDTH>(parts + (i * ROWS + row) * PITCH + e);
    const f32 factor = share[i * ROWS + row];
#pragma unroll
    for (int lane = 0; lane < WIDTH; ++lane) sum[lane] += part[lane] * factor;
  }
  return sum;
}

// The lower, and the upper, 16 bits of two registers.
ARCWELD_DEVICE u32 low_halves(u32 x, u32 y) { return (x & 0xffffu) | y << 16; }
ARCWELD_DEVICE u32 high_halves(u32 x, u32 y) { return x >> 16 | (y & 0xffff0000u); }

// ---------------------------------------------------------------- one warpgroup: wgmma on tiles that TMA has swizzled
// The barriers at ``base``: of each warpgroup's queries, then of the stages of the two rings.
template <int GROUPS, int STAGES>
struct Barriers {
  u32 q_full, q_empty, k_full, k_empty, v_full, v_empty;
  ARCWELD_DEVICE explicit Barriers(u32 base)
      : q_full(base), q_empty(q_full + 8 * GROUPS), k_full(q_empty + 8 * GROUPS), k_empty(k_full + 8 * STAGES),
        v_full(k_empty + 8 * STAGES), v_empty(v_full + 8 * STAGES) {}
};
// score = queries * keys^T, issued and committed; both operands have lines along the head size.
template <class T, int KEYS, int DEPTH>
ARCWELD_DEVICE void issue_scores(f32 (&score)[KEYS / 2], u64 query, u64 key) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < DEPTH / 16; ++k)
    wgmma_ss<T, KEYS, 0>(score, query + k / 4 * 512 + k % 4 * 2, key + k / 4 * (KEYS * 8) + k % 4 * 2, k != 0);
  wgmma_commit();
}
// out += probabilities * values, issued and committed; the values' lines are keys.
template <class T, int KEYS, int DEPTH>
ARCWELD_DEVICE void issue_out(f32 (&out)[DEPTH / 2], const u32 (&weight)[KEYS / 16][4], u64 value) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < KEYS / 16; ++k) wgmma_rs<T, DEPTH, 1>(out, weight[k], value + k * 128, 1);
  wgmma_commit();
}
// Probabilities, rounded, as the left operand of the product with the values: the two layouts are the same.
template <class T, int KEYS>
ARCWELD_DEVICE void round_weights(const f32 (&score)[KEYS / 2], u32 (&weight)[KEYS / 16][4]) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; ++i) weight[i / 4][i % 4] = pack2<T>(score[2 * i], score[2 * i + 1]);
}
// ``soften_row`` of both rows; wgmma's fragments follow one another in one array.
template <int COUNT>
ARCWELD_DEVICE void soften_rows(f32 (&score)[COUNT], f32 scale, f32 (&top)[2], f32 (&total)[2], f32 (&fade)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    fade[r] = soften_row<2>(reinterpret_cast<f32(&)[COUNT / 4][4]>(score), r, scale, top[r], total[r]);
}
template <int COUNT>
ARCWELD_DEVICE void scale_rows(f32 (&out)[COUNT], const f32 (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) out[i] *= factor[i / 2 % 2];
}
