"""The driver: every form of a model in, a verified engine out, and what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import arcweld
from arcweld import AccuracyError, Input, ModelError, UnsupportedError, UsageError
from arcweld.compiler import expr, inlining
from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.options import Options
from arcweld.driver import api

WEIGHT = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype(np.float32)


def model_of(shape: list[int | str | None], op: str = "Relu") -> onnx.ModelProto:
    """``op(x @ w)`` over the last axis of 8."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node(op, ["h"], ["y"], name="act"),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sample(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def wanted(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float64) @ WEIGHT.astype(np.float64), 0)


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.w)


def forms(folder: Path) -> dict[str, tuple[Any, ...]]:
    path = folder / "m.onnx"
    onnx.save(model_of([3, 8]), path)
    x = torch.from_numpy(sample(3, 8))
    exported = torch.export.export(Module(), (x,))
    return {
        "path": (path,), "text": (str(path),), "bytes": (path.read_bytes(),), "proto": (model_of([3, 8]),),
        "module": (Module(), x), "exported": (exported,),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["path", "text", "bytes", "proto", "module", "exported"])
def test_every_form_of_a_model(form: str, tmp_path: Path) -> None:
    model, *args = forms(tmp_path)[form]
    engine = arcweld.compile(model, *args, device="sim")
    assert engine.data.verify is not None
    got = engine.run({engine.inputs[0].name: sample(3, 8)})
    np.testing.assert_allclose(next(iter(got.values())), wanted(sample(3, 8)), rtol=1e-5, atol=1e-6)


def test_a_module_is_compiled_with_keyword_arguments_and_dynamic_shapes() -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    x = torch.from_numpy(sample(3, 8))
    engine = arcweld.compile(Module(), kwargs={"x": x}, dynamic_shapes={"x": {0: batch}}, device="sim")
    for n in (1, 7, 16):
        (y,) = engine.run({engine.inputs[0].name: sample(n, 8)}).values()
        np.testing.assert_allclose(y, wanted(sample(n, 8)), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- inputs


def test_open_shapes_can_be_fixed() -> None:
    engine = arcweld.compile(model_of(["n", 8]), inputs=[Input("x", (3, 8))], device="sim")
    assert engine.inputs[0].shape == ("3", "8")
    with pytest.raises(arcweld.InputError):
        engine.run({"x": sample(4, 8)})


def test_fixed_shapes_stay_fixed() -> None:
    with pytest.raises(UsageError, match="fixed dimension of 3"):
        arcweld.compile(model_of([3, 8]), inputs=[Input("x", ("rows", 8))], device="sim")


def test_an_input_can_be_frozen() -> None:
    """The branch of an If, both of which are in the engine while its condition is an input."""
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    branches = [helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], out) for op in ("Relu", "Neg")]
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1], name="choice")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]), flag],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    both = arcweld.compile(model, device="sim")
    np.testing.assert_array_equal(both(sample(3, 8), np.array(False)), -sample(3, 8))
    for flag_value, want in ((True, np.maximum(sample(3, 8), 0)), (False, -sample(3, 8))):
        engine = arcweld.compile(model, inputs=[Input("flag", value=flag_value)], device="sim")
        assert [t.name for t in engine.inputs] == ["x"]
        np.testing.assert_array_equal(engine(sample(3, 8)), want)
    with pytest.raises(UsageError, match="no input 'flug'"):
        arcweld.compile(model, inputs=[Input("flug", value=True)], device="sim")
    with pytest.raises(UsageError, match="a value and a shape"):
        arcweld.compile(model, inputs=[Input("flag", (), value=True)], device="sim")


def test_open_shapes_can_be_named_and_bounded() -> None:
    engine = arcweld.compile(model_of([None, 8]), inputs=[Input("x", (("rows", 2, 6), 8))], device="sim")
    for n in (2, 6):
        np.testing.assert_allclose(engine.run({"x": sample(n, 8)})["y"], wanted(sample(n, 8)), rtol=1e-5, atol=1e-6)
    (symbol,) = engine.data.program.symbols
    assert (symbol.name, symbol.lo, symbol.hi) == ("rows", 2, 6)


