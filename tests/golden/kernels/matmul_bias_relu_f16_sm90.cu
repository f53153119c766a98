// contract_matmul_relu: matrix product by wgmma, f16 operands fetched by TMA, f32 accumulation.
// Tiles of 128 x 256; one warp keeps 3 tiles of k = 64 in flight, 2 warpgroups of 64 rows multiply.
#include "prims.cuh"
#include "math.cuh"
#include "ring.cuh"
#include "contract.cuh"
#ifndef ARCWELD_SIM
template <>
struct WgmmaShape<256> {
  template <int TRANS_B>
  static ARCWELD_DEVICE void ss(f32 (&d)[128], u64 a, u64 b, int accumulate, ScalarTag<f16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "%128, %129, p, 1, 1, 0, %131;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_B));
  }
  template <int TRANS_B>
  static ARCWELD_DEVICE void rs(f32 (&d)[128], const u32 (&a)[4], u64 b, int accumulate, ScalarTag<f16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "{%128,%129,%130,%131}, %132, p, 1, 1, %134;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B));
  }
  template <int TRANS_B>
  static ARCWELD_DEVICE void ss(f32 (&d)[128], u64 a, u64 b, int accumulate, ScalarTag<bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "%128, %129, p, 1, 1, 0, %131;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_B));
  }
  template <int TRANS_B>
  static ARCWELD_DEVICE void rs(f32 (&d)[128], const u32 (&a)[4], u64 b, int accumulate, ScalarTag<bf16>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "{%128,%129,%130,%131}, %132, p, 1, 1, %134;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B));
  }
};
#endif


struct Params {
  const f16* in0;
  const f16* in1;
  f16* out0;
  int tiles;
  int tiles_m;
  int rows;
  TensorMap map_a;
  TensorMap map_b;
};

typedef int Index;
typedef f16 T;
constexpr int BM = 128, BN = 256, STAGES = 3, GROUPS = BM / 64, THREADS = 288;
constexpr int A_BYTES = BM * 128, B_BYTES = BN * 128, STAGE = A_BYTES + B_BYTES;  // a line of k is 128 bytes, swizzled
constexpr int CHUNK = 64;                                 // columns of one pass of the epilogue
constexpr int SCRATCH = STAGES * STAGE, SCRATCH_EACH = 16 * (CHUNK + 8) * 4;  // one for each multiplying warp
constexpr int BARRIERS = SCRATCH + GROUPS * 4 * SCRATCH_EACH;

__device__ __forceinline__ auto store_out(const Params& p, int b, int m, int n) {
  return [=, &p](const f32 (&acc)[8]) {
    Vec<f16, 8> out0_lanes;
#pragma unroll
    for (int lane = 0; lane < 8; ++lane) {
      const f32 t0 = max_nan(acc[lane], 0.0f);
      out0_lanes.v[lane] = from_f32<f16>(t0);
    }
    store_vec<8>(p.out0 + (n + m * 1024), out0_lanes);
  };
}

// What one stage holds: BM rows of A and BN columns of B, 64 of k each.
constexpr int STAGE_TRAFFIC = STAGE;
__device__ __forceinline__ int step_count(const Params& p) { return (256 + 63) / 64; }

__device__ __forceinline__ void fetch_a(const Params& p, u32 stage, u32 bar, const Tile<Index>& t, int step) {
  tma_load_2d(stage, &p.map_a, bar, step * 64, (int)t.m);
}
__device__ __forceinline__ void fetch_b(const Params& p, u32 stage, u32 bar, const Tile<Index>& t, int step) {
  tma_load_2d(stage + A_BYTES, &p.map_b, bar, step * 64, (int)t.n);
}

// The index of a tile's row, or -1 past the last one.
__device__ __forceinline__ Index row_at(const Params& p, Index m) { return m < p.rows ? m : -1; }
// The epilogue of 16 rows x CHUNK columns that a warp holds in mma fragments: through shared memory, so that each
// lane gets 8 neighbouring columns of one row.
__device__ __forceinline__ void store_rows(
    const Params& p, float* scratch, const float (*acc)[4], Index b, Index top, Index left) {
  const int lane = opaque(threadIdx.x % 32);
  put_fragments<CHUNK>(scratch, acc, lane);
  constexpr int PITCH = CHUNK + 8, ACROSS = CHUNK / 8, PASSES = ACROSS / 2;  // accesses of a row; of each lane
#pragma unroll
  for (int pass = 0; pass < PASSES; pass += 1) {
    const int c0 = (pass + 0) * 32 + lane, column0 = c0 % ACROSS * 8;
    const Index m0 = row_at(p, top + c0 / ACROSS);
    const bool inside0 = m0 >= 0 && left + column0 < 1024;
    const auto store0 = store_out(p, b, inside0 ? m0 : 0, inside0 ? left + column0 : 0);
    if (inside0) store0(load_vec<8>(scratch + c0 / ACROSS * PITCH + column0).v);
  }
  __syncwarp();
}

