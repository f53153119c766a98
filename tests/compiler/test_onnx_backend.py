"""The ONNX standard's own node tests: what imports gives the right numbers, the rest is refused with a reason.

The imported graphs are evaluated by the registry's references; the kernels that they become, by the checked simulator.
docs/onnx-support.md states the counts: ``ARCWELD_WRITE_SUPPORT=1`` writes it.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from graph_runs import built, on_simulator

from arcweld.compiler.errors import ArcweldError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.signature import Argument, plain
from arcweld.compiler.text import sanitize
from arcweld.driver.api import compile_graph
from arcweld.driver.staged_reference import reference_outputs
from arcweld.driver.stages import has_host_nodes
from arcweld.runtime.sim.device import SimDevice

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "onnx-support.md"
# Tests whose expected numbers we do not follow, and why.
_STEPS = "the suite rounds every step to 16 bits; here a kernel rounds once, so its numbers are up to 2 units apart"
DIFFERENT: dict[str, str] = {
    **{f"test_attention_{k}": _STEPS for k in (
        "4d_causal_bf16", "4d_causal_bf16_expanded", "4d_causal_fp16_expanded", "4d_padded_kv_bf16",
        "4d_padded_kv_bf16_expanded", "4d_causal_padded_kv_bf16", "4d_causal_padded_kv_bf16_expanded",
        "4d_attn_mask_causal_bf16", "4d_attn_mask_causal_bf16_expanded", "3d_causal_bf16", "3d_causal_bf16_expanded",
    )},
    **dict.fromkeys(
        ("test_dft_inverse", "test_dft_inverse_opset19"),
        "where the exact result is 0, the suite has the rounding errors of its own transform",
    ),
    **dict.fromkeys(
        ("test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners"),
        "with scales that do not give whole sizes, the corners of the rounded size are aligned, as in ONNX Runtime",
    ),
}  # fmt: skip
# the same of kernels, which keep f32 where the references round
KERNELS_DIFFERENT = {"test_attention_4d_fp16": _STEPS, "test_attention_4d_causal_fp16": _STEPS}
# tests whose expected numbers are random: types and shapes are compared
RANDOM = {
    *(f"test_bernoulli{k}{e}" for k in ("", "_double", "_seed") for e in ("", "_expanded")),
    *(f"test_training_dropout{k}" for k in ("", "_mask", "_default", "_default_mask")),
}
PARTS = 10


@functools.cache
def _suite() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [t for t in load_model_tests(kind="node") if t.model is not None]


@dataclass(frozen=True)
class Case:
    """One imported test: its graph, the inputs that the graph still has, and the outputs that the standard expects.

    ``given``: the inputs that had to be constants.
    """

    graph: Graph
    feeds: dict[str, np.ndarray]
    expected: list[np.ndarray]
    given: tuple[str, ...]

    @property
    def folded(self) -> bool:
        """Whether no output depends on an input: the import has computed it, or constant folding will."""
        reached = {v.name for v in self.graph.inputs}
        for n in self.graph.nodes:
            if reached.intersection(v.name for v in n.operands()):
                reached.update(o.name for o in n.outputs)
        return not reached.intersection(o.name for o in self.graph.outputs)


def _imported(test: Any) -> Case:
    """Raises UnsupportedError where the import is refused."""
    initializers = {t.name for t in test.model.graph.initializer}
    inputs, expected = test.data_sets[0]
    names = [i.name for i in test.model.graph.input if i.name not in initializers]
    feeds = dict(zip(names, map(_data, inputs), strict=True))
    graph, given = _with_fewest_constants(test, feeds)
    left = {k: v for k, v in feeds.items() if k not in given and v is not None}
    lists = {k: v for k, v in left.items() if isinstance(v, list)}
    assert {a.name: len(a.items) for a in graph.takes if a.kind == "sequence"} == {k: len(v) for k, v in lists.items()}
    wanted = [_data(e) for e in expected]
    assert [None if a.kind == "none" else len(a.items) if a.kind == "sequence" else 1 for a in _arguments(graph)] == [
        None if w is None else len(w) if isinstance(w, list) else 1 for w in wanted
    ]
    feeds = {sanitize(k): v for k, v in left.items() if k not in lists}
    feeds |= {sanitize(f"{k}.{n}"): item for k, v in lists.items() for n, item in enumerate(v)}
    flat = [a for w in wanted for a in (w if isinstance(w, list) else [] if w is None else [w])]
    return Case(graph, feeds, flat, given)


def _arguments(graph: Graph) -> tuple[Argument, ...]:
    return graph.gives or plain(graph.labels())


def _data(given: Any) -> Any:
    """An array, a list of arrays, or None. The suite keeps some data, of few bits above all, as TensorProto."""
    if isinstance(given, onnx.TensorProto):
        return onnx.numpy_helper.to_array(given)
    if given is None or isinstance(given, list):
        return None if given is None else [_data(item) for item in given]
    return np.asarray(given)


def _with_fewest_constants(test: Any, feeds: Mapping[str, Any]) -> tuple[Graph, tuple[str, ...]]:
    """The graph with as few inputs made constants as it takes: those that say shapes, axes, modes, as exporters do.

    How long lists are and whether optional values are there is said of all.
    """
    first: UnsupportedError | None = None
    arrays = {k: v for k, v in feeds.items() if isinstance(v, np.ndarray)}
    small = [k for k, v in arrays.items() if v.ndim <= 1 and v.size <= 64]
    lists = {k: v for k, v in feeds.items() if isinstance(v, list) and v}
    shapes = {f"{k}.{n}": item.shape for k, v in lists.items() for n, item in enumerate(v)}
    empty = {k: v for k, v in feeds.items() if k not in arrays and k not in lists}
    for given in _subsets(small):
        try:
            values = {k: feeds[k] for k in given} | empty
            return import_onnx(test.model, values=values, shapes=shapes), (*given, *empty)
        except UnsupportedError as error:
            first = first or error
    assert first is not None
    raise first


def _subsets(items: list[str]) -> Iterator[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def _difference(test: Any, got: np.ndarray, want: np.ndarray) -> str:
    """ "" if the numbers agree within the suite's own tolerances, else what is wrong."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    if test.name in RANDOM:
        return ""
    if got.dtype.kind not in "fV":
        return "" if np.array_equal(got, want) else "other integers"
    wide, expected = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~np.isclose(wide, expected, rtol=test.rtol, atol=test.atol, equal_nan=True)
    where = f"{wrong.sum()} of {wrong.size} other numbers, {wide[wrong][:2]} for {expected[wrong][:2]}"
    return where if wrong.any() else ""


