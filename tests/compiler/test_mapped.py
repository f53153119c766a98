"""Pages of mapped weights that were read once go back, and come again where they are needed."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.mapped import give_back, is_constant, is_dense, make_constant, root


def _resident() -> int:
    """Bytes of file pages in this process' memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(x for x in status.read_text().splitlines() if x.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    path = tmp_path / "weights"
    np.arange(8 << 20, dtype=np.float32).tofile(path)  # 32 MB
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def test_pages_go_back_and_the_values_stay(mapped: mmap.mmap) -> None:
    data = np.frombuffer(memoryview(mapped)[1024:], np.float32)  # as views into a model file lie: off the page grid
    before = _resident()
    total = float(data.sum(dtype=np.float64))
    assert _resident() - before > 24 << 20
    give_back(data)
    assert _resident() - before < 8 << 20
    assert float(data.sum(dtype=np.float64)) == total


def test_pages_of_a_transposed_view_go_back(mapped: mmap.mmap) -> None:
    data = np.frombuffer(mapped, np.float32).reshape(2, 1024, 4096).transpose(2, 0, 1)
    before = _resident()
    total = float(data.sum(dtype=np.float64))
    give_back(data)
    assert _resident() - before < 8 << 20
    assert float(data.sum(dtype=np.float64)) == total


def test_dense_arrays(mapped: mmap.mmap) -> None:
    a = np.zeros((3, 4, 5))
    for dense in (a, a.T, a.transpose(1, 0, 2), a[1], np.zeros(()), np.zeros((0, 3)).T):
        assert is_dense(dense)
    for other in (a[:, 1], a[..., ::2], a[::-1], np.broadcast_to(np.zeros(4), (3, 4))):
        assert not is_dense(other)


def test_constant_arrays(mapped: mmap.mmap) -> None:
    own = make_constant(np.arange(6.0).reshape(2, 3))
    assert is_constant(own)
    assert is_constant(own.T[1:])
    with pytest.raises(ValueError, match="read-only"):
        own[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        own.base[0] = 1  # type: ignore[index]
    assert is_constant(np.frombuffer(b"12345678", np.float32))
    view = np.ones(3)[:2]
    view.flags.writeable = False
    for other in (view, np.ones(3), np.frombuffer(bytearray(8), np.float32), np.frombuffer(mapped, np.float32)):
        assert not is_constant(other)


def test_other_arrays_are_left_alone(mapped: mmap.mmap) -> None:
    own = np.ones(1 << 20)
    view = np.frombuffer(mapped, np.float32).reshape(2048, 4096)[:, ::2]
    assert root(own[1:]) is own
    assert root(view) is mapped
    for data in (own, view, np.frombuffer(mapped, np.float32)[:10]):
        copy = data.copy()
        give_back(data)
        np.testing.assert_array_equal(data, copy)
