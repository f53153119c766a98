"""Builds well-known PyTorch models offline, with seeded random weights, for tests and benchmarks.

Architectures come from torchvision, timm and transformers. Each model takes tensors and returns one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcweld.compiler.errors import EnvironmentError_, UsageError

if TYPE_CHECKING:
    import torch

SEED = 20260


@dataclass(frozen=True)
class Built:
    """A module in evaluation mode with example arguments. ``batch_axes``: position of an argument -> its batch axis."""

    name: str
    module: torch.nn.Module
    args: tuple[torch.Tensor, ...]
    batch_axes: Mapping[int, int]

    def dynamic_shapes(self, highest: int = 64, lowest: int = 1) -> tuple[dict[int, Any], ...]:
        """The argument of that name for ``torch.export``: a symbolic dimension ``batch`` with an inclusive range."""
        import torch

        batch = torch.export.Dim("batch", min=lowest, max=highest)
        return tuple({self.batch_axes[k]: batch} if k in self.batch_axes else {} for k in range(len(self.args)))


def build(name: str, **options: Any) -> Built:
    """The model called ``name`` (see ``BUILDERS``) with its options, for example ``build("bert", layers=2)``.

    Raises UsageError for an unknown name, EnvironmentError_ where a model library is not installed.
    """
    if name not in BUILDERS:
        raise UsageError(f"no model is called {name!r}", hint=f"one of {', '.join(sorted(BUILDERS))}")
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return BUILDERS[name](**options)
    except ModuleNotFoundError as error:
        raise EnvironmentError_(f"{name} needs {error.name}", hint="install arcweld[test]") from error


def export_onnx(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
) -> Path:
    """Writes a module as an ONNX file with torch's exporter; weights of more than 1 GB are in a file beside it."""
    import torch

    size = sum(p.numel() * p.element_size() for p in module.parameters())
    with torch.no_grad():
        torch.onnx.export(
            module,
            tuple(args),
            str(path),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            opset_version=opset,
            external_data=size > 1 << 30,
            verbose=False,
        )
    return Path(path)


# ------------------------------------------------------------------------------------------------------- vision


def _image(batch: int, size: int) -> torch.Tensor:
    import torch

    return torch.randn(batch, 3, size, size)


def _settle(module: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
    """Sets the statistics of batch normalisation from one batch, so that activations have realistic magnitudes."""
    import torch

    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(example)
    for m in norms:
        m.momentum = 0.1
    return module.eval()


def _torchvision(architecture: str) -> Callable[..., Built]:
    def builder(batch: int = 1, size: int = 224, classes: int = 1000) -> Built:
        import torchvision

        module = getattr(torchvision.models, architecture)(weights=None, num_classes=classes)
        _settle(module, _image(4, 64))
        return Built(architecture, module, (_image(batch, size),), {0: 0})

    return builder


def _vit(architecture: str, size: int = 224) -> Callable[..., Built]:
    def builder(batch: int = 1, size: int = size, depth: int = 12, classes: int = 1000, fused: bool = True) -> Built:
        import timm

        module = timm.create_model(architecture, pretrained=False, img_size=size, depth=depth, num_classes=classes)
        for m in module.modules():
            if hasattr(m, "fused_attn"):
                m.fused_attn = fused
        return Built(architecture, module.eval(), (_image(batch, size),), {0: 0})

    return builder


# ----------------------------------------------------------------------------------------------------- language


def _tokens(batch: int, length: int, vocabulary: int) -> torch.Tensor:
    import torch

    return torch.randint(0, vocabulary, (batch, length))


def _first_tensor(module: torch.nn.Module, field: str, **fixed: Any) -> torch.nn.Module:
    """Wraps a model that returns a structure: the module returns the tensor ``field`` of it."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = getattr(self.model(input_ids, **fixed), field)
            return result

    Plain.__name__ = Plain.__qualname__ = type(module).__name__
    return Plain().eval()


def _bert(
    batch: int = 1, length: int = 128, layers: int = 12, hidden: int = 768, heads: int = 12, vocabulary: int = 30522
) -> Built:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
    )
    module = _first_tensor(BertModel(config, add_pooling_layer=False), "last_hidden_state")
    return Built("bert", module, (_tokens(batch, length, vocabulary),), {0: 0})


def _gpt2(
    batch: int = 1, length: int = 128, layers: int = 12, hidden: int = 768, heads: int = 12, vocabulary: int = 50257
) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=max(1024, length),
        bos_token_id=0,
        eos_token_id=0,
    )
    module = _first_tensor(GPT2LMHeadModel(config), "logits", use_cache=False)
    return Built("gpt2", module, (_tokens(batch, length, vocabulary),), {0: 0})


def _llama(
    batch: int = 1, length: int = 128, layers: int = 16, hidden: int = 2048, intermediate: int = 8192, heads: int = 32,
    groups: int = 8, vocabulary: int = 32000,
) -> Built:  # fmt: skip
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
    )
    module = _first_tensor(LlamaForCausalLM(config), "logits", use_cache=False)
    return Built("llama", module, (_tokens(batch, length, vocabulary),), {0: 0})


BUILDERS: dict[str, Callable[..., Built]] = {
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "vit_tiny": _vit("vit_tiny_patch16_224"),
    "vit_b16": _vit("vit_base_patch16_224"),
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
}
