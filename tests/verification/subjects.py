"""Small models that together use every template, in f32, 16 bits and integers, with static and open sizes."""

from __future__ import annotations

from injection import Subject

_N, _S = "symbol n(lo=1)\n", "symbol s(lo=1)\n"
_MLP = """input %x: {t}[{n}, {k}]
weight %w: {t}[{k}, {m}] source='w'
weight %b: {t}[{m}] source='b'
%a = MatMul(%x, %w)
%c = Add(%a, %b)
%d = Relu(%c)
output %d
"""
_ATTENTION = """input %q: {t}[{b}, 2, {s}, {d}]
input %k: {t}[{b}, 2, {s}, {d}]
input %v: {t}[{b}, 2, {s}, {d}]
%y = Attention(%q, %k, %v, scale=0.25{more})
output %y
"""
_PAGED = """input %q: f16[n, 2, 1, 16]
input %new: f16[n, 1, 2, 16]
input %k: f16[12, 4, 2, 16]
input %p: i32[n + 1]
input %i: i32[12]
input %l: i32[n]
%at = PagedSlots(%p, %i, %l, page_size=4, count=1)
%now = ScatterND(%k, %at, %new, padding=1)
%lengths = PagedLengths(%p, %l, page_size=4)
%rows = Reshape(%lengths, shape=(n, 1, 1, 1))
%keys = Range(length=70)
%m = Less(%keys, %rows)
%a = PagedRead(%now, %p, %i, %l, length=70)
%y = Attention(%q, %a, %a, %m, scale=0.25)
output %y
output %now 'now' in %k
"""
_CONV = """input %x: {t}[{n}, {c}, {h}, {h}]
weight %w: {t}[{o}, {cg}, 3, 3] source='w'
weight %b: {t}[{o}] source='b'
%a = Conv(%x, %w, %b, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group={g})
%d = Relu(%a)
output %d
"""
_CONVS = """input %x: f16[1, 16, 14, 14]
weight %w: f16[64, 16, 3, 3] source='w'
weight %v: f16[64, 64, 3, 3] source='v'
%a = Conv(%x, %w, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1)
%b = Relu(%a)
%c = Conv(%b, %v, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1)
%d = Relu(%c)
output %d
"""
SUBJECTS = [
    Subject("ffma_dynamic", _N + _MLP.format(t="f32", n="n", k=30, m=33)),
    Subject("ffma_static", _MLP.format(t="f32", n=70, k=64, m=96)),
    Subject("mma_dynamic", _N + _MLP.format(t="f16", n="n", k=64, m=80)),
    Subject("wgmma_dynamic", _N + _MLP.format(t="f16", n="n", k=128, m=64), "sm_90a"),
    Subject("wgmma_bf16", _MLP.format(t="bf16", n=256, k=256, m=128), "sm_90a"),
    Subject("gemv", _MLP.format(t="f32", n=1, k=200, m=100)),
    Subject("gemv_mma", _MLP.format(t="f16", n=3, k=200, m=96)),
    Subject("gemv_stream", _MLP.format(t="bf16", n=5, k=200, m=96), "sm_90a"),
    Subject("conv", _CONV.format(t="f32", n=2, c=8, h=9, o=12, cg=8, g=1)),
    Subject("conv_wgmma", _CONVS, "sm_90a"),
    Subject("depthwise", _N + _CONV.format(t="f32", n="n", c=12, h=7, o=12, cg=1, g=12)),
    Subject("attention_ffma", _ATTENTION.format(t="f32", b=2, s=40, d=16, more="")),
    Subject("attention_mma", _S + _ATTENTION.format(t="f16", b=1, s="s", d=32, more=", is_causal=True")),
    Subject("attention_wgmma", _ATTENTION.format(t="f16", b=66, s=64, d=64, more=""), "sm_90a"),
    Subject("attention_paged", _N + _PAGED),
    Subject(
        "pointwise",
        _N + "input %x: f32[n, 20]\ninput %y: f32[n, 20]\n%a = Abs(%x)\n%b = Sub(%a, %y)\n%c = Sigmoid(%b)\n"
        "%d = Mul(%c, %x)\noutput %d\n",
    ),
    Subject("integers", _N + "input %x: i32[n, 7]\n%a = Mul(%x, %x)\n%b = Add(%a, %x)\n%c = Neg(%b)\noutput %c\n"),
    Subject(
        "clip",
        _N + "input %x: f16[n, 24]\n%a = Clip(%x, min=-0.5, max=1.0)\n%b = Mul(%a, %x)\noutput %b\n",
    ),
    Subject(
        "transpose", _N + "input %x: f32[n, 40, 50]\n%a = Transpose(%x, perm=(0, 2, 1))\n%b = Neg(%a)\noutput %b\n"
    ),
    Subject("reduce_row", _N + "input %x: f32[n, 77]\n%a = ReduceSum(%x, axes=(1,), keepdims=False)\noutput %a\n"),
    Subject("reduce_column", "input %x: f32[50, 60]\n%a = ReduceMax(%x, axes=(0,), keepdims=False)\noutput %a\n"),
    Subject("softmax", _N + "input %x: f32[n, 90]\n%a = Softmax(%x, axis=1)\noutput %a\n"),
    Subject(
        "layer_norm",
        _N + "input %x: f16[n, 64]\nweight %g: f16[64] source='g'\nweight %b: f16[64] source='b'\n"
        "%a = LayerNormalization(%x, %g, %b, axis=1, epsilon=1e-05)\noutput %a\n",
    ),
    Subject(
        "max_pool",
        _N + "input %x: f32[n, 3, 10, 10]\n%a = MaxPool(%x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), "
        "dilations=(1, 1))\noutput %a\n",
    ),
    Subject(
        "gather",
        _N + "input %i: i64[n]\nweight %t: f32[40, 12] source='t'\n%a = Gather(%t, %i, axis=0)\noutput %a\n",
    ),
    Subject(
        "scatter",
        "input %x: f32[30, 6]\ninput %i: i64[5, 1]\ninput %u: f32[5, 6]\n"
        "%a = ScatterND(%x, %i, %u, reduction='add')\noutput %a\n",
    ),
    Subject("scan", _N + "input %x: f32[n, 300]\n%a = CumSum(%x, axis=1)\noutput %a\n"),
    Subject("scan_reverse", _N + "input %x: i32[n, 70]\n%a = CumSum(%x, axis=1, reverse=1, exclusive=1)\noutput %a\n"),
    Subject(
        "recurrence",
        _N + "input %x: f32[6, n, 48]\nweight %r: f32[1, 48, 12] source='r'\n"
        "%y, %h, %c = Recurrence(%x, %r, cell='lstm', activations=('Sigmoid', 'Tanh', 'Tanh'))\noutput %y\noutput %c\n",
    ),
    Subject(
        "recurrence_shared",
        "input %x: f32[4, 2, 480]\nweight %r: f32[1, 480, 160] source='r'\n"
        "%y, %h = Recurrence(%x, %r, cell='gru', activations=('Sigmoid', 'Tanh'))\noutput %y\n",
    ),
    Subject("sort", _N + "input %x: f32[n, 300]\n%y = SortIndices(%x, largest=0)\noutput %y\n"),
    Subject("select", _N + "input %x: f32[n, 2500]\n%y, %v = SelectIndices(%x, k=9)\noutput %y\noutput %v\n"),
    Subject(
        "runs",
        "input %x: i32[900]\n%o = SortIndices(%x, largest=0)\n%y, %f, %k, %c, %l = EqualRuns(%x, %o)\n"
        "output %y\noutput %f\noutput %k\noutput %c\noutput %l\n",
    ),
    Subject(
        "suppress",
        _N + "input %x: f32[2, n, 4]\ninput %v: bool[2, n]\nweight %l: f32[] data=(0.5,)\nweight %m: i64[] data=(9,)\n"
        "%b = Abs(%x)\n%y = SuppressOverlaps(%b, %v, %l, %m)\noutput %y\n",
    ),
    Subject(
        "state",
        _N + "input %x: f32[n, 6]\ninput %i: i64[n, 1]\ninput %s: f32[90, 6]\n"
        "%a = ScatterND(%s, %i, %x, reduction='none')\noutput %a 'a' in %s\n",
    ),
    Subject("running", "input %x: f32[40]\ninput %s: f32[40]\n%a = Abs(%x)\n%b = Add(%s, %a)\noutput %b 'b' in %s\n"),
    Subject(
        "where",
        _N + "input %m: bool[n, 16]\ninput %x: f32[n, 16]\ninput %y: f32[n, 16]\n%a = Where(%m, %x, %y)\n"
        "%b = Slice(%a, starts=(0, 2), sizes=(n, 4), steps=(1, 3))\noutput %b\n",
    ),
]
