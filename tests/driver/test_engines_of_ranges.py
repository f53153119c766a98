"""Engines with launches for ranges of sizes: right on both sides of every border, verified there, and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from test_onnx_decoders import CACHES, GROUPS, HEAD, LAYERS, ROOM, WORDS, genai, opened, present, runtime_in_place

import arcweld
from arcweld import Engine, Input
from arcweld.cli.app import main
from arcweld.compiler.errors import AccuracyError, EngineFileError, UsageError
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver import evidence as evidence_module
from arcweld.driver.build import Build, build_graph
from arcweld.driver.draws import Sample
from arcweld.driver.evidence import VerifyOptions, verify_build
from arcweld.driver.isolation import ignore_notes
from arcweld.driver.kernel_checks import check_kernel
from arcweld.driver.remake import difference
from arcweld.driver.samples import Draw, sample_inputs
from arcweld.runtime.arrays import aligned_empty
from arcweld.runtime.engine_file import read_engine
from arcweld.runtime.program import Symbol
from arcweld.runtime.sim.device import SimDevice

MLP = """graph 'g'
symbol n(lo=1, hi=300)
input %x: f32[n, 1024]
weight %w: f32[1024, 1024]
weight %u: f32[1024, 96]
%a = MatMul(%x, %w) @ 'first'
%b = Relu(%a) @ 'relu'
%y = MatMul(%b, %u) @ 'second'
output %y
"""


def built(text: str = MLP, **options: Any) -> tuple[Build, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    graph = parse_graph(text)
    weights = {n: rng.standard_normal(w.data.shape, np.float32) / 32 for n, w in graph.weights.items()}
    graph = graph.replace(weights={n: replace(w, data=weights[n]) for n, w in graph.weights.items()})
    return build_graph(graph, Options(arch=("sm_80",), **options), compile_kernels=False), weights


def test_both_sides_of_each_border() -> None:
    build, w = built()
    parts = (*build.data.program.ranges, build.data.program)
    assert [r.sizes.label for r in build.data.program.ranges] == ["n=1..8", "n=1..64"]
    names = [x.name for part in parts for x in part.launches]
    assert len(names) == len(set(names))
    few, small, _ = ({v.kernel for x in part.launches for v in x.variants} for part in parts)
    assert few.isdisjoint(small)
    engine = Engine(build.data, SimDevice(checked=True))
    rng = np.random.default_rng(2)
    for n in (1, 7, 8, 9, 64, 65, 8, 300, 1):
        x = rng.standard_normal((n, 1024), np.float32)
        want = np.maximum(x.astype(np.float64) @ w["w"], 0) @ w["u"]
        np.testing.assert_allclose(engine(x), want, rtol=1e-4, atol=1e-4)


def test_one_kernel_serves_what_is_alike() -> None:
    """The activation's kernel is the same text at all sizes."""
    build, _ = built(disable=frozenset({"fusion"}))
    launches = build.data.program.all_launches()
    relu = [v.kernel for x in launches if x.origin == ("relu",) for v in x.variants]
    assert len(relu) == 3
    assert len(set(relu)) == 1


