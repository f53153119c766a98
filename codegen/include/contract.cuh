// What the kernels of matrix products share, in plain CUDA C++: which tile a block computes, shared tiles, fragments, and
// sums that meet. Include it after prims.cuh.
//
// A kernel says what it multiplies in a struct for each operand, here called Operand:
//   Value, WIDTH        the type that its load hook gives, and how many neighbouring elements at a time
//   ROWS                rows (or columns of the result) of a tile
//   ALONG_K             neighbours differ in k; else in the row
//   ROWS_FIRST          neighbouring threads take neighbouring rows, not neighbouring k
//   rows(p)             rows of the whole operand
//   load(p, b, row, k, x), or for what is copied as it is start(p) (any valid address) and address(p, b, row, k, at),
//                       which says where 16 bytes lie, or false where they are masked
#pragma once

// ---------------------------------------------------------------- extents
// Known when the kernel is compiled, or a parameter of the launch, which is read where it is used.
template <int N>
struct Known {
  static constexpr int value = N;
};
struct Parameter {
  const int& value;
};

// ---------------------------------------------------------------- which tile a block computes
template <class Index>
struct Tile {
  Index b, m, n;
};
// Neighbouring blocks share operands in the cache: they walk down GROUP rows of tiles before the next column.
template <int BM, int BN, class Index, class Rows, class Columns>
ARCWELD_DEVICE Tile<Index> tile_at(Index index, Rows tiles_m, Columns tiles_n) {
  constexpr int GROUP = 8;
  const Index rows = tiles_m.value, columns = tiles_n.value, plane = rows * columns;
  const Index batch = index / plane, inside = index - batch * plane;
  const Index group = inside / (GROUP * columns), first = group * GROUP;
  const Index left = inside - first * columns, height = rows - first < GROUP ? rows - first : GROUP;
  return {batch, (first + left % height) * BM, (left / height) * BN};
}

// ---------------------------------------------------------------- groups of threads that share out k
// SPLIT groups of THREADS threads compute the same tile, each from one piece of k in SPLIT.
template <int THREADS, int SPLIT>
struct Groups {
  static constexpr int COUNT = THREADS, SPLITS = SPLIT;
  static ARCWELD_DEVICE int group() { return SPLIT == 1 ? 0 : threadIdx.x / THREADS; }
  static ARCWELD_DEVICE int thread() { return SPLIT == 1 ? threadIdx.x : threadIdx.x % THREADS; }
  // Of this thread's own group.
  static ARCWELD_DEVICE void sync() {
    if constexpr (SPLIT == 1) {
      __syncthreads();
    } else {
      named_bar_sync(1 + group(), THREADS);
    }
  }
  // Adds up the groups' sums; the result is right in group 0 only.
  template <class Acc, int COUNT>
  static ARCWELD_DEVICE void add_up(Acc* scratch, Acc (&acc)[COUNT]) {
    __syncthreads();  // the scratch memory was the groups' buffers
    if (group() > 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) scratch[((group() - 1) * COUNT + i) * THREADS + thread()] = acc[i];
    }
    __syncthreads();
    if (group() == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i)
        for (int g = 0; g < SPLIT - 1; ++g) acc[i] += scratch[(g * COUNT + i) * THREADS + threadIdx.x];
    }
  }
  // The i-th of this thread's shares in COUNT pieces of work.
  static ARCWELD_DEVICE int share(int i) { return thread() + i * THREADS; }
  template <int COUNT>
  static ARCWELD_DEVICE bool has_share(int i) {
    return COUNT % THREADS == 0 || share(i) < COUNT;
  }
  template <int COUNT>
  static constexpr int SHARES = (COUNT + THREADS - 1) / THREADS;
};

