"""How many kernels common building blocks become: the first thing that a broken pattern or fusion rule spoils."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.options import Options
from arcweld.compiler.region import FusedGraph
from arcweld.driver import api
from arcweld.driver.build import materialise_outputs
from arcweld.models.builders import build
from arcweld.passes.fusion import fuse
from arcweld.passes.pipeline import run_passes

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNEL_MOVES = {(0, 2, 3, 1), (0, 3, 1, 2)}


def _fused(module: torch.nn.Module, args: Sequence[torch.Tensor], precision: str = "fp32") -> FusedGraph:
    graph = api.import_model(module.eval(), *args)
    return fuse(materialise_outputs(run_passes(materialise_outputs(graph), Options(precision=precision))))


def _of_activations(graph: Graph) -> list[Node]:
    """The Transposes whose operand is not a view of a weight."""
    constant = set(graph.weights)
    found = []
    for n in graph.nodes:
        if n.operands() and all(v.name in constant for v in n.operands()):
            constant |= {o.name for o in n.outputs}
        elif n.op == "Transpose":
            found.append(n)
    return found


def _channel_moves(graph: Graph) -> int:
    return sum(tuple(n.attrs["perm"]) in CHANNEL_MOVES for n in _of_activations(graph))


def _describe(fused: FusedGraph) -> str:
    return "\n".join(f"{r.template}: {', '.join(n.op for n in r.nodes)}" for r in fused.regions)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param("bert", {}, marks=pytest.mark.slow), ("gpt2", {"vocabulary": 512}), ("vit_b16", {"size": 64})],
)
def test_a_transformer_layer_is_seven_kernels(name: str, options: dict[str, int], precision: str) -> None:
    """Norm, q/k/v, attention, output projection, norm, and the two products of the feed-forward part."""
    count = "depth" if name.startswith("vit") else "layers"
    sizes = {} if name.startswith("vit") else {"hidden": 64, "heads": 2, "length": 16, "vocabulary": 512}
    counts = []
    for layers in (1, 2):
        built = build(name, **{**sizes, **options, count: layers})
        fused = _fused(built.module, built.args, precision)
        counts.append(len(fused.regions))
    assert counts[1] - counts[0] <= 7, _describe(fused)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_decoder_computes_no_mask(name: str, dynamic: bool) -> None:
    """Its library derives the mask from positions, with running sums and gathers: attention knows that it is causal.

    512 tokens, so that the mask is too large to be folded to a constant.
    """
    more = {"groups": 2, "intermediate": 128} if name == "llama" else {}
    built = build(name, batch=2, layers=1, hidden=64, heads=4, length=512, vocabulary=512, **more)
    dims = (torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=2, max=1024))
    shapes = (dict(enumerate(dims)),) if dynamic else None
    graph = api.import_model(built.module.eval(), *built.args, dynamic_shapes=shapes)
    fused = fuse(materialise_outputs(run_passes(materialise_outputs(graph), Options())))
    (attention,) = [n for n in fused.graph.nodes if n.op == "Attention"]
    assert attention.attrs["is_causal"] == 1
    assert len(attention.operands()) == 3
    assert not {"And", "Equal", "LessOrEqual", "GatherND", "ReduceSum"} & {n.op for n in fused.graph.nodes}


def test_a_block_of_shifted_windows_is_eight_kernels() -> None:
    """As a transformer layer, and a kernel that pads, rolls and cuts the windows."""
    from torchvision.models.swin_transformer import SwinTransformer

    counts = []
    for depth in (2, 4):
        module = SwinTransformer([4, 4], 32, [depth], [2], [7, 7], stochastic_depth_prob=0.0, num_classes=5)
        counts.append(_fused(module, (torch.randn(2, 3, 64, 64),)))
    more = len(counts[1].regions) - len(counts[0].regions)
    assert more <= 2 * 8, _describe(counts[1])


def test_a_mixer_block_is_seven_kernels() -> None:
    """Two norms, four products, and a sum: its norms stay rows, though tokens and channels change places."""
    from timm.models.mlp_mixer import MlpMixer

    counts = []
    for depth in (1, 3):
        module = MlpMixer(num_classes=5, img_size=64, patch_size=16, num_blocks=depth, embed_dim=64)
        counts.append(_fused(module, (torch.randn(2, 3, 64, 64),)))
    assert len(counts[1].regions) - len(counts[0].regions) <= 2 * 7, _describe(counts[1])


def _pooled(*blocks: torch.nn.Module) -> torch.nn.Module:
    """Blocks in the middle of a network: what leaves it is not an image, whose layout would cost a kernel."""
    return torch.nn.Sequential(*blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def _bottleneck(downsample: bool) -> torch.nn.Module:
    from torchvision.models import resnet

    shortcut = None
    if downsample:
        shortcut = torch.nn.Sequential(resnet.conv1x1(64, 128, 2), torch.nn.BatchNorm2d(128))
    return resnet.Bottleneck(64 if downsample else 128, 32, 2 if downsample else 1, shortcut)


@pytest.mark.parametrize(("downsample", "kernels"), [(False, 3), (True, 4)])
def test_a_residual_block_is_its_convolutions(downsample: bool, kernels: int) -> None:
    """Batch normalisation, activations and the sum ride along; activations change layout only at the edges."""
    x = torch.randn(1, 64 if downsample else 128, 14, 14)
    fused = _fused(_pooled(torch.nn.Conv2d(x.shape[1], x.shape[1], 1), _bottleneck(downsample)), (x,))
    assert len(fused.regions) <= 1 + kernels + 1, _describe(fused)
    assert _channel_moves(fused.graph) <= 1


def test_an_inverted_residual_block_is_three_kernels() -> None:
    from torchvision.models.mobilenetv2 import InvertedResidual

    blocks = _pooled(InvertedResidual(16, 16, 1, 6), InvertedResidual(16, 24, 2, 6))
    fused = _fused(blocks, (torch.randn(1, 16, 14, 14),))
    assert len(fused.regions) <= 3 + 3 + 1, _describe(fused)
    assert _channel_moves(fused.graph) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [("resnet50", 56), ("mobilenet_v2", 54)])
def test_a_network_is_its_convolutions(name: str, kernels: int) -> None:
    """53 or 52 convolutions, the pools and the classifier; no layout changes but at the edges."""
    built = build(name)
    fused = _fused(built.module, built.args)
    assert len(fused.regions) <= kernels, _describe(fused)
    assert _channel_moves(fused.graph) <= 1
    kinds = [r.template for r in fused.regions]
    assert "pointwise" not in kinds
    assert "transpose" not in kinds


def test_a_row_of_pointwise_work_is_one_kernel() -> None:
    class Chain(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            z = torch.nn.functional.silu(x * 2.0 + y)
            return (z - y).abs().clamp(max=3.0) * torch.sigmoid(x)

    x = torch.randn(8, 33)
    assert len(_fused(Chain(), (x, x.clone())).regions) == 1


def test_a_softmax_and_a_norm_take_what_feeds_them() -> None:
    class Norms(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(40)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.norm(torch.relu(x) + y) * 0.5, -1)

    x = torch.randn(8, 40)
    fused = _fused(Norms(), (x, x.clone()))
    assert len(fused.regions) <= 2, _describe(fused)
