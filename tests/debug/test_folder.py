"""The folders that searches leave: whole or not at all, and cases that come back as they were."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError, UsageError
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.debug.case import prepare
from arcweld.debug.folder import SCRIPT, load_arrays, load_case, new_folder, save_arrays, save_case, write_script


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "found") as folder:
            (folder / "x").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole_if_asked(tmp_path: Path) -> None:
    for text, force in (("old", False), ("new", True)):
        with new_folder(tmp_path / "found", force) as folder:
            (folder / SCRIPT).write_text(text)
            (folder / text).write_text("")
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["new", SCRIPT]
    assert [p.name for p in tmp_path.iterdir()] == ["found"]
    with pytest.raises(UsageError, match="exists"), new_folder(tmp_path / "found"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "found", True):
        raise ZeroDivisionError
    assert (tmp_path / "found" / SCRIPT).read_text() == "new"


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    """Even with force, and even where it appears while a search is running."""

    def write() -> None:
        with new_folder(tmp_path / "found", True) as folder:
            (folder / SCRIPT).write_text("")
            (tmp_path / "found").mkdir()
            (tmp_path / "found" / "mine").write_text("mine")

    with pytest.raises(UsageError, match="is no folder that"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["found"]
    assert (tmp_path / "found" / "mine").read_text() == "mine"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="is no folder that"), new_folder(tmp_path / "link", True):
        pass


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(6, dtype=np.float32).reshape(2, 3), "a/b": np.arange(3).astype(ml_dtypes.bfloat16),
        "q": np.array([1, -2], ml_dtypes.int4), "none": np.zeros((0, 2), np.int64), "one": np.array(True),
        "h": np.array([np.nan, np.inf], np.float16),
    }  # fmt: skip
    save_arrays(tmp_path / "a.npz", arrays)
    types = {"file": DType.F32, "a/b": DType.BF16, "q": DType.I4, "none": DType.I64, "one": DType.BOOL, "h": DType.F16}
    found = load_arrays(tmp_path / "a.npz", types)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
        assert found[name].shape == array.shape
    with pytest.raises(InputError, match="lacks an array"):
        load_arrays(tmp_path / "a.npz", {"gone": DType.F32})


def test_a_case_comes_back(tmp_path: Path) -> None:
    graph = parse_graph("""graph 'g'
symbol N(lo=1, hi=64)
input %x: bf16[N, 4]
weight %w: bf16[4, 4] source='w', data=0.5
%y = MatMul(%x, %w) @ 'product'
output %y 'scores'
""")
    case = prepare(graph, device="sim", sizes={"N": 5}, disable=["layout"], tolerance=0.25)
    with new_folder(tmp_path / "case") as folder:
        write_script(folder, "bisect", save_case(folder, case))
    again = load_case(tmp_path / "case")
    assert print_graph(again.graph) == print_graph(case.graph)
    assert (again.sizes, again.tolerance, again.options) == (case.sizes, case.tolerance, case.options)
    assert {n: a.tobytes() for n, a in again.feeds.items()} == {n: a.tobytes() for n, a in case.feeds.items()}
    assert again.graph.weights["w"].data.dtype == ml_dtypes.bfloat16
    assert again.failure() is None
