"""Deep and wide models: no recursion over a graph, kernels of bounded size, linear work, and ONNX Runtime's results."""

from __future__ import annotations

import cProfile
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_runs import by_numpy
from onnx import NodeProto, TensorProto, helper, numpy_helper
from stack import shallow_stack

from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.build import Build, build_graph
from arcweld.models.scaling import MODELS, measure
from arcweld.passes.fusion import MAX_NODES
from arcweld.passes.split_operands import MOST

ARCH = "sm_80"
Arrays = Mapping[str, np.ndarray]


def model(
    nodes: Sequence[NodeProto], inputs: Mapping[str, tuple[Any, Sequence[int]]], outputs: Sequence[str],
    constants: Arrays | None = None,
) -> onnx.ModelProto:  # fmt: skip
    code = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        list(nodes), "deep",
        [helper.make_tensor_value_info(n, code(np.dtype(d)), s) for n, (d, s) in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for v in proto.graph.input:
        shape = [d.dim_value for d in v.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        feeds[v.name] = rng.integers(0, 8, shape) if dtype.kind == "i" else rng.uniform(-1, 1, shape).astype(dtype)
    return feeds


def onnx_runtime(proto: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def check(proto: onnx.ModelProto, rtol: float = 1e-5) -> Build:
    """Builds on a shallow stack and compares with ONNX Runtime; kernels stay within their bounds."""
    data = proto.SerializeToString()
    with shallow_stack():
        graph = import_onnx(data)
        build = build_graph(graph, Options(arch=(ARCH,)), compile_kernels=False)
        literals = re.findall(r"^weight %([^:]*): .*\bdata=", build.data.graph, re.M)
        assert print_graph(parse_graph(build.data.graph), data_of=literals) == build.data.graph
    feeds = feeds_of(proto)
    got = by_numpy(build, feeds, {})
    for want, label in zip(onnx_runtime(proto, feeds), graph.labels(), strict=True):
        np.testing.assert_allclose(got[label], want, rtol=rtol, atol=rtol)
    assert max(len(r.nodes) for r in build.fused.regions) <= MAX_NODES
    assert max(len(p.bound.kernel.buffers) for p in build.planned) <= MOST + 1
    return build


# ------------------------------------------------------------------------------------------------------- deep models


def chain(length: int, step: Callable[[int, str, str], list[NodeProto]], shape: Sequence[int] = (4, 3)) -> Any:
    """``step(i, x, y)`` gives the nodes that compute y from x, ``length`` times over."""
    nodes: list[NodeProto] = []
    for i in range(length):
        nodes += step(i, f"v{i}", f"v{i + 1}")
    constants = {"c": np.float32(0.9), "h": np.float32(0.3), "one": np.int64([1]), "end": np.int64([1 << 40])}
    constants |= {"pads": np.int64([0, 0, 0, 1]), "around": np.int64([1, 1, 1, 1])}
    return model(nodes, {"v0": (np.float32, shape)}, [f"v{length}"], constants)


def mixed(i: int, x: str, y: str) -> list[NodeProto]:
    op = ("Mul", "Add", "Relu", "Sub", "Tanh")[i % 5]
    operand = {"Mul": ["c"], "Add": ["h"], "Sub": ["h"]}.get(op, [])
    return [helper.make_node(op, [x, *operand], [y])]


def doubled(i: int, x: str, y: str) -> list[NodeProto]:
    """Each value is used twice: written out as a tree, the last one would have 2 ** i parts."""
    return [helper.make_node("Tanh", [x], [f"t{i}"]), helper.make_node("Mul", [x, f"t{i}"], [y])]


def transposed(i: int, x: str, y: str) -> list[NodeProto]:
    return [helper.make_node("Transpose", [x], [f"t{i}"], perm=[1, 0]), helper.make_node("Tanh", [f"t{i}"], [y])]


def sliced(i: int, x: str, y: str) -> list[NodeProto]:
    return [helper.make_node("Slice", [x, "one", "end", "one"], [y])]


def padded(i: int, x: str, y: str) -> list[NodeProto]:
    return [helper.make_node("Pad", [x, "pads"], [y])]


def mirrored(i: int, x: str, y: str) -> list[NodeProto]:
    """Each index is mirrored at both ends: written out, the last one would have 4 ** i parts."""
    return [helper.make_node("Pad", [x, "around" if i % 20 == 0 else "pads"], [y], mode="reflect")]


STEPS = {"mixed": mixed, "doubled": doubled, "transposed": transposed, "padded": padded}


@pytest.mark.parametrize("kind", STEPS)
def test_chains(kind: str) -> None:
    build = check(chain(400, STEPS[kind]))
    assert 1 < len(build.planned) < 100


def test_chain_of_slices() -> None:
    check(chain(400, sliced, (2, 405)))


def test_chain_of_mirrors() -> None:
    assert len(check(chain(40, mirrored)).planned) == 14


def test_chain_of_doublings() -> None:
    def step(i: int, x: str, y: str) -> list[NodeProto]:
        return [helper.make_node("Tanh", [x], [f"t{i}"]), helper.make_node("Concat", [f"t{i}", x], [y], axis=i % 2)]

    assert len(check(chain(10, step)).planned) > 1


def test_chain_of_look_ups() -> None:
    """Each index is read where the one before says: few of them share a kernel."""
    nodes = [helper.make_node("Gather", ["table", f"v{i}"], [f"v{i + 1}"]) for i in range(300)]
    proto = model(nodes, {"table": (np.int64, (8,)), "v0": (np.int64, (5,))}, ["v300"])
    assert len(check(proto).planned) > 30


def test_chains_around_heroes() -> None:
    """As the epilogue of a product, and as the prologue of a row program."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["v0"])]
    for i in range(400):
        nodes += mixed(i, f"v{i}", f"v{i + 1}")
    nodes.append(helper.make_node("Softmax", ["v400"], ["y"]))
    constants = {"w": np.eye(6, dtype=np.float32), "c": np.float32(0.9), "h": np.float32(0.3)}
    check(model(nodes, {"x": (np.float32, (4, 6))}, ["y"], constants))


def test_many_masks_added_to_scores() -> None:
    nodes = [helper.make_node("Add", [f"v{i}", "m"], [f"v{i + 1}"]) for i in range(400)]
    nodes.append(helper.make_node("Softmax", ["v400"], ["y"]))
    check(model(nodes, {"v0": (np.float32, (2, 4, 4)), "m": (np.float32, (2, 4, 4))}, ["y"]), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "doubled"])
def test_ten_thousand_nodes(kind: str) -> None:
    check(chain(10_000 if kind == "mixed" else 5_000, STEPS[kind]))


@pytest.mark.parametrize("turns", [30, pytest.param(256, marks=pytest.mark.slow)])
def test_loops(turns: int) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["s", "k"], ["a"]),
            helper.make_node("Add", ["a", "x"], ["b"]),
            helper.make_node("Tanh", ["b"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("s", TensorProto.FLOAT, [4]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("go_on", TensorProto.BOOL, []), ("next", TensorProto.FLOAT, [4]), ("seen", TensorProto.FLOAT, [4]))],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "go_first", "x"], ["y", "all"], body=body)
    constants = {"n": np.int64(turns), "go_first": np.bool_(True), "k": np.float32(0.5)}
    check(model([loop], {"x": (np.float32, (4,))}, ["y", "all"], constants))


# ------------------------------------------------------------------------------------------------------- wide models


def wide(op: str, count: int, dtype: Any = np.float32, **attrs: int) -> onnx.ModelProto:
    shapes = [(3, 1 + i % 3) if attrs else ((3, 1), (1, 2), (3, 2))[i % 3] for i in range(count)]
    inputs = {f"x{i}": (dtype, s if attrs.get("axis", 1) else s[::-1]) for i, s in enumerate(shapes)}
    return model([helper.make_node(op, list(inputs), ["y"], **attrs)], inputs, ["y"])


@pytest.mark.parametrize("count", [130, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("op", "attrs"),
    [("Sum", {}), ("Mean", {}), ("Max", {}), ("Min", {}), ("Concat", {"axis": 0}), ("Concat", {"axis": 1})],
)
def test_operators_of_many_operands(op: str, attrs: dict[str, int], count: int) -> None:
    check(wide(op, count, **attrs), rtol=1e-5 if op != "Sum" else 1e-4)


def test_exactly_as_many_operands_as_a_kernel_takes() -> None:
    assert len(check(wide("Max", MOST)).planned) == 1
    assert len(check(wide("Max", MOST + 1)).planned) > 1


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_partial_sums_of_half_precision_are_not_rounded(op: str) -> None:
    proto = wide(op, 300, np.float16)
    build = build_graph(import_onnx(proto.SerializeToString()), Options(arch=(ARCH,)), compile_kernels=False)
    feeds = feeds_of(proto)
    exact = sum(np.broadcast_to(x.astype(np.float64), (3, 2)) for x in feeds.values())
    want = (exact if op == "Sum" else exact / 300).astype(np.float16)
    np.testing.assert_array_equal(by_numpy(build, feeds, {})["y"], want)
    assert len(build.planned) < 10  # the casts are part of the sums' kernels


# -------------------------------------------------------------------------------------------------------- linear work


def calls(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and how many function calls it took: a measure of work that does not depend on the machine."""
    profile = cProfile.Profile()
    result = profile.runcall(work)
    return result, sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_stage_takes_linear_work(name: str) -> None:
    options = Options(precision="fp16", arch=(ARCH,))
    measure(MODELS[name](1), options, calls)  # fills what is made once for a process
    few, many = (measure(MODELS[name](layers), options, calls) for layers in (6, 24))
    exponents = {stage: math.log(many[stage] / few[stage], 4) for stage in few}
    assert {stage: e for stage, e in exponents.items() if e > 1.1} == {}