def _by_reference(test: Any, case: Case) -> str:
    found = reference_outputs(case.graph, case.feeds)
    pairs = zip(case.graph.outputs, case.expected, strict=True)
    differences = (_difference(test, np.asarray(found[o.name]), w) for o, w in pairs)
    return next((d for d in differences if d), "")


def _by_kernels(test: Any, case: Case) -> str:
    if has_host_nodes(case.graph):
        found = compile_graph(case.graph, device=SimDevice(checked=True), verify="off").run_tensors(case.feeds)
    else:
        found = on_simulator(built(case.graph), case.feeds)
    pairs = zip(case.graph.labels(), case.expected, strict=True)
    differences = (_difference(test, found[label], w) for label, w in pairs)
    return next((d for d in differences if d), "")


@dataclass
class Counts:
    """Names of tests by outcome; ``refused`` has the reasons."""

    computed: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


@functools.cache
def _counts() -> Counts:
    counts = Counts()
    for test in _suite():
        try:
            case = _imported(test)
            outcome = _by_reference(test, case)
        except UnsupportedError as error:
            counts.refused[test.name] = error.message
            continue
        except ArcweldError as error:
            counts.wrong[test.name] = f"{type(error).__name__}: {error}"
            continue
        if outcome:
            counts.wrong[test.name] = outcome
            continue
        (counts.folded if case.folded else counts.computed).append(test.name)
        if case.given:
            counts.constants.append(test.name)
    return counts


@pytest.mark.filterwarnings("ignore")
def test_the_standard_node_tests() -> None:
    counts = _counts()
    assert {k: v for k, v in counts.wrong.items() if k not in DIFFERENT} == {}
    assert set(DIFFERENT) <= set(counts.wrong), "some follow the standard now"
    assert all(counts.refused.values())
    assert set(counts.computed) >= RANDOM


