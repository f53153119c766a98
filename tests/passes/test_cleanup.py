"""cleanup, dce, cse, constant folding and decomposition: before and after, and the same results."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import body, build, check, lines, ops, run

from arcweld.compiler.errors import ModelError
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.records import sources
from arcweld.compiler.weights import replay
from arcweld.passes.cleanup import cleanup
from arcweld.passes.constant_folding import constant_folding
from arcweld.passes.cse import cse
from arcweld.passes.dce import dce
from arcweld.passes.decompose import decompose


def test_identity_and_neutral_movements_go() -> None:
    after = check(
        """
        input %x: f32[2, 3, 4]
        %a = Identity(%x)
        %b = Cast(%a, to=dtype(f32))
        %c = Reshape(%b, shape=(2, 3, 4))
        %d = Transpose(%c, perm=(0, 1, 2))
        %e = Slice(%d, starts=(0, 0, 0), sizes=(2, 3, 4), steps=(1, 1, 1))
        %f = Pad(%e, pads=(0, 0, 0, 0, 0, 0))
        %g = Expand(%f, shape=(1, 3, 4))
        %h = Concat(%g, axis=1)
        %y = Relu(%h)
        output %y
        """,
        cleanup,
    )
    assert body(after) == "%y = Relu(%x)\noutput %y"


@pytest.mark.parametrize(
    "line",
    [
        "Slice(%x, starts=(0, 1), sizes=(2, 3), steps=(1, 1))",
        "Slice(%x, starts=(1, 3), sizes=(2, 4), steps=(-1, -1))",
        "Pad(%x, pads=(0, 0, 0, 1))",
        "Transpose(%x, perm=(1, 0))",
        "Cast(%x, to=dtype(f16))",
        "Expand(%x, shape=(3, 1, 1))",
    ],
)
def test_movements_with_an_effect_stay(line: str) -> None:
    text = f"input %x: f32[2, 4]\n%a = {line}\n%y = Neg(%a)\noutput %y"
    graph = build(text)
    assert cleanup(graph, Options()) is graph


def test_neutral_arithmetic_goes_unless_it_broadcasts_or_belongs_to_the_model() -> None:
    after = check(
        """
        input %x: f32[2, 4]
        weight %zero: f32[] data=0.0
        weight %one: f32[4] data=1.0
        weight %wide: f32[3, 1, 1] data=1.0
        weight %bias: f32[4] source='layer.bias', data=0.0
        %z = Add(%x, %bias)
        %a = Add(%z, %zero)
        %b = Mul(%one, %a)
        %c = Sub(%b, %zero)
        %d = Div(%c, %one)
        %e = Sub(%zero, %d)
        %y = Mul(%e, %wide)
        output %y
        """,
        cleanup,
    )
    assert body(after) == lines("""
        %z = Add(%x, %bias)
        %e = Sub(%zero, %z)
        %y = Mul(%e, %wide)
        output %y
    """)


def test_chains_of_movements_are_joined() -> None:
    after = check(
        """
        input %x: f32[2, 3, 1, 4]
        %a = Transpose(%x, perm=(1, 0, 2, 3))
        %b = Transpose(%a, perm=(0, 2, 3, 1))
        %c = Neg(%b)
        %d = Reshape(%c, shape=(12, 2))
        %e = Reshape(%d, shape=(6, 4))
        %t = Transpose(%x, perm=(0, 2, 1, 3))
        output %e
        output %t
        """,
        cleanup,
    )
    assert body(after) == lines("""
        %b = Transpose(%x, perm=(1, 2, 3, 0))
        %c = Neg(%b)
        %e = Reshape(%c, shape=(6, 4))
        %t = Reshape(%x, shape=(2, 1, 3, 4))
        output %e
        output %t
    """)


def test_inverse_transposes_cancel() -> None:
    after = check(
        """
        input %x: f32[2, 3, 4]
        %a = Transpose(%x, perm=(2, 0, 1))
        %b = Transpose(%a, perm=(1, 2, 0))
        %y = Exp(%b)
        output %y
        """,
        cleanup,
    )
    assert body(after) == "%y = Exp(%x)\noutput %y"


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        (("f16", "f32", "f16"), []),
        (("f16", "f32", "bf16"), ["bf16"]),
        (("i32", "f32", "i32"), ["f32", "i32"]),
        (("i64", "f64", "i64"), ["f64", "i64"]),
        (("u8", "i32", "f32"), ["f32"]),
        (("f32", "f16", "f32"), ["f16", "f32"]),
    ],
)
def test_casts_are_joined_only_where_the_first_loses_nothing(chain: tuple[str, ...], left: list[str]) -> None:
    first, second, third = chain
    text = f"input %x: {first}[5]\n%a = Cast(%x, to=dtype({second}))\n%b = Cast(%a, to=dtype({third}))\n"
    after = check(text + "%y = Concat(%b, %b, axis=0)\noutput %y", cleanup)
    assert [n.attrs["to"].value for n in after.nodes if n.op == "Cast"] == left


def test_an_output_that_is_an_input_keeps_its_copy() -> None:
    graph = build("input %x: f32[2]\n%y = Identity(%x)\noutput %y 'result'")
    after = run(graph, cleanup)
    assert ops(after) == ["Identity"]
    assert after.labels() == ("result",)


def test_dce_drops_dead_nodes_and_weights_but_no_inputs() -> None:
    graph = build(
        """
        input %x: f32[4]
        input %unused: f32[4]
        weight %w: f32[4]
        %dead = Mul(%x, %w)
        %deader = Exp(%dead)
        %y = Neg(%x)
        output %y
        """
    )
    after = dce(graph, Options())
    assert ops(after) == ["Neg"]
    assert not after.weights
    assert [v.name for v in after.inputs] == ["x", "unused"]
    assert dce(after, Options()) is after


def test_cse_merges_equal_nodes_and_their_origins() -> None:
    after = check(
        """
        input %x: f32[4]
        weight %c: f32[] data=2.0
        weight %d: f32[] data=2.0
        %a = Mul(%x, %c) @ 'first'
        %b = Mul(%d, %x) @ 'second'
        %e = Sub(%a, %b)
        %f = Clip(%x, min=0.0, max=1.0)
        %g = Clip(%x, min=0.0, max=2.0)
        %y = Sum(%e, %f, %g)
        output %y
        """,
        cse,
    )
    assert body(after) == lines("""
        %a = Mul(%x, %c) @ 'first', 'second'
        %e = Sub(%a, %a)
        %f = Clip(%x, min=0.0, max=1.0)
        %g = Clip(%x, min=0.0, max=2.0)
        %y = Sum(%e, %f, %g)
        output %y
    """)


def test_cse_tells_zero_from_minus_zero_and_named_weights_apart() -> None:
    graph = build(
        """
        input %x: f32[4]
        weight %p: f32[] data=0.0
        weight %n: f32[] data=-0.0
        weight %s: f32[2] source='s', data=1.0
        weight %t: f32[2] source='t', data=1.0
        %a = Div(%x, %p)
        %b = Div(%x, %n)
        output %a
        output %b
        output %s
        output %t
        """
    )
    assert cse(graph, Options()) is graph


def test_folding_evaluates_constants_and_records_how() -> None:
    text = """
        input %x: f32[2, 3]
        weight %w: f32[3, 4] source='layer.weight'
        weight %two: f32[] data=2.0
        %t = Transpose(%w, perm=(1, 0))
        %s = Mul(%t, %two)
        %u = Transpose(%s, perm=(1, 0))
        %y = MatMul(%x, %u)
        output %y
    """
    after = check(text, constant_folding)
    assert ops(after) == ["MatMul"]
    (weight,) = after.weights.values()
    assert sources(weight) == ("layer.weight",)
    new = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(replay(weight.transform, {"layer.weight": new}), new * 2)


def test_folding_makes_weights_from_nothing_only_if_small() -> None:
    after = check(
        """
        input %x: f32[70000]
        %small = Range(start=0, step=2, length=5, dtype=dtype(f32))
        %big = ConstantOfShape(shape=(70000,), value=1.5, dtype=dtype(f32))
        %y = Mul(%x, %big)
        output %y
        output %small
        """,
        constant_folding,
    )
    assert ops(after) == ["ConstantOfShape", "Mul"]
    assert [o.name in after.weights for o in after.outputs] == [False, True]


def test_folding_does_not_expand_constants_but_dequantises_them() -> None:
    after = check(
        """
        input %x: f32[8, 40000]
        weight %w: f32[40000]
        weight %q: i8[4, 40000]
        weight %s: f32[] data=0.1
        weight %z: i8[] data=3
        %e = Expand(%w, shape=(8, 40000))
        %d = DequantizeLinear(%q, %s, %z, axis=0)
        %m = ReduceSum(%d, axes=(0,), keepdims=0)
        %a = Mul(%x, %e)
        %y = Add(%a, %m)
        output %y
        """,
        constant_folding,
    )
    assert ops(after) == ["Expand", "Mul", "Add"]


def test_folding_widens_large_integers() -> None:
    """However much wider: exact sums of 8-bit products may need f64."""
    after = check(
        """
        input %x: f64[40000]
        weight %q: u8[40000]
        %d = Cast(%q, to=dtype(f64))
        %y = Add(%x, %d)
        output %y
        """,
        constant_folding,
    )
    assert ops(after) == ["Add"]


def test_folding_leaves_symbolic_attributes() -> None:
    text = """
        symbol n(lo=1, hi=8)
        input %x: f32[n]
        weight %w: f32[8]
        %s = Slice(%w, starts=(0,), sizes=(n,), steps=(1,))
        %y = Add(%x, %s)
        output %y
    """
    graph = build(text)
    assert constant_folding(graph, Options()) is graph


@pytest.mark.parametrize(
    "line",
    [
        "Gemm(%x, %w, %b, alpha=0.5, beta=2.0, transA=0, transB=1)",
        "ReduceMean(%x, axes=(1,), keepdims=1)",
        "BatchNormalization(%x, %b, %b, %b, %v)",
        "CumSum(%x, axis=1, exclusive=1, reverse=1)",
    ],
)
def test_decomposition_ends_without_composites(line: str) -> None:
    text = f"""
        input %x: f32[3, 4]
        weight %w: f32[4, 4]
        weight %b: f32[4]
        weight %v: f32[4] data=(0.5, 1.0, 2.0, 0.25)
        %y = {line} @ 'here'
        output %y
    """
    after = check(text, decompose)
    assert all(opdef(op).kind is not Kind.COMPOSITE for op in ops(after))
    assert all(n.origin == ("here",) for n in after.nodes)
    assert decompose(after, Options()) is after


PLACES = {
    "one": ("weight %i: i64[] data=2", True),
    "one from the end": ("weight %i: i64[] data=-1", True),
    "a piece": ("weight %i: i64[3] data=(1, 2, 3)", True),
    "every other": ("weight %i: i64[2, 1] data=(0, 2)", True),
    "the last two": ("weight %i: i64[2] data=(-2, -1)", True),
    "backwards": ("weight %i: i64[3] data=(3, 2, 1)", False),
    "around the end": ("weight %i: i64[3] data=(-1, 0, 1)", False),
    "uneven": ("weight %i: i64[3] data=(0, 1, 3)", False),
    "a block": ("weight %i: i64[2, 2] data=(0, 1, 1, 2)", False),
    "a range": ("%r = Range(start=1, step=1, length=n, dtype=dtype(i64))\n%i = Reshape(%r, shape=(1, n))", False),
}


@pytest.mark.parametrize("places", PLACES)
def test_a_gather_at_even_places_is_a_slice(places: str) -> None:
    line, sliced = PLACES[places]
    after = check(
        f"input %x: f32[2, 5, 3]\ninput %z: f32[n]\n{line}\n%g = Gather(%x, %i, axis=1)\n%y = Relu(%g)\noutput %y",
        cleanup, dims={"n": 3},
    )  # fmt: skip
    assert ("Gather" not in ops(after)) == sliced
    assert ("Slice" in ops(after)) == sliced


def test_a_gather_by_a_range_within_an_open_axis_is_a_slice() -> None:
    line = "%i = Range(start=0, step=2, length=n, dtype=dtype(i64))"
    after = check(f"input %x: f32[2*n, 3]\n{line}\n%y = Gather(%x, %i, axis=0)\noutput %y", cleanup, dims={"n": 3})
    assert ops(after) == ["Slice"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_empty_constants_are_folded(op: str) -> None:
    text = f"""
        input %x: f32[2, 3]
        weight %w: f32[3, 0]
        %s = {op}(%w, axis=1)
        %y = MatMul(%x, %s)
        output %y
    """
    assert ops(check(text, constant_folding)) == ["MatMul"]


def test_constants_that_an_operator_does_not_take_are_the_models_fault() -> None:
    text = """
        input %x: f32[3]
        weight %w: f32[3]
        weight %i: i64[] data=3
        %a = Gather(%w, %i, axis=0)
        %y = Add(%x, %a)
        output %y
    """
    with pytest.raises(ModelError, match="Gather of constants"):
        constant_folding(build(text), Options())
