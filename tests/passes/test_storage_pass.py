"""The storage pass: which weights stay packed, what is recovered from arithmetic, and that no result changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pass_tools import build, run, same_results

from arcweld.compiler.cards import card
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.records import sources
from arcweld.compiler.weights import replay
from arcweld.passes.constant_folding import constant_folding
from arcweld.passes.merge_matmuls import merge_matmuls
from arcweld.passes.pack_weights import pack_weights
from arcweld.passes.pipeline import run_passes
from arcweld.passes.storage import storage, times

PRODUCT = """input %x: f32[{rows}, 128]
weight %w: {t}[96, 128] source='w'
weight %s: f32[96, 4] source='s'
%d = DequantizeLinear(%w, %s, axis=1, block=32) @ 'd'
%t = Transpose(%d, perm=(1, 0))
%y = MatMul(%x, %t) @ 'y'
output %y
"""


def stored(graph: Graph) -> list[str]:
    return [n.output.name for n in graph.nodes if n.op == "DequantizeLinear" and n.attrs["keep"]]


def arrays(graph: Graph) -> dict[str, DType]:
    read = {v.name: v.dtype for n in graph.nodes for v in n.operands()}
    return {n: read[n] for n in graph.weights if n in read}


@pytest.mark.parametrize("dtype", ["i4", "u4", "i2", "u2", "i8", "u8", "f8e4m3fn", "f8e5m2", "f4e2m1"])
def test_a_product_of_few_rows_keeps_its_weights_packed(dtype: str) -> None:
    before = build(PRODUCT.format(t=dtype, rows=1))
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    assert stored(after)
    assert DType(dtype) in arrays(after).values()
    same_results(before, after)


def test_many_rows_pay_for_wider_weights() -> None:
    """Unpacking once for every tile of rows, by ordinary arithmetic, beside tensor cores that wait for it."""
    assert stored(storage(build(PRODUCT.format(t="i4", rows=64)), Options(arch=("sm_90a",))))
    wide = storage(build(PRODUCT.format(t="i4", rows=2048)), Options(precision="fp16", arch=("sm_90a",)))
    assert stored(wide) == []
    folded = constant_folding(wide, Options())
    assert [n.op for n in folded.nodes] == ["MatMul"]


def test_an_open_number_of_rows_counts_by_its_least() -> None:
    text = "symbol n(lo=1, hi=4096)\n" + PRODUCT.format(t="i4", rows="n")
    assert stored(storage(build(text), Options(precision="fp16", arch=("sm_90a",))))


def test_it_has_to_pay_on_every_architecture() -> None:
    """256 rows of 16 bits: a card with little memory bandwidth gains, one with fast tensor cores loses."""
    graph = build(PRODUCT.format(t="i4", rows=256))
    kept = {a: bool(stored(storage(graph, Options(precision="fp16", arch=(a,))))) for a in ("sm_80", "sm_90a")}
    both = bool(stored(storage(graph, Options(precision="fp16", arch=("sm_80", "sm_90a")))))
    assert both == all(kept.values())


def test_the_model_of_times_counts_bytes_and_operations() -> None:
    """By hand: reading 1e9 weights of 4 and of 16 bits at 3.35 TB/s; then 4096 rows at the engines' rates."""
    h100 = card("h100")
    few = times(10**9, 1, 4, DType.F16, h100)
    assert few.packed == pytest.approx(0.5e9 / 3.35e12)
    assert few.widened == pytest.approx(2e9 / 3.35e12)
    assert few.pays
    many = times(10**9, 4096, 4, DType.F16, h100)
    assert many.widened == pytest.approx(2 * 4096 * 1e9 / 989.4e12)
    assert many.packed == pytest.approx(many.widened / 0.8)  # unpacked by warps that don't wait for tensor cores


def test_what_unpacks_beside_tensor_cores_pays_for_more_rows() -> None:
    """192 rows of 4 bits on Hopper: a product of matrices unpacks beside tensor cores, a convolution between them."""
    product, conv = (times(10**9, 192, 4, DType.F16, card("h100"), p) for p in (True, False))
    assert product.pays
    assert product.packed == pytest.approx(2 * 192 * 1e9 / (0.8 * 989.4e12))
    assert not conv.pays
    assert conv.packed == pytest.approx(2 * 192 * 1e9 / (0.62 * 989.4e12) + 4 * 2 * 1e9 / 33.45e12)
    assert conv.widened == product.widened
    plain = times(10**9, 192, 4, DType.F32, card("h100"))  # in f32 there are no tensor cores to unpack beside
    assert plain == times(10**9, 192, 4, DType.F32, card("h100"), False)


