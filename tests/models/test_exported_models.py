"""Well-known architectures, through torch's ONNX exporter and through the torch importer, run on the simulator.

Weights are random; depth and resolution are reduced to what a simulator can run. Full depth is checked without running.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from arcweld.driver import api
from arcweld.driver.evidence import relative_error
from arcweld.models.builders import Built, build, export_onnx

pytestmark = pytest.mark.slow

# what is built, and the kernels that it may become
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet50": ({"size": 64}, 56),
    "mobilenet_v2": ({"size": 64}, 54),
    "vit_b16": ({"size": 64, "depth": 2}, 18),
    "bert": ({"layers": 2, "length": 16, "vocabulary": 1000}, 15),
    "gpt2": ({"layers": 2, "length": 16, "vocabulary": 1000}, 16),
}


@cache
def _built(name: str) -> Built:
    return build(name, **MODELS[name][0])


@cache
def _expected(name: str) -> np.ndarray:
    built = _built(name)
    with torch.no_grad():
        return np.asarray(built.module(*built.args).numpy())


def _run(graph: Any, args: tuple[torch.Tensor, ...], precision: str, kernels: int) -> np.ndarray:
    done, engine = api.build_engine(graph, precision=precision, device="sim", verify="off")
    assert engine.device.name == "sim"
    found = len(done.planned)
    assert found <= kernels
    return np.asarray(engine(*[a.numpy() for a in args]))


@pytest.mark.parametrize("name", MODELS)
def test_exported_to_onnx(name: str, tmp_path: Path) -> None:
    built = _built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = export_onnx(built.module, built.args, tmp_path / "model.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    (want,) = session.run(None, {n: a.numpy() for n, a in zip(names, built.args)})
    got = _run(api.import_model(onnx.load(path)), built.args, "fp32", MODELS[name][1])
    assert relative_error(got, want) <= 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_through_the_torch_importer(name: str) -> None:
    built = _built(name)
    got = _run(api.import_model(built.module, *built.args), built.args, "fp32", MODELS[name][1])
    assert relative_error(got, _expected(name)) <= 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str) -> None:
    """Deep networks with random weights amplify rounding: torch's own half precision says how much is inherent."""
    built = _built(name)
    got = _run(api.import_model(built.module, *built.args), built.args, "fp16", MODELS[name][1])
    with torch.no_grad():
        args = [a.half() if a.is_floating_point() else a for a in built.args]
        half = copy.deepcopy(built.module).half()(*args).float().numpy()
    inherent = relative_error(half, _expected(name))
    assert relative_error(got, _expected(name)) <= max(2e-2, inherent)


def test_one_engine_serves_every_batch() -> None:
    built = build("bert", layers=1, hidden=64, heads=2, length=8, vocabulary=100, batch=2)
    graph = api.import_model(built.module, *built.args, dynamic_shapes=built.dynamic_shapes(8))
    engine = api.compile_graph(graph, device="sim", verify="off")
    for batch in (1, 2, 5):
        ids = torch.randint(0, 100, (batch, 8))
        with torch.no_grad():
            want = built.module(ids).numpy()
        assert relative_error(np.asarray(engine(ids.numpy())), want) <= 1e-3


@pytest.mark.parametrize("name", ["resnet50", "bert", "gpt2", "vit_b16"])
def test_tensor_core_kernels_compile_without_warnings(name: str) -> None:
    """At full size, where other tiles are chosen; ptxas' warnings are errors."""
    built = build(name, **{k: v for k, v in MODELS[name][0].items() if k in ("depth", "layers")})
    graph = api.import_model(built.module, *built.args)
    done, _, _ = api.build_data(graph, precision="fp16", arch=["sm_90a"], device="sim", verify="off")
    assert {arch for arch, _ in done.data.cubins} == {"sm_90a"}
