"""What users are told to do about a node that cannot be imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import ints, model

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx, support_report

N = helper.make_node
FIX = "give the dimension a value with --shapes (or inputs= in Python)"


def _hint(proto: onnx.ModelProto) -> str | None:
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(proto)
    reported = next(row.hint for row in support_report(proto) if not row.supported)
    assert reported == caught.value.hint
    return caught.value.hint


def test_the_axes_of_the_dimension_in_question_are_named() -> None:
    inputs: dict[str, Any] = {"x": (np.float32, ["n", 6]), "y": (np.float32, [3, "n"])}
    nodes = [N("Shape", ["x"], ["s"], end=1), N("DFT", ["z", "s"], ["r"], axis=1), N("Relu", ["y"], ["out"])]
    proto = model(nodes, inputs | {"z": (np.float32, [1, 8, 1])}, ["r", "out"], opset=17)
    assert _hint(proto) == f"{FIX}: n is axis 0 of input x, n is axis 1 of input y"


def test_a_dimension_whose_name_is_a_word_of_the_reason_is_not_meant() -> None:
    """The reason says "depends on the dimension n"."""
    inputs: dict[str, Any] = {"x": (np.float32, ["n", "the"]), "z": (np.float32, [1, 8, 1])}
    nodes = [N("Shape", ["x"], ["s"], end=1), N("DFT", ["z", "s"], ["r"], axis=1)]
    hint = _hint(model(nodes, inputs, ["r"], opset=17))
    assert hint == f"{FIX}: n is axis 0 of input x"


def test_what_shape_arithmetic_leaves_open_names_its_dimensions() -> None:
    """Whether n is more than 4 decides along which axis is summed."""
    nodes = [
        N("Shape", ["x"], ["s"], end=1), N("Greater", ["s", "four"], ["more"]), N("Cast", ["more"], ["axis"], to=7),
        N("CumSum", ["x", "axis"], ["y"]),
    ]  # fmt: skip
    inputs: dict[str, Any] = {"x": (np.float32, ["n", "known"])}
    hint = _hint(model(nodes, inputs, ["y"], {"four": ints(4)}))
    assert hint == f"{FIX}: n is axis 0 of input x"


def test_an_input_that_never_changes_can_become_a_constant() -> None:
    inputs: dict[str, Any] = {"x": (np.float32, [6]), "axis": (np.int64, [])}
    assert _hint(model([N("CumSum", ["x", "axis"], ["y"])], inputs, ["y"])) == (
        "if it never changes, make it a constant with --values axis:VALUE (or Input('axis', value=…) in Python)"
    )


def test_files_for_one_kind_of_processor_are_to_be_saved_again() -> None:
    domain = "com.microsoft.nchwc"
    node = N("ReorderInput", ["x"], ["y"], domain=domain)
    proto = model([node], {"x": (np.float32, [1, 8, 4, 4])}, ["y"], opsets=[helper.make_opsetid(domain, 1)])
    assert _hint(proto) == "the file was optimised for one kind of CPU: save it with ORT_ENABLE_EXTENDED or less"


def test_what_the_operators_own_rules_advise_is_passed_on() -> None:
    inputs: dict[str, Any] = {"x": (np.float32, ["a"]), "y": (np.float32, ["b"])}
    assert _hint(model([N("Add", ["x", "y"], ["z"])], inputs, ["z"])) == (
        "fix the symbolic dimension with --shapes, or give both the same name"
    )


def test_a_place_is_said_once() -> None:
    """The list names each node; the error's own place would repeat the first one."""
    proto = model([N("DFT", ["x", "n"], ["r"], axis=1, name="fourier")], {"x": (np.float32, [1, 8, 1]),
                  "n": (np.int64, [])}, ["r"], opset=17)  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(proto)
    assert str(caught.value).count("fourier") == 1
    assert caught.value.node == "fourier"
