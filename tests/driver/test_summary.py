"""The summary line: every figure counted again by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from arcweld.compiler.errors import UsageError
from arcweld.driver import api
from arcweld.driver.summary import bytes_text, half_share, summary, workspace_bytes
from arcweld.runtime.devices import open_device


def chain(batch: int | str) -> ModelProto:
    """Two matrix products, 16 -> 64 -> 8."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((16, 64)).astype("f4"), rng.standard_normal((64, 8)).astype("f4")
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w2"], ["y"])]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])
    weights = [numpy_helper.from_array(w1, "w1"), numpy_helper.from_array(w2, "w2")]
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_figure_of_a_model_that_is_not_verified() -> None:
    build, device, engine = api.build_data(api.import_model(chain(4)), device="sim", verify="off")
    assert engine is None
    # 4 x 64 floats between the two products
    weights = 4 * (16 * 64 + 64 * 8)
    assert sum(w.nbytes for w in build.data.weights.values()) == weights
    numbers = rf"{weights / 1e3:.1f} kB weights, 1\.0 kB workspace, built in \S+ s"
    assert re.fullmatch("3 nodes -> 2 kernels, 0 fallbacks, not verified, " + numbers, summary(build, device))


def test_the_share_in_half_precision_counts_operations() -> None:
    graph = api.import_model(chain(4))
    whole, device, _ = api.build_data(graph, device="sim", precision="fp16", verify="off")
    assert half_share(whole, "f16") == 1.0
    assert "fp16 100 % of FLOPs" in summary(whole, device)
    assert half_share(api.build_data(graph, device="sim", verify="off")[0], "f16") == 0.0


def test_the_workspace_of_a_dynamic_model_is_said_at_its_sizes() -> None:
    build, device, _ = api.build_data(api.import_model(chain("batch")), device="sim", verify="off", sizes={"batch": 6})
    assert "workspace at batch=6, " in summary(build, device)
    assert workspace_bytes(build.data, device.arch, {"batch": 100}) == 100 * 64 * 4


def test_a_verified_build_tells_its_error_and_what_was_compared() -> None:
    build, device, engine = api.build_data(api.import_model(chain(4)), device="sim")
    assert engine is not None
    assert re.search(r"max err \d\.\de-\d\d \(2/2 kernels verified on sim\)", summary(build, device))


@pytest.mark.parametrize(("n", "text"), [(0, "0.0 kB"), (26_528, "26.5 kB"), (42_000_000, "42.0 MB")])
def test_bytes_for_people(n: int, text: str) -> None:
    assert bytes_text(n) == text


def test_the_device_is_the_one_that_was_asked_for() -> None:
    assert api.build_data(api.import_model(chain(4)), device="sim", verify="off")[1] is open_device("sim")


def test_a_module_needs_example_arguments() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"Linear is compiled with example arguments"):
        api.compile(torch.nn.Linear(2, 2), device="sim")
