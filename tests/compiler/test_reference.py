"""The reference evaluator: symbol binding, liveness, kept values and typed errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EnvironmentError_, InputError, ModelError, VerifyError
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.registry import make
from arcweld.compiler.reference import bind_symbols, run_reference
from arcweld.compiler.text import parse_graph

N = symbol("n", 1)


def value(name: str, *shape: Dim, dtype: DType = DType.F32) -> Value:
    return Value(name, TensorType(dtype, shape))


def mlp() -> Graph:
    """relu(x @ w + b), with w and b as weights."""
    x = value("x", N, 4)
    rw = Rewriter(Graph("mlp", (x,), (x,), ()))
    rng = np.random.default_rng(0)
    w = rw.constant(rng.standard_normal((4, 3)).astype(np.float32), DType.F32, "w")
    b = rw.constant(rng.standard_normal(3).astype(np.float32), DType.F32, "b")
    y = make(rw, "Relu", [make(rw, "Add", [make(rw, "MatMul", [x, w], hint="product"), b], hint="sum")], hint="y")
    rw.alias(x, y)
    return Graph("mlp", (x,), (y,), tuple(rw.nodes), rw.weights)


def test_a_small_network_agrees_with_torch() -> None:
    graph = mlp()
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    w, b = (torch.from_numpy(graph.weights[k].data) for k in ("w", "b"))
    want = torch.relu(torch.from_numpy(x) @ w + b).numpy()
    out = run_reference(graph, {"x": x})
    assert list(out) == ["y"]
    np.testing.assert_allclose(out["y"], want, rtol=1e-5, atol=1e-6)


def test_kept_values_are_returned_too() -> None:
    x = np.ones((2, 4), np.float32)
    out = run_reference(mlp(), {"x": x}, keep={"product", "w"})
    assert sorted(out) == ["product", "w", "y"]
    np.testing.assert_allclose(out["product"], x @ out["w"], rtol=1e-6)


def test_a_kept_value_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        run_reference(mlp(), {"x": np.ones((2, 4), np.float32)}, keep={"nowhere"})


def test_an_input_may_be_an_output() -> None:
    x = value("x", 2)
    np.testing.assert_array_equal(run_reference(Graph("g", (x,), (x,), ()), {"x": np.ones(2, np.float32)})["x"], [1, 1])


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.ones((5, 3), np.float32), "axis 1 of input x is 3, expected 4"),
        (np.ones((5,), np.float32), "expected f32"),
        (np.ones((5, 4), np.float64), "expected f32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(array: np.ndarray, word: str) -> None:
    with pytest.raises(InputError, match=word):
        run_reference(mlp(), {"x": array})


def test_a_missing_input_is_named() -> None:
    with pytest.raises(InputError, match="input x is missing"):
        run_reference(mlp(), {})


def test_symbols_are_solved_from_linear_dimensions() -> None:
    h, w = symbol("h", 1), symbol("w", 1)
    inputs = (value("a", h * 2 + 1, w), value("b", h * w))
    assert bind_symbols(inputs, {"a": np.zeros((7, 5), np.float32), "b": np.zeros(15, np.float32)}) == {"h": 3, "w": 5}
    with pytest.raises(InputError, match="axis 0 of input b"):
        bind_symbols(inputs, {"a": np.zeros((7, 5), np.float32), "b": np.zeros(16, np.float32)})


def test_two_inputs_must_agree_on_a_symbol() -> None:
    inputs = (value("a", N), value("b", N))
    with pytest.raises(InputError, match="axis 0 of input b is 3, expected n = 2"):
        bind_symbols(inputs, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


def test_symbols_that_no_input_fixes_come_from_bind() -> None:
    out = value("y", N, dtype=DType.I64)
    node = Node("Range", (), (out,), {"start": 0, "step": 1, "length": N, "dtype": DType.I64})
    graph = Graph("g", (), (out,), (node,))
    np.testing.assert_array_equal(run_reference(graph, {}, bind={"n": 4})["y"], [0, 1, 2, 3])


def test_a_declared_type_that_the_reference_contradicts_is_found() -> None:
    x, y = value("x", 2, 3), value("y", 3, 3)
    graph = Graph("g", (x,), (y,), (Node("Exp", (x,), (y,), {}, ("my_exp",)),))
    with pytest.raises(VerifyError, match="my_exp"):
        run_reference(graph, {"x": np.ones((2, 3), np.float32)})


def test_an_index_out_of_range_names_the_node() -> None:
    x, i, y = value("x", 2), value("i", 1, dtype=DType.I64), value("y", 1)
    graph = Graph("g", (x, i), (y,), (Node("Gather", (x, i), (y,), {"axis": 0}, ("lookup",)),))
    with pytest.raises(ModelError, match="lookup"):
        run_reference(graph, {"x": np.ones(2, np.float32), "i": np.array([7])})


def test_a_result_that_memory_cannot_hold_names_the_node() -> None:
    rows = 1 << 45  # 2^47 bytes, which no address space holds
    x, y = value("x", rows), value("y", rows)
    graph = Graph("g", (x,), (y,), (Node("Exp", (x,), (y,), {}, ("my_exp",)),))
    with pytest.raises(EnvironmentError_, match=rf"compute Exp in numpy, which gives f32\[{rows}\]"):
        run_reference(graph, {"x": np.broadcast_to(np.float32(1), (rows,))})


@pytest.mark.parametrize("exponent", [60, 44])
def test_results_that_no_memory_holds_are_a_typed_error(exponent: int) -> None:
    """The system would grant some of them, and end the process that fills them."""
    graph = parse_graph(
        f"graph 'g'\ninput %x: f32[1]\n%c = ConstantOfShape(shape=({1 << exponent},), value=1.0, dtype=dtype(f32))\n"
        "%y = Add(%x, %c) @ 'the_node'\noutput %y\n"
    )
    with pytest.raises(EnvironmentError_, match=r"compute ConstantOfShape in numpy, which gives f32"):
        run_reference(graph, {"x": np.ones(1, np.float32)})
