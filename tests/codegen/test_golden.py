"""Golden kernels: the CUDA text of representative kernels, so that changes of the generator show in review.

``ARCWELD_WRITE_GOLDEN=1 pytest tests/codegen/test_golden.py`` writes them anew. Other tests show that they are right.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

FOLDER = Path(__file__).parent.parent / "golden" / "kernels"
SYMBOLS = "symbol n(lo=1, hi=64)\nsymbol s(lo=1, hi=512, multiple_of=8)\n"
CONV = "strides=({0}, {0}), dilations=(1, 1), pads=({1}, {1}, {1}, {1}), group={2}, layout='NCHW'"
POOL = "strides=(2, 2), dilations=(1, 1), pads=(1, 1, 1, 1), ceil_mode=0, layout='NCHW'"

# name -> (architecture, graph); "%x" is an input of each
CASES: dict[str, tuple[str, str]] = {
    "pointwise_gelu_f16": ("sm_80", """input %x: f16[n, 256]
input %b: f16[256]
%a: f16[n, 256] = Add(%x, %b) @ 'a'
%y: f16[n, 256] = Gelu(%a, approximate='none') @ 'y'
output %y
"""),
    "pointwise_odd_extent_f32": ("sm_80", """input %x: f32[n, 3]
%y: f32[n, 3] = Sigmoid(%x) @ 'y'
output %y
"""),
    "pointwise_integers_i32": ("sm_80", """input %x: i32[n, 8]
input %z: i32[8]
%d: i32[n, 8] = Div(%x, %z) @ 'd'
%m: i32[n, 8] = Mod(%d, %z, fmod=0) @ 'm'
output %m
"""),
    "pad_and_crop_f32": ("sm_80", """input %x: f32[n, 14, 16]
%a: f32[n, 16, 18] = Pad(%x, pads=(0, 1, 1, 0, 1, 1), mode='constant', value=0.5) @ 'a'
%y: f32[n, 8, 18] = Slice(%a, starts=(0, 15, 0), sizes=(n, 8, 18), steps=(1, -2, 1)) @ 'y'
output %y
"""),
    "lstm_f32": ("sm_80", """input %x: f32[s, n, 384]
weight %r: f32[1, 384, 96]
%y, %h, %c = Recurrence(%x, %r, cell='lstm', activations=('Sigmoid', 'Tanh', 'Tanh')) @ 'y'
output %y
output %c
"""),
    "cumulative_sum_f32": ("sm_80", """input %x: f32[n, 256]
%a: f32[n, 256] = Abs(%x) @ 'a'
%y: f32[n, 256] = CumSum(%a, axis=1, exclusive=0, reverse=0) @ 'y'
output %y
"""),
    "concat_rope_f16": ("sm_80", """input %x: f16[n, s, 64]
input %c: f16[s, 64]
input %i: f16[s, 64]
%l: f16[n, s, 32] = Slice(%x, starts=(0, 0, 0), sizes=(n, s, 32), steps=(1, 1, 1)) @ 'l'
%h: f16[n, s, 32] = Slice(%x, starts=(0, 0, 32), sizes=(n, s, 32), steps=(1, 1, 1)) @ 'h'
%g: f16[n, s, 32] = Neg(%h) @ 'g'
%r: f16[n, s, 64] = Concat(%g, %l, axis=2) @ 'r'
%a: f16[n, s, 64] = Mul(%x, %c) @ 'a'
%b: f16[n, s, 64] = Mul(%r, %i) @ 'b'
%y: f16[n, s, 64] = Add(%a, %b) @ 'y'
output %y
"""),
    "embedding_gather_f16": ("sm_80", """input %x: i64[n, s]
weight %t: f16[1000, 128]
%y: f16[n, s, 128] = Gather(%t, %x, axis=0, strict=0) @ 'y'
output %y
"""),
    "transpose_f16": ("sm_80", """input %x: f16[n, 64, s]
%y: f16[n, s, 64] = Transpose(%x, perm=(0, 2, 1)) @ 'y'
output %y
"""),
    "resize_bilinear_f32": ("sm_80", """input %x: f32[1, 8, 16, 16]
%y: f32[1, 8, 32, 32] = Resize(%x, sizes=(1, 8, 32, 32), scales=None, mode='linear', \
coordinate_transformation_mode='half_pixel', nearest_mode='floor', cubic_coeff_a=-0.75, exclude_outside=0, \
extrapolation_value=0.0, roi=None) @ 'y'
output %y
"""),
    "scatter_search_f32": ("sm_80", """input %x: f32[s, 64]