def test_memory_is_that_of_the_range() -> None:
    build, _ = built()
    engine = Engine(build.data, SimDevice())
    assert engine.memory(n=8).arena == 8 * 1024 * 4
    assert engine.memory(n=9).arena == -(-9 * 1024 * 4 // 256) * 256


# ------------------------------------------------------------------------------------------------------- verification


def evidence(build: Build, sizes: dict[str, int], level: str = "full", in_process: bool = False) -> dict[str, Any]:
    engine, feeds = Engine(build.data, SimDevice(arch="sm_80")), sample_inputs(build.imported, sizes)
    if in_process:
        sample = Sample(feeds, sizes, draw=Draw.SIGNED)
        verification = evidence_module._Verification(
            build, engine, sample, VerifyOptions(level), "fp32", ignore_notes
        )  # fmt: skip
        return verification.run(None)
    return verify_build(build, engine, Sample(feeds, sizes, draw=Draw.SIGNED), VerifyOptions(level), "fp32")


@pytest.mark.parametrize("base", [1, 32])
def test_every_range_is_verified_and_its_borders_are(base: int) -> None:
    build, _ = built()
    found = evidence(build, {"n": base})
    assert {k["kernel"] for k in found["kernels"]} == set(build.data.sources)
    assert all(k["status"] == "verified" for k in found["kernels"])
    points = [(p["name"], p["sizes"]["n"]) for p in found["points"] if "sizes" in p and "skipped" not in p]
    assert ("base", base) in points
    assert {8, 9, 64, 65} <= {n for _, n in points}
    assert all(p["outputs"] == 1 for p in found["points"] if p.get("sizes", {}).get("n") in (8, 9, 64, 65))


def test_full_verification_runs_every_launch_of_every_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers that share a kernel: quick verification runs one of them, full verification both."""
    again = "%c = MatMul(%b, %w) @ 'again'\n%d = Relu(%c) @ 'more'\n%y = MatMul(%d, %u)"
    text = MLP.replace("%y = MatMul(%b, %u)", again)
    build, _ = built(text)
    seen: dict[str, set[str]] = {"quick": set(), "full": set()}
    for level, names in seen.items():
        monkeypatch.setattr(
            evidence_module, "check_kernel",
            lambda c, *rest, names=names: names.add(c.planned.name) or check_kernel(c, *rest),
        )  # fmt: skip
        evidence(build, {"n": 32}, level, in_process=True)
    assert seen["full"] == {x.name for x in build.data.program.all_launches()}
    assert seen["quick"] < seen["full"]


@pytest.mark.parametrize("base", [1, 32])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_damage_in_the_kernels_of_one_range_is_found(base: int, part: int) -> None:
    """Also where the sizes asked for are served by the other range."""
    build, _ = built()
    program = build.data.program
    launches = (*(r.launches for r in program.ranges), program.launches)[part]
    kernel = next(x for x in launches if "relu" in x.origin).variants[0].kernel
    text = build.data.sources[kernel]
    assert "max_nan(" in text
    sources = {**build.data.sources, kernel: text.replace("max_nan(", "min_nan(")}
    with pytest.raises(AccuracyError):
        evidence(replace(build, data=replace(build.data, sources=sources)), {"n": base}, "quick")


def test_a_stranger_s_engine_is_compared_range_by_range() -> None:
    build, _ = built()
    assert difference(build.data) == ""
    program = build.data.program
    few, small = program.ranges
    turned = msgspec.structs.replace(small, launches=small.launches[::-1])
    swapped = msgspec.structs.replace(program, ranges=(few, turned))
    with pytest.raises(EngineFileError, match="before it is written"):
        Engine(replace(build.data, program=swapped), SimDevice(), trusted=True)
    wider = msgspec.structs.replace(few, symbols=(Symbol("n", 1, 9),))
    assert difference(replace(build.data, program=msgspec.structs.replace(program, ranges=(wider, small)))) != ""


@pytest.mark.parametrize(
    "symbols", [(Symbol("n", 0, 8),), (Symbol("n", 1, 301),), (Symbol("n", 1, None),), (Symbol("m", 1, 8),)]
)
def test_ranges_that_a_program_cannot_have(symbols: tuple[Symbol, ...]) -> None:
    build, _ = built()
    program = build.data.program
    ranges = (msgspec.structs.replace(program.ranges[0], symbols=symbols),)
    with pytest.raises(EngineFileError, match="is not within that of the symbol"):
        Engine(replace(build.data, program=msgspec.structs.replace(program, ranges=ranges)), SimDevice())


# ------------------------------------------------------------------------------------------------------- one decoder


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_prompt_and_steps_by_one_engine(packed: bool) -> None:
    """Beside ONNX Runtime, in the same caches; the steps have the kernels of an engine that is built for them alone."""
    model, new = genai(packed), ("tokens", 1, ROOM)
    shared = [Input(n, (1, GROUPS, ROOM, HEAD), inout=True) for n in CACHES]
    lengths = Input("attention_mask", (1, None))
    engine = arcweld.compile(model, inputs=[Input("input_ids", (1, new)), lengths, *shared], device="sim")
    alone = arcweld.compile(model, inputs=[Input("input_ids", (1, 1)), lengths, *shared], device="sim", verify="off")
    (step,) = engine.program.ranges
    assert step.sizes.label == "tokens=1"
    assert len(step.launches) == len(alone.program.launches)
    assert {a.of for a in step.aliases} == {a.of for a in engine.program.aliases} == set(CACHES)
    assert all(k["status"] == "verified" for k in (engine.data.verify or {})["kernels"])
    checked, session = Engine(engine.data, SimDevice(checked=True)), opened(model)
    ours = {n: aligned_empty((1, GROUPS, ROOM, HEAD), np.dtype(np.float32)) for n in CACHES}
    for a in ours.values():
        a[...] = 0
    theirs = {n: onnx_value(a) for n, a in ours.items()}
    rng, length = np.random.default_rng(3), 0
    for count in (7, 1, 1, 2, 1, 9, 1):
        length += count
        feeds = {"input_ids": rng.integers(0, WORDS, (1, count)), "attention_mask": np.ones((1, length), np.int64)}
        found = checked.run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], runtime_in_place(session, feeds, theirs), rtol=1e-4, atol=1e-4)
    for n in CACHES:
        np.testing.assert_allclose(ours[n], theirs[n].numpy(), rtol=1e-4, atol=1e-5)
    assert len(CACHES) == 2 * LAYERS
    assert all(present(n) in {t.name for t in engine.outputs} for n in CACHES)


def onnx_value(array: np.ndarray) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array.copy())


# ------------------------------------------------------------------------------------------------------ users' ranges


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("n=1", "is a list"), ([{"m": 1}], "no dimension is called 'm'"), (["n=1..x"], "is no bound"),
        ([{}], "is no range"), ([{"n": (1, 301)}], "not within that of n"), ([{"n": 2.5}], "is no size"),
        (["n=1,n=2"], "its second one"),
    ],
)  # fmt: skip
def test_ranges_that_make_no_sense(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        arcweld.driver.api.compile_graph(parse_graph(MLP), ranges=given, device="sim")


def test_the_command_takes_and_shows_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 16])], [info("y", 1, ["n", 16])], initializer=[weight]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    command = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.engine"), "--device", "sim", "--quiet"]
    assert main([*command, "--sizeRanges", "n=1..4; n=5..32"]) == 0
    assert "-> 1 launch (1 at n=1..4, 1 at n=5..32), 3 kernels" in capsys.readouterr().out
    engine = arcweld.load(tmp_path / "m.engine", "sim")
    assert [r.sizes.label for r in engine.program.ranges] == ["n=1..4", "n=5..32"]
    for n in (1, 4, 5, 32, 33):
        x = np.random.default_rng(n).standard_normal((n, 16), np.float32)
        np.testing.assert_allclose(engine(x), x, rtol=1e-6)
    assert main(["inspect", str(tmp_path / "m.engine")]) == 0
    shown = capsys.readouterr().out
    assert shown.index("at n=1..4: 1 launch") < shown.index("at n=5..32: 1") < shown.index("at all other sizes: 1")
    assert main(["inspect", str(tmp_path / "m.engine"), "--json", "--shapes", "x:3x16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [x["bytes"] for x in report["ranges"]["n=1..4"]] == [4 * (3 * 16 * 2 + 256)]
    assert "bytes" not in report["launches"][0]
    assert main([*command, "--sizeRanges", "none"]) == 0
    assert read_engine(tmp_path / "m.engine").program.ranges == ()
    assert main([*command, "--sizeRanges", "k=2"]) != 0
    assert "no dimension is called 'k'" in capsys.readouterr().err
