// Products of rows in groups, each with a right operand of its own: which tile a block computes. Include it after
// contract.cuh and scan.cuh.
#pragma once

// A tile of the rows of group b, of which ``end`` is the first row that belongs to it no more. b is the number of groups
// for rows that belong to none, and -1 where a block has no tile.
template <class Index>
struct GroupTile {
  Index b, m, n, end;
};

// Tiles are numbered group by group, and in a group as in a product of its own; rows of a tile never belong to two groups.
// Each lane looks at one group in 32: all 32 lanes of a warp call this together.
// ends.of(p, g) is where the rows of group g end; a group has those that none before it has. rows: of all groups.
template <int BM, int BN, class Ends, class Params, class Index, class Columns>
ARCWELD_DEVICE GroupTile<Index> group_tile_at(const Params& p, Index index, Index rows, int groups, Columns tiles_n) {
  const int lane = threadIdx.x % 32;
  Index start = 0, tiles = 0;  // the rows and the tiles of the groups before
  for (int first = 0; first <= groups; first += 32) {
    Index end = rows;  // the rows behind the last group are a group too
    if (first + lane < groups) {
      const auto given = Ends::of(p, first + lane);
      end = given < 0 ? 0 : given < rows ? (Index)given : rows;
    }
    const auto larger = [](Index a, Index b) { return a > b ? a : b; };
    end = larger(start, lanes_scan<32>(end, larger));
    const Index before = lane_below<32>(end, 1), own_start = lane == 0 ? start : before;
    const Index own = (end - own_start + BM - 1) / BM * tiles_n.value;
    const Index behind = tiles + lanes_scan<32>(own, [](Index a, Index b) { return a + b; });
    const u32 found = __ballot_sync(0xffffffffu, index < behind);
    if (found) {
      const int owner = __ffs((int)found) - 1;
      const Index top = __shfl_sync(0xffffffffu, own_start, owner), count = __shfl_sync(0xffffffffu, own, owner);
      const Index inside = index - (__shfl_sync(0xffffffffu, behind, owner) - count);
      const int down = (int)(count / tiles_n.value);
      const Tile<Index> tile = tile_at<BM, BN, Index>(inside, Parameter{down}, tiles_n);
      return {first + owner, top + tile.m, tile.n, __shfl_sync(0xffffffffu, end, owner)};
    }
    start = last_lane<32>(end), tiles = last_lane<32>(behind);
  }
  return {-1, 0, 0, 0};
}