input %i: i64[4, 1]
input %u: f32[4, 64]
%y: f32[s, 64] = ScatterND(%x, %i, %u, reduction='none', padding=0, strict=0) @ 'y'
output %y
"""),
    "scatter_in_place_f32": ("sm_80", """input %x: f32[s, 64]
input %i: i64[500, 1]
input %u: f32[500, 64]
%y: f32[s, 64] = ScatterND(%x, %i, %u, reduction='add', padding=0, strict=0) @ 'y'
output %y
"""),
    "reduce_rows_f32": ("sm_80", """input %x: f32[n, 1024]
%e: f32[n, 1024] = Exp(%x) @ 'e'
%y: f32[n] = ReduceSum(%e, axes=(1,), keepdims=0) @ 'y'
output %y
"""),
    "reduce_columns_f16": ("sm_80", """input %x: f16[s, 256]
%y: f16[256] = ReduceMax(%x, axes=(0,), keepdims=0) @ 'y'
output %y
"""),
    "argmax_f32": ("sm_80", """input %x: f32[n, 1000]
%y: i64[n] = ArgMax(%x, axis=1, keepdims=0, select_last_index=0) @ 'y'
output %y
"""),
    "softmax_f16": ("sm_80", """input %x: f16[n, 16, s]
%y: f16[n, 16, s] = Softmax(%x, axis=2) @ 'y'
output %y
"""),
    "residual_layernorm_f16": ("sm_80", """input %x: f16[n, s, 768]
input %z: f16[n, s, 768]
weight %g: f16[768]
weight %b: f16[768]
%r: f16[n, s, 768] = Add(%x, %z) @ 'r'
%y: f16[n, s, 768] = LayerNormalization(%r, %g, %b, axis=2, epsilon=1e-05) @ 'y'
output %y
output %r
"""),
    "chain_keys_rope_f16": ("sm_80", """input %x: f16[1, 1, 512]
input %c: f16[1, 1, 1, 64]
input %i: f16[1, 1, 1, 64]
input %at: i64[1, 4, 1, 64]
input %keys: f16[1, 4, 128, 64]
weight %g: f16[512]
weight %w: f16[512, 256]
%h: f16[1, 1, 512] = RMSNormalization(%x, %g, axis=2, epsilon=1e-05) @ 'norm'
%m: f16[1, 1, 256] = MatMul(%h, %w) @ 'k_proj'
%k: f16[1, 4, 1, 64] = Reshape(%m, shape=(1, 4, 1, 64))
%l: f16[1, 4, 1, 32] = Slice(%k, starts=(0, 0, 0, 0), sizes=(1, 4, 1, 32), steps=(1, 1, 1, 1)) @ 'l'
%u: f16[1, 4, 1, 32] = Slice(%k, starts=(0, 0, 0, 32), sizes=(1, 4, 1, 32), steps=(1, 1, 1, 1)) @ 'u'
%n: f16[1, 4, 1, 32] = Neg(%u) @ 'n'
%r: f16[1, 4, 1, 64] = Concat(%n, %l, axis=3) @ 'r'
%a: f16[1, 4, 1, 64] = Mul(%k, %c) @ 'a'
%b: f16[1, 4, 1, 64] = Mul(%r, %i) @ 'b'
%y: f16[1, 4, 1, 64] = Add(%a, %b) @ 'rope'
%now: f16[1, 4, 128, 64] = ScatterElements(%keys, %at, %y, axis=2, reduction='none', strict=1) @ 'append'
output %now 'now' in %keys
"""),
    "maxpool_f16": ("sm_80", f"""input %x: f16[n, 64, 56, 56]
%y: f16[n, 64, 28, 28] = MaxPool(%x, kernel_shape=(3, 3), {POOL}) @ 'y'
output %y
"""),
    "averagepool_f32": ("sm_80", f"""input %x: f32[n, 64, 13, 13]
%y: f32[n, 64, 7, 7] = AveragePool(%x, kernel_shape=(3, 3), {POOL}, count_include_pad=0) @ 'y'
output %y
"""),
    "matmul_bias_gelu_f16": ("sm_80", """input %x: f16[n, s, 256]
weight %w: f16[256, 1024]
weight %b: f16[1024]
%m: f16[n, s, 1024] = MatMul(%x, %w) @ 'm'
%a: f16[n, s, 1024] = Add(%m, %b) @ 'a'
%y: f16[n, s, 1024] = Gelu(%a, approximate='none') @ 'y'
output %y
"""),
    "matmul_odd_f32": ("sm_80", """input %x: f32[n, 27]
