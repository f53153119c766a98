"""What is attacked: engines, ONNX models, checkpoints, language models' engines. How each is altered and opened."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import strike
from alter import altered
from alter_models import altered_model
from checkpoints import altered_checkpoint, checkpoints, open_checkpoint
from llm_engines import altered_llm, llm_engines, open_llm

from arcweld.compiler.errors import ArcweldError, CompileError, CompileLimitError, InternalError, VerifyError
from arcweld.compiler.options import Options
from arcweld.compiler.paths import cache_dir
from arcweld.driver.api import compile as compile_model
from arcweld.driver.api import import_model
from arcweld.driver.build import build_graph
from arcweld.driver.stages import plain_graphs

LARGEST = 200_000  # bytes of a real model that is altered


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file.

    suffix     of its files
    originals  the files to alter; the folder is for what is made on the way
    alter      (original, random numbers) -> an altered file
    open       opens a file in a child: ``refused`` or ``ran``, and whatever is raised but an ArcweldError is a finding
    """

    suffix: str
    originals: Callable[[Path], tuple[bytes, ...]]
    alter: Callable[[bytes, random.Random], bytes]
    open: Callable[[bytes, Path], str]


@cache
def models(folder: Path) -> tuple[bytes, ...]:
    """The models of ONNX's node tests, those that other tests damage, layers of networks, and small real ones.

    About a fifth of them are not node tests.
    """
    sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("bad_input", "compiler")]
    from bad_models import varied_model
    from test_onnx_damage import DATA

    from arcweld.models.scaling import MODELS

    tests = node_tests()
    suite = [t.model.SerializeToString() for t in tests] + [with_constants(t.model, t.data_sets[0][0]) for t in tests]
    made = [DATA, varied_model().SerializeToString(), *(make(1) for make in MODELS.values())]
    cached = sorted((cache_dir() / "models").glob("*.onnx"))
    real = [f.read_bytes() for f in cached if f.stat().st_size <= LARGEST]
    return (*suite, *(made + real) * (1 + len(suite) // 40))


@cache
def node_tests() -> tuple[Any, ...]:
    """ONNX's node tests, each with a model and its data."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(t for t in load_model_tests(kind="node") if t.model is not None)


def with_constants(model: onnx.ModelProto, inputs: Sequence[Any]) -> bytes:
    """The model with its inputs as constants, which the import and constant folding compute with."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for info, value in zip(model.graph.input, inputs):
        if isinstance(value, np.ndarray):
            copy.graph.initializer.append(onnx.numpy_helper.from_array(value, info.name))
    return bytes(copy.SerializeToString())


def open_model(data: bytes, folder: Path) -> str:
    """Builds a model without object code; one in sixteen is verified on the simulator too.

    Errors that say that Arcweld itself is wrong are findings, although they are typed.
    """
    if sum(data) % 16 == 0:
        return _ended(lambda: compile_model(data, device="sim", verify_budget=2.0))
    return build_model(data, folder)


def build_model(data: bytes, folder: Path) -> str:
    """Builds a model without object code; see ``open_model``."""

    def build() -> None:
        for graph in plain_graphs(import_model(data)):
            build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)

    return _ended(build)


def _ended(build: Callable[[], object]) -> str:
    try:
        build()
    except CompileLimitError:
        return "refused"
    except (InternalError, VerifyError, CompileError):
        raise
    except ArcweldError as error:
        str(error)
        return "refused"
    return "ran"


TARGETS = {
    "engine": Target("engine", strike.originals, altered, lambda data, folder: strike.open_every_way(data, folder)),
    "model": Target("onnx", models, altered_model, open_model),
    "checkpoint": Target(
        "zip", checkpoints, altered_checkpoint, lambda data, folder: _ended(lambda: open_checkpoint(data, folder))
    ),
    "llm": Target("engine", llm_engines, altered_llm, lambda data, folder: _ended(lambda: open_llm(data, folder))),
}
