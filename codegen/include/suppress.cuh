// Greedy suppression of boxes that overlap better ones, tile by tile, in plain CUDA C++. Include it after prims.cuh.
#pragma once

// Two opposite corners: y0 <= y1 and x0 <= x1.
struct Box {
  f32 y0, x0, y1, x1;
};

// Each operation rounds by itself, so that a decision does not depend on how a compiler joins products and sums.
ARCWELD_DEVICE f32 box_area(const Box& b) { return __fmul_rn(__fsub_rn(b.y1, b.y0), __fsub_rn(b.x1, b.x0)); }

// Whether the common part of two boxes is more than ``limit`` of what they cover together; of two empty ones it is not.
ARCWELD_DEVICE bool overlap_beyond(const Box& a, const Box& b, f32 limit) {
  const f32 height = fmaxf(0.0f, __fsub_rn(fminf(a.y1, b.y1), fmaxf(a.y0, b.y0)));
  const f32 width = fmaxf(0.0f, __fsub_rn(fminf(a.x1, b.x1), fmaxf(a.x0, b.x0)));
  const f32 common = __fmul_rn(height, width);
  const f32 covered = __fsub_rn(__fadd_rn(box_area(a), box_area(b)), common);
  return __fdiv_rn(common, covered) > limit;
}

// What a block of THREADS threads knows of as many boxes, in shared memory. Bit ``i % 32`` of word ``i / 32`` is box i.
template <int THREADS>
struct BoxTile {
  static constexpr int WORDS = THREADS / 32;
  Box boxes[THREADS];
  u32 later[THREADS][WORDS + 1];  // which boxes behind it each of them overlaps; a row more keeps banks apart
  u32 open[WORDS];                // boxes that nothing before the tile suppresses
  u32 stay[WORDS];                // boxes that stay

  // The bits of ``later`` of one open box.
  ARCWELD_DEVICE void compare(int i, f32 limit) {
    for (int word = 0; word < WORDS; ++word) {
      u32 bits = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const int other = word * 32 + bit;
        if (other > i && (open[word] >> bit & 1u) && overlap_beyond(boxes[i], boxes[other], limit)) bits |= 1u << bit;
      }
      later[i][word] = bits;
    }
  }

  // Goes through the open boxes in order, as long as there is ``room``; one warp calls it. Its lanes hold a word each.
  ARCWELD_DEVICE void choose(int room) {
    const int lane = threadIdx.x % 32;
    u32 left = lane < WORDS ? open[lane] : 0u, chosen = 0u;
    for (int word = 0; word < WORDS; ++word) {
      u32 here = __shfl_sync(0xffffffffu, left, word);
      for (; here != 0u && room > 0; --room) {
        const int bit = __ffs(i32(here)) - 1;
        if (lane == word) chosen |= 1u << bit;
        if (lane < WORDS) left &= ~later[word * 32 + bit][lane];
        here = __shfl_sync(0xffffffffu, left, word) & ~((2u << bit) - 1u);
      }
    }
    if (lane < WORDS) stay[lane] = chosen;
  }

  // How many boxes stay of the first ``end``.
  ARCWELD_DEVICE int staying(int end) const {
    int count = 0;
    for (int word = 0; word < WORDS; ++word) {
      const int bits = end - word * 32;
      if (bits > 0) count += __popc(bits < 32 ? stay[word] & ((1u << bits) - 1u) : stay[word]);
    }
    return count;
  }
};