__device__ __forceinline__ void produce(const Params& p, u32 base, Index tiles, const Share& share) {
  const u32 full = base + BARRIERS;
  Ring<STAGES> ring(full, full + 8 * STAGES);
  int k = share.first;
  if (blockIdx.x < tiles) {
    const Tile<Index> t = tile_at<BM, BN, Index>(blockIdx.x, Parameter{p.tiles_m}, Known<4>());
    const int ahead = share.last - k < STAGES ? share.last - k : STAGES;
    // Weights depend on no earlier kernel: they are requested before that kernel ends.
    for (int i = 0; i < ahead; ++i) {
      mbar_expect_tx(full + 8 * i, STAGE_TRAFFIC);
      fetch_b(p, base + i * STAGE, full + 8 * i, t, k + i);
    }
    pdl_wait();
    for (int i = 0; i < ahead; ++i) fetch_a(p, base + i * STAGE, full + 8 * i, t, k + i);
    for (int i = 0; i < ahead; ++i, ++k) ring.advance();
  }
  for (Index index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile<Index> t = tile_at<BM, BN, Index>(index, Parameter{p.tiles_m}, Known<4>());
    for (; k < share.last; ++k) {
      ring.wait_empty();
      const u32 bar = ring.filling(), stage = base + ring.stage * STAGE;
      mbar_expect_tx(bar, STAGE_TRAFFIC);
      fetch_a(p, stage, bar, t, k);
      fetch_b(p, stage, bar, t, k);
      ring.advance();
    }
    k = share.first;
  }
}

__device__ __forceinline__ void consume(const Params& p, unsigned char* smem, u32 base, Index tiles, const Share& share) {
  const int warp = threadIdx.x / 32, group = warp / 4, lane = threadIdx.x % 32;
  float* scratch = reinterpret_cast<float*>(smem + SCRATCH + warp * SCRATCH_EACH);
  const u32 full = base + BARRIERS;
  Ring<STAGES> ring(full, full + 8 * STAGES);
  pdl_wait();
  for (Index index = blockIdx.x; index < tiles; index += gridDim.x) {
    // Every product adds: a block's share of the steps may be empty, and were the first one to overwrite, ptxas 12.8 would
    // serialise them all.
    float acc[BN / 2];
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) acc[i] = 0.0f;
    int previous = 0;
    for (int k = share.first; k < share.last; ++k) {
      ring.wait_full();
      const u32 stage = base + ring.stage * STAGE;
      issue_products<T, true>(
          acc, wgmma_desc(stage + group * 8192, 16, 1024), wgmma_desc(stage + A_BYTES, 16, 1024));
      wgmma_wait<1>();  // the products of the step before are done: its stage may be filled again
      if (k > share.first && lane == 0) ring.release(previous);
      previous = ring.stage;
      ring.advance();
    }
    wgmma_wait<0>();
    wgmma_pin(acc);
    if (lane == 0) ring.release(previous);
    const Tile<Index> t = tile_at<BM, BN, Index>(index, Parameter{p.tiles_m}, Known<4>());
    float (*fragments)[4] = reinterpret_cast<float (*)[4]>(acc);
#pragma unroll
    for (int n = 0; n < BN; n += CHUNK) store_rows(p, scratch, fragments + n / 8, t.b, t.m + warp * 16, t.n + n);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) contract_matmul_relu_bf093468(const __grid_constant__ Params p) {
  DYN_SHARED(unsigned char, smem);
  const u32 base = smem_u32(smem);
  if (threadIdx.x == THREADS - 32) {
    tma_prefetch_map(&p.map_a);
    tma_prefetch_map(&p.map_b);
  }
  const Index tiles = p.tiles;
  const Share share = share_of<1>(step_count(p));
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbar_init(base + BARRIERS + 8 * i, 1);                        // full: the producer's own arrival, and the bytes
      mbar_init(base + BARRIERS + 8 * (STAGES + i), GROUPS * 4);  // empty: one lane of each multiplying warp
    }
    fence_mbar_init();
    fence_proxy_async();
  }
  __syncthreads();
  pdl_launch_dependents();
  if (threadIdx.x / 32 == GROUPS * 4) {
    if (threadIdx.x % 32 == 0) {
      produce(p, base, tiles, share);
    }
  } else {
    consume(p, smem, base, tiles, share);
  }
}
EXPORT_KERNEL(contract_matmul_relu_bf093468)