// ---------------------------------------------------------------- tensor cores: shared tiles of 16-byte pieces
// Lines of PIECES pieces. Pieces change places by the line number, so that the lines which ldmatrix (or a warp of word
// reads) touches at once lie in different banks: eight lines that ldmatrix takes (SPREAD 1), or four lines and two pieces
// of each (SPREAD 2).
template <class Group, int LINES, int PIECES, int SPREAD>
struct SharedTile {
  static constexpr int BYTES = LINES * PIECES * 16, COUNT = LINES * PIECES, EACH = Group::template SHARES<COUNT>;
  static ARCWELD_DEVICE bool exists(int i) { return Group::template has_share<COUNT>(i); }
  static ARCWELD_DEVICE int offset(int line, int piece) {
    const int swap = PIECES % 8 == 0   ? line * SPREAD % 8
                     : PIECES % 4 == 0 ? line / 2 % 4
                     : PIECES % 2 == 0 ? line / 4 % 2
                                       : 0;
    return (line * PIECES + (piece ^ swap)) * 16;
  }
};

// An operand's tile, with lines along k or along the row, of elements of type Element.
template <class Operand, class Group, class Element, int BK>
struct OperandTile
    : SharedTile<Group, Operand::ALONG_K ? Operand::ROWS : BK,
                 (Operand::ALONG_K ? BK : Operand::ROWS) * (int)sizeof(Element) / 16,
                 sizeof(Element) == 4 && !Operand::ALONG_K ? 2 : 1> {
  typedef Element T;
  static constexpr int PER = 16 / sizeof(T);  // elements of a piece
  static constexpr bool ALONG_K = Operand::ALONG_K, LINES_FIRST = ALONG_K && Operand::ROWS_FIRST;
  static constexpr int LINES = ALONG_K ? Operand::ROWS : BK, PIECES = (ALONG_K ? BK : Operand::ROWS) / PER;
  // This thread's i-th piece: neighbouring threads take neighbouring pieces of a line, or with LINES_FIRST of a column.
  static ARCWELD_DEVICE int line(int i) { return LINES_FIRST ? Group::share(i) % LINES : Group::share(i) / PIECES; }
  static ARCWELD_DEVICE int piece(int i) { return LINES_FIRST ? Group::share(i) / LINES : Group::share(i) % PIECES; }
  static ARCWELD_DEVICE int row(int i) { return ALONG_K ? line(i) : piece(i) * PER; }
  static ARCWELD_DEVICE int k(int i) { return ALONG_K ? piece(i) * PER : line(i); }
};

// A tile that is copied to shared memory as it is.
template <class Operand, class Group, class T, int BK>
struct CopiedTile : OperandTile<Operand, Group, T, BK> {
  typedef OperandTile<Operand, Group, T, BK> Base;
  // Starts copying the tile at (row0, k0); pieces past the edges, or masked, arrive as zeros.
  template <class Params, class Index, class Depth>
  ARCWELD_DEVICE void fetch(const Params& p, u32 tile, Index b, Index row0, Index k0, Depth depth) {
#pragma unroll
    for (int i = 0; i < Base::EACH; ++i)
      if (Base::exists(i)) {
        const Index r = row0 + Base::row(i), k = k0 + Base::k(i);
        const T* at = Operand::start(p);
        const bool inside = r < Operand::rows(p) && k < depth.value && Operand::address(p, b, r, k, at);
        cp_async16(tile + Base::offset(Base::line(i), Base::piece(i)), at, inside ? 16 : 0);
      }
  }
  ARCWELD_DEVICE void stash(unsigned char*) const {}
};

