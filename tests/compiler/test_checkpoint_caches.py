"""What checkpoints say of caches of keys and values, and the scales that they store, by every writer's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_checkpoint_names import SIZES, module

from arcweld.compiler.checkpoints.cache_settings import states_caches, states_float8
from arcweld.compiler.checkpoints.caches import CacheScales, StoredScales
from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.models import reencode

LAYERS, HEADS = 2, 2
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "kv_cache_scheme": SCHEME,
}  # fmt: skip
MODELOPT = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}
AUTOFP8 = {"quant_method": "fp8", "activation_scheme": "static", "kv_cache_scheme": "static"}
LAYER = "model.layers.{}.self_attn"


def opened(folder: Path, settings: dict[str, Any] | None, scales: dict[str, Any], inner: bool = False) -> StoredScales:
    """The scales of a checkpoint that has those of ``scales``, names without the layer, in each layer."""
    shapes, state = module(tie_word_embeddings=inner)
    for k in range(LAYERS):
        state |= {f"{LAYER.format(k)}.{n}": np.asarray(s) for n, s in scales.items()}
    if inner:
        state = {n.removeprefix("model."): a for n, a in state.items()}
    reencode.write_folder(folder, SIZES, state, settings)
    checkpoint = open_checkpoint(folder)
    return StoredScales(checkpoint, bind(checkpoint, shapes))


ONE, TWO = np.array([0.03], np.float32), np.array(0.5, np.float32)
EACH = np.array([[[0.25]], [[0.5]]], ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("settings", "scales", "keys", "values"),
    [
        (COMPRESSED, {"k_scale": ONE, "v_scale": TWO}, (0.03,), (0.5,)),
        (COMPRESSED, {"k_scale": EACH, "v_scale": EACH[::-1]}, (0.25, 0.5), (0.5, 0.25)),
        (COMPRESSED, {"k_proj.output_scale": ONE, "v_proj.output_scale": TWO}, (0.03,), (0.5,)),
        (MODELOPT, {"k_proj.k_scale": TWO, "v_proj.v_scale": ONE}, (0.5,), (0.03,)),
        (MODELOPT, {"qkv_proj.k_scale": TWO, "qkv_proj.v_scale": ONE}, (0.5,), (0.03,)),
        (AUTOFP8, {"kv_scale": TWO}, (0.5,), (0.5,)),
        (AUTOFP8, {"kv_scale": TWO, "k_scale": ONE}, (0.03,), (0.5,)),
        (None, {"k_scale": ONE.astype(np.float16), "v_scale": TWO}, (float(np.float16(0.03)),), (0.5,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inner", [False, True])
def test_names_of_scales(
    settings: dict[str, Any] | None, scales: dict[str, Any], keys: tuple[float, ...], values: tuple[float, ...],
    inner: bool, tmp_path: Path,
) -> None:  # fmt: skip
    """Of whole models, and of the inner model alone, whose names have no first part."""
    found = opened(tmp_path, settings, scales, inner)
    assert found
    assert states_float8(found.checkpoint.settings) is (settings is not None)
    want = CacheScales(*(tuple(float(np.float32(s)) for s in of) for of in (keys, values)))
    assert [found(LAYER.format(k), HEADS) for k in range(LAYERS)] == [want] * LAYERS


def test_a_checkpoint_without_scales(tmp_path: Path) -> None:
    assert not opened(tmp_path / "plain", None, {"rotary.k_scales": ONE})
    found = opened(tmp_path / "stated", MODELOPT, {})
    assert not found
    assert states_float8(found.checkpoint.settings)


def test_hf_quant_config_says_it(tmp_path: Path) -> None:
    opened(tmp_path, None, {"k_proj.k_scale": ONE, "v_proj.v_scale": ONE})
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated), encoding="utf-8")
    assert states_float8(open_checkpoint(tmp_path).settings)


@pytest.mark.parametrize("form", ["float-quantized", "modelopt"])
def test_scales_beside_quantised_layers(form: str, tmp_path: Path) -> None:
    shapes, state = module()
    arrays, settings = reencode.FOLDERS[form](state)
    settings |= {"kv_cache_scheme": SCHEME}
    names = [f"{LAYER.format(k)}.{n}_proj.{n}_scale" for k in range(LAYERS) for n in "kv"]
    reencode.write_folder(tmp_path, SIZES, arrays | dict.fromkeys(names, ONE), settings)
    checkpoint = open_checkpoint(tmp_path)
    assert states_float8(checkpoint.settings)
    found = StoredScales(checkpoint, bind(checkpoint, shapes))
    assert found(LAYER.format(1), HEADS) == CacheScales((float(ONE[0]),), (float(ONE[0]),))


def test_weights_of_autofp8(tmp_path: Path) -> None:
    """One scale for a matrix, which is called ``weight_scale``."""
    shapes, state = module()
    arrays, _ = reencode.modelopt(state)
    scales = {f"{LAYER.format(k)}.kv_scale": TWO for k in range(LAYERS)}
    reencode.write_folder(tmp_path, SIZES, arrays | scales, AUTOFP8)
    checkpoint = open_checkpoint(tmp_path)
    bound = bind(checkpoint, shapes)
    name = f"{LAYER.format(0)}.q_proj"
    want = arrays[f"{name}.weight"].astype(np.float32) * arrays[f"{name}.weight_scale"]
    np.testing.assert_array_equal(bound.tensors[f"{name}.weight"].decode(), want)
    assert StoredScales(checkpoint, bound)(LAYER.format(0), HEADS).keys == (0.5,)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["k", "v"])
def test_scales_that_are_no_positive_numbers(bad: float, kind: str, tmp_path: Path) -> None:
    scales = {"k_scale": EACH, "v_scale": ONE, f"{kind}_scale": np.array([[[1.0]], [[bad]]], np.float32)}
    with pytest.raises(ModelError, match=rf"model.layers.0.self_attn.{kind}_scale' has the scale .*no positive") as e:
        opened(tmp_path, COMPRESSED, scales)(LAYER.format(0), HEADS)
    assert e.value.node == "model.safetensors"
    assert e.value.hint


def test_scales_of_another_number_of_heads(tmp_path: Path) -> None:
    found = opened(tmp_path, COMPRESSED, {"k_scale": np.ones((4, 1, 1), np.float32), "v_scale": ONE})
    with pytest.raises(ModelError, match="k_scale' has 4 scales of keys, and the layer 2 heads"):
        found(LAYER.format(0), HEADS)


def test_scales_that_are_missing(tmp_path: Path) -> None:
    found = opened(tmp_path, COMPRESSED, {"k_scale": ONE})
    with pytest.raises(ModelError, match=r"no tensor 'model.layers.1.self_attn.v_scale' with those of the values"):
        found(LAYER.format(1), HEADS)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kv_cache_quant_algo": "NVFP4"}, "'NVFP4'"),
        ({"kv_cache_scheme": SCHEME | {"dynamic": True}}, "dynamic True"),
        ({"kv_cache_scheme": {"num_bits": 4, "type": "int"}}, "num_bits 4, type int"),
        ({"kv_cache_scheme": SCHEME | {"symmetric": False}}, "symmetric False"), ({"kv_cache_scheme": "fp4"}, "'fp4'"),
        ({"kv_cache_scheme": [8]}, "8"),
    ],
)  # fmt: skip
def test_caches_of_other_kinds(settings: dict[str, Any], text: str) -> None:
    assert states_caches(settings)
    with pytest.raises(UnsupportedError, match=text) as error:
        states_float8(settings)
    assert error.value.hint
    assert not states_float8({"quant_method": "gptq", "kv_cache_scheme": None})
