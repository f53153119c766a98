"""Caches in 8-bit floats with the scales that checkpoints store, against compressed-tensors' own cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from language_models import model, prompts

from arcweld.driver.checkpoint_models import build_checkpoint
from arcweld.models import reencode
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.sim.device import SimDevice

NAME, LAYERS, HEADS, PAGE, PAGES = "gemma2", 2, 2, 8, 6
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "kv_cache_scheme": SCHEME,
}  # fmt: skip
PER_HEAD = COMPRESSED | {"kv_cache_scheme": SCHEME | {"strategy": "attn_head"}}
Arrays = dict[str, np.ndarray]


def attention(layer: int) -> str:
    return f"model.layers.{layer}.self_attn"


def drawn(shape: tuple[int, ...] = (1,), dtype: Any = np.float32) -> Arrays:
    """Scales by which keys and values lie between steps that matter: some of them are clamped."""
    rng = np.random.default_rng(1)
    names = [f"{attention(k)}.{x}_scale" for k in range(LAYERS) for x in "kv"]
    return {n: rng.uniform(0.002, 0.02, shape).astype(dtype) for n in names}


def write(folder: Path, scales: Arrays, settings: dict[str, Any]) -> Path:
    own = model(NAME)
    state = {n: p.detach().numpy() for n, p in own.named_parameters()}
    return reencode.write_folder(folder, own.config.to_dict(), state | scales, settings)


def built(path: Path, **options: Any) -> Package:
    return build_checkpoint(
        path, length=48, page_size=PAGE, tokens=24, device="sim", verify="off", skip_tokenizer_init=True, **options
    )


def runner(package: Package, checked: bool = False) -> Runner:
    return Runner(Engine(package.data, SimDevice(checked=checked)), package.description, PAGES)


def in_chunks(r: Runner, ids: list[int], ends: list[int]) -> np.ndarray:
    pages = range(-(-len(ids) // PAGE))
    steps = zip([0, *ends], ends)
    return np.concatenate([r.logits([Run(ids[a:b], a, pages, range(b - a))]) for a, b in steps])


class RoundedCache(transformers.DynamicCache):
    """transformers' cache of keys and values, which compressed-tensors rounds before they are kept."""

    def __init__(self, scales: Arrays, scheme: dict[str, Any]) -> None:
        super().__init__(config=model(NAME).config)
        self.scales, self.scheme = scales, QuantizationArgs(**scheme)

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *more: Any, **named: Any) -> Any:
        rounded = (
            fake_quantize(x, torch.from_numpy(self.scales[f"{attention(layer)}.{kind}_scale"]), None, self.scheme)
            for kind, x in (("k", key), ("v", value))
        )
        return super().update(*rounded, layer, *more, **named)


def expected(scales: Arrays, scheme: dict[str, Any], ids: list[int]) -> np.ndarray:
    """transformers' logits with rounded keys and values."""
    with torch.no_grad():
        cache = RoundedCache(scales, scheme)
        found: np.ndarray = model(NAME)(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0].numpy()
    assert cache.get_seq_length() == len(ids)
    return found


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(
    ("settings", "shape"), [(COMPRESSED, (1,)), (PER_HEAD, (HEADS, 1, 1))], ids=["tensor", "attn_head"]
)
def test_scales_of_compressed_tensors(
    settings: dict[str, Any], shape: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt in two chunks, then single tokens; ``auto`` takes what the checkpoint says, and says so."""
    scales = drawn(shape)
    with caplog.at_level(logging.INFO, "arcweld.llm"):
        package = built(write(tmp_path, scales, settings))
    assert "kv_cache_dtype is fp8" in caplog.text
    assert {c.dtype for c in package.description.caches} == {"f8e4m3fn"}
    assert package.description.page_bytes == LAYERS * PAGE * 2 * HEADS * 16
    (ids,) = prompts([32])
    got = in_chunks(runner(package, checked=True), ids, [15, 30, 31, 32])
    assert relative(got, expected(scales, settings["kv_cache_scheme"], ids)) <= 2e-3
    other = expected({n: s * np.float32(1.3) for n, s in scales.items()}, settings["kv_cache_scheme"], ids)
    assert relative(got, other) > 2e-2
