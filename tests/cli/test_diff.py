"""``diff`` of two engines: what it tells is read off the engines by hand, and equal engines do not differ."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cli_models import mlp, mlp_weights, save_model
from onnx import helper as h

from arcweld.cli.app import main
from arcweld.driver.engine_diff import compare_engines
from arcweld.runtime.engine_file import read_engine, write_engine

Printed = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine, the same built again, in half precision, with another weight, with another activation, of one size."""
    folder = tmp_path_factory.mktemp("diff")
    weights = mlp_weights()
    mlp(folder / "mlp.onnx")
    mlp(folder / "other.onnx", weights | {"b1": weights["b1"] * 1.5})
    nodes = [
        h.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="fc1"), h.make_node("Relu", ["a"], ["c"], name="relu"),
        h.make_node("MatMul", ["c", "w2"], ["d"], name="fc2"), h.make_node("Sigmoid", ["d"], ["y"], name="sigmoid"),
    ]
    save_model(folder / "sigmoid.onnx", nodes, {"x": ["N", 16]}, {"y": ["N", 10]}, weights)
    for name, words in {
        "a": ["mlp.onnx"], "again": ["mlp.onnx"], "half": ["mlp.onnx", "--fp16"], "weight": ["other.onnx"],
        "sigmoid": ["sigmoid.onnx"], "three": ["mlp.onnx", "--shapes=x:3x16"], "open": ["mlp.onnx", "--verify=off"],
    }.items():
        model, *options = words
        made = ["build", str(folder / model), "-o", str(folder / f"{name}.engine"), "--arch=sm_80", "--device=sim"]
        assert main([*made, *options]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["diff", *command]) == code
        found = capsys.readouterr()
        return found.err if code > 1 else found.out

    return run


def test_two_builds_of_a_model_do_not_differ(printed: Printed) -> None:
    assert printed("a.engine", "again.engine") == "a.engine and again.engine run the same\n"
    found = json.loads(printed("a.engine", "again.engine", "--json"))
    assert not found["differs"]
    assert (found["kernels"], found["weights"], found["interface"]) == ([], [], {})
    assert found["time"]["latency_ms"][0] == found["time"]["latency_ms"][1]


def test_another_precision_changes_every_kernel_and_weight(printed: Printed) -> None:
    a, b = (read_engine(f"{n}.engine") for n in ("a", "half"))
    found = json.loads(printed("a.engine", "half.engine", "--json", code=1))
    assert found["differs"]
    assert {k["status"] for k in found["kernels"]} == {"changed"}
    assert {k["before"] for k in found["kernels"]} == set(a.sources)
    assert {k["after"] for k in found["kernels"]} == set(b.sources)
    by_node = {tuple(k["nodes"]): k for k in found["kernels"]}
    assert set(by_node) == {("fc1", "relu"), ("fc2",), ("softmax",)}
    assert found["types"] == {"f16": [0, 2], "f32": [3, 1]}
    sizes = [sum(w.nbytes for w in e.weights.values()) for e in (a, b)]
    assert found["nbytes"]["weights"] == sizes == [3456, 1728]
    assert {(w["status"], w["name"]) for w in found["weights"]} == {
        *(("removed", n) for n in a.weights), *(("added", n) for n in b.weights)
    }  # fmt: skip
    estimated = [sum(us) for us in zip(*found["time"]["kernel_us"].values())]
    assert found["time"]["latency_ms"] == pytest.approx([(us + 4) / 1e3 for us in estimated])  # 4 us: once a call


def test_a_source_diff_is_what_patch_takes(printed: Printed, tmp_path: Path) -> None:
    """The diff turns one text into the other, by the program that such diffs are for; but for kernels' names."""
    a, b = (read_engine(f"{n}.engine") for n in ("a", "half"))
    found = json.loads(printed("a.engine", "half.engine", "--json", code=1))
    for k in found["kernels"]:
        stem = k["before"].rsplit("_", 1)[0]
        texts = [e.sources[k[side]].replace(k[side], stem) for e, side in ((a, "before"), (b, "after"))]
        target = tmp_path / "kernel.cu"
        target.write_text(texts[0])
        patch = "\n".join(k["source"]) + "\n"
        subprocess.run(["patch", "--quiet", str(target)], input=patch, text=True, check=True)
        assert target.read_text() == texts[1]


def test_another_weight_is_the_only_difference(printed: Printed) -> None:
    found = json.loads(printed("a.engine", "weight.engine", "--json", code=1))
    assert found["kernels"] == []
    (w,) = found["weights"]
    assert (w["status"], w["name"], w["before"], w["after"]) == ("changed", "b1", "f32[32]", "f32[32]")
    assert w["relative_error"] == pytest.approx(0.5)
    text = printed("a.engine", "weight.engine", code=1)
    assert "kernels: 0 added, 0 removed, 0 changed" in text
    assert "relative error 5.0e-01" in text


