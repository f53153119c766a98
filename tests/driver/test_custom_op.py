"""Operators of users: from ONNX and PyTorch, as expressions and as CUDA, compared with formulas written here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import arcweld
from arcweld import functions as f
from arcweld.compiler.errors import AccuracyError, CompileError, UntrustedError, UsageError

_NUMBERS: Iterator[int] = count()
CUDA = """
// log(1 + exp(alpha x)) y
__device__ __forceinline__ float acme_soft(float x, float y, float alpha, bool twice) {
  const float r = log1pf(expf(alpha * x)) * y;
  return twice ? r + r : r;
}
"""


def fresh(name: str = "Op") -> str:
    """A name that no other test has: an operator is defined once in a process."""
    return f"com.acme.tests::{name}{next(_NUMBERS)}"


def swizzle(**options: Any) -> Any:
    """x * sigmoid(alpha * x) + beta, with an int and a bool that do nothing."""
    attributes = {"alpha": 1.0, "times": 1, "negative": False}

    @arcweld.custom_op(fresh(), attributes=attributes, **options)
    def op(x: np.ndarray, y: np.ndarray, alpha: float, times: int, negative: bool) -> np.ndarray:
        r = times * x / (1 + np.exp(-alpha * x)) + y
        return -r if negative else r

    @op.expression
    def _(x: Any, y: Any, alpha: float, times: int, negative: bool) -> Any:
        r = times * x / (1 + f.exp(-alpha * x)) + y
        return -r if negative else r

    return op


def sigmoid_product(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    wide = x.astype(np.float64)
    return np.asarray(wide / (1 + np.exp(-alpha * wide)) + y)


def model(op: Any, **attributes: Any) -> onnx.ModelProto:
    """Mul, the operator with a row as its second operand, Add, over an open batch."""
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["x"]),
        helper.make_node(op.operator, ["x", "row"], ["s"], domain=op.domain, **attributes),
        helper.make_node("Add", ["s", "b"], ["y"]),
    ]
    info = lambda n, shape: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
    inputs = [info("a", ["n", 8]), info("b", ["n", 8]), info("row", [8])]
    graph = helper.make_graph(nodes, "custom", inputs, [info("y", ["n", 8])])
    domains = [helper.make_opsetid("", 21), helper.make_opsetid(op.domain, 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_onnx_node_is_fused_with_its_neighbours(precision: str) -> None:
    engine = arcweld.compile(model(swizzle(), alpha=1.5), device="sim", precision=precision)
    assert len(engine.program.launches) == 1
    for n in (1, 5):
        a, b, row = arrays((n, 8), (n, 8), (8,))
        want = sigmoid_product(a * b, row, 1.5) + b
        np.testing.assert_allclose(engine(a, b, row), want, atol=1e-5 if precision == "fp32" else 2e-2)


def test_attributes_have_their_defaults_and_all_kinds() -> None:
    op = swizzle()
    a, b, row = arrays((3, 8), (3, 8), (8,))
    x = (a * b).astype(np.float64)
    found = arcweld.compile(model(op), device="sim")(a, b, row)
    np.testing.assert_allclose(found, sigmoid_product(a * b, row, 1.0) + b, atol=1e-5)
    found = arcweld.compile(model(op, times=3, negative=1), device="sim")(a, b, row)
    np.testing.assert_allclose(found, -(3 * x / (1 + np.exp(-x)) + row) + b, atol=1e-5)


def test_a_module_is_compiled_ahead_of_time_and_by_torch_compile() -> None:
    op = swizzle()

    class Module(torch.nn.Module):
        def forward(self, a: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = op(a * 2, row, alpha=0.5) + a
            return result

    a, row = (torch.from_numpy(x) for x in arrays((4, 8), (8,)))
    want = sigmoid_product(2 * a.numpy(), row.numpy(), 0.5) + a.numpy()
    np.testing.assert_allclose(Module()(a, row), want, atol=1e-5)
    engine = arcweld.compile(Module(), a, row, device="sim")
    assert len(engine.program.launches) == 1
    np.testing.assert_allclose(engine(a, row), want, atol=1e-5)
    torch._dynamo.reset()
    fast = torch.compile(Module(), backend="arcweld", options={"device": "sim"})
    np.testing.assert_allclose(fast(a, row), want, atol=1e-5)
    report = arcweld.torch_report()[-1]
    assert [block.kernels for block in report.blocks] == [1]


def soft(source: str = CUDA, reference: Callable[..., np.ndarray] | None = None) -> Any:
    def formula(x: np.ndarray, y: np.ndarray, alpha: float, twice: bool) -> np.ndarray:
        r = np.log1p(np.exp(alpha * x)) * y
        return r + r if twice else r

    made = arcweld.custom_op(fresh("Soft"), attributes={"alpha": 1.0, "twice": False}, dtypes=("f32", "f16", "bf16"))
    return made(reference or formula).cuda(source, function="acme_soft")


def test_a_cuda_function_is_called_in_a_fused_kernel() -> None:
    engine = arcweld.compile(model(soft(), twice=1, alpha=0.5), device="sim", arch=["sm_80", "sm_90a"])
    assert len(engine.program.launches) == 1
    a, b, row = arrays((5, 8), (5, 8), (8,))
    want = 2 * np.log1p(np.exp(0.5 * (a * b).astype(np.float64))) * row + b
    np.testing.assert_allclose(engine(a, b, row), want, atol=1e-5)
    assert all("// log(1 + exp(alpha x)) y" in text for text in engine.data.sources.values())


def test_an_engine_needs_trust_where_the_operator_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcweld.compiler.ops import registry

    op = soft()
    path = tmp_path / "model.engine"
    arcweld.compile(model(op), device="sim").save(path)
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "another"))
    a, b, row = arrays((2, 8), (2, 8), (8,))
    known = arcweld.load(path, device="sim")(a, b, row)
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "third"))  # which knows nothing of the file
    monkeypatch.delitem(registry._OPS, op.ir_name)
    with pytest.raises(UntrustedError, match=f"{op.ir_name} is not a registered operator"):
        arcweld.load(path, device="sim")
    trusted = arcweld.load(path, device="sim", trusted=True)
    np.testing.assert_array_equal(trusted(a, b, row), known)


def test_a_kernel_that_disagrees_with_the_numpy_function_is_refused() -> None:
    op = soft(reference=lambda x, y, alpha, twice: np.log1p(np.exp(alpha * x)) * y * 1.01)
    with pytest.raises(AccuracyError, match="error"):
        arcweld.compile(model(op), device="sim")


def test_a_source_that_does_not_compile_is_shown() -> None:
    op = soft(CUDA.replace("return twice ?", "return thrice ?"))
    with pytest.raises(CompileError, match="thrice"):
        arcweld.compile(model(op), device="sim")


def _identity(x: np.ndarray) -> np.ndarray:
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no domain": (lambda: arcweld.custom_op("Swizzle")(_identity), "is no name of an operator"),
    "not a name": (lambda: arcweld.custom_op("com.acme::a-b")(_identity), "is no name of an operator"),
    "attribute of another kind": (
        lambda: arcweld.custom_op(fresh(), attributes={"sizes": [1]})(lambda x, sizes: x),
        "is a list, not a float, int, bool or str",
    ),
    "no operands": (lambda: arcweld.custom_op(fresh(), attributes={"x": 1.0})(_identity), "has no operands"),
    "attribute that is not taken": (
        lambda: arcweld.custom_op(fresh(), attributes={"beta": 1.0})(_identity), "takes no attribute beta",
    ),
    "unknown type": (lambda: arcweld.custom_op(fresh(), dtypes=("float32",))(_identity), "is no type of operands"),
    "a reduction": (lambda: arcweld.custom_op(fresh())(lambda x: x.sum(-1)), "is not elementwise"),
    "a reference that fails": (lambda: arcweld.custom_op(fresh())(lambda x: x @ x), "the numpy function fails"),
    "an expression that fails": (
        lambda: arcweld.custom_op(fresh())(_identity).expression(lambda x: x.nothing), "the expression fails for f32",
    ),
    "no expression": (
        lambda: arcweld.custom_op(fresh())(_identity).expression(lambda x: 1.0), "gives a float, not an expression",
    ),
    "a bool": (
        lambda: arcweld.custom_op(fresh())(_identity).expression(lambda x: f.less(x, 0)),
        "the expression of f32 operands is a bool",
    ),
    "other operands": (
        lambda: arcweld.custom_op(fresh())(_identity).expression(lambda y: y),
        r"takes \('x',\), the expression \('y',\)",
    ),
    "two expressions": (
        lambda: arcweld.custom_op(fresh())(_identity).expression(lambda x: x + 1).expression(lambda x: x + 1),
        "is said already",
    ),
    "nothing for kernels": (lambda: arcweld.custom_op(fresh())(_identity)(torch.ones(2)), "nothing says what a kernel"),
    "no such function": (
        lambda: arcweld.custom_op(fresh(), dtypes=("f32",))(_identity).cuda("float f(float x);", function="f"),
        "defines no `__device__ float f",
    ),
    "CUDA for doubles": (
        lambda: arcweld.custom_op(fresh())(_identity).cuda("__device__ float f(float x) {}", function="f"),
        "computes in f32, not for f64",
    ),
    "text for CUDA": (
        lambda: arcweld.custom_op(fresh(), attributes={"mode": "a"}, dtypes=("f32",))(lambda x, mode: x).cuda(
            "__device__ float f(float x) {}", function="f"
        ),
        "takes no text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_bad_definitions_are_refused_at_once(case: str) -> None:
    define, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        define()


def test_a_name_is_taken_once() -> None:
    name = fresh()
    arcweld.custom_op(name)(_identity).expression(lambda x: x + 0)
    with pytest.raises(UsageError, match="is taken"):
        arcweld.custom_op(name)(_identity)


def test_an_unknown_attribute_of_a_node_is_refused() -> None:
    with pytest.raises(arcweld.ArcweldError, match="unknown attribute gamma"):
        arcweld.compile(model(swizzle(), gamma=2.0), device="sim")
