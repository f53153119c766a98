"""Pattern recovery of activations and row programs: what is found in which form, and what blocks it."""

from __future__ import annotations

import pytest
from pass_tools import body, build, check, lines, ops, run

from arcweld.compiler.options import Options
from arcweld.passes.patterns import Algebra, Name, Operation, parse_formula
from arcweld.passes.patterns_pointwise import activations, clips
from arcweld.passes.patterns_rowwise import rowwise

HEADER = """
    input %x: f32[3, 8]
    weight %half: f32[] data=0.5
    weight %one: f32[] data=1.0
    weight %three: f32[] data=3.0
    weight %six: f32[] data=6.0
    weight %zero: f32[] data=0.0
    weight %sqrt2: f32[] data=1.4142135
    weight %rsqrt2: f32[] data=0.70710677
    weight %cubic: f32[] data=0.044715
    weight %rpi: f32[] data=0.7978845
    weight %sixth: f32[] data=0.16666667
    weight %k: f32[] data=1.702
"""

GELU_ERF = {
    "x (0.5 (1 + erf))": ["%d = Mul(%c, %half)", "%y = Mul(%x, %d)"],
    "(0.5 x) (1 + erf)": ["%d = Mul(%half, %x)", "%y = Mul(%d, %c)"],
    "0.5 (x (1 + erf))": ["%d = Mul(%c, %x)", "%y = Mul(%d, %half)"],
    "x (1 + erf) / 2": ["weight %w2: f32[] data=2.0", "%d = Mul(%c, %x)", "%y = Div(%d, %w2)"],
}


@pytest.mark.parametrize("order", GELU_ERF)
@pytest.mark.parametrize("scaled", ["Div(%x, %sqrt2)", "Mul(%rsqrt2, %x)"])
def test_gelu_erf_in_every_order(order: str, scaled: str) -> None:
    text = HEADER + f"%a = {scaled} @ 'div'\n%b = Erf(%a) @ 'erf'\n%c = Add(%b, %one)\n"
    after = check(text + "\n".join(GELU_ERF[order]) + " @ 'mul'\noutput %y", activations)
    assert body(after) == "%y = Gelu(%x, approximate='none') @ 'mul', 'erf', 'div'\noutput %y"


GELU_TANH = {
    "pow": "%p = Pow(%x, %three)\n%q = Mul(%p, %cubic)\n%r = Add(%x, %q)\n%s = Mul(%r, %rpi)",
    "x x x": "%x2 = Mul(%x, %x)\n%p = Mul(%x2, %x)\n%q = Mul(%cubic, %p)\n%r = Add(%q, %x)\n%s = Mul(%rpi, %r)",
    "factored": "%x2 = Mul(%x, %x)\n%q = Mul(%x2, %cubic)\n%r = Add(%q, %one)\n%p = Mul(%x, %rpi)\n%s = Mul(%p, %r)",
}


@pytest.mark.parametrize("form", GELU_TANH)
def test_gelu_tanh_in_every_form(form: str) -> None:
    tail = "\n%t = Tanh(%s)\n%u = Add(%t, %one)\n%v = Mul(%x, %half)\n%y = Mul(%v, %u)\noutput %y"
    after = check(HEADER + GELU_TANH[form] + tail, activations)
    assert body(after) == "%y = Gelu(%x, approximate='tanh')\noutput %y"


