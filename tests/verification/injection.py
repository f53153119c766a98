"""Builds models whose rendered kernels have been edited, and finds out whether the edit changes a result."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.templates import select
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver import api, build
from arcweld.driver.isolation import in_child
from arcweld.driver.samples import allowed, sample_inputs, sample_sizes
from arcweld.runtime.engine import Engine
from arcweld.runtime.plan import ExecutionPlan
from arcweld.runtime.sim.device import SimDevice

Edit = Callable[[str], str]
SIZES = (1, 2, 3, 33, 300, 1100)
SEEDS = (0, 1)  # of the simulator's schedule
# A difference from the reference that counts, relative to the largest element: far above rounding in each type.
NOTICEABLE = {"f32": 1e-3, "f16": 5e-2, "bf16": 0.3, "f64": 1e-6}


@dataclass(frozen=True)
class Subject:
    """A small model whose kernels are edited; ``arch`` decides which implementations it gets."""

    name: str
    text: str
    arch: str = "sm_80"

    def graph(self) -> Graph:
        """The graph of the text, with random weights of both signs."""
        graph = parse_graph("graph 'g'\n" + self.text)
        rng = np.random.default_rng(5)
        return graph.replace(weights={n: _filled(rng, w, graph, n) for n, w in graph.weights.items()})


def _filled(rng: np.random.Generator, w: Weight, graph: Graph, name: str) -> Weight:
    if w.data.size and np.any(w.data != 0):
        return w  # given in the text
    data = rng.integers(-9, 10, w.data.shape) if w.data.dtype.kind in "iu" else rng.standard_normal(w.data.shape)
    return replace(w, data=np.asarray(data).astype(w.data.dtype))


@contextmanager
def edited(edit: Edit) -> Iterator[None]:
    """Within it, builds get kernels whose text ``edit`` has changed."""

    def sources(kernel: Kernel, archs: Any) -> tuple[KernelSource, ...]:
        return tuple(replace(s, source=edit(s.source)) for s in select.sources(kernel, archs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "sources", sources)
        yield


def texts(subject: Subject) -> list[str]:
    """The sources of the subject's kernels for its architecture, without edits."""
    data = _data(subject, "off")
    used = dict.fromkeys(x.variant.kernel for x in ExecutionPlan(data.program, subject.arch).launches)
    return [re.sub(r"\A(// .*\n)(//  .*\n)*", "", data.sources[name]) for name in used]  # without the title


def _data(subject: Subject, verify: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        done, _, _ = api.build_data(subject.graph(), device=SimDevice(subject.arch), verify=verify)
    return done.data


def refused(subject: Subject, edit: Edit) -> str:
    """Why a default build of the edited subject is refused; an empty string if it is not."""
    with edited(edit):
        try:
            _data(subject, "quick")
        except ArcweldError as error:
            return f"{type(error).__name__}: {error.message}"
    return ""


def changes_a_result(subject: Subject, edit: Edit) -> bool:
    """True if the edited subject's results differ from the reference for some legal input, or it crashes or hangs.

    Inputs of many sizes and two magnitudes are tried. Raises CompileError if the edited kernel is no program.
    """
    with edited(edit):
        data = _data(subject, "off")
    engines = [Engine(data, SimDevice(subject.arch, seed=s), poison=True) for s in SEEDS]

    def differs(note: Any) -> bool:
        return any(_differs(note, subject, engine) for engine in engines)

    try:
        return bool(in_child(differs))
    except ArcweldError:
        return True


def _differs(note: Any, subject: Subject, engine: Engine) -> bool:
    graph = subject.graph()
    for trial, feeds in enumerate(legal_inputs(graph)):
        want = run_reference(graph, feeds)
        note(f"input {trial}", 20.0)
        got = engine.run(feeds)
        note("the reference", float("inf"))
        if any(_far(got[label], want[o.name], o.dtype.value) for o, label in zip(graph.outputs, graph.labels())):
            return True
    return False


def legal_inputs(graph: Graph) -> Iterator[dict[str, np.ndarray]]:
    """Random inputs of several sizes and magnitudes."""
    base = sample_sizes(graph)
    symbols = [s for s in graph.symbols() if s.name in base]
    wanted = [base] + [{**base, s.name: allowed(s, n)} for s in symbols for n in SIZES]
    wanted += [{s.name: allowed(s, n + 2 * k) for k, s in enumerate(symbols)} for n in SIZES[:4]] if symbols else []
    for k, sizes in enumerate(wanted):
        for scale in (1.0, 8.0):
            feeds = sample_inputs(graph, sizes, seed=100 + k)
            yield {n: (a * scale).astype(a.dtype) if a.dtype.kind not in "iub" else a for n, a in feeds.items()}


def _far(got: np.ndarray, want: np.ndarray, dtype: str) -> bool:
    if dtype not in NOTICEABLE:
        return bool(np.any(got.view(np.uint8) != np.ascontiguousarray(want).view(np.uint8)))
    g, w = got.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isfinite(g), np.isfinite(w)):
        return True
    finite = np.isfinite(w)
    scale = np.max(np.abs(w), initial=0.0, where=finite)
    return bool(np.max(np.abs(g - w), initial=0.0, where=finite) > NOTICEABLE[dtype] * max(scale, 1e-30))


