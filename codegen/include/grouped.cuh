// Products of rows in groups, each with a right operand of its own: which tile a block computes. Include it after
// contract.cuh and scan.cuh.
#pragma once

// A tile of the rows of group b, of which ``end`` is the first row that belongs to it no more. b is the number of groups
// for rows that belong to none, and -1 where a block has no tile.
template <class Index>
struct GroupTile {
  Index b, m, n, end;
};

// Where the rows of a group end: inside of [0, rows], as all groups' rows are.
template <class Index, class End>
ARCWELD_DEVICE Index end_inside(End given, Index rows) {
  return given < 0 ? 0 : given < rows ? (Index)given : rows;
}

// Tiles are numbered group by group, and in a group as in a product of its own; rows of a tile never belong to two groups.
// Each lane looks at one group in 32: all 32 lanes of a warp call this together.
// ends.of(p, g) is where the rows of group g end; a group has those that none before it has. rows: of all groups.
template <int BM, int BN, class Ends, class Params, class Index, class Columns>
ARCWELD_DEVICE GroupTile<Index> group_tile_at(const Params& p, Index index, Index rows, int groups, Columns tiles_n) {
  const int lane = threadIdx.x % 32;
  Index start = 0, tiles = 0;  // the rows and the tiles of the groups before
  for (int first = 0; first <= groups; first += 32) {
    Index end = rows;  // the rows behind the last group are a group too
    if (first + lane < groups) end = end_inside(Ends::of(p, first + lane), rows);
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

// The same for a thread that takes several tiles, in their order: it remembers the group of the last one.
template <int BM, int BN, class Ends, class Index>
struct GroupCursor {
  int group = -1;
  Index start = 0, end = 0;   // the rows of the group
  Index tiles = 0, own = 0;  // the tiles of the groups before, and of this one
  template <class Params, class Columns>
  ARCWELD_DEVICE GroupTile<Index> tile(const Params& p, Index index, Index rows, int groups, Columns tiles_n) {
    while (index >= tiles + own) {
      if (group == groups) return {-1, 0, 0, 0};
      ++group;
      tiles += own, start = end;
      const Index next = group < groups ? end_inside(Ends::of(p, group), rows) : rows;
      end = next > start ? next : start;
      own = (end - start + BM - 1) / BM * tiles_n.value;
    }
    const int down = (int)(own / tiles_n.value);
    const Tile<Index> tile = tile_at<BM, BN, Index>(index - tiles, Parameter{down}, tiles_n);
    return {group, start + tile.m, tile.n, end};
  }
};