FORMS = {
    "silu": ("%a = Sigmoid(%x)\n%y = Mul(%a, %x)", "Silu(%x, alpha=1.0)"),
    "quick gelu": ("%b = Mul(%x, %k)\n%a = Sigmoid(%b)\n%y = Mul(%x, %a)", "Silu(%x, alpha=1.7020000219345093)"),
    "sigmoid": ("%a = Neg(%x)\n%b = Exp(%a)\n%c = Add(%one, %b)\n%y = Reciprocal(%c)", "Sigmoid(%x)"),
    "sigmoid by division": ("%a = Neg(%x)\n%b = Exp(%a)\n%c = Add(%one, %b)\n%y = Div(%one, %c)", "Sigmoid(%x)"),
    "softplus": ("%a = Exp(%x)\n%b = Add(%a, %one)\n%y = Log(%b)", "Softplus(%x)"),
    "softsign": ("%a = Abs(%x)\n%b = Add(%a, %one)\n%y = Div(%x, %b)", "Softsign(%x)"),
    "mish": ("%a = Softplus(%x)\n%b = Tanh(%a)\n%y = Mul(%b, %x)", "Mish(%x)"),
    "mish from primitives": (
        "%e = Exp(%x)\n%f = Add(%e, %one)\n%a = Log(%f)\n%b = Tanh(%a)\n%y = Mul(%b, %x)", "Mish(%x)",
    ),
    "relu": ("%y = Max(%zero, %x)", "Relu(%x)"),
    "relu6": ("%a = Max(%x, %zero)\n%y = Min(%a, %six)", "Clip(%x, min=0.0, max=6.0)"),
    "relu6 after relu": ("%a = Relu(%x)\n%y = Clip(%a, min=None, max=6.0)", "Clip(%x, min=0.0, max=6.0)"),
    "hardsigmoid": (
        "%a = Add(%x, %three)\n%b = Clip(%a, min=0.0, max=6.0)\n%y = Div(%b, %six)",
        "HardSigmoid(%x, alpha=0.16666666666666666, beta=0.5)",
    ),
    "hardsigmoid, scaled first": (
        "%a = Mul(%x, %sixth)\n%b = Add(%a, %half)\n%y = Clip(%b, min=0.0, max=1.0)",
        "HardSigmoid(%x, alpha=0.1666666716337204, beta=0.5)",
    ),
    "hardswish": (
        "%a = Add(%x, %three)\n%b = Clip(%a, min=0.0, max=6.0)\n%c = Mul(%x, %b)\n%y = Div(%c, %six)", "HardSwish(%x)",
    ),
    "hardswish, divided first": (
        "%a = Add(%x, %three)\n%b = Clip(%a, min=0.0, max=6.0)\n%c = Div(%b, %six)\n%y = Mul(%c, %x)", "HardSwish(%x)",
    ),
    "hardswish, min max": (
        "%a = Add(%three, %x)\n%b = Max(%a, %zero)\n%c = Min(%b, %six)\n%d = Mul(%c, %sixth)\n%y = Mul(%d, %x)",
        "HardSwish(%x)",
    ),
    "hardswish of hardsigmoid": (
        "%a = HardSigmoid(%x, alpha=0.16666667163372, beta=0.5)\n%y = Mul(%x, %a)", "HardSwish(%x)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_activations(form: str) -> None:
    text, expected = FORMS[form]
    after = check(f"{HEADER}{text}\noutput %y", clips, activations)
    assert body(after) == f"%y = {expected}\noutput %y"


@pytest.mark.parametrize(
    "text",
    [
        "%a = Sigmoid(%x)\n%y = Mul(%a, %six)",
        "%a = Add(%x, %three)\n%b = Clip(%a, min=0.0, max=5.0)\n%c = Mul(%x, %b)\n%y = Div(%c, %six)",
        "%a = Mul(%x, %half)\n%b = Erf(%a)\n%c = Add(%b, %one)\n%d = Mul(%x, %c)\n%y = Mul(%d, %half)",
        "%y = Clip(%x, min=0.0, max=1.0)",
    ],
)
def test_near_misses_stay(text: str) -> None:
    graph = build(f"{HEADER}{text}\noutput %y")
    assert activations(graph, Options()) is graph


def test_a_shared_intermediate_blocks_the_pattern() -> None:
    text = HEADER + "%a = Sigmoid(%x)\n%y = Mul(%a, %x)\n"
    assert ops(check(text + "%z = Neg(%a)\noutput %y\noutput %z", activations)) == ["Sigmoid", "Mul", "Neg"]
    assert ops(check(text + "output %y\noutput %a", activations)) == ["Sigmoid", "Mul"]


def test_a_constant_that_adds_axes_blocks_the_pattern() -> None:
    text = "input %x: f32[4]\nweight %k: f32[1, 1] data=2.0\n"
    text += "%b = Mul(%x, %k)\n%a = Sigmoid(%b)\n%y = Mul(%x, %a)\noutput %y"
    assert ops(check(text, activations)) == ["Mul", "Sigmoid", "Mul"]


def test_casts_are_looked_through_and_the_type_restored() -> None:
    after = check(
        """
        input %x: f16[3, 8]
        %w = Cast(%x, to=dtype(f32))
        %a = Sigmoid(%w)
        %b = Mul(%a, %w)
        %c = Cast(%b, to=dtype(f16))
        output %c
        """,
        activations,
    )
    assert ops(after) == ["Cast", "Silu", "Cast"]


# ----------------------------------------------------------------------------------------------- row programs

NORM = """
    input %x: f32[2, 3, 8]
    weight %two: f32[] data=2.0
    weight %eps: f32[] data=1e-3
    weight %one: f32[] data=1.0
    weight %mhalf: f32[] data=-0.5
    weight %s: f32[8]
    weight %b: f32[1, 8]
    %mean = ReduceMean(%x, axes=(2,), keepdims=1)
    %d = Sub(%x, %mean)
"""
SQUARES = {"pow": "%q = Pow(%d, %two)", "mul": "%q = Mul(%d, %d)"}
SCALES = {
    "sqrt, div": "%r = Sqrt(%ve)\n%n = Div(%d, %r)",
    "rsqrt": "%r = Rsqrt(%ve)\n%n = Mul(%r, %d)",
    "reciprocal": "%q1 = Sqrt(%ve)\n%r = Reciprocal(%q1)\n%n = Mul(%d, %r)",
    "one over": "%q1 = Sqrt(%ve)\n%r = Div(%one, %q1)\n%n = Mul(%d, %r)",
    "power": "%r = Pow(%ve, %mhalf)\n%n = Mul(%d, %r)",
}


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("scale", SCALES)
def test_layer_norm_in_every_form(square: str, scale: str) -> None:
    text = f"""{NORM}{SQUARES[square]}
        %v = ReduceMean(%q, axes=(2,), keepdims=1)
        %ve = Add(%v, %eps)
        {SCALES[scale]}
        %sn = Mul(%n, %s)
        %y = Add(%sn, %b)
        output %y
    """
    after = check(text, rowwise)
    assert body(after) == "%y = LayerNormalization(%x, %s, %b, axis=2, epsilon=0.0010000000474974513)\noutput %y"


def test_layer_norm_with_a_difference_written_twice_and_no_affine() -> None:
    text = f"""{NORM}
        %d2 = Sub(%x, %mean)
        %q = Mul(%d2, %d2)
        %v = ReduceMean(%q, axes=(2,), keepdims=1)
        %ve = Add(%eps, %v)
        %r = Rsqrt(%ve)
        %y = Mul(%d, %r)
        output %y
    """
    assert ops(check(text, rowwise)) == ["LayerNormalization"]


def test_layer_norm_over_channels_moves_them_last() -> None:
    after = check(
        """
        input %x: f32[2, 8, 3, 5]
        weight %eps: f32[] data=1e-6
        weight %s: f32[8, 1, 1]
        weight %b: f32[8, 1, 1]
        %mean = ReduceMean(%x, axes=(1,), keepdims=1)
        %d = Sub(%x, %mean)
        %q = Mul(%d, %d)
        %v = ReduceMean(%q, axes=(1,), keepdims=1)
        %ve = Add(%v, %eps)
        %r = Sqrt(%ve)
        %n = Div(%d, %r)
        %sn = Mul(%s, %n)
        %y = Add(%sn, %b)
        output %y
        """,
        rowwise,
    )
    assert ops(after) == ["Transpose", "LayerNormalization", "Transpose"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("axes=(2,)", "axes=(1,)"), ["Transpose", "LayerNormalization", "Transpose", "Mul", "Add"]),
        (("axes=(2,)", "axes=(0, 2)"), ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Rsqrt", "Mul", "Mul", "Add"]),
    ],
)
def test_affine_or_axes_that_do_not_fit_stay_outside(change: tuple[str, str], expected: list[str]) -> None:
    text = f"""{NORM}
        %q = Mul(%d, %d)
        %v = ReduceMean(%q, axes=(2,), keepdims=1)
        %ve = Add(%v, %eps)
        %r = Rsqrt(%ve)
        %n = Mul(%d, %r)
        %sn = Mul(%n, %s)
        %y = Add(%sn, %b)
        output %y
    """
    assert ops(check(text.replace(*change), rowwise)) == expected


def test_rms_norm_of_a_half_model_that_computes_in_f32() -> None:
    after = check(
        """
        input %x: f16[2, 3, 8]
        weight %two: f32[] data=2.0
        weight %eps: f32[] data=1e-5
        weight %s: f16[8]
        %w = Cast(%x, to=dtype(f32))
        %q = Pow(%w, %two)
        %v = ReduceMean(%q, axes=(2,), keepdims=1)
        %ve = Add(%v, %eps)
        %r = Rsqrt(%ve)
        %n = Mul(%w, %r)
        %h = Cast(%n, to=dtype(f16))
        %y = Mul(%s, %h)
        output %y
        """,
        rowwise, rtol=4e-3, atol=4e-3,
    )  # fmt: skip
    assert [op for op in ops(after) if op != "Cast"] == ["RMSNormalization"]
    assert after.nodes[-1].output.dtype.value == "f16"


def test_softmax_and_log_softmax_from_primitives() -> None:
    text = """
        input %x: f32[2, 3, 8]
        %m = ReduceMax(%x, axes=(1,), keepdims=1)
        %d = Sub(%x, %m)
        %e = Exp(%d)
        %t = ReduceSum(%e, axes=(1,), keepdims=1)
        %p = Div(%e, %t)
        %y = Log(%p)
        output %y
    """
    assert body(check(text, rowwise)) == "%y = LogSoftmax(%x, axis=1)\noutput %y"
    no_log = text.replace("%y = Log(%p)", "%y = Neg(%p)")
    assert body(check(no_log, rowwise)) == lines("%p = Softmax(%x, axis=1)\n%y = Neg(%p)\noutput %y")


# -------------------------------------------------------------------------------------------------- formulas


def test_formulas_are_normalised() -> None:
    a = parse_formula("0.5 * x * (1 + Erf(x / 2))")
    assert isinstance(a, Algebra)
    assert (a.is_sum, a.constant) == (False, 0.5)
    assert {type(t) for t, _ in a.terms} == {Name, Algebra}
    assert parse_formula("x * x * x") == parse_formula("x ** 3")
    assert parse_formula("Clip(x, min=0, max=None)") == Operation("Clip", (Name("x"),), (("min", 0.0), ("max", None)))


@pytest.mark.parametrize("text", ["x @ y", "lambda: 0", "[x]", "f(*x)"])
def test_what_is_not_a_formula_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a formula"):
        parse_formula(text)


def test_passes_return_the_same_graph_when_nothing_matches() -> None:
    graph = build("input %x: f32[3]\n%y = Neg(%x)\noutput %y")
    for p in (clips, activations, rowwise):
        assert run(graph, p) is graph
