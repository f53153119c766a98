"""Whole models, imported and evaluated by the references, against eager torch; and the ONNX route to the same graph."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_oracle import compare, rand

from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.torch.importer import import_module
from arcweld.models.builders import Built, build, export_onnx
from arcweld.passes.pipeline import run_passes

SMALL = {
    "resnet18": {"batch": 2, "size": 64, "classes": 10},
    "mobilenet_v2": {"size": 64, "classes": 10},
    "vit_tiny": {"size": 64, "depth": 2, "classes": 10},
    "bert": {"batch": 2, "length": 9, "layers": 2, "hidden": 64, "heads": 4, "vocabulary": 99},
    "gpt2": {"batch": 2, "length": 9, "layers": 2, "hidden": 64, "heads": 4, "vocabulary": 99},
    "llama": {
        "length": 9, "layers": 2, "hidden": 64, "intermediate": 96, "heads": 4, "groups": 2, "vocabulary": 99,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_model(name: str) -> None:
    built = build(name, **SMALL[name])
    compare(import_module(built.module, built.args), built.module, built.args, rtol=1e-3, atol=1e-4)


def test_attention_stays_whole() -> None:
    built = build("vit_tiny", **SMALL["vit_tiny"])
    ops = Counter(n.op for n in import_module(built.module, built.args).nodes)
    assert ops["Attention"] == 2
    assert ops["LayerNormalization"] == 5
    assert ops["Gelu"] == 2
    assert ops["Softmax"] == 0


def test_symbolic_batch() -> None:
    built = build("vit_tiny", **{**SMALL["vit_tiny"], "batch": 2})
    graph = import_module(built.module, built.args, dynamic_shapes=built.dynamic_shapes(8))
    assert [s.name for s in graph.symbols()] == ["batch"]
    assert str(graph.outputs[0].shape[0]) == "batch"
    compare(graph, built.module, (rand(3, 3, 64, 64),), rtol=1e-3, atol=1e-4)


def test_weights_share_torch_memory() -> None:
    built = build("gpt2", **SMALL["gpt2"])
    graph = import_module(built.module, built.args)
    parameters = {k.removeprefix("module."): v for k, v in built.module.named_parameters()}
    shared = [w for w in graph.weights.values() if w.source in parameters]
    assert len(shared) == len(parameters)  # the tied embedding and head are one parameter and one weight
    for w in shared:
        assert w.data.__array_interface__["data"][0] == parameters[w.source].data_ptr()


def test_origins_name_modules() -> None:
    built: Built = build("resnet18", **SMALL["resnet18"])
    conv = next(n for n in import_module(built.module, built.args).nodes if n.op == "Conv")
    assert conv.origin[0].startswith("conv1")


def _arithmetic(graph: Graph) -> Counter[str]:
    """The operators that compute, after all passes; the two exporters split tensors up in different ways."""
    nodes = run_passes(graph, Options()).nodes
    return Counter(n.op for n in nodes if opdef(n.op).kind is not Kind.MOVEMENT)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


@pytest.mark.parametrize("kind", ["mlp", "block"])
def test_same_arithmetic_as_through_onnx(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8), nn.Softmax(-1))
    module = {"mlp": mlp, "block": Block()}[kind].eval()
    x = rand(2, 5, 32)
    direct = import_module(module, (x,))
    compare(direct, module, (x,))
    path = export_onnx(module, (x,), tmp_path / "model.onnx")
    assert os.path.getsize(path) > 1000
    assert _arithmetic(direct) == _arithmetic(import_onnx(path))
