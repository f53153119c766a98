"""Models that multiply: what they expand to is known by arithmetic, and refused above a limit before it is made."""

from __future__ import annotations

import cProfile
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from costs import functions, halved, sizes, split, squared, tables
from graph_runs import by_numpy
from onnx import helper

from arcweld.compiler import host_nodes
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.onnx.shapes import MAX_COMPUTED
from arcweld.compiler.onnx.visitor import MAX_VISITS
from arcweld.compiler.options import Options
from arcweld.driver.build import MOST_KERNELS, build_graph


def calls(data: bytes) -> int:
    """The function calls of an import: a measure of work that does not depend on the machine."""
    profile = cProfile.Profile()
    profile.runcall(import_onnx, data)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("make", [lambda n: split(n), lambda n: functions(n.bit_length())], ids=["split", "functions"])
def test_the_import_takes_linear_work(make: Any) -> None:
    calls(make(8))
    assert calls(make(512)) < 4.6 * calls(make(128))


def test_functions_are_counted_before_they_are_expanded() -> None:
    assert len(import_onnx(functions(9)).nodes) == 256
    for data in (functions(18), functions(31, 9)):
        profile = cProfile.Profile()
        with pytest.raises(ModelError, match=f"expands to more than {MAX_VISITS} nodes"):
            profile.runcall(import_onnx, data)
        assert sum(entry.callcount for entry in profile.getstats()) < 50_000


def test_a_function_that_is_not_called_does_not_count() -> None:
    proto = onnx.ModelProto.FromString(functions(31, 9))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Relu", ""
    assert len(import_onnx(proto).nodes) == 1


@pytest.mark.parametrize(
    "step", [lambda a, b: [helper.make_node("Mul", [a, a], [b])], squared, halved], ids=["product", "square", "half"]
)
def test_sizes_that_grow_at_every_node_are_computed_on_the_device(step: Any) -> None:
    """Where no expression says what a size is, the host reads it: the import costs no more than its nodes."""
    assert host_nodes.READ not in {n.op for n in import_onnx(sizes(2, step)).nodes}
    profile = cProfile.Profile()
    graph = profile.runcall(import_onnx, sizes(24, step))
    assert host_nodes.READ in {n.op for n in graph.nodes}
    assert sum(entry.callcount for entry in profile.getstats()) < 30_000_000


def test_tables_beyond_what_the_import_computes_are_folded_by_numpy() -> None:
    graph = import_onnx(tables(2 * MAX_COMPUTED // 4096))
    assert 100 < len(graph.nodes) < 300
    assert len(import_onnx(tables(10)).nodes) < 5


def test_many_parts_get_their_names() -> None:
    data = split(40)
    x = np.arange(120, dtype=np.float32).reshape(40, 3)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    got = by_numpy(build_graph(import_onnx(data), Options(arch=("sm_80",)), compile_kernels=False), {"x": x}, {})
    for name, want in zip((o.name for o in session.get_outputs()), session.run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(got[name], want)


def test_the_number_of_different_kernels_is_bounded() -> None:
    graph = import_onnx(split(MOST_KERNELS + 1))
    with pytest.raises(UnsupportedError, match=f"more than {MOST_KERNELS} different kernels"):
        build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)