def _document(counts: Counts) -> str:
    total = len(_suite())
    reasons = collections.Counter(" ".join(_reason(r).split()) for r in counts.refused.values())
    rows = "\n".join(f"| {n} | {reason} |" for reason, n in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
    apart = "\n".join(
        f"* {why}: " + ", ".join(f"`{n}`" for n, w in DIFFERENT.items() if w == why)
        for why in dict.fromkeys(DIFFERENT.values())
    )
    return f"""# The ONNX standard's node tests

Written by `ARCWELD_WRITE_SUPPORT=1 pytest tests/compiler/test_onnx_backend.py -k document`, with onnx
{onnx.__version__}. The suite has {total} node tests. Each is imported, and its outputs are compared with the expected
ones: types and shapes exactly, numbers within the suite's own tolerances. The slow tier runs those that are computed as
kernels on the checked simulator too, with the same comparison. {len(KERNELS_DIFFERENT)} of them round less often than
the suite ({", ".join(f"`{n}`" for n in KERNELS_DIFFERENT)}).

| tests | outcome |
|---|---|
| {len(counts.computed)} | computed, with the expected results |
| {len(counts.folded)} | right, and known while compiling: no output depends on an input |
| {len(DIFFERENT)} | other numbers, on purpose (see below) |
| {len(counts.refused)} | refused, with the reason (see below) |

{len(counts.constants)} of the first two rows are imported with some inputs as constants: shapes, axes, lengths and the
like, as few as it takes.

Random numbers have the expected types and shapes in {len(RANDOM)} of them; no two implementations agree on more.

## Other numbers

{apart}

## Refused

| tests | reason |
|---|---|
{rows}
"""


def _reason(message: str) -> str:
    """The reason for a refusal, of its last node, without the names of the model's nodes and inputs."""
    last = [line.strip() for line in message.splitlines() if line.strip()][-1]
    last = re.sub(r" \[[^\]]*\]:", ":", last)
    last = re.sub(r"input \w+: (it is|element type)", r"an input: \1", last)
    return re.sub(r"input \w+: the values of \w+ depend on the data of \w+ \w+", "it depends on an input's data", last)


@pytest.mark.filterwarnings("ignore")
def test_the_document_states_the_counts() -> None:
    text = _document(_counts())
    if os.environ.get("ARCWELD_WRITE_SUPPORT"):
        DOCUMENT.write_text(text, encoding="utf-8")
    if onnx.__version__ in DOCUMENT.read_text(encoding="utf-8"):  # another version has other tests
        assert DOCUMENT.read_text(encoding="utf-8") == text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pytorch-operator", "pytorch-converted"])
def test_the_standards_models_of_pytorch(kind: str) -> None:
    """Their kernels on the checked simulator, by the suite's own numbers."""
    from onnx.backend.test.loader import load_model_tests

    wrong, tests = {}, load_model_tests(kind=kind)
    for test in tests:
        folder = Path(test.model_dir)
        try:
            graph = import_onnx(onnx.load(folder / "model.onnx"))
            engine = compile_graph(graph, device=SimDevice(checked=True), verify="off")
        except UnsupportedError as error:
            wrong[test.name] = error.message
            continue
        for data in folder.glob("test_data_set_*"):
            given, expected = (_tensors(data, side) for side in ("input", "output"))
            found = engine(*given)
            found = found if isinstance(found, tuple) else (found,)
            pairs = zip(found, expected, strict=True)
            outcome = next((d for d in (_difference(test, np.asarray(f), w) for f, w in pairs) if d), "")
            if outcome:
                wrong[test.name] = outcome
    assert set(wrong) <= {"test_MaxPool2d_stride_padding_dilation"}, wrong
    assert len(tests) - len(wrong) >= {"pytorch-operator": 35, "pytorch-converted": 81}[kind]


def _tensors(folder: Path, side: str) -> list[np.ndarray]:
    files = sorted(folder.glob(f"{side}_*.pb"), key=lambda path: int(path.stem.split("_")[-1]))
    return [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in files]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_the_kernels_of_the_standard_node_tests(part: int) -> None:
    computed, wrong = set(_counts().computed), {}
    for test in _suite()[part::PARTS]:
        if test.name in computed:
            outcome = _by_kernels(test, _imported(test))
            if outcome:
                wrong[test.name] = outcome
    assert {k: v for k, v in wrong.items() if k not in KERNELS_DIFFERENT} == {}
