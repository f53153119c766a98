"""Ten planted faults: what finds faults names the right kernel, pass and nodes, and leaves a script that shows it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from injection import edited
from planted import KERNEL_FAULTS, KernelFault, magnitudes, net, wrong_pass

from arcweld.compiler.ir import Node
from arcweld.debug.bisect import bisect, write_culprit
from arcweld.debug.case import Case, prepare
from arcweld.debug.divergence import compare_kernels
from arcweld.debug.folder import SCRIPT
from arcweld.debug.kernel_case import write_divergence
from arcweld.debug.precision import needed_in_f32, write_precision
from arcweld.debug.reduce import reduce, write_reduced
from arcweld.debug.subject import Subject
from arcweld.driver.api import import_model
from arcweld.passes.pipeline import applications


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return net(tmp_path_factory.mktemp("planted") / "net.onnx")


@pytest.fixture(scope="module")
def case(model: Path) -> Case:
    return prepare(import_model(str(model)), device="sim", sizes={"N": 5})


def status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a folder's script, run in this process, where the fault is."""
    monkeypatch.setattr("sys.argv", [SCRIPT])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / SCRIPT), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_nothing_is_wrong(case: Case) -> None:
    found = compare_kernels(Subject.of_case(case))
    assert not found.wrong
    wanted = {("fc1", "relu"), ("fc2", "tanh"), ("total",), ("softmax", "sub")}
    assert {b.nodes for b in found.boundaries} == wanted
    assert all(b.local < 1e-6 and b.total < 1e-6 for b in found.boundaries)
    assert bisect(case) is None
    assert reduce(case) is None


@pytest.mark.parametrize("fault", KERNEL_FAULTS, ids=lambda f: f"{f.name}-{f.nodes[0]}")
def test_kernels(fault: KernelFault, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault.planted():
        subject = Subject.of_case(case)
        found = compare_kernels(subject)
    first = found.first
    assert first is not None
    assert (first.cause, set(fault.nodes) <= set(first.nodes)) == ("kernel", True)
    assert first.kernel in subject.data.sources
    # no other kernel is wrong by itself; those behind it inherit the error
    assert [b for b in found.boundaries if b.cause] == [first]
    assert found.ranked()[0] is first
    assert max(found.outputs.values()) > 1e-3
    write_divergence(tmp_path / "found", subject, found)
    assert status(tmp_path / "found", monkeypatch) == 1  # the wrong kernel is in the folder
    values = np.load(tmp_path / "found" / "expected.npz")
    assert [values[n].dtype for n in values] == [np.float64]


# ------------------------------------------------------------------------------------------------------------- passes


def negated(n: Node) -> Node:
    return replace(n, op="Neg") if n.op == "Relu" else n


def swapped(n: Node) -> Node:
    return replace(n, inputs=n.inputs[::-1]) if n.op == "Sub" else n


@pytest.mark.parametrize(
    ("name", "change", "node"), [("activations", negated, "relu"), ("cse", swapped, "sub")], ids=["Relu", "Sub"]
)
def test_passes(
    name: str, change: Callable[[Node], Node], node: str, case: Case, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with wrong_pass(name, change):
        found = bisect(case)
        assert found is not None
        assert (found.name, found.nodes, found.in_numpy) == (name, (node,), True)
        assert found.number == 1 + applications().index(name)
        divergence = compare_kernels(Subject.of_case(case))
        assert (divergence.first, divergence.beyond(divergence.passes)) == (None, ["y"])
        small = reduce(case, onnx.load(model))
        assert small is not None
        assert [n.name for n in small.case.graph.nodes] == [node]
        write_culprit(tmp_path / "pass", case, found)
        write_reduced(tmp_path / "small", small)
        assert [status(tmp_path / f, monkeypatch) for f in ("pass", "small")] == [1, 1]
    assert [status(tmp_path / f, monkeypatch) for f in ("pass", "small")] == [0, 0]


def test_a_fusion(case: Case, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is wrong only where a product has Tanh behind it: neither of both is by itself."""

    def edit(text: str) -> str:
        return text.replace("tanhf(", "(") if "contract_matmul_tanh" in text else text

    with edited(edit):
        found = bisect(case)
        assert found is not None
        assert (found.name, found.nodes, found.in_numpy) == ("fusion", ("fc2", "tanh"), False)
        assert found.fusion
        small = reduce(case, onnx.load(model))
        assert small is not None
        assert [n.name for n in small.case.graph.nodes] == ["fc2", "tanh"]
        write_culprit(tmp_path / "pass", case, found)
        write_reduced(tmp_path / "small", small)
        assert [status(tmp_path / f, monkeypatch) for f in ("pass", "small")] == [1, 1]
    assert [status(tmp_path / f, monkeypatch) for f in ("pass", "small")] == [0, 0]
    cut = onnx.load(tmp_path / "small" / "model.onnx")
    onnx.checker.check_model(cut, full_check=True)
    feeds = dict(np.load(tmp_path / "small" / "inputs.npz"))
    session = onnxruntime.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, feeds)
    want = small.case.wanted()
    np.testing.assert_allclose(got, *want.values(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Case:
    graph = import_model(str(magnitudes(tmp_path_factory.mktemp("planted") / "magnitudes.onnx")))
    return prepare(graph, device="sim", precision="fp16", promoted=False)


def test_precision(narrow: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What overflows, and the sum that loses its operand, have to stay in f32; a softmax need not."""
    found = needed_in_f32(narrow)
    why = {k.name: k.why for k in found.kept}
    assert why["grow"] == "overflow"
    assert why["away"] == "rounding"
    assert not {"softmax", "last"} & why.keys()
    assert found.tested == len(found.kept)
    assert (found.failure, found.error <= found.tolerance, found.narrow > found.tolerance) == (None, True, True)
    write_precision(tmp_path / "found", narrow, found)
    assert status(tmp_path / "found", monkeypatch) == 1


def test_the_first_kernel_whose_type_is_too_narrow(narrow: Case) -> None:
    found = compare_kernels(Subject.of_case(narrow))
    assert found.first is not None
    assert (found.first.cause, found.first.nodes) == ("precision", ("grow",))
    assert "kernel" not in [b.cause for b in found.boundaries]  # all compute what their types let them
