"""Parameters that are the rows of several stored tensors: packed forms stay packed, and mean what the parts mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.checkpoints.names import Interleaved, bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.stacked import Sources
from arcweld.compiler.checkpoints.tensors import Packed
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.models import reencode

NAMES = tuple(f"experts.{i}.{part}_proj.weight" for i in range(3) for part in ("gate", "up"))


def written(folder: Path, form: str, columns: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = {n: rng.normal(0.01 * i, 0.1, (24, columns)).astype(np.float32) for i, n in enumerate(NAMES)}
    reencode.write_folder(folder, {}, *reencode.FOLDERS[form](state))
    return {n: t.decode() for n, t in open_checkpoint(folder).tensors.items()}


@pytest.mark.parametrize("form", [f for f in reencode.FOLDERS if f != "gptq-act-order"])
def test_a_stack_means_its_parts(form: str, tmp_path: Path) -> None:
    parts = written(tmp_path, form)
    checkpoint = open_checkpoint(tmp_path)
    bound = bind(checkpoint, {"all": (3, 48, 64)}, sources={"all": Sources(NAMES, 3)})
    tensor = bound.tensors["all"]
    want = np.stack([np.concatenate([parts[n] for n in NAMES[i : i + 2]]) for i in (0, 2, 4)])
    np.testing.assert_array_equal(tensor.decode(), want)
    assert [n for n in bound.unused if not n.endswith("input_scale")] == []
    assert tensor.nbytes == sum(checkpoint.tensors[n].nbytes for n in NAMES)
    stored = tensor.to_stored()
    if isinstance(stored, np.ndarray):
        assert form in ("f32", "f16", "bf16")
        assert stored.dtype.itemsize == (4 if form == "f32" else 2)
        np.testing.assert_array_equal(stored.astype(np.float32), want)
    else:
        np.testing.assert_array_equal(stored.decode().reshape(want.shape), want)


@pytest.mark.parametrize("kind", ["Q5_1", "Q4_K", "Q6_K"])
def test_a_stack_of_gguf_tensors(kind: str, tmp_path: Path) -> None:
    """In two planes, with scales of one level or two; also in another order of the rows."""
    w = np.random.default_rng(0).normal(0.01, 0.1, (2, 24, 256)).astype(np.float32)
    given = [(reencode.k_blocks(part, kind) if kind.endswith("K") else part, kind) for part in w]
    path = reencode.write_gguf(tmp_path / "m.gguf", "llama", {}, dict(zip("ab", given)))
    tensors = open_checkpoint(path).tensors
    tensor = Sources(("a", "b"), 2).tensor("all", tensors)
    assert tensor is not None
    want = np.stack([tensors[n].decode() for n in "ab"])
    stored = tensor.to_stored()
    assert isinstance(stored, Packed)
    np.testing.assert_array_equal(stored.decode().reshape(2, 24, 256), want)
    assert stored.nbytes <= 1.03 * tensor.nbytes + 1
    turned = Interleaved(tensors["a"].layout, 3)
    rows = turned.stored(tensors["a"])
    assert isinstance(rows, Packed)
    np.testing.assert_array_equal(rows.decode(), turned.decode(tensors["a"]))


def test_orders_of_their_own_are_refused(tmp_path: Path) -> None:
    """Columns of one number of them have one order here, so that both cases occur."""
    written(tmp_path / "a", "gptq-act-order")
    same = Sources(NAMES, 3).tensor("all", open_checkpoint(tmp_path / "a").tensors)
    assert same is not None
    stored = same.to_stored()
    assert isinstance(stored, Packed)
    assert stored.order is not None
    np.testing.assert_array_equal(stored.decode().reshape(same.shape), same.decode())
    arrays, settings = reencode.gptq({NAMES[0]: np.ones((8, 64), np.float32)}, act_order=True)
    other, _ = reencode.gptq({NAMES[1]: np.ones((8, 64), np.float32)}, act_order=False)
    reencode.write_folder(tmp_path / "b", {}, arrays | other, settings)
    mixed = Sources(NAMES[:2]).tensor("all", open_checkpoint(tmp_path / "b").tensors)
    assert mixed is not None
    with pytest.raises(UnsupportedError, match="columns in different orders"):
        mixed.to_stored()


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    state = {n: np.zeros((24, 64 if i else 32), np.float32) for i, n in enumerate(NAMES)}
    reencode.write_folder(tmp_path, {}, state)
    tensors = open_checkpoint(tmp_path).tensors
    with pytest.raises(ModelError, match=r"should have rows as \[24, 32\] has, with which it makes 'all'"):
        Sources(NAMES, 3).tensor("all", tensors)
    with pytest.raises(ModelError, match="48 rows are not those of 5 matrices"):
        Sources(NAMES[1:3], 5).tensor("all", tensors)
    assert Sources((*NAMES, "more"), 3).tensor("all", tensors) is None