weight %w: f32[27, 33]
%y: f32[n, 33] = MatMul(%x, %w) @ 'y'
output %y
"""),
    "matmul_batched_residual_f32": ("sm_80", """input %x: f32[n, 64, 128]
input %w: f32[n, 128, 64]
input %r: f32[n, 64, 64]
%m: f32[n, 64, 64] = MatMul(%x, %w) @ 'm'
%y: f32[n, 64, 64] = Add(%m, %r) @ 'y'
output %y
"""),
    "matmul_one_row_f16": ("sm_80", """input %x: f16[1, 1024]
weight %w: f16[1024, 4096]
%m: f16[1, 4096] = MatMul(%x, %w) @ 'm'
%y: f16[1, 4096] = Silu(%m, alpha=1.0) @ 'y'
output %y
"""),
    "matmul_four_rows_bf16": ("sm_80", """input %x: bf16[4, 1024]
weight %w: bf16[1024, 4096]
%s: bf16[4, 1024] = Silu(%x, alpha=1.0) @ 's'
%y: bf16[4, 4096] = MatMul(%s, %w) @ 'y'
output %y
"""),
    "matmul_few_rows_bf16_sm90": ("sm_90a", """symbol r(lo=1, hi=16)
input %x: bf16[r, 1024]
weight %w: bf16[1024, 4000]
%y: bf16[r, 4000] = MatMul(%x, %w) @ 'y'
output %y
"""),
    "matmul_few_rows_u4_sm90": ("sm_90a", """symbol r(lo=1, hi=16)
input %x: f16[r, 1024]
weight %w: u4[4000, 1024]
weight %s: f16[4000, 32]
weight %z: u4[4000, 32]
%d = DequantizeLinear(%w, %s, %z, axis=1, block=32) @ 'd'
%t = Transpose(%d, perm=(1, 0)) @ 't'
%y: f16[r, 4000] = MatMul(%x, %t) @ 'y'
output %y
"""),
    "matmul_few_rows_i4_sm80": ("sm_80", """input %x: bf16[4, 1024]
weight %w: i4[4000, 1024]
weight %s: bf16[4000]
%d = DequantizeLinear(%w, %s, axis=0) @ 'd'
%t = Transpose(%d, perm=(1, 0)) @ 't'
%y: bf16[4, 4000] = MatMul(%x, %t) @ 'y'
output %y
"""),
    "chain_gate_up_bf16_sm90": ("sm_90a", """input %x: bf16[2, 512]
weight %g: bf16[512]
weight %a: bf16[512, 2048]
weight %b: bf16[512, 2048]
%h: bf16[2, 512] = RMSNormalization(%x, %g, axis=1, epsilon=1e-05) @ 'norm'
%p: bf16[2, 2048] = MatMul(%h, %a) @ 'gate'
%u: bf16[2, 2048] = MatMul(%h, %b) @ 'up'
%s: bf16[2, 2048] = Silu(%p, alpha=1.0) @ 's'
%y: bf16[2, 2048] = Mul(%s, %u) @ 'y'
output %y
"""),
    "matmul_bias_relu_f16_sm90": ("sm_90a", """input %x: f16[n, s, 256]
weight %w: f16[256, 1024]
weight %b: f16[1024]
%m: f16[n, s, 1024] = MatMul(%x, %w) @ 'm'
%a: f16[n, s, 1024] = Add(%m, %b) @ 'a'
%y: f16[n, s, 1024] = Relu(%a) @ 'y'
output %y
"""),
    "conv_3x3_relu_f16": ("sm_80", f"""input %x: f16[n, 64, 28, 28]
weight %w: f16[128, 64, 3, 3]
weight %b: f16[128]
%c: f16[n, 128, 14, 14] = Conv(%x, %w, %b, {CONV.format(2, 1, 1)}) @ 'c'
%y: f16[n, 128, 14, 14] = Relu(%c) @ 'y'
output %y
"""),
    "conv_stem_f32": ("sm_80", f"""input %x: f32[n, 3, 32, 32]
weight %w: f32[16, 3, 3, 3]
%y: f32[n, 16, 32, 32] = Conv(%x, %w, _, {CONV.format(1, 1, 1)}) @ 'y'
output %y
"""),
    "conv_depthwise_f16": ("sm_80", f"""input %x: f16[n, 96, 14, 14]
weight %w: f16[96, 1, 3, 3]
%c: f16[n, 96, 14, 14] = Conv(%x, %w, _, {CONV.format(1, 1, 96)}) @ 'c'
%y: f16[n, 96, 14, 14] = HardSwish(%c) @ 'y'
output %y
"""),
    "attention_causal_f16": ("sm_80", """input %x: f16[n, 12, s, 64]
