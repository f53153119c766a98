"""Models that torch's exporter writes, with open batch and sequence dimensions, against ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify

pytestmark = pytest.mark.slow
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip


class _Hidden(torch.nn.Module):
    """A transformer of token ids whose output is one tensor."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.inner(input_ids=input_ids).last_hidden_state


def _bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    return _Hidden(BertModel(BertConfig(**SMALL)))


def _llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return _Hidden(LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)))


def _gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2Model

    return _Hidden(
        GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64, use_cache=False))
    )


def _export(module: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, Any], path: Path) -> None:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    logging.disable(logging.NOTSET)


def _check(path: Path, feeds: list[np.ndarray]) -> None:
    graph = import_onnx(path)
    verify(graph, after="import")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for x in feeds:
        theirs = session.run(None, {name: x})
        ours = run_reference(graph, {name: x})
        for out, expected in zip(graph.outputs, theirs, strict=True):
            np.testing.assert_allclose(ours[out.name], expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-4)


@pytest.mark.parametrize("build", [_bert, _llama, _gpt2])
def test_transformers(build: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    _export(build(), torch.randint(0, 99, (2, 7)), dims, path)
    random = np.random.default_rng(0)
    _check(path, [random.integers(0, 99, shape) for shape in ((2, 7), (1, 5), (3, 16))])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_vision(name: str, tmp_path: Path) -> None:
    import torchvision.models

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    _export(getattr(torchvision.models, name)(), torch.randn(2, 3, 64, 64), {0: torch.export.Dim("batch")}, path)
    random = np.random.default_rng(0)
    _check(path, [random.standard_normal((n, 3, 64, 64)).astype(np.float32) for n in (1, 3)])