def test_small_weights_are_widened() -> None:
    graph = build("""input %x: f32[1, 16]
weight %w: i8[16, 16] source='w'
weight %s: f32[] data=0.5
%d = DequantizeLinear(%w, %s)
%y = MatMul(%x, %d)
output %y
""")
    assert stored(storage(graph, Options())) == []


ARITHMETIC = """input %x: f32[2, 96]
weight %w: {t}[96, 128] source='w'
{scale}
%c = Cast(%w, to=dtype(f32))
{rest}
%y = MatMul(%x, %m)
output %y
"""


@pytest.mark.parametrize(
    ("scale", "rest", "form"),
    [
        ("weight %s: f32[1, 128]", "%m = Mul(%c, %s)", (1, 0, (128,))),
        ("weight %s: f32[96, 1]", "%m = Mul(%s, %c)", (0, 0, (96,))),
        ("weight %s: f32[]", "%m = Mul(%c, %s)", (0, 0, ())),
        ("weight %s: f32[1, 1]\nweight %z: f32[]", "%e = Sub(%c, %z)\n%m = Mul(%e, %s)", (0, 0, ())),
        ("weight %s: f32[1, 128]\nweight %z: f32[1, 128]", "%e = Sub(%c, %z)\n%m = Mul(%e, %s)", (1, 0, (128,))),
        ("weight %s: f32[1, 128]\nweight %z: {t}[1, 128]",
         "%zc = Cast(%z, to=dtype(f32))\n%e = Sub(%c, %zc)\n%m = Mul(%e, %s)", (1, 0, (128,))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["i8", "u8", "i4"])
def test_arithmetic_is_recovered(scale: str, rest: str, form: tuple[int, int, tuple[int, ...]], dtype: str) -> None:
    before = build(ARITHMETIC.format(t=dtype, scale=scale.format(t=dtype), rest=rest))
    after = storage(before, Options(arch=("sm_80",)))
    (node,) = [n for n in after.nodes if n.op == "DequantizeLinear"]
    assert (node.attrs["axis"], node.attrs["block"], node.operands()[1].shape) == form
    assert node.attrs["keep"]
    same_results(before, after)


def test_arithmetic_in_blocks_is_recovered() -> None:
    before = build("""input %x: f32[2, 128]
weight %w: u4[96, 4, 32] source='w'
weight %s: f32[96, 4, 1] source='s'
weight %z: f32[96, 4, 1] source='z'
%c = Cast(%w, to=dtype(f32))
%e = Sub(%c, %z)
%m = Mul(%e, %s)
%r = Reshape(%m, shape=(96, 128))
%t = Transpose(%r, perm=(1, 0))
%y = MatMul(%x, %t)
output %y
""")
    after = storage(before, Options(arch=("sm_80",)))
    (node,) = [n for n in after.nodes if n.op == "DequantizeLinear"]
    assert (node.attrs["axis"], node.attrs["block"]) == (2, 32)
    same_results(before, after)


@pytest.mark.parametrize(
    "rest",
    [
        "weight %s: f32[96, 128]\n%m = Mul(%c, %s)",  # a scale for each element
        "%s = ReduceMax(%x, axes=(0, 1), keepdims=0)\n%m = Mul(%c, %s)",  # known at run time only
    ],
)
def test_other_arithmetic_stays(rest: str) -> None:
    lines = rest.splitlines()
    weight = lines[0] if lines[0].startswith("weight") else ""
    before = build(ARITHMETIC.format(t="i8", scale=weight, rest="\n".join(x for x in lines if x != weight)))
    assert not any(n.op == "DequantizeLinear" for n in storage(before, Options()).nodes)


SIBLINGS = """input %x: f32[1, 128]
weight %a: u4[64, 128] source='a'
weight %b: u4[96, 128] source='b'
weight %sa: f32[{sa}] source='sa'
weight %sb: f32[{sb}] source='sb'
{zeros}
%da = DequantizeLinear(%a, %sa{za}, axis={axis}, block={block})
%db = DequantizeLinear(%b, %sb{zb}, axis={axis}, block={block})
%ta = Transpose(%da, perm=(1, 0))
%tb = Transpose(%db, perm=(1, 0))
%p = MatMul(%x, %ta)
%q = MatMul(%x, %tb)
%y = Concat(%p, %q, axis=1)
output %y
"""


@pytest.mark.parametrize(
    ("sa", "sb", "axis", "block", "merged"),
    [
        ("64, 4", "96, 4", 1, 32, True),  # blocks along k
        ("64", "96", 0, 0, True),  # a scale for each column
        ("", "", 0, 0, True),  # one scale: they become a scale for each column
        ("128", "128", 1, 0, False),  # a scale for each row: those of the two differ
        ("2, 128", "3, 128", 0, 32, False),  # blocks along columns, which two matrices may divide otherwise
    ],
)
@pytest.mark.parametrize("zeros", ["", "one", "own"])
def test_siblings_are_merged_as_they_are_stored(
    sa: str, sb: str, axis: int, block: int, merged: bool, zeros: str
) -> None:
    weights = {
        "": "", "one": "weight %z: u4[] data=8\nweight %z2: u4[] data=7",
        "own": f"weight %z: u4[{sa}] source='z'\nweight %z2: u4[{sb}] source='z2'",
    }[zeros]  # fmt: skip
    text = SIBLINGS.format(
        sa=sa, sb=sb, axis=axis, block=block, zeros=weights, za=", %z" if zeros else "", zb=", %z2" if zeros else ""
    )
    before = build(text)
    kept = storage(before, Options(arch=("sm_80",)))
    after = merge_matmuls(kept, Options(arch=("sm_80",)))
    products = [n for n in after.nodes if n.op == "MatMul"]
    assert len(products) == (1 if merged else 2)
    same_results(before, after)


def test_rows_are_stored_along_k() -> None:
    before = build("""input %x: f32[1, 128]
weight %w: i4[128, 96] source='w'
weight %s: f32[4, 96] source='s'
%d = DequantizeLinear(%w, %s, axis=0, block=32)
%y = MatMul(%x, %d)
output %y
""")
    after = run(before, storage, pack_weights, options=Options(arch=("sm_80",)))
    (node,) = [n for n in after.nodes if n.op == "DequantizeLinear"]
    assert [v.shape for v in node.operands()] == [(96, 128), (96, 4)]
    assert node.attrs["axis"] == 1
    same_results(before, after)


@pytest.mark.parametrize("dtype", ["i8", "u4"])
@pytest.mark.parametrize(("group", "shape"), [(1, (96, 64, 3, 3)), (96, (96, 1, 9, 9))])
def test_filters_are_stored_by_taps(dtype: str, group: int, shape: tuple[int, ...]) -> None:
    """Packed convolution weights have the order of others, through all passes."""
    sides = (1, shape[1] * group, 4 if group == 1 else 9)
    before = build(f"""input %x: f32[{sides[0]}, {sides[1]}, {sides[2]}, {sides[2]}]
weight %w: {dtype}[{", ".join(map(str, shape))}] source='w'
weight %s: f32[96] source='s'
%d = DequantizeLinear(%w, %s, axis=0)
%y = Conv(%x, %d, strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group={group}, layout='NCHW')
output %y
""")
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    (node,) = [n for n in after.nodes if n.op == "DequantizeLinear"]
    taps = shape[2:]
    assert node.operands()[0].shape == ((*taps, 1, 96) if group > 1 else (96, *taps, 64))
    assert node.operands()[0].name in after.weights
    same_results(before, after)


def test_new_values_replay_the_record() -> None:
    """What a packed, merged and transposed weight was made of can be made again from new arrays."""
    before = build(SIBLINGS.format(sa="64, 4", sb="96, 4", axis=1, block=32, zeros="", za="", zb=""))
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    weights = {n: w for n, w in after.weights.items() if w.transform}
    assert weights
    rng = np.random.default_rng(8)
    fresh = {}
    for n, w in before.weights.items():
        wide = rng.integers(0, 16, w.data.shape) if n in "ab" else rng.uniform(0.5, 1.5, w.data.shape)
        fresh[n] = wide.astype(np.uint8 if n in "ab" else np.float32).astype(w.data.dtype)
    remade = {n: replace(w, data=replay(w.transform, fresh)) for n, w in weights.items()}
    left = {n: w for n, w in after.weights.items() if sources(w) and n not in remade}
    plain = {n: replace(w, data=fresh[sources(w)[0]]) for n, w in left.items()}
    again = after.replace(weights={**after.weights, **plain, **remade})
    same_results(before.replace(weights={n: replace(w, data=fresh[n]) for n, w in before.weights.items()}), again)
