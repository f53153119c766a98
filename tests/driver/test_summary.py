"""The summary line: every figure counted again by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from arcweld.cli.app import main
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


def twice() -> ModelProto:
    """Two equal layers, 16 -> 16, which become two launches of one kernel."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    value = helper.make_tensor_value_info
    x, y = (value(n, TensorProto.FLOAT, [4, 16]) for n in "xy")
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((16, 16)).astype("f4"), n) for n in "wv"]
    graph = helper.make_graph(nodes, "twice", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scatter() -> ModelProto:
    """A scatter of many rows, which is two launches: a copy of its data, then the updates."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [600, 4]), value("u", TensorProto.FLOAT, [300, 4])]
    nodes = [helper.make_node("ScatterND", ["x", "i", "u"], ["y"])]
    indices = numpy_helper.from_array(np.arange(599, 299, -1).reshape(-1, 1), "i")
    graph = helper.make_graph(nodes, "scatter", inputs, [value("y", TensorProto.FLOAT, [600, 4])], [indices])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "options", "launches", "kernels"),
    [
        (twice(), {}, 2, 1),
        (chain(4), {}, 2, 2),
        (scatter(), {}, 2, 2),
        (chain(256), {"precision": "fp16", "arch": ["sm_80", "sm_90a"]}, 2, None),
    ],
)
def test_counts_in_one_line_agree(
    model: ModelProto, options: dict[str, Any], launches: int, kernels: int | None,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Launches are those of a call; kernels are distinct sources, whether counted as made or as verified."""
    build, device, engine = api.build_data(api.import_model(model), device="sim", verify="full", **options)
    assert engine is not None
    line = summary(build, device)
    assert len(build.data.program.launches) == launches
    found = len(set(build.data.sources))
    assert kernels in (None, found)
    counts = f"{found} kernel{'s' * (found > 1)}"
    made = counts if found == launches else f"{launches} launches, {counts}"
    assert re.match(rf"\d nodes? -> {made}, 0 fallbacks, ", line)
    verified = re.search(r"\((\d+)/(\d+) kernels verified on sim\)", line)
    assert verified is not None
    assert int(verified[2]) == found
    exact = sum(k["status"] == "skipped" for k in build.data.verify["kernels"])  # for wgmma, which sim:sm_80 lacks
    assert int(verified[1]) == found - exact
    engine.save(tmp_path / "m.engine")
    assert main(["inspect", str(tmp_path / "m.engine")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{build.data.program.name}: {made}\n")
    assert f": {verified[1]} of {found} kernels\n" in shown
    assert main(["inspect", str(tmp_path / "m.engine"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (len(report["launches"]), report["kernels"]) == (launches, found)


def test_stage_times_add_up_to_the_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = api.import_model(chain(4))
    for options in ({}, {"precision": "fp16"}, {"verify": "off"}, {"dump": tmp_path}):
        build, *_ = api.build_data(graph, device="sim", **options)  # type: ignore[arg-type]
        parts = [s for stage, s in build.seconds.items() if stage != "total"]
        assert all(s >= 0 for s in parts)
        assert sum(parts) == pytest.approx(build.seconds["total"], abs=0.05)
    save(chain(4), tmp_path / "m.onnx")
    flags = ["-o", str(tmp_path / "m.engine"), "--device=sim", "--arch=sm_80", "--verbose"]
    assert main([str(tmp_path / "m.onnx"), *flags]) == 0
    shown = capsys.readouterr()
    *stages, (last, total) = re.findall(r"^ *(\w+) +([\d.]+) s$", shown.err, re.M)
    assert last == "total"
    assert [stages[0][0], stages[-1][0]] == ["import", "write"]
    assert sum(float(s) for _, s in stages) == pytest.approx(float(total), abs=0.01 * len(stages))
    (built,) = re.findall(r"built in ([\d.]+) s", shown.out)
    assert float(built) == pytest.approx(float(total), abs=0.06)  # both are rounded


@pytest.mark.parametrize(("n", "text"), [(0, "0.0 kB"), (26_528, "26.5 kB"), (42_000_000, "42.0 MB")])
def test_bytes_for_people(n: int, text: str) -> None:
    assert bytes_text(n) == text


def test_the_device_is_the_one_that_was_asked_for() -> None:
    assert api.build_data(api.import_model(chain(4)), device="sim", verify="off")[1] is open_device("sim")


def test_a_module_needs_example_arguments() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"Linear is compiled with example arguments"):
        api.compile(torch.nn.Linear(2, 2), device="sim")
