"""Whole models on a GPU against torch, and against themselves without overlapping launches and without graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from arcweld.driver import api
from arcweld.models.builders import Built, build
from arcweld.runtime import devices
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices.gpu_count() == 0, reason="needs an NVIDIA GPU")]

LLAMA = {"layers": 2, "hidden": 512, "intermediate": 1408, "heads": 8, "groups": 2, "vocabulary": 2000}
MODELS: dict[str, tuple[str, dict[str, int], str]] = {
    "bert": ("bert", {"layers": 3, "length": 100, "vocabulary": 2000}, "fp16"),
    "bert_fp32": ("bert", {"layers": 2, "length": 60, "vocabulary": 2000}, "fp32"),
    "bert_batch": ("bert", {"layers": 2, "batch": 16, "length": 128, "vocabulary": 2000}, "fp16"),
    "gpt2": ("gpt2", {"layers": 2, "length": 300, "vocabulary": 2000}, "fp16"),
    "llama": ("llama", {**LLAMA, "length": 70}, "fp16"),
    "llama_step": ("llama", {**LLAMA, "length": 1, "batch": 2}, "fp16"),
    "vit": ("vit_tiny", {"depth": 3}, "fp16"),
    "resnet50": ("resnet50", {"size": 128}, "fp16"),
    "resnet50_batch": ("resnet50", {"batch": 8, "size": 96}, "fp16"),
    "resnet18_fp32": ("resnet18", {"size": 96}, "fp32"),
    "mobilenet_v2": ("mobilenet_v2", {"size": 128}, "fp16"),
}
TOLERANCE = {"fp16": 1e-2, "fp32": 2e-5}  # relative, of the whole output
SETS, TURNS = 3, 4  # of inputs; how often each is run


def without_overlap(data: EngineData) -> EngineData:
    """The engine with every launch waiting for the end of the one before."""
    change, old = msgspec.structs.replace, data.program.launches
    launches = tuple(change(x, variants=tuple(change(v, pdl=False) for v in x.variants)) for x in old)
    return replace(data, program=change(data.program, launches=launches))


def fresh(built: Built, seed: int) -> tuple[Any, ...]:
    """Other inputs of the same kind: tokens in another order, other noise."""
    generator = torch.Generator().manual_seed(seed)

    def other(a: Any) -> Any:
        if a.is_floating_point():
            return torch.randn(a.shape, generator=generator)
        return a.flatten()[torch.randperm(a.numel(), generator=generator)].reshape(a.shape)

    return tuple(other(a) for a in built.args)


def exact(module: Any, args: Sequence[Any]) -> Any:
    with torch.no_grad():
        return module.double()(*[a.double() if a.is_floating_point() else a for a in args])


def check_model(built: Built, precision: str, device: Device) -> None:
    """Right against f64; the same bits whether launches overlap or not, launched one by one or as a graph."""
    graph = api.import_model(built.module, *built.args)
    data = api.build_data(graph, precision=precision, device=device, verify="off")[0].data
    where = "cuda" if device.name == "cuda" else "cpu"
    plain = Engine(without_overlap(data), device, graphs=False)
    given = [fresh(built, seed) for seed in range(SETS)]
    there = [tuple(a.to(where) for a in args) for args in given]
    first = [plain(*args).cpu() for args in there]
    for args, got in zip(given, first):
        want = exact(built.module, args)
        error = float((got.double() - want).norm() / want.norm())
        assert error < TOLERANCE[precision], f"relative error {error:.1e}"
    for graphs in (False, True):
        engine = Engine(data, device, graphs=graphs)
        for turn in range(TURNS):
            results = [engine(*args) for args in there]  # one after another, with nothing waiting in between
            for n, (result, want) in enumerate(zip(results, first)):
                assert torch.equal(result.cpu(), want), f"graphs={graphs}, turn {turn}, inputs {n}: other bits"


@pytest.mark.parametrize("name", MODELS)
def test_model_matches_torch_and_itself(name: str) -> None:
    torch.manual_seed(7)
    builder, options, precision = MODELS[name]
    check_model(build(builder, **options), precision, devices.open_device("cuda"))