def test_another_operator_removes_one_kernel_and_adds_one(printed: Printed) -> None:
    """A softmax is a kernel of its own; a sigmoid is computed by the product's kernel."""
    found = json.loads(printed("a.engine", "sigmoid.engine", "--json", code=1))
    told = {k["status"]: k for k in found["kernels"]}
    assert len(found["kernels"]) == len(told) == 2
    assert told["removed"]["nodes"] == ["softmax"]
    assert told["removed"]["launches"] == [1, 0]
    assert told["changed"]["nodes"] == ["fc2", "sigmoid"]
    added = [line for line in told["changed"]["source"] if line.startswith("+") and "sigmoid" in line]
    assert added
    assert found["launches"] == [3, 2]
    text = printed("a.engine", "sigmoid.engine", "--brief", code=1)
    assert "launches: 3 -> 2" in text
    assert "@@" not in text
    assert "@@" in printed("a.engine", "sigmoid.engine", code=1)


def test_another_range_of_sizes(printed: Printed) -> None:
    found = json.loads(printed("a.engine", "three.engine", "--json", code=1))
    assert found["interface"] == {
        "input x": ["f32[N, 16]", "f32[3, 16]"], "output y": ["f32[N, 10]", "f32[3, 10]"],
        "dimension N": ["from 1", None],
    }  # fmt: skip


def test_other_launches_object_code_and_order(tmp_path: Path) -> None:
    """What only the file can tell: each is changed by itself."""
    a = read_engine("a.engine")
    first, *rest = a.program.launches
    (variant,) = first.variants
    wider = msgspec.structs.replace(variant, shared_bytes=variant.shared_bytes + 1024)
    program = msgspec.structs.replace(a.program, launches=(msgspec.structs.replace(first, variants=(wider,)), *rest))
    found = compare_engines(a, replace(a, program=program))
    shared = f"shared memory {variant.shared_bytes} -> {wider.shared_bytes}"
    assert found.settings == (f"{first.name} ({variant.kernel}, sm_80): {shared}",)
    assert found.differs

    key = next(iter(a.cubins))
    found = compare_engines(a, replace(a, cubins={**a.cubins, key: a.cubins[key] + b"\0"}))
    assert (found.objects, found.differs) == ((f"{key[0]}/{key[1]}",), True)
    assert found.nbytes["object code"][1] - found.nbytes["object code"][0] == 1

    renamed = msgspec.structs.replace(a.program, name="another")
    found = compare_engines(a, replace(a, program=renamed))
    assert (found.order, found.differs) == (True, True)
    assert not compare_engines(a, replace(a, provenance={"arcweld": "9"}, verify=None)).differs


def test_signed_zeros_are_other_weights() -> None:
    a = read_engine("a.engine")
    zeros = [{**a.weights, "b1": np.full(32, z, np.float32)} for z in (0.0, -0.0)]
    found = compare_engines(*(replace(a, weights=w) for w in zeros))
    assert [w.name for w in found.weights] == ["b1"]


def test_comments_are_no_code() -> None:
    a = read_engine("a.engine")
    name, text = next(iter(a.sources.items()))
    for old, new, differs in (("// ", "// another remark: ", False), ("struct Params", "struct  Params", True)):
        assert old in text
        found = compare_engines(a, replace(a, sources={**a.sources, name: text.replace(old, new)}))
        assert (found.differs, len(found.kernels)) == (differs, int(differs))


def test_a_size_that_nobody_knows_is_said(printed: Printed) -> None:
    found = json.loads(printed("open.engine", "open.engine", "--json"))
    assert found["time"]["not_modelled"] == "the size of 'N' is needed: give --shapes"
    assert "latency_ms" in json.loads(printed("open.engine", "open.engine", "--json", "--shapes=x:4x16"))["time"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.engine", "mlp.onnx"], "mlp.onnx is no engine"),
        (["a.engine", "absent.engine"], "absent.engine cannot be read"),
        (["a.engine"], "Missing argument"),
        (["a.engine", "again.engine", "--card=gtx"], "gtx"),
        (["a.engine", "again.engine", "--shapes=z:1x16"], "z"),
    ],
)
def test_what_is_refused(words: list[str], said: str, printed: Printed) -> None:
    error = printed(*words, code=2)
    assert error.count("error: ") == 1
    assert said in error


def test_a_damaged_engine(printed: Printed, tmp_path: Path) -> None:
    data = bytearray(Path("a.engine").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.engine").write_bytes(data)
    assert "damaged.engine" in printed("a.engine", str(tmp_path / "damaged.engine"), code=2)


def test_engines_written_again_are_equal(tmp_path: Path) -> None:
    data = read_engine("a.engine")
    write_engine(tmp_path / "copy.engine", data)
    assert not compare_engines(data, read_engine(tmp_path / "copy.engine")).differs
