"""Short attacks with fixed seeds, and that they find what they look for. ``make attack`` runs long ones."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import node_changes
import numpy as np
import onnx
import pytest
import strike
from alter import altered, consistent, read_members, written
from alter_models import ALTERATIONS, UNFIT, altered_model
from test_onnx_damage import DATA

from arcweld.compiler.errors import ArcweldError, EngineFileError, InternalError
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import HANDLERS, Result
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.driver.build import build_graph
from arcweld.runtime.engine_file import parse_engine


@pytest.mark.parametrize(
    "of",
    [
        ("model", 25), pytest.param(("model", 200), marks=pytest.mark.slow),
        pytest.param(("node", 40), marks=pytest.mark.slow), pytest.param(("engine", 150), marks=pytest.mark.slow),
        pytest.param(("cost", 0), marks=pytest.mark.slow),
        pytest.param(("checkpoint", 150), marks=pytest.mark.slow), pytest.param(("llm", 60), marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_a_short_attack_finds_nothing(of: tuple[str, int], tmp_path: Path) -> None:
    """In a process of its own: a child that is forked from one with threads may wait for ever."""
    arguments = ["--of", of[0], "--count", str(of[1]), "--seed", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return strike.originals(tmp_path_factory.mktemp("engines"))[0]


def test_altered_files_get_past_the_hashes(original: bytes) -> None:
    """Otherwise the attack would only ever meet the first check."""
    rng, ends = random.Random(0), list[str]()
    for _ in range(200):
        try:
            parse_engine(memoryview(altered(original, rng)))
            ends.append("read")
        except EngineFileError as error:
            ends.append(error.message)
    assert ends.count("read") > 30
    assert len(set(ends)) > 30
    assert sum("hash" in e for e in ends) < 30


def test_an_unaltered_file_stays_one(original: bytes) -> None:
    again = written(consistent(read_members(original)))
    assert parse_engine(memoryview(again)).program == parse_engine(memoryview(original)).program


def test_altered_models_get_past_the_first_checks() -> None:
    """They are refused for many reasons, at every stage, or built."""
    rng, ends = random.Random(0), list[str]()
    for _ in range(50):
        try:
            graph = import_onnx(altered_model(DATA, rng))
            build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)
            ends.append("built")
        except ArcweldError as error:
            ends.append(error.message)
    assert ends.count("built") > 5
    assert len(set(ends)) > 15


def test_every_alteration_changes_models() -> None:
    for alter in set(ALTERATIONS):
        changed = set()
        for seed in range(30):
            model = onnx.ModelProto.FromString(DATA)
            with contextlib.suppress(*UNFIT):
                alter(model, random.Random(seed))
            changed.add(model.SerializeToString())
        assert len(changed - {DATA}) > 10, alter.__name__


def of_node(op: str) -> bytes:
    """A model of one node, of an operand ``x`` of 2 by 3 numbers."""
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(op, ["x"], ["y"], alpha=0.5)
    x = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "x")
    graph = onnx.helper.make_graph([node], op, [info("x", 1, [2, 3])], [info("y", 1, [2, 3])], [x])
    return bytes(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString())


def test_changes_of_a_node_are_all_of_them() -> None:
    model = onnx.ModelProto.FromString(of_node("LeakyRelu"))
    altered = {label: node_changes.changed(model, change) for label, change in node_changes.changes(model)}
    assert len(set(altered.values())) > 0.9 * len(altered) > 60
    wanted = {"0.in0 open [2]", "0.in0 constant [2, 0]", "0.in0 open axis 1", "0.in0 type 9", "0.in0 constant all nan",
              "0.in0 none", "0.out0 none", "0.alpha none", "0.alpha inf", "0.alpha b'x'"}  # fmt: skip
    assert wanted <= altered.keys()


def test_a_handler_that_trusts_the_checker_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It looks at the second dimension, whatever the rank. The model that shows it is kept."""

    def trusting(c: NodeContext) -> Result:
        assert c.shape(0)[1] is not None
        return c.emit("LeakyRelu", c.value(0), alpha=c.float_attr("alpha", 0.01))

    opened = lambda: node_changes.open_changes(of_node("LeakyRelu"), lambda data: "ran", tmp_path)
    assert opened() == "ran"
    monkeypatch.setitem(HANDLERS, ("", "LeakyRelu"), trusting)
    with pytest.raises(AssertionError, match=r"LeakyRelu, 0.in0 open \[\]"):
        opened()
    with pytest.raises(InternalError, match="IndexError"):
        import_onnx((tmp_path / "LeakyRelu.onnx").read_bytes())


def fail(data: bytes, folder: Path) -> str:
    raise KeyError("untyped")


def crash(data: bytes, folder: Path) -> str:
    os.abort()


def hang(data: bytes, folder: Path) -> str:
    while True:
        pass


def swell(data: bytes, folder: Path) -> str:
    return str(len(bytearray(strike.Limits().memory + (64 << 20))))  # a child may have given some pages back


@pytest.mark.parametrize(
    ("how", "found"),
    [(fail, "KeyError: 'untyped'"), (crash, "signal 6"), (hang, "more than 1 s"), (swell, "more than 4 GiB")],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_findings(how: Callable[[bytes, Path], str], found: str) -> None:
    assert found in strike.strike(b"", how, strike.Limits(1 if how is hang else 20))


def test_processor_time_is_limited() -> None:
    end = strike.strike(b"", hang, strike.Limits(20, processor=1))
    assert end.startswith((f"signal {int(signal.SIGKILL)}", f"signal {int(signal.SIGXCPU)}"))
