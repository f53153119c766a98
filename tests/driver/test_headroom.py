"""Headroom of f16: the largest value is found and named, fills of masks are no values, and a warning says so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from arcweld.compiler.ir import Weight
from arcweld.compiler.text import parse_graph
from arcweld.driver import api

PRODUCTS = """graph 'g'
input %x: f32[4, 8]
weight %w: f32[8, 8] source='w'
weight %v: f32[8, 8] source='v'
%a = MatMul(%x, %w) @ 'first'
%b = MatMul(%a, %v) @ 'second'
output %b
"""


def built(scale: float, text: str = PRODUCTS) -> dict[str, object]:
    graph = parse_graph(text)
    eye, fill = Weight(np.eye(8, dtype=np.float32)), Weight(np.float32([0] * 7 + [-60000]))
    graph = graph.replace(weights={n: fill if n == "f" else eye for n in graph.weights})
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8) * np.float32(scale)
    _, engine = api.build_engine(graph, precision="fp16", device="sim", feeds={"x": x})
    found: dict[str, object] = engine.data.verify["headroom"]
    return found


def test_the_largest_value_is_recorded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = built(300.0)
    assert found["largest"] == 300.0
    assert found["type"] == "f16"


def test_less_than_a_factor_of_sixteen_warns_and_names_the_node() -> None:
    with pytest.warns(RuntimeWarning, match=r"factor of 11 of the largest number 65504, most at (first|second)"):
        assert built(6000.0)["largest"] == pytest.approx(6000, rel=1e-3)


def test_the_fill_of_a_mask_is_no_value() -> None:
    text = PRODUCTS.replace("%a =", "weight %f: f32[8] source='f'\n%a =")
    text = text.replace("output %b", "%c = Add(%b, %f)\n%d = Softmax(%c, axis=1)\noutput %d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(str(built(1.0, text)["largest"])) <= 1.0
