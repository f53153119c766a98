"""``export``: what other tools are given, checked by their own code where it is installed, and by their rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import networkx as nx
import onnx
import pytest
from cli_models import mlp, mlp_weights, save_model
from export_tools import Printed, check_trace, exported, profiled
from export_tools import engine as engine
from export_tools import folder as folder
from export_tools import measuring as measuring
from export_tools import model as model
from export_tools import on_the_simulator as on_the_simulator
from export_tools import printed as printed
from export_tools import staged as staged
from onnx import helper as h
from runtime_programs import chain

from arcweld.cli.app import main
from arcweld.runtime.engine_file import read_engine, write_engine

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("ARCWELD_PEERS", ROOT / "build" / "peers"))


def with_peers(script: str, *words: str) -> str:
    """What a script prints that uses other tools' packages. Skips where they are not installed."""
    if not PEERS.is_dir():
        pytest.skip(f"{PEERS} is not there: `make peers` installs trt-engine-explorer and ai-edge-model-explorer")
    first = f"import sys; sys.path.append({str(PEERS)!r})\n"
    done = subprocess.run([sys.executable, "-c", first + script, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------------------------------- traces


def test_a_modelled_trace_takes_as_long_as_the_estimate(engine: Path, tmp_path: Path, printed: Printed) -> None:
    found = exported(engine, "perfetto", tmp_path / "t.json", "--card=a100", "--shapes=x:300x16")
    slices = check_trace(found)
    (estimated,) = json.loads(printed("estimate", str(engine), "--card=a100", "--shapes=x:300x16", "--json"))
    assert [e["dur"] for e in slices[1:]] == [k["us"] for k in estimated["kernels"]]
    assert slices[-1]["ts"] + slices[-1]["dur"] == pytest.approx(estimated["latency_ms"] * 1e3)
    assert [e["args"]["kernel"] for e in slices[1:]] == [k["kernel"] for k in estimated["kernels"]]
    assert "nothing was measured" in found["otherData"]["times"]
    assert found["otherData"]["sizes"] == "N=300"
    rates = [e["args"]["value"] for e in found["traceEvents"] if e["ph"] == "C" and e["name"] == "GB/s"]
    assert rates == pytest.approx([k["bytes"] / k["us"] / 1e3 for k in estimated["kernels"]] + [0])


def test_names_in_a_trace_are_printable(engine: Path, tmp_path: Path) -> None:
    slices = check_trace(exported(engine, "perfetto", tmp_path / "t.json"))
    assert "</script>" in slices[1]["name"]
    assert "relu" in slices[1]["name"]
    assert not {"\x1b", "\u202e"} & set(json.dumps(slices, ensure_ascii=False))


def test_a_trace_before_the_build(model: Path, tmp_path: Path) -> None:
    slices = check_trace(exported(model, "perfetto", tmp_path / "t.json", "--bf16", "--shapes=x:2x16"))
    assert any("bf16" in e["args"]["types"] for e in slices[1:])


def test_stages_and_the_host_have_rows_of_their_own(staged: Path, tmp_path: Path, measuring: None) -> None:
    modelled = exported(staged, "perfetto", tmp_path / "t.json")
    assert len({e["tid"] for e in check_trace(modelled)}) == 2
    rows = profiled(staged, tmp_path / "p.json")
    measured = exported(staged, "perfetto", tmp_path / "m.json", f"--profile={tmp_path / 'p.json'}")
    titles = {e["tid"]: e["args"]["name"] for e in measured["traceEvents"] if e["name"] == "thread_name"}
    slices = check_trace(measured)
    assert [titles[e["tid"]] for e in slices if e["cat"] == "host"] == ["host"]
    assert [e["dur"] for e in slices] == pytest.approx([r["medianMs"] * 1e3 for r in rows[1:]])


# ------------------------------------------------------------------------------------------------------------ profiles


def test_layers_are_written_as_trtexec_does(engine: Path, tmp_path: Path, printed: Printed) -> None:
    target = tmp_path / "layers.json"
    words = ["--shapes=x:6x16", "--iterations=1", "--duration=0", f"--exportLayerInfo={target}"]
    printed(f"--loadEngine={engine}", *words)
    found = json.loads(target.read_text())
    assert found["Bindings"] == ["x", "y"]
    first, second, third = found["Layers"]
    assert first["Inputs"] == [{"Name": "x", "Dimensions": [6, 16], "Format/Datatype": "Row major linear FP32"}]
    assert first["Metadata"].split("\x1e")[1] == "[ONNX Layer: relu]"
    assert second["Inputs"] == first["Outputs"]
    assert second["Outputs"][0]["Dimensions"] == [6, 10]
    assert second["Weights"] == {"Type": "Half", "Count": mlp_weights()["w2"].size}
    assert third["Outputs"][0]["Name"] == "y"
    report = json.loads(printed("inspect", str(engine), "--json"))
    assert [x["Name"] for x in found["Layers"]] == [x["name"] for x in report["launches"]]


def test_sizes_that_nobody_knows_are_minus_one(model: Path, tmp_path: Path) -> None:
    layers = tmp_path / "layers.json"
    words = ["-o", str(tmp_path / "m.engine"), "--arch=sm_80", "--verify=off", "--quiet", f"--exportLayerInfo={layers}"]
    assert main([str(model), *words]) == 0
    assert json.loads(layers.read_text())["Layers"][0]["Inputs"][0]["Dimensions"] == [-1, 16]


TREX = """
import importlib.util, json, types
package = types.ModuleType("trex")  # its __init__ imports what only notebooks need
package.__path__ = list(importlib.util.find_spec("trex").submodule_search_locations)
sys.modules["trex"] = package
from trex.engine_plan import EnginePlan, summary_dict
plan = EnginePlan(*sys.argv[1:3])
inputs, outputs = plan.get_bindings()
print(json.dumps({
    "summary": summary_dict(plan), "inputs": [t.name for t in inputs], "outputs": [t.name for t in outputs],
    "names": list(plan.df["Name"]), "ms": list(plan.df["latency.avg_time"]), "share": list(plan.df["latency.pct_time"]),
    "weights": int(plan.total_weights_size), "bytes": [int(x) for x in plan.df["total_footprint_bytes"]],
    "precision": list(plan.df["precision"]),
}))
"""


def test_trex_opens_graph_and_profile(engine: Path, tmp_path: Path, measuring: None, printed: Printed) -> None:
    report = json.loads(printed("inspect", str(engine), "--shapes=x:6x16", "--json"))
    exported(engine, "trex", tmp_path / "graph.json", "--shapes=x:6x16")
    modelled = exported(engine, "trex-profile", tmp_path / "modelled.json", "--shapes=x:6x16")
    assert "nothing was measured" in modelled[0]["arcweld"]["times"]
    measured = profiled(engine, tmp_path / "measured.json", "--shapes=x:6x16")
    for rows, name in ((modelled, "modelled.json"), (measured, "measured.json")):
        found = json.loads(with_peers(TREX, str(tmp_path / "graph.json"), str(tmp_path / name)))
        assert found["summary"]["Layers"] == "3"
        assert (found["inputs"], found["outputs"]) == (["x"], ["y"])
        assert found["names"] == [r["name"] for r in rows[1:]]
        assert found["ms"] == [r["averageMs"] for r in rows[1:]]
        assert sum(found["share"]) == pytest.approx(100)
        assert found["bytes"] == [x["bytes"] for x in report["launches"]]
        assert found["weights"] == report["weight_bytes"]
        assert found["precision"] == ["FP32", "FP16", "FP16"]


# -------------------------------------------------------------------------------------------------------------- netron


def plain(path: Path) -> onnx.ModelProto:
    """The model without what annotates it."""
    found = onnx.load(path, load_external_data=False)
    for node in found.graph.node:
        kept = [p for p in node.metadata_props if not p.key.startswith("arcweld.")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return found


def test_an_annotated_model_is_the_model(model: Path, engine: Path, tmp_path: Path, printed: Printed) -> None:
    (estimated,) = json.loads(printed("estimate", str(engine), "--json"))
    first, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    printed("export", str(engine), "--format=netron", f"--onnx={model}", "-o", str(first))
    printed("export", str(first), "--format=netron", "--fp16", "-o", str(again))  # annotated once more, before a build
    for path in (first, again):
        onnx.checker.check_model(str(path), full_check=True)
        assert plain(path) == onnx.load(model)
    for path, modelled in ((first, estimated["kernels"]), (again, None)):
        found = {n.op_type: {p.key: p.value for p in n.metadata_props} for n in onnx.load(path).graph.node}
        assert found["Gemm"]["arcweld.kernel"] == found["Relu"]["arcweld.kernel"] != found["MatMul"]["arcweld.kernel"]
        assert "relu" in found["Gemm"]["arcweld.nodes"]
        assert "f16" in found["MatMul"]["arcweld.precision"]
        assert "nothing was measured" in found["Softmax"]["arcweld.times"]
        if modelled is not None:
            times = [float(found[op]["arcweld.modelled_us"]) for op in ("Gemm", "MatMul", "Softmax")]
            assert times == pytest.approx([k["us"] for k in modelled], rel=1e-3)


def test_weights_in_files_beside_a_model_stay_there(folder: Path, tmp_path: Path, printed: Printed) -> None:
    path = tmp_path / "external.onnx"
    made = onnx.load(mlp(folder / "plain.onnx"))
    onnx.save(made, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    before = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    words = ["export", str(path), "--format=netron", "-o"]
    assert "are not copied" in printed(*words, str(tmp_path / "elsewhere" / "a.onnx"), code=2)
    printed(*words, str(tmp_path / "a.onnx"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.onnx", "elsewhere", "external.onnx", "w.bin"]
    assert (tmp_path / "w.bin").read_bytes() == before
    assert plain(tmp_path / "a.onnx") == onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    assert onnx.load(tmp_path / "a.onnx").graph.initializer[0].raw_data == mlp_weights()["w1"].tobytes()


def test_nodes_with_a_body_have_the_kernels_of_what_is_in_it(tmp_path: Path, printed: Printed) -> None:
    """A function's nodes, and a node without a name."""
    body = [h.make_node("Sin", ["a"], ["b"], name="sine"), h.make_node("Softmax", ["b"], ["c"], name="soft")]
    function = h.make_function("own", "Two", ["a"], ["c"], body, [h.make_opsetid("", 18)])
    nodes = [h.make_node("Two", ["x"], ["t"], name="call", domain="own"), h.make_node("Cos", ["t"], ["y"])]
    value = lambda n: h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, 8])
    graph = h.make_graph(nodes, "g", [value("x")], [value("y")])
    opsets = [h.make_opsetid("", 18), h.make_opsetid("own", 1)]
    onnx.save(h.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), tmp_path / "f.onnx")
    printed("export", str(tmp_path / "f.onnx"), "--format=netron", "-o", str(tmp_path / "a.onnx"))
    assert plain(tmp_path / "a.onnx") == onnx.load(tmp_path / "f.onnx")
    for node in onnx.load(tmp_path / "a.onnx").graph.node:
        assert "softmax" in {p.key: p.value for p in node.metadata_props}["arcweld.kernel"]


# ------------------------------------------------------------------------------------------------------ model explorer


@pytest.mark.parametrize("which", ["engine", "staged"])
def test_a_graph_for_model_explorer(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, printed: Printed
) -> None:
    path: Path = request.getfixturevalue(which)
    found = exported(path, "model-explorer", tmp_path / "g.json")
    (graph,) = found["graphs"]
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    edges = [(e["sourceNodeId"], n) for n, x in nodes.items() for e in x["incomingEdges"]]
    made = nx.DiGraph(edges)
    assert set(made) == set(nodes)
    assert nx.is_directed_acyclic_graph(made)
    assert all(nx.has_path(made, "input x", n) and nx.has_path(made, n, "output y") for n in nodes)
    report = json.loads(printed("inspect", str(path), "--json"))
    launches = [n for n in nodes.values() if n["namespace"] not in ("inputs", "outputs", "host")]
    (estimated,) = json.loads(printed("estimate", str(path), "--json"))
    assert [n["label"] for n in launches] == [k["kernel"] for k in estimated["kernels"]]
    if which == "engine":
        assert [x["writes"] for x in report["launches"]] == [[o["id"] for o in n["outputsMetadata"]] for n in launches]
    (data,) = exported(path, "model-explorer-data", tmp_path / "d.json").values()
    assert data["name"] == "modelled us"
    assert [data["results"][n["id"]]["value"] for n in launches] == [k["us"] for k in estimated["kernels"]]


EXPLORER = """
import json
from dacite import Config, from_dict
from model_explorer.graph_builder import GraphCollection
from model_explorer.node_data_builder import GraphNodeData
graphs, data = (json.load(open(name)) for name in sys.argv[1:3])
found = from_dict(GraphCollection, graphs, Config(strict=True))
times = {name: from_dict(GraphNodeData, own, Config(strict=True)) for name, own in data.items()}
(graph,) = found.graphs
print(json.dumps([len(graph.nodes), sorted(n.id for n in graph.nodes if n.id in times[graph.id].results)]))
"""


def test_model_explorer_s_own_classes_take_it(engine: Path, tmp_path: Path) -> None:
    exported(engine, "model-explorer", tmp_path / "g.json")
    exported(engine, "model-explorer-data", tmp_path / "d.json")
    nodes, timed = json.loads(with_peers(EXPLORER, str(tmp_path / "g.json"), str(tmp_path / "d.json")))
    assert (nodes, len(timed)) == (5, 3)


ADAPTER = """
import json
from model_explorer.extension_manager import ExtensionManager
manager = ExtensionManager(["arcweld.model_explorer"])
manager.load_extensions()
(own,) = [m for m in manager.get_extensions_metadata() if m["id"] == "arcweld"]
command = {"cmdId": "convert", "extensionId": "arcweld", "modelPath": sys.argv[1], "settings": {"card": "a100"}}
print(json.dumps([own["fileExts"], manager.run_cmd(command)]))
"""


def test_model_explorer_opens_an_engine_by_the_adapter(engine: Path, tmp_path: Path) -> None:
    extensions, found = json.loads(with_peers(ADAPTER, str(engine)))
    assert extensions == ["engine"]
    (graph,) = found["graphCollections"][0]["graphs"]
    (wanted,) = exported(engine, "model-explorer", tmp_path / "g.json", "--card=a100")["graphs"]
    assert graph["groupNodeAttributes"] == wanted["groupNodeAttributes"]
    for a, b in zip(graph["nodes"], wanted["nodes"], strict=True):
        assert {k: a[k] for k in b} == b


def test_an_alias_is_read_from_what_made_its_bytes(tmp_path: Path) -> None:
    """``flat`` is ``t`` in another shape."""
    write_engine(tmp_path / "chain.engine", replace(chain(), graph=""))
    shapes = "--shapes=x:4x8"
    first, second, _ = exported(tmp_path / "chain.engine", "trex", tmp_path / "l.json", shapes)["Layers"]
    assert (first["Outputs"][0]["Name"], first["Outputs"][0]["Dimensions"]) == ("t", [4, 8])
    assert (second["Inputs"][0]["Name"], second["Inputs"][0]["Dimensions"]) == ("t", [32])
    (graph,) = exported(tmp_path / "chain.engine", "model-explorer", tmp_path / "e.json", shapes)["graphs"]
    edges = {n["id"]: [e["sourceNodeId"] for e in n["incomingEdges"]] for n in graph["nodes"]}
    assert edges == {
        "input x": [], "0: first": ["input x"], "0: second": ["0: first"], "0: third": ["0: second"],
        "output y": ["0: second"], "output total": ["0: third"],
    }  # fmt: skip


@pytest.mark.parametrize("form", ["perfetto", "trex", "trex-profile", "model-explorer", "model-explorer-data"])
def test_an_engine_without_a_launch_has_every_form(form: str, engine: Path, tmp_path: Path) -> None:
    """Its output is its input."""
    data = read_engine(engine)
    program = msgspec.structs.replace(data.program, outputs=data.program.inputs, launches=(), temps=(), weights=())
    bare = replace(data, program=program, sources={}, cubins={}, ptx={}, weights={}, verify=None)
    write_engine(tmp_path / "bare.engine", bare)
    found = exported(tmp_path / "bare.engine", form, tmp_path / "o.json", "--shapes=x:2x16")
    if form == "perfetto":
        assert [e["dur"] for e in check_trace(found)] == [4.0]
    if form == "model-explorer":
        assert [n["id"] for n in found["graphs"][0]["nodes"]] == ["input x", "output x"]


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.slow
def test_a_network_in_every_form(tmp_path: Path) -> None:
    """Each launch is there with edges, each convolution has a kernel, and all times add up to one sum."""
    from arcweld.models.builders import build, export_onnx

    made = build("resnet18", size=64)
    path = tmp_path / "resnet18.onnx"
    export_onnx(made.module, made.args, path)
    slices = check_trace(exported(path, "perfetto", tmp_path / "t.json", "--fp16"))[1:]
    rows = exported(path, "trex-profile", tmp_path / "p.json", "--fp16")[1:]
    layers = exported(path, "trex", tmp_path / "g.json", "--fp16")["Layers"]
    (graph,) = exported(path, "model-explorer", tmp_path / "e.json", "--fp16")["graphs"]
    assert len(slices) == len(rows) == len(layers) == len(graph["nodes"]) - 2 > 20
    assert sum(r["averageMs"] for r in rows) * 1e3 == pytest.approx(sum(e["dur"] for e in slices))
    made_before = {"x"}
    for x in layers:
        assert {t["Name"] for t in x["Inputs"]} <= made_before
        made_before |= {t["Name"] for t in x["Outputs"]}
    edges = sum(len(n["incomingEdges"]) for n in graph["nodes"][:-1])
    assert edges == sum(len(x["Inputs"]) for x in layers)
    assert main(["export", str(path), "--fp16", "--format=netron", "-o", str(tmp_path / "a.onnx")]) == 0
    assert plain(tmp_path / "a.onnx") == onnx.load(path)
    for node in onnx.load(tmp_path / "a.onnx").graph.node:
        found = {p.key: p.value for p in node.metadata_props}
        assert node.op_type != "Conv" or "conv" in found["arcweld.kernel"]
        assert "f16" in found["arcweld.precision"]
    (tmp_path / "a.onnx").unlink()


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{engine}", "-o", "{folder}/t.json"], "is not one of perfetto, trex"),
        (["{engine}", "--format=svg", "-o", "{folder}/t.json"], "'svg' is not one of"),
        (["{engine}", "--format=perfetto"], "no file to write was named"),
        (["{engine}", "--format=perfetto", "-o", "{folder}"], "it is a folder"),
        (["{engine}", "--format=perfetto", "-o", "{engine}"], "it is read"),
        (["{engine}", "--format=netron", "-o", "{model}", "--onnx={model}"], "it is read"),
        (["{engine}", "--format=perfetto", "-o", "{folder}/t.json", "--profile={model}"], "is no profile"),
        (["{engine}", "--format=perfetto", "-o", "{folder}/t.json", "--profile={folder}/none"], "cannot be read"),
        (["{engine}", "--format=perfetto", "-o", "{folder}/t.json", "--card=gtx"], "unknown card 'gtx'"),
        (["{engine}", "--format=perfetto", "-o", "{folder}/t.json", "--fp16"], "an engine has its precision"),
        (["{engine}", "--format=netron", "-o", "{folder}/a.onnx"], "an engine holds no ONNX model"),
        (["{engine}", "--format=netron", "-o", "{folder}/a.onnx", "--onnx={engine}"], "not an ONNX model"),
        (["{model}", "--format=perfetto", "-o", "{folder}/t.json", "--profile={model}"], "a model was not measured"),
        (["{engine}", "--format=netron", "-o", "{folder}/a.onnx", "--onnx={other}"], "none of"),
    ],
)
def test_bad_input(words: list[str], message: str, model: Path, engine: Path, tmp_path: Path, printed: Printed) -> None:
    other = save_model(tmp_path / "other.onnx", [h.make_node("Sin", ["x"], ["y"], name="sine")], {"x": [2]}, {"y": [2]})
    places = {"model": str(model), "engine": str(engine), "folder": str(tmp_path), "other": str(other)}
    before = model.read_bytes(), engine.read_bytes()
    assert message in printed("export", *(w.format(**places) for w in words), code=2)
    assert (model.read_bytes(), engine.read_bytes()) == before
    assert list(tmp_path.iterdir()) == [other]


def test_an_output_that_exists_is_replaced_as_a_whole(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[" * 1_000_000)
    check_trace(exported(engine, "perfetto", tmp_path / "t.json"))
