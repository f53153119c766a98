"""IR text: everything that a graph holds comes back exactly, and what is not IR text is refused with its
line.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DEVICE_TYPES, DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.compiler.text import literal_text, parse_graph, parse_literal, parse_type, print_graph, sanitize

EXAMPLE = """\
graph 'a model'
symbol N(lo=1, hi=8, multiple_of=2)
symbol i(hi=N - 1)
input %x: f32[N, 64]
input %s: i64[]
weight %fc.weight: f32[64, 10] source='fc.w', transform=(('source', ('fc.w',)), ('Neg', (1, '')))
weight %c: bf16[2] data=(0.5, float(-inf))
%y: f32[N, 10] = MatMul(%x, %fc.weight) @ 'fc', "it's"
%a/b[0]:1: f32[N, 10] = Clip(%y, min=0.0, max=None) @ 'relu6'
%p: f32[N, 1] = Slice(%y, starts=(0, i), sizes=(N, 1), steps=(1, 1))
%n: f32[N, 10], %m: f32[floordiv(N + 3, 4)] = MadeUp(%y, _, %c, t=(), u=(-3, 'a)b, c', float(nan)), d=dtype(i8))
output %n 'scores'
output %x 'the input'
"""


def test_the_example_comes_back_character_by_character() -> None:
    assert print_graph(parse_graph(EXAMPLE), data_limit=4) == EXAMPLE


def test_every_part_of_the_example() -> None:
    graph = parse_graph(EXAMPLE)
    n = symbol("N", 1, 8, 2)
    assert graph.name == "a model"
    assert graph.inputs[0] == Value("x", TensorType(DType.F32, (n, 64)))
    assert graph.symbols() == (dims.Sym("N", 1, 8, 2),)
    assert graph.output_labels == ("scores", "the input")
    matmul, clip, cut, made = graph.nodes
    assert matmul.origin == ("fc", "it's")
    assert dict(clip.attrs) == {"min": 0.0, "max": None}
    assert cut.attrs["starts"] == (0, symbol("i", 0, n - 1))
    assert made.inputs[1] is None
    assert made.attrs["u"][:2] == (-3, "a)b, c")
    assert math.isnan(made.attrs["u"][2])
    assert made.attrs["d"] is DType.I8
    assert [o.type.shape for o in made.outputs] == [(n, 10), (dims.floordiv(n + 3, 4),)]
    weight = graph.weights["fc.weight"]
    assert (weight.source, weight.data.shape, weight.data.strides) == ("fc.w", (64, 10), (0, 0))
    assert weight.transform[1] == ("Neg", (1, ""))
    np.testing.assert_array_equal(graph.weights["c"].data.astype(np.float32), [0.5, -np.inf])


def test_weights_come_from_outside_where_the_text_has_no_data() -> None:
    data = np.arange(640, dtype=np.float32).reshape(64, 10)
    assert parse_graph(EXAMPLE, weights={"fc.weight": data}).weights["fc.weight"].data is data
    with pytest.raises(ModelError, match=r"f32\[64, 10\], but the array given is float64\[3\]"):
        parse_graph(EXAMPLE, weights={"fc.weight": np.zeros(3)})


def test_types_are_inferred_where_they_are_left_out() -> None:
    graph = parse_graph("graph 'g'\ninput %x: f32[2, 3]\n%y = Softmax(%x, axis=1)\n%z = Gelu(%y)\noutput %z")
    assert [str(n.output.type) for n in graph.nodes] == ["f32[2, 3]"] * 2
    assert graph.nodes[1].attrs["approximate"] == "none"
    with pytest.raises(UnsupportedError, match="NoSuchOperator"):
        parse_graph("graph 'g'\ninput %x: f32[2]\n%y = NoSuchOperator(%x)")


# ------------------------------------------------------------------------------------------------ round trips

SYMBOLS = [symbol("n", 1), symbol("h", 4, 4096, 4), symbol("w")]


@st.composite
def dimensions(draw: st.DrawFn, depth: int = 2) -> Dim:
    if depth == 0 or draw(st.booleans()):
        return draw(st.one_of(st.integers(0, 9), st.sampled_from(SYMBOLS)))
    a, b = draw(dimensions(depth - 1)), draw(dimensions(depth - 1))
    d = draw(st.integers(1, 6))
    return draw(
        st.sampled_from(
            [a + b, a * b, a + 1, dims.floordiv(a, d), dims.mod(a, d), dims.maximum(a, b), dims.minimum(a, b)]
        )
    )


LITERALS = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.floats(), st.text(max_size=8),
        st.sampled_from(list(DEVICE_TYPES.values())), dimensions(),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


def same(a: object, b: object) -> bool:
    """Equality that tells types and signed zeros apart and knows that NaN is NaN."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


@given(LITERALS)
def test_attribute_values_come_back(value: object) -> None:
    symbols = {str(s): s for s in SYMBOLS}
    text = literal_text(value)
    assert "\n" not in text
    assert same(parse_literal(text, symbols), value)


