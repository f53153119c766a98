"""Checkpoints that are damaged, incomplete or inconsistent: an error names the file, the tensor and a remedy."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.errors import ArcweldError, EnvironmentError_, ModelError, UnsupportedError
from arcweld.models import reencode

LAYER = "model.layers.0.mlp.up_proj"
INDEX = "model.safetensors.index.json"


def state() -> dict[str, np.ndarray]:
    w = np.random.default_rng(0).normal(0, 0.05, (32, 64)).astype(np.float32)
    return {f"{LAYER}.weight": w, "model.norm.weight": np.ones(64, np.float32)}


def read_all(path: Path) -> None:
    for tensor in open_checkpoint(path).tensors.values():
        tensor.to_stored()


def refused(path: Path, *names: str, kind: type[ArcweldError] = ModelError, other: str = "") -> None:
    """Opening a checkpoint and reading all of it gives an error with a hint that has all of ``names``, or ``other``."""
    with pytest.raises(kind) as caught:
        read_all(path)
    text = str(caught.value)
    assert caught.value.hint
    assert all(name in text for name in names) or (other and other in text), text


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return reencode.write_folder(tmp_path / "m", {}, state(), shards=2)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none", "no such checkpoint")
    refused(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "neither model.safetensors nor")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "pickled (pytorch_model.bin)", kind=UnsupportedError)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a":' * 100_000, "\xff"])
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    refused(tmp_path, "config.json", "no JSON object")


def test_json_that_is_too_large_or_no_file(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((256 << 20) + 1)
    refused(tmp_path, "config.json", "larger than 256 MiB")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    refused(tmp_path, "config.json", "no file")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    refused(tmp_path, "config.json")


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "file 'model-00002-of-00002.safetensors' with tensor 'model.norm.weight'")


def test_files_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    refused(sharded, "2 safetensors files", "fetch the index")


def test_an_index_with_an_absent_tensor(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(extra="model-00001-of-00002.safetensors"))
    refused(sharded, INDEX, "'extra'", "not there")


def test_an_index_that_swaps_files(sharded: Path) -> None:
    def swap(index: Any) -> None:
        names = index["weight_map"]
        a, b = names
        names[a], names[b] = names[b], names[a]

    edit_json(sharded / INDEX, swap)
    refused(sharded, INDEX, "not there")


def test_a_tensor_in_two_files(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    refused(sharded, second.name, LAYER, "too")


def test_an_index_without_a_map(sharded: Path) -> None:
    for value in (None, [], {}, {"a": 1}):
        (sharded / INDEX).write_text(json.dumps({"weight_map": value}))
        refused(sharded, INDEX, "no weight_map")


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "", "a\0b"])
def test_an_index_that_leads_out_of_the_folder(file: str, sharded: Path) -> None:
    (sharded.parent / "secret.safetensors").write_bytes((sharded / "model-00001-of-00002.safetensors").read_bytes())
    edit_json(sharded / INDEX, lambda index: index.update(weight_map={f"{LAYER}.weight": file}))
    refused(sharded, "must be a relative path below the model's folder", LAYER)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json", INDEX])
def test_links_that_lead_out_of_the_folder(name: str, sharded: Path) -> None:
    os.rename(sharded / name, sharded.parent / "elsewhere")
    os.symlink(sharded.parent / "elsewhere", sharded / name)
    refused(sharded, name, "symbolic link")


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """``snapshots/revision/name`` is a link to ``blobs/hash`` of the same repository; to nowhere else."""
    made = reencode.write_folder(tmp_path / "m", {}, state(), shards=2)
    snapshot, blobs = tmp_path / "repository" / "snapshots" / "1234", tmp_path / "repository" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(made.iterdir())):
        os.rename(file, blobs / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    assert set(open_checkpoint(snapshot).tensors) == set(state())
    (tmp_path / "config.json").write_text("{}")
    (snapshot / "config.json").unlink()
    os.symlink("../../../config.json", snapshot / "config.json")
    refused(snapshot, "config.json", "symbolic link")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_a_shard_that_is_cut_off(sharded: Path) -> None:
    first = sharded / "model-00001-of-00002.safetensors"
    whole = first.stat().st_size
    cut(first, whole - 4)
    refused(sharded, first.name, f"{LAYER}.weight", f"ends at byte {whole - 4}", "fetch it again")
    for size in (100, 7, 0):
        cut(first, size)
        refused(sharded, first.name, "fetch it again")


def write_header(path: Path, entries: dict[str, Any], size: int) -> None:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "does not lie where it should"),  # overlaps
        ({"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}, "does not lie where it should"),  # a gap
        ({"dtype": "F32", "shape": [3], "data_offsets": [8, 16]}, "does not lie where it should"),  # too small
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "does not lie where it should"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [8, 16]}, "damaged shape"),
        ({"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [8, 16]}, "damaged shape"),
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [8, 8 + (4 << 40)]}, "the file ends at byte"),
        ({"dtype": "F32", "shape": [1]}, "header is damaged"),
    ],
)
def test_headers_that_lie(second: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(tmp_path / "model.safetensors", {"a": first, "b": second}, 8)
    refused(tmp_path, "model.safetensors", message)


def test_elements_of_an_unknown_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_header(tmp_path / "model.safetensors", {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, 1)
    refused(tmp_path, "model.safetensors", "'a'", "F4", kind=UnsupportedError)


# -------------------------------------------------------------------------------------------------------- quantisation

MADE: dict[str, Callable[[], Any]] = {
    "gptq": lambda: reencode.gptq(state(), 4, 32), "awq": lambda: reencode.awq(state(), 32),
    "gemv": lambda: reencode.awq(state(), 32, "gemv"), "pack": lambda: reencode.compressed(state()),
    "int": lambda: reencode.compressed(state(), "int-quantized", 8),
    "float": lambda: reencode.compressed(state(), "float-quantized"), "modelopt": lambda: reencode.modelopt(state()),
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(MADE))
def test_a_part_of_a_layer_is_missing_or_of_another_shape(method: str, tmp_path: Path) -> None:
    arrays, settings = MADE[method]()
    parts = [n for n in arrays if n.startswith(LAYER) and not n.endswith(("g_idx", "input_scale"))]
    assert len(parts) >= 2
    for name in parts:
        wrong = np.zeros((3, 3, 3), arrays[name].dtype)
        for number, array in enumerate((None, arrays[name].reshape(-1)[:3].copy(), wrong)):
            if array is not None and array.size == arrays[name].size:
                continue
            altered = {n: a for n, a in arrays.items() if n != name} | ({} if array is None else {name: array})
            folder = reencode.write_folder(tmp_path / f"{name}{number}", {}, altered, settings)
            refused(folder, "config.json" if array is None else "model.safetensors", other="model.safetensors")


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", {"bits": 8}, "do not fit"),
        ("gptq", {"bits": 3}, "do not fit"),
        ("gptq", {"group_size": 64}, "2 groups"),
        ("gptq", {"group_size": "big"}, "does not say"),
        ("awq", {"group_size": 64}, "do not fit"),
        ("awq", {"version": "gemv"}, "do not fit"),
        ("gemv", {"version": "gemm"}, "do not fit"),
        ("awq", {"group_size": None}, "does not say"),
        ("pack", {"config_groups": None}, "no config_groups"),
    ],
)
def test_a_configuration_that_contradicts_shapes(
    method: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arrays, settings = MADE[method]()
    reencode.write_folder(tmp_path, {}, arrays, settings | change)
    refused(tmp_path, message)


@pytest.mark.parametrize(("what", "value"), [("num_bits", 8), ("group_size", 16), ("strategy", "channel")])
def test_a_scheme_that_contradicts_shapes(what: str, value: Any, tmp_path: Path) -> None:
    arrays, settings = MADE["pack"]()
    settings["config_groups"]["group_0"]["weights"][what] = value
    reencode.write_folder(tmp_path, {}, arrays, settings)
    refused(tmp_path, f"{LAYER}.weight", "model.safetensors")


def test_group_indices_that_are_floats_or_out_of_range(tmp_path: Path) -> None:
    arrays, settings = MADE["gptq"]()
    index = arrays[f"{LAYER}.g_idx"].astype(np.float32)
    reencode.write_folder(tmp_path, {}, arrays | {f"{LAYER}.g_idx": index}, settings)
    refused(tmp_path, f"{LAYER}.weight", "group index", "model.safetensors")
    for value in (-1, 2, 1 << 30):
        index = arrays[f"{LAYER}.g_idx"].copy()
        index[5] = value
        reencode.write_folder(tmp_path, {}, arrays | {f"{LAYER}.g_idx": index}, settings)
        refused(tmp_path, f"{LAYER}.weight", "group index", "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "table of 16 floats"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "'hqq' are not read"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": ["gptq"]}, "['gptq']"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "5 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast"}, "'gemv_fast'"),
        ({"quant_method": "awq", "bits": 3, "group_size": 32}, "3 bits"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "'nvfp4-pack-quantized'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_methods_that_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays, _ = MADE["awq" if settings.get("quant_method") == "awq" else "gptq"]()
    reencode.write_folder(tmp_path, {}, arrays, settings)
    refused(tmp_path, message, kind=UnsupportedError)


def test_a_configuration_of_another_checkpoint(tmp_path: Path) -> None:
    reencode.write_folder(tmp_path, {}, state(), {"quant_method": "gptq", "bits": 4, "group_size": 32})
    refused(tmp_path, "config.json says gptq, and no layer is quantised so")


@pytest.mark.parametrize(
    ("config", "message"),
    [({"vocab_size": 9, "hidden_size": 8}, "model.embed_tokens.weight"), ({"num_hidden_layers": 3}, "3 layers"),
     ({"text_config": {"hidden_size": 16}}, "model.embed_tokens.weight")],
)  # fmt: skip
def test_sizes_that_contradict_the_configuration(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = state() | {"model.embed_tokens.weight": np.zeros((10, 8), np.float32)}
    reencode.write_folder(tmp_path, config, tensors)
    refused(tmp_path, message)


@pytest.mark.parametrize("target", ["re:(a+)+$", "re:.*.*.*.*x", "re:(", "re:(?=a)b"])
def test_targets_that_take_long_or_are_none(target: str, tmp_path: Path) -> None:
    arrays, settings = MADE["pack"]()
    groups = settings["config_groups"]
    groups["group_1"] = json.loads(json.dumps(groups["group_0"]))
    groups["group_0"]["targets"], groups["group_1"]["weights"]["num_bits"] = [target], 8
    reencode.write_folder(tmp_path, {}, arrays, settings)
    with pytest.raises((ModelError, UnsupportedError), match="the target"):
        open_checkpoint(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- GGUF


def gguf_file(folder: Path, **metadata: Any) -> Path:
    tensors = {"a": (np.ones((4, 64), np.float32), "Q4_0"), "b": (np.ones(8, np.float32), "F32")}
    return reencode.write_gguf(folder / "m.gguf", "llama", {"llama.block_count": 0} | metadata, tensors)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_file(tmp_path_factory.mktemp("gguf")).read_bytes()


def test_a_gguf_file_that_is_cut_off_anywhere(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    # the last tensor is padded to 32 bytes, which nothing needs
    for size in [*range(0, len(whole) - 32, 7), len(whole) - 33]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError) as caught:
            open_checkpoint(path)
        assert "m.gguf" in str(caught.value)


@given(at=st.integers(0, 400), value=st.integers(0, 255))
def test_a_gguf_file_with_a_byte_changed(
    at: int, value: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but our errors, whatever the byte was for."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    with contextlib.suppress(ModelError, UnsupportedError):
        read_all(path)


def changed(whole: bytes, path: Path, at: int, form: str, value: int) -> Path:
    path.write_bytes(whole[:at] + struct.pack(form, value) + whole[at + struct.calcsize(form) :])
    return path


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "<I", 0, "not a GGUF file"),
        (8, "<Q", 1 << 62, "more than the file has bytes for"),
        (16, "<Q", 1 << 62, "more than the file has bytes for"),
        (8, "<Q", 4, "it has"),  # two tensors more than there are
        (24, "<Q", 1 << 63, "more than the file has bytes for"),
    ],
)
def test_counts_and_lengths_that_are_absurd(
    at: int, form: str, value: int, message: str, whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(changed(whole, tmp_path / "m.gguf", at, form, value))
    assert "m.gguf" in str(caught.value)
    if value != 4:
        assert message in str(caught.value)


def test_versions_that_are_not_read(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    refused(changed(whole, path, 4, "<I", 1), "version 1", "m.gguf", kind=UnsupportedError)
    refused(changed(whole, path, 4, ">I", 3), "big-endian", "m.gguf", kind=UnsupportedError)


def entry(whole: bytes, name: bytes, rank: int) -> int:
    """Where the entry of a tensor has its rank."""
    return whole.index(struct.pack("<Q", len(name)) + name + struct.pack("<I", rank)) + 8 + len(name)


def test_entries_of_tensors_that_lie(whole: bytes, tmp_path: Path) -> None:
    path, at = tmp_path / "m.gguf", entry(whole, b"a", 2)
    kind, offset = at + 20, at + 24
    refused(changed(whole, path, at, "<I", 5), "'a'", "5 dimensions")
    refused(changed(whole, path, at + 4, "<Q", 0), "'a'", "no elements")
    refused(changed(whole, path, at + 4, "<Q", 63), "'a'", "do not fill blocks of 32")
    refused(changed(whole, path, at + 4, "<Q", 1 << 63), "'a'", "elements do not fill")
    refused(changed(whole, path, at + 12, "<Q", 1 << 40), "'a'", "the file ends at byte")
    refused(changed(whole, path, offset, "<Q", 1 << 63), "'a'", "the file ends at byte")
    refused(changed(whole, path, offset, "<Q", 1), "'a'", "no multiple of 32")
    refused(changed(whole, path, entry(whole, b"b", 1) + 16, "<Q", 0), "overlaps tensor")
    refused(changed(whole, path, kind, "<I", 999), "'a'", "type 999", kind=UnsupportedError)


def test_the_same_name_twice(whole: bytes, tmp_path: Path) -> None:
    path, at = tmp_path / "m.gguf", entry(whole, b"b", 1)
    refused(changed(whole, path, at - 1, "<B", ord("a")), "'a'", "twice")


def test_models_in_several_files_that_are_not_whole(tmp_path: Path) -> None:
    def shard(number: int, count: int, **more: Any) -> Path:
        array = np.full((2, 32), number, np.float32)
        metadata = {"split.no": number - 1, "split.count": count} | more
        return reencode.write_gguf(tmp_path / f"m-{number:05}-of-{count:05}.gguf", "llama", metadata,
                                   {f"w{number}": (array, "F32")})  # fmt: skip

    first = shard(1, 2)
    with pytest.raises(ModelError, match="file 2 of 2 of the model"):
        open_checkpoint(first)
    refused(shard(2, 2), "called as the first")
    os.rename(first, tmp_path / "other.gguf")
    refused(tmp_path / "other.gguf", "called as the first")
    shard(1, 2, **{"split.tensors.count": 3})
    refused(tmp_path / "m-00001-of-00002.gguf", "2 tensors", "says 3")


def test_sizes_that_contradict_a_gguf_files_tensors(tmp_path: Path) -> None:
    def write(metadata: dict[str, Any], name: str) -> Path:
        array = np.zeros((4, 32), np.float32)
        return reencode.write_gguf(tmp_path / "m.gguf", "llama", metadata, {name: (array, "F32")})

    refused(write({"llama.embedding_length": 64}, "token_embd.weight"), "token_embd.weight", "has 64", "m.gguf")
    refused(write({"tokenizer.ggml.tokens": ["a"]}, "token_embd.weight"), "the vocabulary has 1", "m.gguf")
    refused(write({"llama.block_count": 2}, "blk.0.ffn_up.weight"), "block_count is 2", "1 blocks", "m.gguf")


def test_without_the_package_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that stay packed need no package; others say how to install it."""
    packed = gguf_file(tmp_path)
    (tmp_path / "other").mkdir()
    data = np.zeros((2, 18), np.uint8)
    other = reencode.write_gguf(tmp_path / "other" / "m.gguf", "llama", {}, {"w": (data, "IQ4_NL")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert open_checkpoint(packed).tensors["a"].decode().shape == (4, 64)
    refused(other, "'w'", "pip install gguf", kind=EnvironmentError_)