// A tile of bytes that is copied as it is, in which pieces that are masked hold the byte of the word FILL, not zeros. (What
// pieces past the edges hold does not matter where the other operand has zeros there.)
template <class Operand, class Group, class T, int BK, u32 FILL>
struct FilledTile : OperandTile<Operand, Group, T, BK> {
  typedef OperandTile<Operand, Group, T, BK> Base;
  bool masked[Base::EACH];
  template <class Params, class Index, class Depth>
  ARCWELD_DEVICE void fetch(const Params& p, u32 tile, Index b, Index row0, Index k0, Depth depth) {
#pragma unroll
    for (int i = 0; i < Base::EACH; ++i) {
      const Index r = row0 + Base::row(i), k = k0 + Base::k(i);
      const T* at = Operand::start(p);
      const bool inside = r < Operand::rows(p) && k < depth.value;
      masked[i] = !(Base::exists(i) && inside && Operand::address(p, b, r, k, at));
      if (!masked[i]) cp_async16(tile + Base::offset(Base::line(i), Base::piece(i)), at, 16);
    }
  }
  // Writes the masked pieces to the shared tile.
  ARCWELD_DEVICE void stash(unsigned char* tile) const {
    const Vec<u32, 4> fill = {FILL, FILL, FILL, FILL};
#pragma unroll
    for (int i = 0; i < Base::EACH; ++i)
      if (Base::exists(i) && masked[i])
        store_vec<4>(reinterpret_cast<u32*>(tile + Base::offset(Base::line(i), Base::piece(i))), fill);
  }
};

// A tile that passes through registers, WIDTH values at a time.
template <class Operand, class Group, class T, int BK>
struct LoadedTile : OperandTile<Operand, Group, T, BK> {
  typedef OperandTile<Operand, Group, T, BK> Base;
  static constexpr int PER = Base::PER, WIDTH = Operand::WIDTH;
  Vec<T, PER> v[Base::EACH];
  // Loads the tile at (row0, k0) to registers; zeros past the edges.
  template <class Params, class Index, class Depth>
  ARCWELD_DEVICE void fetch(const Params& p, u32, Index b, Index row0, Index k0, Depth depth) {
#pragma unroll
    for (int i = 0; i < Base::EACH; ++i)
#pragma unroll
      for (int e = 0; e < PER; e += WIDTH) {
        const Index r = row0 + Base::row(i) + (Base::ALONG_K ? 0 : e), k = k0 + Base::k(i) + (Base::ALONG_K ? e : 0);
        typename Operand::Value x[WIDTH] = {};
        if (Base::exists(i) && r < Operand::rows(p) && k < depth.value) Operand::load(p, b, r, k, x);
#pragma unroll
        for (int s = 0; s < WIDTH; ++s) v[i][e + s] = cvt<T>(x[s]);
      }
  }
  // Writes the loaded pieces to the shared tile.
  ARCWELD_DEVICE void stash(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < Base::EACH; ++i)
      if (Base::exists(i)) store_vec<PER>(reinterpret_cast<T*>(tile + Base::offset(Base::line(i), Base::piece(i))), v[i]);
  }
};

