"""Engines are what this version makes of their stored graphs, whatever was compiled; altered ones are not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from cli_models import mlp
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graph
from test_golden import CASES, SYMBOLS

from arcweld.codegen.templates.select import alternatives
from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.assemble import assemble
from arcweld.driver.build import Build, build_graph
from arcweld.driver.object_code import ObjectCode
from arcweld.driver.remake import difference
from arcweld.models.builders import BUILDERS, build
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import fetch
from arcweld.runtime.engine_file import EngineData, read_engine, write_engine

ARCHS = ((), ("sm_80",), ("sm_80", "sm_90a", "sm_120"))
PRECISIONS = ("fp32", "fp16", "bf16")


def built(graph: Graph, precision: str = "fp32", archs: Sequence[str] = ("sm_90a",), *disable: str) -> Build:
    options = Options(precision=precision, arch=tuple(archs), disable=frozenset(disable))
    return build_graph(graph, options, compile_kernels=False)


def through_a_file(data: EngineData, folder: Path) -> EngineData:
    write_engine(folder / "m.engine", data)
    return read_engine(folder / "m.engine")


def every_way(graph: Graph, folder: Path, first: int = 0) -> None:
    """Each precision with another one of the lists of architectures, which ``first`` rotates."""
    for k, precision in enumerate(PRECISIONS):
        archs = ARCHS[(first + k) % len(ARCHS)]
        assert difference(through_a_file(built(graph, precision, archs).data, folder)) == ""


def in_turn(graph: Graph, folder: Path, turn: int) -> None:
    """One precision with one list of architectures: nine models have all of these. ``ARCWELD_EVERY=1``: every_way."""
    if os.environ.get("ARCWELD_EVERY"):
        every_way(graph, folder, turn)
        return
    precision, archs = PRECISIONS[turn % len(PRECISIONS)], ARCHS[(turn + turn // len(PRECISIONS)) % len(ARCHS)]
    assert difference(through_a_file(built(graph, precision, archs).data, folder)) == ""


# ------------------------------------------------------------------------------------------------- what is genuine


@pytest.mark.parametrize("name", CASES)
def test_golden_graphs(name: str) -> None:
    arch, text = CASES[name]
    graph = parse_graph(f"graph '{name}'\n{SYMBOLS}{text}")
    assert difference(built(graph, archs=(arch,)).data) == ""


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int, tmp_path: Path) -> None:
    graph = random_graph(random.Random(seed).randrange, 12)
    if not graph.nodes:
        return  # nothing is compiled
    assert difference(through_a_file(built(graph).data, tmp_path)) == ""
    assert difference(built(graph, "fp32", ("sm_90a",), "fusion").data) == ""


SMALL = {
    "resnet18": {"size": 64}, "mobilenet_v2": {"size": 64}, "vit_tiny": {"depth": 2}, "bert": {"layers": 2},
    "gpt2": {"layers": 2}, "llama": {"layers": 1, "hidden": 256, "intermediate": 512, "heads": 8, "groups": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_builders(name: str, tmp_path: Path) -> None:
    from arcweld.compiler.torch.importer import import_module

    model = build(name, batch=2, **SMALL[name])  # the catalogue's are of fixed sizes
    in_turn(import_module(model.module, model.args, {}, model.dynamic_shapes(8)), tmp_path, list(SMALL).index(name))


def test_every_builder_is_tried() -> None:
    assert set(BUILDERS) - {"resnet50", "vit_b16"} == set(SMALL)  # the same architectures, larger


@pytest.mark.models
@pytest.mark.parametrize("name", MODELS)
def test_catalogue(name: str, tmp_path: Path) -> None:
    try:
        path = str(fetch(name))
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    in_turn(import_onnx(path, **MODELS[name].import_options()), tmp_path, list(MODELS).index(name))


def test_other_tactics_and_portable_kernels_for_an_exact_architecture() -> None:
    """As after a spill: the build then takes another tactic, which only compiling shows."""
    graph = parse_graph(
        "graph 'g'\ninput %x: f16[256, 512]\nweight %w: f16[512, 256]\n%y: f16[256, 256] = MatMul(%x, %w)\noutput %y\n"
    )
    done = built(graph, archs=("sm_80", "sm_90a"))
    (launch,) = done.planned
    tried = 0
    for k, source in enumerate(launch.sources):
        for other in (s for group in alternatives(launch.bound.kernel, source) for s in group):
            mended = (*launch.sources[:k], other, *launch.sources[k + 1 :])
            part = replace(done.parts[-1], launches=(replace(launch, sources=mended),))
            data = assemble([part], ObjectCode({}, {}), graph.labels())
            assert difference(data) == ""
            tried += 1
    assert tried > 4


def odd_outputs(path: Path) -> Path:
    """An input that is an output, a value that is two outputs, and scalars of every kind."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "nan"], ["b"]),
        helper.make_node("Clip", ["b", "low", ""], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Add", ["i", "most"], ["j"]),
    ]
    constants = {
        "scale": np.float32(0.1), "nan": np.array([np.nan], np.float32), "low": np.float32(-np.inf),
        "most": np.int64(2**63 - 1),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "odd",
        [info("x", TensorProto.FLOAT, ["n", 4]), info("i", TensorProto.INT64, [3])],
        [info("z", TensorProto.FLOAT, ["n", 4]), info("x", TensorProto.FLOAT, ["n", 4]),
         info("y", TensorProto.FLOAT, ["n", 4]), info("j", TensorProto.INT64, [3])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_outputs_and_literals_of_every_kind(tmp_path: Path) -> None:
    every_way(import_onnx(str(odd_outputs(tmp_path / "odd.onnx"))), tmp_path)


def test_the_stored_graph_shows_literals_and_no_weights(tmp_path: Path) -> None:
    data = built(import_onnx(str(odd_outputs(tmp_path / "odd.onnx")))).data
    assert "data=(9223372036854775807,)" in data.graph
    weights = built(import_onnx(str(mlp(tmp_path / "mlp.onnx")))).data
    assert weights.weights
    assert "data=" not in weights.graph


# ------------------------------------------------------------------------------------------------- what is not

Change = Callable[[EngineData], EngineData]
STATIC = "\n__attribute__((constructor)) static void run_at_load() {}\n"


def first(data: EngineData) -> str:
    return min(data.sources)


def with_source(data: EngineData, name: str, text: str) -> EngineData:
    return replace(data, sources={**data.sources, name: text})


def other_shape(data: EngineData) -> EngineData:
    """Audited attack: genuine sources, and a temporary that is smaller than what the kernels write."""
    (temp, *rest) = data.program.temps
    small = msgspec.structs.replace(temp, shape=("N - 1", *temp.shape[1:]))
    return replace(data, program=msgspec.structs.replace(data.program, temps=(small, *rest)))


def in_first_variant(data: EngineData, **changes: object) -> EngineData:
    (launch, *rest) = data.program.launches
    variants = (msgspec.structs.replace(launch.variants[0], **changes), *launch.variants[1:])
    launches = (msgspec.structs.replace(launch, variants=variants), *rest)
    return replace(data, program=msgspec.structs.replace(data.program, launches=launches))


def swapped(data: EngineData) -> EngineData:
    a, b = sorted(data.sources)[:2]
    return replace(data, sources={**data.sources, a: data.sources[b], b: data.sources[a]})


def other_graph(data: EngineData) -> EngineData:
    """The graph agrees with the altered program; the kernels are the old ones."""
    return replace(data, graph=data.graph.replace("Relu", "Sigmoid"))


CHANGES: dict[str, Change] = {
    "static initialiser": lambda d: with_source(d, first(d), d.sources[first(d)] + STATIC),
    "comment": lambda d: with_source(d, first(d), d.sources[first(d)] + "// \n"),
    "literal": lambda d: with_source(d, first(d), d.sources[first(d)].replace("128", "129", 1)),
    "further kernel": lambda d: with_source(d, "extra", d.sources[first(d)]),
    "swapped sources": swapped,
    "shape of a temporary": other_shape,
    "size of an input": lambda d: replace(
        d,
        program=msgspec.structs.replace(
            d.program, inputs=(msgspec.structs.replace(d.program.inputs[0], shape=("N", "8")),)
        ),
    ),
    "range of a symbol": lambda d: replace(
        d,
        program=msgspec.structs.replace(
            d.program, symbols=(msgspec.structs.replace(d.program.symbols[0], lo=0, multiple_of=1),)
        ),
    ),
    "grid": lambda d: in_first_variant(d, grid=("1000", "1", "1")),
    "shared memory": lambda d: in_first_variant(d, shared_bytes=16),
    "launch left out": lambda d: replace(
        d, program=msgspec.structs.replace(d.program, launches=d.program.launches[:-1])
    ),
    "launch twice": lambda d: replace(
        d, program=msgspec.structs.replace(d.program, launches=(*d.program.launches, d.program.launches[-1]))
    ),
    "header": lambda d: replace(d, headers={**d.headers, "prims.cuh": "#include_next <stdio.h>\n"}),
    "further header": lambda d: replace(d, headers={**d.headers, "math.h": ""}),
    "no graph": lambda d: replace(d, graph=""),
    "no text": lambda d: replace(d, graph="graph 'g'\ninput %x: f32[" + "(" * 9999),
    "graph": other_graph,
    "type in the graph": lambda d: replace(d, graph=d.graph.replace("f32[N, 32]", "f32[N, 31]", 1)),
    "unknown size": lambda d: replace(d, graph=d.graph.replace("symbol N(", "symbol M()\nsymbol N(", 1)),
    "operator": lambda d: replace(d, graph=d.graph.replace("Relu(", "Loop(", 1)),
}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> EngineData:
    return built(import_onnx(str(mlp(tmp_path_factory.mktemp("remake") / "mlp.onnx")))).data


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen(name: str, genuine: EngineData) -> None:
    assert difference(genuine) == ""
    changed = CHANGES[name](genuine)
    if name != "unknown size":  # an unused symbol has no effect
        assert changed != genuine
        assert difference(changed) != ""


def test_weights_may_be_any(genuine: EngineData) -> None:
    assert difference(replace(genuine, weights={n: a * 2 for n, a in genuine.weights.items()})) == ""