def test_verification_can_be_given_sizes_and_inputs() -> None:
    graph = api.import_model(model_of(["n", 8]))
    by_size = api.compile_graph(graph, device="sim", sizes={"n": 11})
    by_feeds = api.compile_graph(graph, device="sim", feeds={"x": sample(5, 8)})
    for engine, n in ((by_size, 11), (by_feeds, 5)):
        assert engine.data.verify is not None
        assert engine.data.verify["shapes"] == {"x": [n, 8]}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (Input("z"), UsageError, "no input 'z'"),
        (Input("x", dtype="float16"), ModelError, "is f32, not f16"),
        (Input("x", dtype=np.int64), ModelError, "is f32, not i64"),
        (Input("x", (("n", 5, 3), 8)), UsageError, "ranges from 5 to 3"),
        (Input("x", (("n", -1, 3), 8)), UsageError, "ranges from -1 to 3"),
        (Input("x", (1.0, 8)), UsageError, "1.0 is no dimension"),  # type: ignore[arg-type]
        (Input("x", "1x8"), UsageError, "is no dimension"),
        (Input("x", dtype="floot"), UsageError, "'floot' is no element type"),
        ("x", UsageError, "a list of Input, not of str"),
        (("x", (3, 8)), UsageError, "a list of Input, not of tuple"),
        (Input("x", (3,)), arcweld.ArcweldError, "x"),
    ],
)
def test_senseless_inputs_are_refused(given: Input, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        arcweld.compile(model_of(["n", 8]), inputs=[given], device="sim")


def test_an_input_is_given_once() -> None:
    with pytest.raises(UsageError, match="x is given twice"):
        arcweld.compile(model_of(["n", 8]), inputs=[Input("x", (3, 8)), Input("x", (4, 8))], device="sim")


def test_axes_may_be_left_to_the_model() -> None:
    graph = api.import_model(model_of(["n", 8]), inputs=Input("x", (None, np.int64(8))))
    assert str(graph.inputs[0].type) == "f32[n, 8]"
    graph = api.import_model(model_of(["n", 8]), inputs=Input("x", (("m", 2), None)))
    assert str(graph.inputs[0].type) == "f32[m, 8]"
    assert [(s.lo, s.hi) for s in graph.symbols()] == [(2, None)]


def test_the_right_type_is_accepted() -> None:
    for dtype in ("float32", np.float32, torch.float32, arcweld.compiler.dtypes.DType.F32):
        api.import_model(model_of(["n", 8]), inputs=[Input("x", dtype=dtype)])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "int4"}, "precision"), ({"verify": "maybe"}, "verification level"), ({"arch": "sm_70"}, "sm_70"),
        ({"disable": ["no-such-pass"]}, "no pass is called"), ({"device": "tpu"}, "tpu"),
        ({"sizes": {"q": 1}}, "called q"), ({"sizes": {"n": -1}}, "-1 is no size"), ({"arch": [80]}, "80 is no arch"),
        ({"sizes": {"n": "a"}}, "'a' is no size"), ({"precison": "fp16"}, "no option 'precison'"),
        ({"verify": True}, "verification level"), ({"tolerance": float("nan")}, "nan is no tolerance"),
        ({"tolerance": "a"}, "'a' is no tolerance"), ({"verify_budget": None}, "None is no budget"),
        ({"feeds": {"q": 1}}, "no input 'q'"), ({"kwargs": {"x": 1}}, "for torch modules"),
        ({"device": torch.device("cpu")}, "'cpu' is not a device"), ({"device": 1.5}, "a float is not a device"),
    ],
)  # fmt: skip
def test_senseless_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        arcweld.compile(model_of(["n", 8]), **{"device": "sim", **options})


@pytest.mark.parametrize("model", [3, None, {"a": 1}, object()])
def test_other_objects_are_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="can't compile a"):
        arcweld.compile(model, device="sim")


def test_shapes_of_a_module_come_from_its_arguments() -> None:
    with pytest.raises(UsageError, match="for ONNX models"):
        arcweld.compile(Module(), torch.zeros(3, 8), inputs=[Input("x", (3, 8))], device="sim")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(arcweld.ArcweldError, match=r"nowhere\.onnx"):
        arcweld.compile(tmp_path / "nowhere.onnx", device="sim")