// ---------------------------------------------------------------- tensor cores: fragments and their products
template <class Tile>
ARCWELD_DEVICE u32 word_of(const unsigned char* tile, int line, int i) {
  return *reinterpret_cast<const u32*>(tile + Tile::offset(line, i / Tile::PER) + i % Tile::PER * sizeof(u32));
}
// Of bytes in lines along the row, 32 of k for 16 rows: words of four neighbours in k. ldmatrix transposes pairs of bytes,
// so a lane gets the words of two neighbouring rows: r[h][i] is that of row 2 * (lane / 4) + i, for half h of k.
template <class Tile>
ARCWELD_DEVICE void paired_words(u32 (&r)[2][2], const unsigned char* tile, int row, int k) {
  const int lane = threadIdx.x % 32, line = lane % 8 / 2 * 4 + lane / 8 % 2 * 2 + lane % 2;
  u32 pairs[4];
  ldmatrix_x4_trans(pairs, smem_u32(tile + Tile::offset(k + lane / 16 * 16 + line, row / 16)));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    r[h][0] = __byte_perm(pairs[2 * h], pairs[2 * h + 1], 0x6420);
    r[h][1] = __byte_perm(pairs[2 * h], pairs[2 * h + 1], 0x7531);
  }
}
// Fragments of A for rows [row, row + 16) and one k step. Of bytes in lines along the row, the rows that a lane holds are
// neighbours (``paired``), not eight apart.
template <class Tile>
ARCWELD_DEVICE void fragment_a(u32 (&r)[4], const unsigned char* tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  constexpr int PER = Tile::PER;
  if constexpr (Tile::ALONG_K) {
    ldmatrix_x4(r, smem_u32(tile + Tile::offset(row + lane % 16, k / PER + lane / 16)));
  } else if constexpr (PER == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = word_of<Tile>(tile, k + lane % 4 + i / 2 * 4, row + lane / 4 + i % 2 * 8);
  } else if constexpr (PER == 16) {
    u32 words[2][2];
    paired_words<Tile>(words, tile, row, k);
    r[0] = words[0][0], r[1] = words[0][1], r[2] = words[1][0], r[3] = words[1][1];
  } else {
    ldmatrix_x4_trans(r, smem_u32(tile + Tile::offset(k + lane / 16 * 8 + lane % 8, row / PER + lane / 8 % 2)));
  }
}
// Fragments of B for columns [column, column + 16) and one k step; of bytes in lines along the row, ``paired`` too: the even
// columns, then the odd ones.
template <class Tile>
ARCWELD_DEVICE void fragment_b(u32 (&r0)[2], u32 (&r1)[2], const unsigned char* tile, int column, int k) {
  const int lane = threadIdx.x % 32;
  constexpr int PER = Tile::PER;
  u32 r[4];
  if constexpr (Tile::ALONG_K) {
    ldmatrix_x4(r, smem_u32(tile + Tile::offset(column + lane / 16 * 8 + lane % 8, k / PER + lane / 8 % 2)));
  } else if constexpr (PER == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = word_of<Tile>(tile, k + lane % 4 + i % 2 * 4, column + lane / 4 + i / 2 * 8);
  } else if constexpr (PER == 16) {
    u32 words[2][2];
    paired_words<Tile>(words, tile, column, k);
    r[0] = words[0][0], r[1] = words[1][0], r[2] = words[0][1], r[3] = words[1][1];
  } else {
    ldmatrix_x4_trans(r, smem_u32(tile + Tile::offset(k + lane % 16, column / PER + lane / 16)));
  }
  r0[0] = r[0], r0[1] = r[1], r1[0] = r[2], r1[1] = r[3];
}

