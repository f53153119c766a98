"""Inputs to verify with: random ones for which the model is defined, and says numbers."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.errors import ModelError
from arcweld.compiler.text import parse_graph
from arcweld.driver.draws import draw_sample, given_sample
from arcweld.driver.samples import Draw

DIVIDES = """graph 'g'
input %x: i64[4]
input %mask: bool[{n}]
%counted = Cast(%mask, to=dtype(i64))
%many: i64[] = ReduceSum(%counted, axes=(0,), keepdims=0)
%divisor = Divisor(%many)
%y = Div(%x, %divisor)
output %y
"""
ROOT = "graph 'g'\ninput %x: f32[64]\n%y = Sqrt(%x)\noutput %y\n"


def test_a_model_that_divides_by_what_it_counts_gets_inputs_that_count() -> None:
    for n in (1, 2):
        sample = draw_sample(parse_graph(DIVIDES.format(n=n)), None)
        assert sample.outputs is not None
        many = sample.feeds["mask"].sum()
        assert many > 0
        np.testing.assert_array_equal(sample.outputs["y"], (sample.feeds["x"] / many).astype(np.int64))


def test_a_model_that_no_random_input_fits_is_an_error_with_a_remedy() -> None:
    zero = "%zero = Sub(%many, %many)\n%divisor = Divisor(%zero)"
    text = DIVIDES.format(n=1).replace("%divisor = Divisor(%many)", zero)
    with pytest.raises(ModelError, match="the model fails for random inputs") as caught:
        draw_sample(parse_graph(text), None)
    assert "feeds=" in str(caught.value.hint)


def test_roots_are_drawn_from_what_has_one() -> None:
    sample = draw_sample(parse_graph(ROOT), None)
    assert sample.draw is Draw.UNIT
    assert sample.outputs is not None
    np.testing.assert_allclose(sample.outputs["y"], np.sqrt(sample.feeds["x"]), rtol=1e-6)


def test_given_inputs_win() -> None:
    x = -np.ones(64, np.float32)
    sample = given_sample(parse_graph(ROOT), None, {"x": x})
    assert sample.draw is None
    assert sample.outputs is None
    assert sample.feeds["x"] is x