@given(st.lists(dimensions(), max_size=4), st.sampled_from(list(DEVICE_TYPES.values())))
def test_types_come_back(shape: list[Dim], dtype: DType) -> None:
    type_ = TensorType(dtype, tuple(shape))
    assert parse_type(str(type_), {str(s): s for s in SYMBOLS}) == type_


@given(st.text(min_size=1, max_size=12), st.text(max_size=8), st.lists(st.text(max_size=6), max_size=2))
def test_names_labels_and_origins_come_back(name: str, label: str, origin: list[str]) -> None:
    name = sanitize(name)
    x, y = Value(name, TensorType(DType.F32, (2,))), Value(name + "'s"[:0] + ".y", TensorType(DType.F32, (2,)))
    labels = (label,) if label else ()
    graph = Graph(label, (x,), (y,), (Node("Relu", (x,), (y,), {}, tuple(origin)),), {}, labels)
    assert parse_graph(print_graph(graph)) == graph


@pytest.mark.parametrize("dtype", list(DEVICE_TYPES.values()))
def test_weight_data_comes_back_exactly(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << min(dtype.bits, 8), 24 * max(dtype.bits // 8, 1), dtype=np.uint8)
    data = (bits % 2).view(np.bool_) if dtype is DType.BOOL else bits.view(dtype.numpy)
    data = np.nan_to_num(data.astype(np.float64)).astype(dtype.numpy) if dtype.is_float else data
    data = data.reshape(2, 3, 4)
    text = print_graph(Graph("g", (), (), (), {"w": Weight(data)}), data_limit=24)
    found = parse_graph(text).weights["w"].data
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found.view(np.uint8), data.view(np.uint8))


def test_bfloat16_weights_keep_their_type() -> None:
    graph = Graph("g", (), (), (), {"w": Weight(np.ones((2, 2), ml_dtypes.bfloat16))})
    assert parse_graph(print_graph(graph)).weights["w"].data.dtype == ml_dtypes.bfloat16


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["a b", "a,b", "f(x)", "%x", "x=1", "it's", 'say"', "x:", "tab\t", "nul\0", ""])
def test_sanitize_makes_names_that_the_text_can_hold(name: str) -> None:
    clean = sanitize(name)
    assert clean != name
    assert sanitize(clean) == clean
    v = Value(name, TensorType(DType.F32, ()))
    with pytest.raises(ModelError, match="cannot"):
        print_graph(Graph("g", (v,), (), ()))


def test_two_symbols_of_one_name_are_refused() -> None:
    a = Value("a", TensorType(DType.F32, (symbol("n", 1),)))
    b = Value("b", TensorType(DType.F32, (symbol("n", 2),)))
    with pytest.raises(ModelError, match="both called n"):
        print_graph(Graph("g", (a, b), (), ()))


@pytest.mark.parametrize("value", [np.float32(1), [1, 2], {"a": 1}, np.zeros(2), 1j])
def test_attributes_that_are_not_plain_data_are_refused(value: object) -> None:
    with pytest.raises(ModelError, match="an attribute cannot hold"):
        literal_text(value)


BAD = [
    "input %x f32[2]",
    "input %x: f32[2",
    "input %x: f99[2]",
    "input %x: f32[__import__('os')]",
    "input %x: f32[2]\ninput %x: f32[2]",
    "weight %w: f32[n]",
    "weight %w: f32[2] data=(1.0,)",
    "weight %w: f32[2] colour='red'",
    "weight %w: f32[-1]",
    "%y: f32[2] = Relu(%x)",
    "%y: f32[2] = Relu(_",
    "%y: f32[2] Relu(_)",
    "%y: f32[2] = Relu(_, a=(1).real)",
    "%y: f32[2] = Relu(_) @ 7",
    "%y: f32[2] = Relu(_) origin",
    "output %y",
    "symbol n(low=1)",
    "symbol n(lo='a')",
    "symbol n(1)",
    "nonsense",
    "%y: f32[2] = Relu(_, a=" + "(" * 500 + ")" * 500 + ")",
    "%y: f32[2] = Relu(_, a=" + "-" * 20000 + "1)",
    "%y: f32[2] = Relu(_, a=9**9**9)",
    "input %x: f32[1//0]",
    "input %x: f32[(1, 2), 3]",
    "input %x: f32[True]",
    "input %x: f32['n']",
    "input %x: f32[1.5]",
]


@pytest.mark.parametrize("line", BAD)
def test_what_is_not_ir_text_names_its_line(line: str) -> None:
    with pytest.raises(ModelError) as error:
        parse_graph(f"graph 'g'\n{line}")
    assert error.value.node is not None
    assert error.value.node.startswith(f"line {2 + line.count(chr(10))}: ")


def test_a_graph_line_is_needed() -> None:
    with pytest.raises(ModelError, match="begins with"):
        parse_graph("input %x: f32[2]")


@given(st.integers(0, len(EXAMPLE) - 1), st.characters(codec="ascii"), st.booleans())
def test_damaged_text_gives_typed_errors_only(at: int, char: str, drop: bool) -> None:
    text = EXAMPLE[:at] + ("" if drop else char) + EXAMPLE[at + 1 :]
    try:
        parse_graph(text)
    except (ModelError, UnsupportedError):
        return
