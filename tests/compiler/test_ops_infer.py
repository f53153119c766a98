"""Type rules: symbolic dimensions against concrete shapes, and the errors for operands that do not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_sweep import Loads, Sweep, label, sweeps, symbolic

from arcweld.compiler.dims import Dim, evaluate, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError
from arcweld.compiler.expr import index as dim_value
from arcweld.compiler.expr import loads
from arcweld.compiler.interpret import interpret
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.movement import reshape_coords
from arcweld.compiler.ops.registry import Kind, all_ops, check_attrs, concrete, make, opdef, unsupported_reason
from arcweld.compiler.ops.shapes import below, broadcast

F32, F16, I64 = DType.F32, DType.F16, DType.I64
N, M = symbol("n", 1), symbol("m", 1)


def f32(*shape: Dim) -> TensorType:
    return TensorType(F32, shape)


def infer(name: str, *types: TensorType | None, **attrs: Any) -> TensorType:
    """The first result type, with default attributes filled in."""
    op = opdef(name)
    return op.infer(types, check_attrs(op, attrs, name))[0]


# ------------------------------------------------------------------------------------------------- completeness


def test_every_entry_has_what_its_kind_needs() -> None:
    for op in all_ops():
        assert op.cases, op.name
        assert (op.lower is not None) == (op.kind in (Kind.POINTWISE, Kind.MOVEMENT)), op.name
        assert (op.row is not None) == (op.kind is Kind.ROWWISE), op.name
        assert op.kind is not Kind.COMPOSITE or op.decompose is not None, op.name


def test_every_attribute_of_every_case_is_declared() -> None:
    for op in all_ops():
        for case in op.cases:
            check_attrs(op, case.attrs, op.name)


def test_the_symbolic_sweep_reaches_every_operator_that_has_operands() -> None:
    reached = {s.op.name for s in sweeps() if next(symbolic(s), None) is not None}
    apart = {"PagedLengths"}  # of n + 1 and n elements: no single extent can be open
    assert reached == {op.name for op in all_ops() if op.inputs} - apart


# ------------------------------------------------------------------------------------- symbolic against concrete


@pytest.mark.parametrize("sweep", [s for s in sweeps() if s.dtype is F32], ids=label)
def test_a_symbolic_type_evaluates_to_the_concrete_one(sweep: Sweep) -> None:
    for node, _, _, extent in symbolic(sweep):
        # at the case's own extent, and at others: each is inferred from scratch
        for size in (extent, extent + 1, 2 * extent, 12):
            env = {"S": size}
            types = [None if v is None else at(v.type, env) for v in node.inputs]
            try:
                want = sweep.op.infer(types, concrete(node.attrs, env))
            except ModelError:
                assert size != extent
                continue
            assert tuple(at(o.type, env) for o in node.outputs) == want


def at(t: TensorType, env: dict[str, int]) -> TensorType:
    return t.with_shape([evaluate(d, env) for d in t.shape])


@given(st.lists(st.integers(1, 3), max_size=4), st.lists(st.integers(1, 3), max_size=4))
def test_broadcasting_agrees_with_numpy(a: list[int], b: list[int]) -> None:
    try:
        want = np.broadcast_shapes(tuple(a), tuple(b))
    except ValueError:
        with pytest.raises(ModelError):
            broadcast("Add", [a, b])
    else:
        assert broadcast("Add", [a, b]) == want


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_pool_extents_with_a_symbolic_size_agree_with_numpy(
    size: int, kernel: int, stride: int, dilation: int, pad: int, ceil: bool
) -> None:
    pad = min(pad, kernel - 1)
    attrs = {
        "kernel_shape": (kernel,), "strides": (stride,), "dilations": (dilation,), "pads": (pad, pad),
        "ceil_mode": ceil,
    }  # fmt: skip
    reach = dilation * (kernel - 1) + 1
    if size + 2 * pad < reach:
        return
    (_, _, out) = infer("MaxPool", f32(1, 1, N), **attrs).shape
    starts = [s for s in range(-pad, size + pad + stride, stride) if s + reach <= size + pad]
    if ceil:
        starts = [s for s in range(-pad, size, stride) if s - stride + reach < size + pad]
    assert evaluate(out, {"n": size}) == len(starts)


@st.composite
def two_factorings(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes with the same number of elements."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def merge() -> list[int]:
        shape, current = [], 1
        for p in primes:
            current *= p
            if draw(st.booleans()):
                shape.append(current)
                current = 1
        return [*shape, current]

    return merge(), draw(st.permutations(merge())) if draw(st.booleans()) else merge()


@given(two_factorings(), st.booleans())
def test_reshape_coordinates_agree_with_numpy(shapes: tuple[Sequence[int], Sequence[int]], dynamic: bool) -> None:
    source, target = shapes
    x = np.arange(math.prod(source)).reshape(source)
    env: dict[str, Any] = {"n": source[0]}
    given_source: list[Dim] = [N, *source[1:]] if dynamic and source[0] == target[0] else list(source)
    given_target: list[Dim] = [given_source[0], *target[1:]] if dynamic and source[0] == target[0] else list(target)
    coords = [symbol(f"i{k}", 0, d - 1) for k, d in enumerate(given_target)]
    for k, n in enumerate(target):
        env[f"i{k}"] = np.arange(n).reshape([n if j == k else 1 for j in range(len(target))])
    found = reshape_coords(coords, given_target, given_source)
    picked = x[tuple(interpret(dim_value(c), {}, env) for c in found)]
    np.testing.assert_array_equal(np.broadcast_to(picked, tuple(target)), x.reshape(target))


# ------------------------------------------------------------------------- index maps that must stay simple


def read_coords(name: str, x: TensorType, **attrs: Any) -> str:
    """The coordinates at which a movement operator reads its operand, over indices i0, i1, ..."""
    op = opdef(name)
    full = check_attrs(op, attrs, name)
    value, out = Value("x", x), Value("y", op.infer([x], full)[0])
    coords = tuple(0 if d == 1 else symbol(f"i{k}", 0, d - 1) for k, d in enumerate(out.shape))
    assert op.lower is not None
    (found,) = loads([op.lower(Loads(), Node(name, (value,), (out,), full), coords)])
    return ", ".join(str(c) for c in found.attr[2])


def test_splitting_and_merging_heads_needs_no_division_by_symbols() -> None:
    assert read_coords("Reshape", f32(N, M, 768), shape=(N, M, 12, 64)) == "i0, i1, i3 + 64*i2"
    assert read_coords("Reshape", f32(N, M, 12, 64), shape=(N, M, 768)) == "i0, i1, floordiv(i2, 64), mod(i2, 64)"
    assert read_coords("Reshape", f32(N, M, 1, 64), shape=(N, 1, M, 64)) == "i0, i2, 0, i3"
    assert read_coords("Reshape", f32(N, M, 64), shape=(N * M, 64)) == "floordiv(i0, m), mod(i0, m), i1"


def test_integer_upscaling_reads_at_a_quotient() -> None:
    scales = (1.0, 1.0, 2.0, 2.0)
    nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    x = f32(N, 3, 20, 30)
    found = read_coords("Resize", x, sizes=(N, 3, 40, 60), scales=scales, **nearest)
    assert found == "i0, i1, floordiv(i2, 2), floordiv(i3, 2)"


def test_conditions_on_dimensions_are_decided_where_ranges_allow() -> None:
    i = symbol("i", 0, N - 1)
    assert below(i, N).attr is True
    assert below(N, i).attr is False
    assert below(i, 3).op == "lt"


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "types", "attrs", "words"),
    [
        ("Add", [f32(N, 3), f32(M, 3)], {}, ["n", "m"]),
        ("Add", [f32(N), f32(3)], {}, ["n", "3"]),
        ("Add", [f32(2), TensorType(F16, (2,))], {}, ["f32", "f16"]),
        ("Add", [f32(2)], {}, ["2 operands"]),
        ("Add", [f32(2), None], {}, ["missing"]),
        ("Exp", [TensorType(I64, (2,))], {}, ["i64"]),
        ("MatMul", [f32(2, N), f32(M, 3)], {}, ["n", "m"]),
        ("MatMul", [f32(2), f32(2, 3)], {}, ["rank"]),
        ("Reshape", [f32(2, 3)], {"shape": (7,)}, ["6", "7"]),
        ("Reshape", [f32(N, 4)], {"shape": (N, 5)}, ["4*n", "5*n"]),
        ("Transpose", [f32(2, 3)], {"perm": (0, 0)}, ["permutation"]),
        ("Concat", [f32(2, N), f32(2, M)], {"axis": 0}, ["n", "m"]),
        ("Concat", [f32(2, 3)], {"axis": 2}, ["axis 2"]),
        ("Slice", [f32(4)], {"starts": (2,), "sizes": (3,), "steps": (1,)}, ["axis 0"]),
        ("Slice", [f32(4)], {"starts": (0,), "sizes": (3,), "steps": (0,)}, ["step 0"]),
        ("Pad", [f32(4)], {"pads": (0,)}, ["pads"]),
        ("Pad", [f32(2, 4)], {"pads": (0, -4, 0, 5), "mode": "edge"}, ["axis 1", "left to repeat"]),
        ("Pad", [f32(0, 4)], {"pads": (1, 0, 0, 0), "mode": "wrap"}, ["axis 0", "left to repeat"]),
        ("Pad", [f32(4)], {"pads": (-3, -3)}, ["crops"]),
        ("Gather", [f32(4), f32(2)], {}, ["f32"]),
        ("ReduceSum", [f32(4)], {"axes": (1,)}, ["axis 1"]),
        ("ReduceSum", [f32(4)], {"axes": (0, 0)}, ["twice"]),
        ("LayerNormalization", [f32(2, 4), f32(3)], {"axis": 1}, ["3", "4"]),
        ("LayerNormalization", [f32(2, 4), f32(3, 2, 4)], {"axis": 1}, ["scale"]),
        ("Resize", [f32(2, 3)], {"sizes": (2,)}, ["sizes"]),
        ("Resize", [f32(2, 3)], {"sizes": (2, 3), "mode": "bilinear"}, ["bilinear"]),
        ("Attention", [f32(1, 0, 2, 2), f32(1, 1, 2, 2), f32(1, 1, 2, 2)], {"scale": 1.0}, ["no heads"]),
        ("Attention", [f32(1, 1, 2, 2), f32(1, 0, 2, 2), f32(1, 0, 2, 2)], {"scale": 1.0}, ["no heads"]),
        ("Resize", [f32(2, 0)], {"sizes": (2, 3)}, ["axis 1", "no elements"]),
        ("DepthToSpace", [f32(1, 6, 2, 2)], {"blocksize": 2}, ["6", "4"]),
        ("ScatterND", [f32(4), TensorType(I64, (2, 1)), f32(3)], {}, ["updates"]),
        ("Einsum", [f32(2, 3), f32(4, 5)], {"equation": "ij,jk"}, ["index j"]),
        ("Einsum", [f32(2, 3)], {"equation": "ij,jk"}, ["2 operands"]),
        ("Einsum", [f32(2, 3)], {"equation": "i(j->i"}, ["equation"]),
        ("Attention", [f32(1, 3, 4, 8), f32(1, 2, 4, 8), f32(1, 2, 4, 8)], {"scale": 1.0}, ["3", "2"]),
    ],
)
def test_operands_that_do_not_fit_are_refused_by_name(
    name: str, types: list[TensorType | None], attrs: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        infer(name, *types, **attrs)
    for word in words:
        assert word in str(caught.value)


def conv(x: TensorType, w: TensorType, b: TensorType | None = None, **attrs: Any) -> TensorType:
    full = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), **attrs}
    return infer("Conv", x, w, b, **full)


def test_convolution_shapes() -> None:
    h = symbol("h", 8)
    out = conv(f32(N, 3, h, 224), f32(16, 3, 3, 3), f32(16), strides=(2, 2), pads=(1, 1, 1, 1))
    assert [str(d) for d in out.shape] == ["n", "16", "floordiv(h + 1, 2)", "112"]
    assert conv(f32(N, 20, 20, 8), f32(4, 2, 3, 3), group=4, layout="NHWC").shape == (N, 18, 18, 4)


@pytest.mark.parametrize(
    ("types", "attrs", "word"),
    [
        ([f32(1, 3, 8, 8), f32(4, 2, 3, 3)], {}, "channels"),
        ([f32(1, 4, 8, 8), f32(3, 2, 3, 3)], {"group": 2}, "groups"),
        ([f32(1, 3, 2, 2), f32(4, 3, 3, 3)], {}, "fit"),
        ([f32(1, 3, 8, 8), f32(4, 3, 3)], {}, "rank"),
        ([f32(1, 3, 8, 8), f32(4, 3, 3, 3), f32(5)], {}, "bias"),
        ([f32(1, 3, 8, 8), f32(4, 3, 3, 3)], {"strides": (0, 1)}, "positive"),
        ([f32(1, 3, 8, 8), f32(4, 3, 3, 3)], {"layout": "CHWN"}, "layout"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(types: list[TensorType], attrs: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        conv(*types, **attrs)


def test_make_fills_defaults_and_refuses_unknown_attributes() -> None:
    rw = Rewriter(Graph("g", (), (), ()))
    x = Value("x", f32(2, 3))
    assert make(rw, "Gelu", [x]).type == x.type
    assert rw.nodes[0].attrs == {"approximate": "none"}
    with pytest.raises(ModelError, match="no attribute"):
        make(rw, "Gelu", [x], {"alpha": 1.0})
    with pytest.raises(ModelError, match="needs the attribute"):
        make(rw, "Transpose", [x])
    with pytest.raises(UnsupportedError, match="unknown operator"):
        make(rw, "Frobnicate", [x])


def test_what_cannot_be_compiled_says_why() -> None:
    x = Value("x", f32(3, 3))
    filters = Value("w", f32(4, 3, N, 3))
    assert "symbolic shape" in (unsupported_reason(Node("Conv", (x, filters), (x,))) or "")
    assert "not implemented" in (unsupported_reason(Node("NonZero", (x,), (x,))) or "")
    assert unsupported_reason(Node("Exp", (x,), (x,))) is None


def test_errors_of_type_rules_are_typed() -> None:
    for op in all_ops():
        with pytest.raises(ArcweldError):
            op.infer([None] * 9, check_attrs(op, op.cases[0].attrs, op.name))