def test_an_engine_is_not_a_model(tmp_path: Path) -> None:
    engine = arcweld.compile(model_of([3, 8]), device="sim", verify="off")
    engine.save(tmp_path / "m.engine")
    for model in (tmp_path / "m.engine", (tmp_path / "m.engine").read_bytes()):
        with pytest.raises(UsageError, match="is an engine, an ONNX model is needed"):
            arcweld.compile(model, device="sim")
    torch.save(Module().state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"m\.pt is an archive, not an ONNX model") as caught:
        arcweld.compile(tmp_path / "m.pt", device="sim")
    assert "arcweld.compile" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a PosixPath is no engine's data"):
        arcweld.Engine(tmp_path / "m.engine")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="save it to a file"):
        pickle.dumps(engine)


def test_feeds_of_any_kind_verify() -> None:
    for array in (sample(5, 8), torch.from_numpy(sample(5, 8))):
        engine = arcweld.compile(model_of(["n", 8]), device="sim", feeds={"x": array})
        assert engine.data.verify is not None
        assert engine.data.verify["shapes"] == {"x": [5, 8]}


@pytest.mark.parametrize(
    ("ops", "outputs"),
    [
        ({}, ["x"]), ({"y": "Identity"}, ["y", "x"]), ({"y": "Identity"}, ["x", "y"]),
        ({"y": "Identity", "z": "Identity"}, ["z", "x", "y"]), ({"y": "Relu"}, ["x", "y"]),
        ({"y": "Relu", "z": "Identity"}, ["z", "x", "y"]),
    ],
)  # fmt: skip
def test_inputs_as_outputs(ops: dict[str, str], outputs: list[str]) -> None:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in ("x", *outputs)]
    nodes = [helper.make_node(op, ["x"], [name]) for name, op in ops.items()]
    graph = helper.make_graph(nodes, "copies", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = sample(3, 8)
    got = arcweld.compile(model, device="sim").run({"x": x})
    want = {"x": x, **{n: np.maximum(x, 0) if op == "Relu" else x for n, op in ops.items()}}
    assert list(got) == outputs
    for name in outputs:
        np.testing.assert_array_equal(got[name], want[name])
        assert not np.shares_memory(got[name], x)


def test_a_model_without_outputs_is_none() -> None:
    model = model_of([3, 8])
    del model.graph.output[:]
    with pytest.raises(ModelError, match="has no outputs"):
        arcweld.compile(model, device="sim")


def test_unknown_operators_are_all_listed() -> None:
    model = model_of([3, 8])
    model.graph.node[0].op_type, model.graph.node[1].op_type = "Frobnicate", "Twiddle"
    with pytest.raises(UnsupportedError, match=r"(?s)Frobnicate.*Twiddle"):
        arcweld.compile(model, device="sim")


# ------------------------------------------------------------------------------------------------------ verification


def test_evidence_says_what_was_compared() -> None:
    engine = arcweld.compile(model_of([3, 8]), device="sim", verify="full")
    evidence = engine.data.verify
    assert evidence is not None
    assert evidence["level"] == "full"
    assert evidence["device"].startswith("sim")
    (kernel,) = evidence["kernels"]
    assert kernel["status"] == "verified"
    assert kernel["kernel"] in engine.data.sources
    assert 0 <= kernel["error"] < 1e-5
    (output,) = evidence["outputs"]
    assert (output["output"], output["status"]) == ("y", "verified")
    assert output["error"] < output["tolerance"]


def test_verification_can_be_left_out() -> None:
    engine = arcweld.compile(model_of([3, 8]), device="sim", verify="off")
    assert engine.data.verify is None
    np.testing.assert_allclose(engine.run({"x": sample(3, 8)})["y"], wanted(sample(3, 8)), rtol=1e-5, atol=1e-6)


def test_a_wrong_kernel_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowering of Relu is made to forget the negative half."""
    inline = inlining.inline

    def wrong(reader: Any, node: Any, coords: Any) -> expr.Expr:
        e = inline(reader, node, coords)
        return expr.unary("abs", e.args[0]) if node.op == "Relu" else e

    monkeypatch.setattr(inlining, "inline", wrong)
    with pytest.raises(
        AccuracyError, match=r"kernel contract_matmul_relu_\w+ computes y with relative error"
    ) as caught:
        arcweld.compile(model_of([3, 8]), device="sim", feeds={"x": sample(3, 8)})
    assert "product" in str(caught.value)
    assert "act" in str(caught.value)
    engine = arcweld.compile(model_of([3, 8]), device="sim", verify="off")
    assert engine.run({"x": sample(3, 8)})["y"].min() >= 0


def test_a_wrong_pass_is_noticed_by_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel computes what the rewritten graph says: only the whole engine can show that the rewrite is wrong."""
    from arcweld.driver import build

    run_passes = build.run_passes

    def wrong(graph: Any, options: Options, **more: Any) -> Any:
        g = run_passes(graph, options, **more)
        return g.replace(weights={k: arcweld.compiler.ir.Weight(w.data * 1.01, w.source) for k, w in g.weights.items()})

    monkeypatch.setattr(build, "run_passes", wrong)
    with pytest.raises(AccuracyError, match="output y has relative error"):
        arcweld.compile(model_of([3, 8]), device="sim")


def test_the_tolerance_is_the_users() -> None:
    with pytest.raises(AccuracyError):
        arcweld.compile(model_of([3, 8]), precision="fp16", device="sim", tolerance=1e-9)
    arcweld.compile(model_of([3, 8]), precision="fp16", device="sim", tolerance=0.1)


def test_a_small_budget_skips_and_says_so() -> None:
    engine = arcweld.compile(model_of([3, 8]), device="sim", verify_budget=0.0)
    evidence = engine.data.verify
    assert evidence is not None
    assert {k["status"] for k in evidence["kernels"]} == {"skipped"}
    assert all("budget" in k["reason"] for k in evidence["kernels"])


# ----------------------------------------------------------------------------------------------------- saving, sessions


def test_engines_are_saved_with_their_evidence(tmp_path: Path) -> None:
    engine = arcweld.compile(model_of(["n", 8]), device="sim")
    engine.save(tmp_path / "m.engine")
    again = arcweld.load(tmp_path / "m.engine", device="sim")
    assert again.data.verify == engine.data.verify
    np.testing.assert_array_equal(again.run({"x": sample(5, 8)})["y"], engine.run({"x": sample(5, 8)})["y"])


def test_sessions_are_called_like_those_of_onnx_runtime(tmp_path: Path) -> None:
    arcweld.compile(model_of(["n", 8]), device="sim").save(tmp_path / "m.engine")
    session = arcweld.InferenceSession(tmp_path / "m.engine", device="sim")
    (x,), (y,) = session.get_inputs(), session.get_outputs()
    assert (x.name, x.shape, x.type) == ("x", ["n", 8], "tensor(float)")
    assert (y.name, y.shape) == ("y", ["n", 4])
    for names in (None, ["y"]):
        (got,) = session.run(names, {"x": sample(2, 8)})
        np.testing.assert_allclose(got, wanted(sample(2, 8)), rtol=1e-5, atol=1e-6)
    with pytest.raises(arcweld.InputError, match="no output 'z'"):
        session.run(["z"], {"x": sample(2, 8)})


def test_a_build_is_dumped_step_by_step(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build, _ = api.build_engine(
        api.import_model(model_of([3, 8])), device="sim", dump=tmp_path / "d", progress=lambda *a: told.append(a)
    )
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert names[0] == "00-import.txt"
    assert [n for n in names if n.endswith(".cu")] == [f"{p.sources[0].entry}.cu" for p in build.planned]
    for stage in ("codegen", "verify"):
        last = [t for t in told if t[0] == stage][-1]
        assert last[1] == last[2] == len(build.planned)
    assert build.seconds["total"] > 0


@pytest.mark.parametrize(
    ("name", "doing"),
    [("verify_build", "the build"), ("build_graph", "the build"), ("check_inputs", "the import")],
)
def test_what_memory_cannot_hold_is_said(name: str, doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 32.0 TiB")

    monkeypatch.setattr(api, name, full)
    with pytest.raises(EnvironmentError_, match=rf"not enough memory for {doing}: Unable to allocate 32\.0 TiB"):
        api.compile(torch.nn.ReLU(), torch.zeros(3), device="sim")
