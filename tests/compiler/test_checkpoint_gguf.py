"""GGUF files: every block type decodes as the package ``gguf`` does, and stays packed where it can."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.checkpoints.gguf_blocks import TYPES
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.tensors import Packed
from arcweld.compiler.mapped import is_mapped
from arcweld.models.reencode import write_gguf

DECODED = [
    t.name for t in GGMLQuantizationType
    if t in gguf.quants._type_traits and t not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
]  # fmt: skip
# bytes of a block at which its f16 numbers are; random bits there may be infinite or no number
F16_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "IQ2_XXS": (0,), "IQ2_XS": (0,),
    "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def random_blocks(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Rows of blocks of random bits, with finite scales, as ``u8[rows, bytes]``."""
    rng = np.random.default_rng(seed)
    nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    data = rng.integers(0, 256, (rows, blocks, nbytes), np.uint8)
    for at in F16_AT.get(kind, ()):
        data[..., at : at + 2] = rng.normal(0, 0.1, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", DECODED)
def test_every_type_that_gguf_decodes(kind: str, tmp_path: Path) -> None:
    data = random_blocks(kind, 5, 3, 0)
    path = write_gguf(tmp_path / "m.gguf", "llama", {"a.b": 1}, {"w": (data, kind)})
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors["w"]
    want = gguf.quants.dequantize(data, GGMLQuantizationType[kind])
    assert tensor.shape == want.shape
    np.testing.assert_array_equal(tensor.decode(), want)
    if kind in TYPES:
        assert not tensor.widened
        assert isinstance(tensor.to_stored(), Packed)
    elif kind != "BF16":
        assert tensor.widened == f"{kind} has no packed form"
        assert f"1 widened to f32: {kind} has no packed form" in checkpoint.summary()
        np.testing.assert_array_equal(tensor.to_stored(), want)


@given(kind=st.sampled_from(sorted(TYPES)), rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 99))
def test_blocks_of_any_shape(
    kind: str, rows: int, blocks: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = random_blocks(kind, rows, blocks, seed)
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama", {}, {"w": (data, kind)})
    tensor = open_checkpoint(path).tensors["w"]
    np.testing.assert_array_equal(tensor.decode(), gguf.quants.dequantize(data, GGMLQuantizationType[kind]))
    packed = tensor.to_stored()
    assert isinstance(packed, Packed)
    assert packed.shape == tensor.shape
    assert packed.elements.nbytes == rows * packed.dtype.nbytes(tensor.shape[1])
    assert packed.nbytes <= 1.03 * data.nbytes + 1  # one zero point


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "<f4"), ("F16", "<f2")])
def test_plain_tensors_are_views_of_the_file(kind: str, dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", "llama", {}, {"w": (data, kind)})
    stored = open_checkpoint(path).tensors["w"].to_stored()
    assert isinstance(stored, np.ndarray)
    assert is_mapped(stored)
    assert not stored.flags.writeable
    np.testing.assert_array_equal(stored, data.astype(dtype))


def test_metadata_is_what_gguf_reads(tmp_path: Path) -> None:
    given_ = {
        "a.int": 7, "a.float": 0.5, "a.text": "grüße", "a.yes": True, "a.texts": ["a", "", "ß"],
        "a.numbers": [1, 2, 3], "a.floats": [0.5, 1.5],
    }  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", "llama", given_, {"w": (np.zeros((2, 32), np.float32), "Q4_0")})
    found = open_checkpoint(path).config
    reader = GGUFReader(path)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            got = found[key]
            got = got.tolist() if isinstance(got, np.ndarray) else list(got) if isinstance(got, tuple) else got
            assert got == field.contents()
    assert set(given_) <= set(found)


def test_a_model_in_several_files(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.random.default_rng(i).standard_normal((2, 32)).astype(np.float32) for i in range(3)}
    for number, (name, array) in enumerate(arrays.items()):
        metadata = {"split.no": number, "split.count": 3, "split.tensors.count": 3}
        write_gguf(tmp_path / f"m-{number + 1:05}-of-00003.gguf", "llama", metadata, {name: (array, "F32")})
    tensors = open_checkpoint(tmp_path / "m-00001-of-00003.gguf").tensors
    assert {t.file for t in tensors.values()} == {f"m-{n:05}-of-00003.gguf" for n in (1, 2, 3)}
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].decode(), array)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K", "Q8_0"])
def test_packing_takes_the_memory_of_its_result(kind: str, tmp_path: Path) -> None:
    """16M elements, which would take 64 MB as f32: the peak is the result and a chunk's temporaries."""
    data = random_blocks(kind, 64, 1, 0)
    data = np.tile(data, (64, 4096 // TYPES[kind].elements))
    path = write_gguf(tmp_path / "m.gguf", "llama", {}, {"w": (data, kind)})
    tensor = open_checkpoint(path).tensors["w"]
    assert np.prod(tensor.shape) == 1 << 24
    tracemalloc.start()
    packed = tensor.to_stored()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(packed, Packed)
    assert peak < packed.nbytes + (10 << 20)