// Rounds every f32 to tf32.
template <int N, int M>
ARCWELD_DEVICE void round_all(u32 (&x)[N][M]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < M; ++j) x[i][j] = f32_to_tf32(__uint_as_float(x[i][j]));
}
// Leaves each f32 as its tf32 rounding and puts what that lost, as tf32, in ``low``: together they hold 21 bits or more.
template <int N, int M>
ARCWELD_DEVICE void split_all(u32 (&high)[N][M], u32 (&low)[N][M]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < M; ++j) {
      const float x = __uint_as_float(high[i][j]), rounded = __uint_as_float(f32_to_tf32(x));
      high[i][j] = __float_as_uint(rounded);
      low[i][j] = x == rounded ? 0u : f32_to_tf32(x - rounded);  // an infinity loses nothing
    }
}
template <int MI, int NJ>
ARCWELD_DEVICE void multiply_add_tf32(float (&acc)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NJ; ++j) mma_m16n8k8_tf32(acc[i][j], a[i], b[j]);
}
// Takes the words of A's fragments, for nothing; RowSums of row_sums.cuh adds them up.
struct NoSums {
  template <class Words>
  ARCWELD_DEVICE void add(const Words&) {}
};
// Of bytes: sums of integers are exact. Tensor cores keep few bits of a sum of 8-bit floats, so that they add up one
// instruction's products only, and its sums are added in f32.
template <class TA, class TB, int MI, int NJ>
ARCWELD_DEVICE void multiply_add_bytes(i32 (&acc)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
  mma_tile_bytes<TA, TB>(acc, a, b);
}
template <class TA, class TB, int MI, int NJ>
ARCWELD_DEVICE void multiply_add_bytes(float (&acc)[MI][NJ][4], const u32 (&a)[MI][4], const u32 (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i) {
    float part[1][NJ][4] = {};
    mma_tile_bytes<TA, TB>(part, reinterpret_cast<const u32 (&)[1][4]>(a[i]), b);
#pragma unroll
    for (int e = 0; e < NJ * 4; ++e) acc[i][e / 4][e % 4] += part[0][e / 4][e % 4];
  }
}
// Adds the product of a stage's tiles, A and after it B, for the warp's rows and columns. f32 operands are rounded to
// tf32, or with PRODUCTS = 3 split in two such numbers each. Sums of integers are i32.
template <class TileA, class TileB, int BK, int PRODUCTS, class Acc, int MI, int NJ, class Sums>
ARCWELD_DEVICE void multiply_stage(Acc (&acc)[MI][NJ][4], const unsigned char* stage, int row, int column, Sums& row_sums) {
  typedef typename TileA::T T;
#pragma unroll
  for (int k = 0; k < BK; k += 32 / (int)sizeof(T)) {
    u32 a[MI][4], b[NJ][2];
#pragma unroll
    for (int i = 0; i < MI; ++i) fragment_a<TileA>(a[i], stage, row + i * 16, k);
#pragma unroll
    for (int j = 0; j < NJ; j += 2) fragment_b<TileB>(b[j], b[j + 1], stage + TileA::BYTES, column + j * 8, k);
    if constexpr (sizeof(T) == 1) {
      row_sums.add(a);
      multiply_add_bytes<T, typename TileB::T>(acc, a, b);
    } else if constexpr (sizeof(T) == 2) {
      mma_tile<T, MI, NJ>(acc, a, b);
    } else if constexpr (PRODUCTS == 1) {
      round_all(a);
      round_all(b);
      multiply_add_tf32(acc, a, b);
    } else {
      u32 a_low[MI][4], b_low[NJ][2];
      split_all(a, a_low);
      split_all(b, b_low);
      multiply_add_tf32(acc, a_low, b);
      multiply_add_tf32(acc, a, b_low);
      multiply_add_tf32(acc, a, b);
    }
  }
}
template <class TileA, class TileB, int BK, int PRODUCTS, class Acc, int MI, int NJ>
ARCWELD_DEVICE void multiply_stage(Acc (&acc)[MI][NJ][4], const unsigned char* stage, int row, int column) {
  NoSums none;
  multiply_stage<TileA, TileB, BK, PRODUCTS>(acc, stage, row, column, none);
}

// ---------------------------------------------------------------- one warpgroup: wgmma on tiles that TMA has swizzled
// acc += 64 rows of A * the columns of B, 64 of k, issued and committed. ``a`` and ``b`` describe tiles in lines of 128
// bytes.
template <class T, bool B_ALONG_K, int COUNT>
ARCWELD_DEVICE void issue_products(float (&acc)[COUNT], u64 a, u64 b) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) wgmma_ss<T, COUNT * 2, B_ALONG_K ? 0 : 1>(acc, a + 2 * i, b + (B_ALONG_K ? 2 : 128) * i, 1);
  wgmma_commit();
}

// The same of 8-bit types, 128 of k; both operands' lines are along k.
template <class TA, class TB, class Acc, int COUNT>
ARCWELD_DEVICE void issue_byte_products(Acc (&acc)[COUNT], u64 a, u64 b) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) wgmma_ss_bytes<TA, TB, COUNT * 2>(acc, a + 2 * i, b + 2 * i, 1);
  wgmma_commit();
}