input %k: f16[n, 12, s, 64]
input %v: f16[n, 12, s, 64]
%y: f16[n, 12, s, 64] = Attention(%x, %k, %v, scale=0.125, is_causal=1, fill=float(-inf), softcap=0.0) @ 'y'
output %y
"""),
    "attention_masked_f32": ("sm_80", """input %x: f32[n, 4, s, 32]
input %k: f32[n, 2, s, 32]
input %v: f32[n, 2, s, 32]
input %m: bool[n, 1, 1, s]
%y: f32[n, 4, s, 32] = Attention(%x, %k, %v, %m, scale=0.125, is_causal=0, fill=float(-inf), softcap=0.0) @ 'y'
output %y
"""),
    "attention_decode_bf16": ("sm_80", """input %x: bf16[1, 32, 1, 64]
input %k: bf16[1, 8, 4096, 64]
input %v: bf16[1, 8, 4096, 64]
input %m: bool[1, 1, 1, 4096]
%y: bf16[1, 32, 1, 64] = Attention(%x, %k, %v, %m, scale=0.125, is_causal=0, fill=float(-inf), softcap=0.0) @ 'y'
output %y
"""),
    "attention_paged_f16": ("sm_80", """input %x: f16[n, 32, 1, 64]
input %new: f16[n, 1, 8, 64]
input %k: f16[1024, 16, 8, 64]
input %v: f16[1024, 16, 8, 64]
input %p: i32[n + 1]
input %i: i32[1024]
input %l: i32[n]
%at = PagedSlots(%p, %i, %l, page_size=16, count=1) @ 'at'
%now = ScatterND(%k, %at, %new, padding=1) @ 'append'
%lengths = PagedLengths(%p, %l, page_size=16) @ 'lengths'
%rows = Reshape(%lengths, shape=(n, 1, 1, 1))
%keys = Range(start=0, step=1, length=4096, dtype=dtype(i64)) @ 'keys'
%m = Less(%keys, %rows) @ 'mask'
%a = PagedRead(%now, %p, %i, %l, length=4096) @ 'k'
%b = PagedRead(%v, %p, %i, %l, length=4096) @ 'v'
%y = Attention(%x, %a, %b, %m, scale=0.125) @ 'y'
output %y
output %now 'now' in %k
"""),
    "sort_rows_f32": ("sm_80", """input %x: f32[n, 1000]
%a: f32[n, 1000] = Abs(%x) @ 'a'
%y: i64[n, 1000] = SortIndices(%a, largest=1) @ 'y'
output %y
"""),
    "select_first_f32": ("sm_80", """input %x: f32[n, 32000]
%a: f32[n, 32000] = Abs(%x) @ 'a'
%y: i64[n, 50], %v: f32[n, 50] = SelectIndices(%a, k=50, largest=1) @ 'y'
output %y
output %v
"""),
    "runs_f32": ("sm_80", """input %x: f32[n]
%o: i64[n] = SortIndices(%x, largest=0) @ 'o'
%y: f32[n], %f: i64[n], %k: i64[n], %c: i64[n], %l: i64[1] = EqualRuns(%x, %o, by_place=1) @ 'y'
output %y
output %f
output %k
output %c
output %l
"""),
    "suppress_overlaps_f32": ("sm_80", """input %x: f32[n, 80, 4]
input %c: bool[n, 80]
input %o: f32[]
input %m: i64[]
%y: bool[n, 80] = SuppressOverlaps(%x, %c, %o, %m) @ 'y'
output %y
"""),
}  # fmt: skip


def generated(arch: str, text: str) -> str:
    """The sources of the case's kernels, in launch order; for an exact architecture those written for it."""
    build = build_graph(parse_graph("graph 'golden'\n" + SYMBOLS + text), Options(arch=(arch,)), compile_kernels=False)
    launches = [x for p in build.planned for x in (*p.before, p)]
    chosen = [s for p in launches for s in p.sources if s.arch == arch] or [p.sources[0] for p in launches]
    return "\n".join(dict.fromkeys(s.source for s in chosen))


@pytest.mark.parametrize("name", CASES)
def test_generated_text_is_the_recorded_one(name: str) -> None:
    path = FOLDER / f"{name}.cu"
    text = generated(*CASES[name])
    if os.environ.get("ARCWELD_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), "not recorded yet: run with ARCWELD_WRITE_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8"), "the generator changed: ARCWELD_WRITE_GOLDEN=1 records it"


def test_no_recording_is_left_over() -> None:
    assert {p.stem for p in FOLDER.glob("*.cu")} == set(CASES)
