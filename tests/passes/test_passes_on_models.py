"""Published models through every pass: results against ONNX Runtime, recovered operators, few transposes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import fetch
from arcweld.passes.pipeline import run_passes

pytestmark = pytest.mark.models

# operators that the passes must find, and how many transposes of activations may be left
RECOVERED: dict[str, tuple[dict[str, int], int]] = {
    "ppocr_det": ({"Conv": 62, "HardSwish": 24, "HardSigmoid": 10, "Clip": 0, "BatchNormalization": 0}, 1),
    "ppocr_rec": ({"Attention": 2, "LayerNormalization": 5, "Silu": 7, "HardSwish": 28, "Conv": 38}, 9),
    "ppocr_cls": ({"Conv": 53, "HardSwish": 18, "HardSigmoid": 9, "Clip": 0}, 1),
    "minilm_l6_int8": ({"Attention": 6, "LayerNormalization": 13, "Gelu": 6, "MatMul": 24, "Erf": 0, "Softmax": 0}, 24),
    "minilm_l3": ({"Attention": 3, "LayerNormalization": 7, "Gelu": 3, "MatMul": 12, "Erf": 0, "Softmax": 0}, 12),
    "yolox": ({"Silu": 74, "Conv": 83}, 1),
    "open_nsfw": ({"Conv": 53, "Relu": 49}, 0),
    "magika": ({"Gelu": 2}, 0),
    "mtcnn_onet": ({"Conv": 4, "PRelu": 5}, 0),
}
SLOW = {"yolox", "minilm_l6_int8", "open_nsfw"}


def moved_activations(graph: Graph) -> int:
    """Transposes of activations that move elements (weights are read through transposes too, also dequantised ones)."""
    count, constant = 0, set(graph.weights)
    for n in graph.nodes:
        if n.operands() and all(v.name in constant for v in n.operands()):
            constant.update(o.name for o in n.outputs)
        elif n.op == "Transpose":
            moved = [p for p in n.attrs["perm"] if n.operands()[0].shape[p] != 1]
            count += moved != sorted(moved)
    return count


def compiled(name: str, options: Options) -> tuple[Graph, dict[str, np.ndarray]]:
    """The model after all passes, and its results on the example inputs by output label."""
    model = MODELS[name]
    try:
        path = fetch(name)
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    graph = run_passes(import_onnx(path, **model.import_options()), options, verify_each=True)
    feeds = {k: v for k, v in model.feeds().items() if k not in model.values}
    results = run_reference(graph, feeds)
    return graph, {label: results[o.name] for label, o in zip(graph.labels(), graph.outputs)}


def expected_results(name: str) -> dict[str, np.ndarray]:
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    session = ort.InferenceSession(str(fetch(name)), quiet, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    feeds = {k: v for k, v in MODELS[name].feeds().items() if k in wanted}
    labels = [o.name for o in session.get_outputs()]
    return dict(zip(labels, session.run(labels, feeds)))


def worst_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest element of its output."""
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in expected.items()}
    errors = [
        np.abs(found[k].astype(np.float64) - expected[k]).max() / np.abs(expected[k]).max().clip(1e-30)
        for k in expected
    ]
    return float(max(errors))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RECOVERED])
def test_all_passes_keep_the_results(name: str) -> None:
    graph, found = compiled(name, Options())
    counts = Counter(n.op for n in graph.nodes)
    operators, transposes = RECOVERED[name]
    assert {op: counts[op] for op in operators} == operators
    assert moved_activations(graph) == transposes
    assert worst_error(found, expected_results(name)) < MODELS[name].tolerance


@pytest.mark.parametrize("name", ["ppocr_cls", "minilm_l3", "silero_vad", "mtcnn_onet"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-2), ("bf16", 6e-2)])
def test_half_types_come_close(name: str, precision: str, tolerance: float) -> None:
    _, found = compiled(name, Options(precision=precision))
    assert worst_error(found, expected_results(name)) < tolerance
