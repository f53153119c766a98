"""Per-channel scales and shifts around convolutions and products: folded where that is exact, else left."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import body, build, check, ops, run

from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.weights import replay
from arcweld.passes.fold_affine import fold_affine

CONV = "strides=(1, 1), dilations=(1, 1), pads=({0}, {0}, {0}, {0}), group={1}"
TRANSPOSED = CONV + ", output_padding=(0, 0)"


def conv_text(tail: str, *, pad: int = 1, group: int = 1, bias: str = "", op: str = "Conv", dtype: str = "f32") -> str:
    out = 6 // group if op == "ConvTranspose" else 6
    attrs = (TRANSPOSED if op == "ConvTranspose" else CONV).format(pad, group)
    rows = 4 if op == "ConvTranspose" else out
    cols = out if op == "ConvTranspose" else 4 // group
    return f"""
        input %x: {dtype}[2, 4, 5, 7]
        weight %w: {dtype}[{rows}, {cols}, 3, 3]
        weight %wb: {dtype}[6]
        weight %scale: {dtype}[6, 1, 1]
        weight %shift: {dtype}[1, 6, 1, 1]
        weight %k: {dtype}[] data=2.5
        weight %g: {dtype}[6]
        weight %b: {dtype}[6]
        weight %m: {dtype}[6]
        weight %v: {dtype}[6] data=(0.5, 1.0, 2.0, 0.25, 3.0, 0.75)
        %c = {op}(%x, %w{bias}, {attrs})
        {tail}
        output %y
    """


BN = "%y = BatchNormalization(%c, %g, %b, %m, %v, epsilon=1e-3)"
AFTER = {
    "batch norm": BN,
    "scale and shift": "%d = Mul(%c, %scale)\n%y = Add(%shift, %d)",
    "shift and scale": "%d = Sub(%c, %shift)\n%y = Div(%d, %scale)",
    "scalars": "%d = Mul(%k, %c)\n%e = Add(%d, %k)\n%y = Div(%e, %k)",
}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("bias", ["", ", %wb"])
@pytest.mark.parametrize(("op", "group"), [("Conv", 1), ("Conv", 2), ("ConvTranspose", 1), ("ConvTranspose", 2)])
def test_affine_after_a_convolution(after: str, bias: str, op: str, group: int) -> None:
    graph = check(conv_text(AFTER[after], bias=bias, op=op, group=group), fold_affine, rtol=1e-4, atol=1e-4)
    assert ops(graph) == [op]


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("bias", ["", ", %wb"])
def test_half_models_fold_in_f32(after: str, bias: str) -> None:
    text = conv_text(AFTER[after], bias=bias, dtype="f16")
    before = build(text)
    folded = run(before, fold_affine)
    assert ops(folded) == ["Conv"]
    x = np.random.default_rng(3).standard_normal((2, 4, 5, 7)).astype(np.float16)
    wide = build(text.replace("f16", "f32"))
    wide = wide.replace(weights={
        n: type(w)(before.weights[n].data.astype(np.float32), n) for n, w in wide.weights.items()
    })  # fmt: skip
    exact = run_reference(wide, {"x": x.astype(np.float32)})["y"]
    found = run_reference(folded, {"x": x})[folded.outputs[0].name]
    np.testing.assert_allclose(found, exact, rtol=5e-3, atol=5e-2)


@pytest.mark.parametrize(
    "tail",
    [
        f"{BN}\noutput %c",
        "%d = Neg(%c)\n%e = Mul(%c, %k)\n%y = Add(%d, %e)",
        "weight %plane: f32[5, 7]\n%y = Mul(%c, %plane)",
        "weight %more: f32[3, 1, 1, 1, 1] data=2.0\n%y = Mul(%c, %more)",
        "input %t: f32[6, 1, 1]\n%y = Mul(%c, %t)",
        "%y = Sub(%shift, %c)",
    ],
)
def test_what_cannot_be_folded_after_stays(tail: str) -> None:
    graph = build(conv_text(tail))
    assert fold_affine(graph, Options()) is graph


BEFORE = """
    input %x: f32[2, 4, 5, 7]
    weight %w: f32[6, 4, 3, 3]
    weight %wb: f32[6]
    weight %mean: f32[4, 1, 1]
    weight %std: f32[1, 4, 1, 1] data=(0.5, 2.0, 1.5, 0.25)
    %a = Sub(%x, %mean)
    %d = Div(%a, %std)
    %y = Conv(%d, %w, {bias}{attrs})
    output %y
"""


@pytest.mark.parametrize("bias", ["", "%wb, "])
def test_affine_before_a_convolution(bias: str) -> None:
    exact = check(BEFORE.format(bias=bias, attrs=CONV.format(0, 1)), fold_affine, rtol=1e-4, atol=1e-4)
    assert ops(exact) == ["Conv"]
    # padding is not shifted: only the scale may go
    padded = check(BEFORE.format(bias=bias, attrs=CONV.format(1, 1)), fold_affine, rtol=1e-4, atol=1e-4)
    assert ops(padded) == ["Sub", "Conv"]


def test_products_take_scales_but_leave_sums() -> None:
    after = check(
        """
        input %x: f32[2, 3, 8]
        weight %w: f32[8, 4]
        weight %s: f32[4]
        weight %b: f32[4]
        %a = MatMul(%x, %w)
        %c = Mul(%a, %s)
        %y = Add(%c, %b)
        output %y
        """,
        fold_affine,
    )
    assert body(after) == "%c = MatMul(%x, %w.mul)\n%y = Add(%c, %b)\noutput %y"


def test_new_weights_can_be_made_again() -> None:
    after = run(build(conv_text(BN)), fold_affine)
    (node,) = after.nodes
    new = build(conv_text(BN), seed=7)
    arrays = {name: w.data for name, w in new.weights.items()}
    x = np.random.default_rng(3).standard_normal((2, 4, 5, 7)).astype(np.float32)
    exact = run_reference(new, {"x": x})["y"]
    weights = dict(after.weights)
    for v in node.operands()[1:]:
        weights[v.name] = type(weights[v.name])(replay(weights[v.name].transform, arrays))
    found = run_reference(after.replace(weights=weights), {"x": x})[after.outputs[0].name]
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
