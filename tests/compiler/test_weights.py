"""Records of derived weights: replayed on the same and on new data, sources named, damage refused."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError, ModelError
from arcweld.compiler.ir import Graph, Rewriter, Weight, weight_value
from arcweld.compiler.records import sources
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.compiler.weights import INLINE_LIMIT, derive, evaluate, replay


def weight(name: str, *shape: int, seed: int = 0) -> tuple[str, Weight]:
    data = np.random.default_rng([seed, len(name)]).standard_normal(shape).astype(np.float32)
    return name, Weight(data, name)


def test_a_chain_over_two_sources_is_replayed() -> None:
    wq, wk = weight("q", 3, 4), weight("kk", 3, 5)
    merged = evaluate("Concat", [wq, wk], {"axis": 1})
    half = evaluate("Cast", [("merged", merged)], {"to": DType.F16})
    assert sources(half) == ("q", "kk")
    assert half.source == ""
    new = {"q": np.ones((3, 4), np.float32), "kk": np.full((3, 5), 2, np.float32)}
    expected = np.concatenate([new["q"], new["kk"]], 1).astype(np.float16)
    np.testing.assert_array_equal(replay(half.transform, new), expected)
    again = {"q": wq[1].data, "kk": wk[1].data}
    np.testing.assert_array_equal(replay(half.transform, again), half.data)


def test_small_constants_are_part_of_the_record() -> None:
    w = weight("w", 2, 3)
    scale = Weight(np.array([0.5, np.inf, -2], np.float32))
    scaled = evaluate("Mul", [w, ("scale", scale)], {})
    assert scaled.source == "w"
    np.testing.assert_array_equal(replay(scaled.transform, {"w": w[1].data}), w[1].data * scale.data)


def test_large_constants_without_a_source_become_one() -> None:
    big = Weight(np.ones(INLINE_LIMIT + 1, np.float32))
    assert sources(evaluate("Neg", [("big", big)], {})) == ("big",)


def test_what_has_no_source_has_no_record() -> None:
    out = evaluate("Neg", [("c", Weight(np.ones(3, np.float32)))], {})
    assert (out.source, out.transform) == ("", ())


def test_records_survive_ir_text() -> None:
    made = evaluate("Transpose", [weight("w", 2, 3)], {"perm": (1, 0)})
    graph = parse_graph(print_graph(Graph("g", (), (), (), {"t": made}), data_limit=6))
    assert graph.weights["t"].transform == made.transform
    assert graph.weights["t"].source == "w"


def test_derive_evaluates_only_what_is_constant() -> None:
    text = "graph 'g'\nsymbol n(lo=1, hi=3)\ninput %x: f32[3]\nweight %w: f32[3] source='w', data=(1.0, 2.0, 3.0)"
    rw = Rewriter(parse_graph(text))
    w, x = weight_value("w", rw.weights["w"].data, DType.F32), rw.graph.inputs[0]
    folded = derive(rw, "Neg", [w])
    np.testing.assert_array_equal(rw.weights[folded.name].data, [-1, -2, -3])
    assert derive(rw, "Add", [w, x]).name not in rw.weights
    part = derive(rw, "Slice", [w], {"starts": (0,), "sizes": (symbol("n", 1, 3),), "steps": (1,)})
    assert part.name not in rw.weights
    assert [n.op for n in rw.nodes] == ["Add", "Slice"]


W = ("w", "f32[2]")


@pytest.mark.parametrize(
    "damaged",
    [(), (("source", W),) * 2, (("Neg", (1, "")),), (("source", W), ("Add", (2, "")))],
)
def test_damaged_records_are_refused(damaged: tuple[tuple[str, tuple[object, ...]], ...]) -> None:
    with pytest.raises(ModelError, match="damaged"):
        replay(damaged, {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize("arrays", [{}, {"w": np.ones(3, np.float32)}, {"w": np.ones(2, np.float64)}])
def test_sources_that_are_missing_or_do_not_fit_are_named(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="'w'"):
        replay((("source", W),), arrays)


def test_derived_weights_are_bounded_too() -> None:
    rw = Rewriter(Graph("g", (), (), (), {"w": Weight(np.ones(100_000, np.float32), "w")}))
    w = weight_value("w", rw.weights["w"].data, DType.F32)
    small = derive(rw, "Concat", [w, w], {"axis": 0})
    large = derive(rw, "Concat", [w] * 9, {"axis": 0})
    assert small.name in rw.weights
    assert large.name not in rw.weights
    assert rw.nodes[-1].op == "Concat"
