"""Rounding errors of ill-conditioned computations: neither blamed on a kernel nor an excuse for a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver import api
from arcweld.driver.conditioning import rounding_error


def variance(offset: float) -> tuple[api.Graph, dict[str, np.ndarray]]:
    """``mean(x^2) - mean(x)^2`` of 4096 numbers around ``offset`` that differ by about 1."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["xx"]),
        helper.make_node("ReduceMean", ["xx"], ["m2"], axes=[1], keepdims=1),
        helper.make_node("ReduceMean", ["x"], ["m1"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["m1", "m1"], ["m11"]),
        helper.make_node("Sub", ["m2", "m11"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 4096])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 1])
    model = helper.make_model(
        helper.make_graph(nodes, "variance", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    data = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32) + np.float32(offset)
    return api.import_model(model), {"x": data}


def bound_of(model: api.Graph, feeds: dict[str, np.ndarray]) -> float:
    """The bound for the graph whose nodes become kernels."""
    graph = api.build_data(model, device="sim", verify="off")[0].fused.graph
    name = graph.outputs[0].name
    values = {**feeds, **run_reference(graph, feeds)}
    return rounding_error(graph.nodes, values, graph.weights, {}, name)


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_the_bound_covers_serial_summation_and_follows_the_condition(offset: float) -> None:
    graph, feeds = variance(offset)
    x = feeds["x"]
    # the same in f32 with every sum added up one by one, against f64
    serial = np.cumsum(x * x, axis=1, dtype=np.float32)[:, -1] / np.float32(4096)
    mean = np.cumsum(x, axis=1, dtype=np.float32)[:, -1] / np.float32(4096)
    exact = x.astype(np.float64).var(axis=1)
    error = np.linalg.norm(serial - mean * mean - exact) / np.linalg.norm(exact)
    bound = bound_of(graph, feeds)
    assert error < bound
    assert bound < 1e-3 * max(1.0, offset**2 / 10)  # the condition number grows like the square of the offset


def test_a_well_conditioned_sum_leaves_no_room() -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 1])
    axes = numpy_helper.from_array(np.array([1]), "axes")
    model = helper.make_model(
        helper.make_graph(nodes, "sum", [x], [y], [axes]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert bound_of(api.import_model(model), {"x": np.random.default_rng(0).random((8, 256), np.float32)}) < 1e-5


def test_terms_that_cancel_may_leave_their_rounding_errors() -> None:
    """Means of a batch of 4 that are 0, as behind a convolution of what BatchNormalization returned."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 960)).astype(np.float32)
    x[3] = -(x[0] + x[1] + x[2])
    graph = parse_graph(
        "graph 'mean'\ninput %x: f32[4, 960]\n%y = ReduceSum(%x, axes=(0,), keepdims=0)\noutput %y\n"
    )
    want = run_reference(graph, {"x": x})["y"]
    other = (x[0] + x[3]) + (x[1] + x[2])
    bound = rounding_error(graph.nodes, {"x": x, "y": want}, {}, {}, "y")
    assert 1e-2 < np.linalg.norm(other - want) / np.linalg.norm(want) < bound
    assert np.linalg.norm(other - x[0] - want) / np.linalg.norm(want) > 1000 * bound, "a term that is missing"
    random = rng.standard_normal((4, 960)).astype(np.float32)
    assert rounding_error(graph.nodes, {"x": random, "y": random.sum(0)}, {}, {}, "y") < 1e-6


CENTRED = """graph 'centred'
input %x: f32[4, 960]
input %c: f32[960]
%s = ReduceSum(%x, axes=(0,), keepdims=1)
%m = Mul(%s, %c)
%d = Sub(%x, %m)
%t = ReduceSum(%d, axes=(0,), keepdims=0)
output %t
output %d
"""


def test_an_output_of_nothing_but_rounding_is_skipped_with_the_reason() -> None:
    """The sum of what is left when the mean is taken away; and with a quarter of the mean it is compared again."""
    graph = parse_graph(CENTRED)
    x = np.random.default_rng(0).standard_normal((4, 960)).astype(np.float32)
    for share, status in ((0.25, "skipped"), (0.0625, "verified")):
        feeds = {"x": x, "c": np.full(960, share, np.float32)}
        total, left = api.compile_graph(graph, device="sim", feeds=feeds).data.verify["outputs"]
        assert (total["status"], left["status"]) == (status, "verified")
        assert ("nothing but rounding" in total.get("reason", "")) == (status == "skipped")


def test_a_build_tells_of_rounding_and_accepts_it() -> None:
    graph, feeds = variance(100.0)
    engine = api.compile_graph(graph, device="sim", feeds=feeds, tolerance=1.0)
    kernels = engine.data.verify["kernels"]
    assert all(k["error"] <= max(k.get("rounding", 0), 1e-4) for k in kernels)


def test_operators_without_operands_have_a_bound() -> None:
    graph = parse_graph("""graph 'g'
input %x: f32[4]
%r: f32[4] = Range(start=0, step=1, length=4, dtype=dtype(f32)) @ 'r'
%y: f32[4] = Add(%x, %r) @ 'y'
output %y
""")
    x = np.ones(4, np.float32)
    bound = rounding_error(graph.nodes, {"x": x, "y": x + np.arange(4, dtype=np.float32)}, {}, {}, "y")
    assert 0 < bound < 1e-5


@pytest.mark.parametrize("first", range(1, 400, 40))
def test_the_bound_of_a_single_element_is_no_matter_of_luck(first: int) -> None:
    """A sum of squares less nearly the same: half a unit in the sum's last place is inside the bound."""
    for n in range(first, first + 40):
        graph = parse_graph(f"""graph 'g'
input %x: f32[{n}]
input %c: f32[1]
%p: f32[{n}] = Mul(%x, %x) @ 'p'
%s: f32[1] = ReduceSum(%p, axes=(0,), keepdims=1) @ 's'
%y: f32[1] = Sub(%s, %c) @ 'y'
output %y
""")
        x = np.ones(n, np.float32)
        c = np.array([n * 0.999], np.float32)
        y = np.float32(n) - c
        bound = rounding_error(graph.nodes, {"x": x, "c": c, "y": y}, {}, {}, "y")
        half = float(np.spacing(np.float32(n))) / 2 / float(y[0])
        assert half < bound < 1000 * half


def test_a_number_between_two_steps_may_become_either() -> None:
    """One of 4,096 elements lies within rounding of the middle between two steps; without it there is no room."""
    text = (
        "graph 'steps'\ninput %x: f32[4096]\ninput %k: f32[]\ninput %s: f32[]\n"
        "%y = Mul(%x, %k)\n%q = QuantizeLinear(%y, %s, axis=0, dtype=dtype(u8))\noutput %q\n"
    )
    graph = parse_graph(text)
    scale, factor = np.float32(0.024288928), np.float32(0.7)
    x = (np.arange(4096, dtype=np.float32) % 250) * scale / factor
    between = x.copy()
    between[77] = np.float32(100.5 * float(scale) / float(factor))
    bounds = []
    for data in (x, between):
        feeds = {"x": data, "k": np.asarray(factor), "s": np.asarray(scale)}
        values = {**feeds, **run_reference(graph, feeds)}
        bounds.append(rounding_error(graph.nodes, values, graph.weights, {}, "q"))
    assert bounds[0] == 0
    assert 0 < bounds[1] < 1e-3