// Clears rows [ROWS, 64) of each of ``tiles`` tiles of 64 lines of 128 bytes, EACH of them in a stage of STAGE bytes: rows
// that are multiplied though no copy fills them.
template <int ROWS, int EACH, int STAGE, int THREADS>
ARCWELD_DEVICE void clear_unused_rows(unsigned char* smem, int tiles) {
  constexpr int PIECES = (64 - ROWS) * 8;
  const Vec<u32, 4> zero = {};
  for (int i = threadIdx.x; i < tiles * PIECES; i += THREADS) {
    const int tile = i / PIECES, stage = tile / EACH, group = tile % EACH;
    store_vec<4>(reinterpret_cast<u32*>(smem + stage * STAGE + group * 8192 + ROWS * 128 + i % PIECES * 16), zero);
  }
  fence_proxy_async();
}

// ---------------------------------------------------------------- accumulator fragments to the epilogue
// 16 rows x COLUMNS columns that a warp holds in mma fragments to ``scratch``, whose rows start 8 banks apart. ROWS_PAIRED
// and COLUMNS_PAIRED: the operand's fragments were.
template <int COLUMNS, bool ROWS_PAIRED = false, bool COLUMNS_PAIRED = false, class Acc>
ARCWELD_DEVICE void put_fragments(Acc* scratch, const Acc (*acc)[4], int lane) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Acc* row = scratch + (ROWS_PAIRED ? lane / 4 * 2 + half : lane / 4 + 8 * half) * (COLUMNS + 8);
      if constexpr (COLUMNS_PAIRED) {
        if (j % 2 == 0) {
          const Vec<Acc, 4> four = {acc[j][2 * half], acc[j + 1][2 * half], acc[j][2 * half + 1], acc[j + 1][2 * half + 1]};
          store_vec<4>(row + j * 8 + lane % 4 * 4, four);
        }
      } else {
        Vec<Acc, 2> pair;
        pair[0] = acc[j][2 * half];
        pair[1] = acc[j][2 * half + 1];
        store_vec<2>(row + j * 8 + lane % 4 * 2, pair);
      }
    }
  __syncwarp();
}

// ---------------------------------------------------------------- the blocks of a cluster share out k
// The steps of k that a block takes: the SPLIT blocks of a cluster share out those of one tile.
struct Share {
  int first, last;
};
template <int SPLIT>
ARCWELD_DEVICE Share share_of(int steps) {
  if constexpr (SPLIT == 1) return {0, steps};
  const int rank = blockIdx.x % SPLIT;
  return {steps * rank / SPLIT, steps * (rank + 1) / SPLIT};
}
// The bits of a sum, as a cluster's blocks exchange them.
ARCWELD_DEVICE f32 exchange_word(f32 x) { return x; }
ARCWELD_DEVICE f32 exchange_word(i32 x) { return __int_as_float(x); }
// Adds up the cluster's sums in its last block, always in the same order; true there. The others' sums come to its shared
// memory at EXCHANGE: [rank][fragment][thread] of 16 bytes each.
template <int SPLIT, int THREADS, int EXCHANGE, class Acc, int COUNT>
ARCWELD_DEVICE bool gather(Acc (&acc)[COUNT], unsigned char* smem, u32 base) {
  const int rank = blockIdx.x % SPLIT;
  cluster_wait();  // every block has started
  if (rank < SPLIT - 1) {
#pragma unroll
    for (int i = 0; i < COUNT / 4; ++i)
      cluster_store(base + EXCHANGE + ((rank * (COUNT / 4) + i) * THREADS + threadIdx.x) * 16, SPLIT - 1, exchange_word(acc[4 * i]),
                    exchange_word(acc[4 * i + 1]), exchange_word(acc[4 * i + 2]), exchange_word(acc[4 * i + 3]));
  }
  cluster_arrive();
  cluster_wait();
  if (rank < SPLIT - 1) return false;
  for (int r = 0; r < SPLIT - 1; ++r)
#pragma unroll
    for (int i = 0; i < COUNT / 4; ++i) {
      const int at = EXCHANGE + ((r * (COUNT / 4) + i) * THREADS + threadIdx.x) * 16;
      const Vec<Acc, 4> v = load_vec<4>(reinterpret_cast<const Acc*>(smem + at));
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[4 * i + e] += v[e];
    }
  return true;
}
