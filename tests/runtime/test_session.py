"""``InferenceSession`` beside ONNX Runtime's class: the same calls on the same model give the same answers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import arcweld
from arcweld.compiler.errors import DeviceError, InputError, UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """``y = relu(x w)`` and the integers ``z = round(y)``, as ONNX file and as engine file."""
    folder = tmp_path_factory.mktemp("session")
    w = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.INT64),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    outputs = [info("y", TensorProto.FLOAT, ["n", 5]), info("z", TensorProto.INT64, ["n", 5])]
    graph = helper.make_graph(
        nodes, "net", [info("x", TensorProto.FLOAT, ["n", 8])], outputs, [numpy_helper.from_array(w, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m.onnx")
    arcweld.compile(folder / "m.onnx", device="sim").save(folder / "m.engine")
    return folder / "m.onnx", folder / "m.engine"


@pytest.fixture
def theirs(files: tuple[Path, Path]) -> ort.InferenceSession:
    return ort.InferenceSession(files[0], providers=["CPUExecutionProvider"])


@pytest.fixture
def ours(files: tuple[Path, Path]) -> arcweld.InferenceSession:
    return arcweld.InferenceSession(files[1], "sim")


def batch(n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 8)).astype(np.float32)


def same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_arguments_and_results_are_described_alike(ours: Any, theirs: Any) -> None:
    for mine, other in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
        assert [(a.name, a.shape, a.type) for a in mine] == [(a.name, a.shape, a.type) for a in other]
    assert ours.get_overridable_initializers() == theirs.get_overridable_initializers() == []
    mine, other = ours.get_modelmeta(), theirs.get_modelmeta()
    assert mine.graph_name == other.graph_name == "net"
    for name in ("domain", "description", "graph_description"):
        assert getattr(mine, name) == getattr(other, name) == ""
    assert mine.producer_name == "arcweld"
    assert type(mine.custom_metadata_map) is type(other.custom_metadata_map)


def test_providers_are_named_and_accepted_again(ours: Any, theirs: Any, files: tuple[Path, Path]) -> None:
    assert ours.get_providers() == ["SimExecutionProvider"]
    assert list(ours.get_provider_options()) == ours.get_providers()
    assert list(theirs.get_provider_options()) == theirs.get_providers()
    again = arcweld.InferenceSession(files[1], providers=ours.get_providers(), provider_options=[{}])
    assert again.get_providers() == ours.get_providers()
    with pytest.raises(UsageError, match="2 provider_options for 1 providers"):
        arcweld.InferenceSession(files[1], providers=["SimExecutionProvider"], provider_options=[{}, {}])
    cuda: Any = {"providers": ["CUDAExecutionProvider"], "provider_options": [{"device_id": 7}]}
    with pytest.raises(arcweld.EnvironmentError_, match="no GPU 7"):
        arcweld.InferenceSession(files[1], **cuda)


def test_session_options_have_onnx_runtimes_names_and_defaults(files: tuple[Path, Path]) -> None:
    mine, other = arcweld.SessionOptions(), ort.SessionOptions()
    for name in ("intra_op_num_threads", "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern",
                 "enable_mem_reuse", "enable_profiling", "log_severity_level", "log_verbosity_level", "logid",
                 "use_deterministic_compute"):  # fmt: skip
        assert getattr(mine, name) == getattr(other, name), name
    for options in (mine, other):
        options.intra_op_num_threads = 2
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        for session in (
            arcweld.InferenceSession(files[1], options, providers=["SimExecutionProvider"]),
            arcweld.InferenceSession(files[1], sess_options=options, device="sim"),
        ):
            assert session.get_session_options() is options
    mine.enable_profiling = True
    with pytest.raises(UsageError, match="enable_profiling"):
        arcweld.InferenceSession(files[1], mine)
    with pytest.raises(UsageError, match="no entry 'x'"):
        mine.get_session_config_entry("x")
    with pytest.raises(TypeError):
        arcweld.SessionOptions(threads=1)  # type: ignore[call-arg]


def test_binding_of_inputs_and_outputs(ours: Any, theirs: Any) -> None:
    for session in (ours, theirs):
        x = batch(4)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("z")
        binding.bind_output("y", "cpu")
        session.run_with_iobinding(binding)
        want = theirs.run(["z", "y"], {"x": x})
        same(binding.copy_outputs_to_cpu(), want)
        values = binding.get_outputs()
        same([v.numpy() for v in values], want)
        assert [(v.shape(), v.data_type(), v.device_name()) for v in values] == [
            ([4, 5], "tensor(int64)", "cpu"), ([4, 5], "tensor(float)", "cpu"),
        ]  # fmt: skip
        x[...] = batch(5)[:4]  # it is read at each call
        session.run_with_iobinding(binding)
        same(binding.copy_outputs_to_cpu(), theirs.run(["z", "y"], {"x": x}))


def test_binding_of_memory_at_an_address(ours: Any, theirs: Any) -> None:
    for session in (ours, theirs):
        x, y = batch(2), np.zeros((2, 5), np.float32)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, (2, 8), x.ctypes.data)
        binding.bind_output("y", "cpu", 0, TensorProto.FLOAT, (2, 5), y.ctypes.data)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        same([y], theirs.run(["y"], {"x": x}))


def test_values(ours: Any, theirs: Any) -> None:
    x = batch(3)
    for session, made in ((ours, arcweld.OrtValue), (theirs, ort.OrtValue)):
        value, result = made.ortvalue_from_numpy(x), made.ortvalue_from_shape_and_type([3, 5], np.float32)
        assert value.data_ptr() == ctypes.addressof(ctypes.c_char.from_buffer(x))
        assert (value.shape(), value.data_type(), value.element_type()) == ([3, 8], "tensor(float)", TensorProto.FLOAT)
        assert (value.has_value(), value.is_tensor(), value.tensor_size_in_bytes()) == (True, True, 96)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_ortvalue_output("y", result)
        session.run_with_iobinding(binding)
        same([result.numpy()], theirs.run(["y"], {"x": x}))
        (z,) = session.run_with_ort_values(["z"], {"x": value})
        same([z.numpy()], theirs.run(["z"], {"x": x}))
        result.update_inplace(np.ones((3, 5), np.float32))
        same([result.numpy()], [np.ones((3, 5), np.float32)])


def test_bindings_that_do_not_fit(ours: Any) -> None:
    binding = ours.io_binding()
    refused: dict[str, Any] = {
        "no input 'q'": lambda: binding.bind_cpu_input("q", batch()),
        "no output 'q'": lambda: binding.bind_output("q"),
        "no device 'dml'": lambda: binding.bind_output("y", "dml"),
        "type and the shape": lambda: binding.bind_output("y", buffer_ptr=1),
        "element type 8 is not supported": lambda: binding.bind_input("x", "cpu", 0, TensorProto.STRING, (1,), 1),
        "no output is bound": lambda: ours.run_with_iobinding(binding),
        "run options": lambda: ours.run_with_iobinding(binding, object()),
    }
    for message, call in refused.items():
        with pytest.raises(arcweld.ArcweldError, match=message):
            call()
    binding.bind_output("y")
    with pytest.raises(InputError, match="'x' is missing"):
        ours.run_with_iobinding(binding)
    binding.bind_cpu_input("x", batch(2))
    small = np.zeros((1, 5), np.float32)
    binding.bind_output("y", "cpu", 0, np.float32, (1, 5), small.ctypes.data)
    with pytest.raises(InputError, match=r"output 'y' is float32\[2, 5\], bound to float32\[1, 5\]"):
        ours.run_with_iobinding(binding)
    binding.clear_binding_outputs()
    binding.clear_binding_inputs()
    assert binding.get_outputs() == []


# ------------------------------------------------------------------------------------- past and present in one buffer

CACHE = (2, 3, 8, 4)


def cached() -> onnx.ModelProto:
    """A cache in which one row is written, the sum of it, and a second cache, of which all is computed anew."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("TensorScatter", ["past", "new", "at"], ["present"]),
        helper.make_node("ReduceSum", ["present"], ["sum"], keepdims=0),
        helper.make_node("Transpose", ["other"], ["other_out"], perm=[1, 0]),
    ]
    inputs = [info("past", TensorProto.FLOAT, CACHE), info("new", TensorProto.FLOAT, (2, 3, 1, 4)),
              info("at", TensorProto.INT64, (2,)), info("other", TensorProto.FLOAT, (4, 4))]  # fmt: skip
    outputs = [info("present", TensorProto.FLOAT, CACHE), info("sum", TensorProto.FLOAT, ()),
               info("other_out", TensorProto.FLOAT, (4, 4))]  # fmt: skip
    graph = helper.make_graph(nodes, "cached", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.fixture(scope="module")
def cached_sessions() -> dict[str, Any]:
    """Sessions of engines with state and without, and of ONNX Runtime."""
    model = cached()
    state = [arcweld.Input("past", inout=True), arcweld.Input("other", inout="other_out")]
    return {
        "state": arcweld.InferenceSession(arcweld.compile(model, inputs=state, device="sim")),
        "no state": arcweld.InferenceSession(arcweld.compile(model, device="sim")),
        "runtime": ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]),
    }


def bound(session: Any, past: np.ndarray, other: np.ndarray, feeds: dict[str, np.ndarray]) -> Any:
    """A binding with each cache as input and as output, by address."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for before, after, array in (("past", "present", past), ("other", "other_out", other)):
        where = ("cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_input(before, *where)
        binding.bind_output(after, *where)
    binding.bind_output("sum")
    return binding


def steps() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [
        {"new": rng.standard_normal((2, 3, 1, 4)).astype(np.float32), "at": np.array([k, 7 - k])} for k in range(8)
    ]  # fmt: skip


def test_one_buffer_for_past_and_present(cached_sessions: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is updated in place, as by ONNX Runtime: what a kernel writes is not copied, other state is once."""
    copied: list[Any] = []
    found = {}
    for name, session in cached_sessions.items():
        past, other = np.zeros(CACHE, np.float32), np.arange(16, dtype=np.float32).reshape(4, 4)
        if name == "runtime":  # which computes other_out from memory that it is writing already
            other = other.copy()
        for feeds in steps()[:7]:
            binding = bound(session, past, other, feeds)
            if name == "state":
                monkeypatch.setattr("arcweld.runtime.binding._store", lambda *arrays: copied.append(arrays))
            session.run_with_iobinding(binding)
            monkeypatch.undo()
        sums = [v.numpy() for v in binding.get_outputs() if v.shape() == []]
        found[name] = past, sums, other
    assert not copied
    for name in ("state", "no state"):
        np.testing.assert_array_equal(found[name][0], found["runtime"][0])
        np.testing.assert_allclose(found[name][1], found["runtime"][1], rtol=1e-5)
        np.testing.assert_array_equal(found[name][2], np.arange(16).reshape(4, 4).T)  # seven times
    direct = cached_sessions["no state"].run(["sum"], {**feeds, "past": past, "other": other})
    np.testing.assert_allclose(direct[0], past.sum(), rtol=1e-5)


def test_state_that_is_bound_elsewhere_is_copied(cached_sessions: dict[str, Any]) -> None:
    session, past, target = cached_sessions["state"], np.zeros(CACHE, np.float32), np.zeros(CACHE, np.float32)
    binding = bound(session, past, np.eye(4, dtype=np.float32), steps()[0])
    binding.bind_ortvalue_output("present", arcweld.OrtValue(target))
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(past, target)
    assert past.any()


def test_state_that_cannot_be_bound_so(cached_sessions: dict[str, Any]) -> None:
    """Each is one error, and nothing is written."""
    session, feeds = cached_sessions["state"], steps()[0]
    past, other = np.zeros(CACHE, np.float32), np.eye(4, dtype=np.float32)
    frozen = np.zeros(CACHE, np.float32)
    frozen.flags.writeable = False
    short, wide = np.zeros((2, 3, 7, 4), np.float32), np.zeros((2, 3, 8, 8), np.float32)[..., :4]
    value, part = arcweld.OrtValue, past.reshape(-1)[16:32].reshape(4, 4)
    cases: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = [
        (r"output 'present' takes over input 'past', which is float32\[2, 3, 8, 4\], and is bound to float32"
         r"\[2, 3, 7, 4\]", {}, {"present": short}),
        ("'past' is changed in place: it must be contiguous, writable", {"past": frozen}, {"present": past}),
        ("'past' is changed in place: it must be contiguous, writable", {"past": wide}, {"present": past}),
        ("output 'present' is bound to memory that is read-only", {}, {"present": frozen}),
        ("output 'sum' is bound to memory of input 'past', which is changed in place", {},
         {"sum": past.reshape(-1)[5:6].reshape(())}),
        ("output 'other_out' is bound to memory of input 'past'", {}, {"other_out": part}),
        ("inputs 'past' and 'other' overlap, and one of them is changed in place", {"other": part},
         {"other_out": np.zeros((4, 4), np.float32), "present": np.zeros(CACHE, np.float32)}),
    ]  # fmt: skip
    for said, inputs, outputs in cases:
        binding = bound(session, past, other, feeds)
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, value(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, value(array))
        with pytest.raises(InputError, match=said):
            session.run_with_iobinding(binding)
        assert not any(a.any() for a in (past, frozen, short, wide))
        np.testing.assert_array_equal(other, np.eye(4))


def test_a_cache_of_another_length_is_told_how_to_be_shared(cached_sessions: dict[str, Any]) -> None:
    binding = bound(cached_sessions["no state"], np.zeros(CACHE, np.float32), np.eye(4, dtype=np.float32), steps()[0])
    past = np.zeros(CACHE, np.float32)
    binding.bind_ortvalue_input("past", arcweld.OrtValue(past))
    binding.bind_ortvalue_output("present", arcweld.OrtValue(past.reshape(-1)[:160].reshape(2, 2, 10, 4)))
    with pytest.raises(InputError, match="output 'present' is") as caught:
        cached_sessions["no state"].run_with_iobinding(binding)
    assert "inout='present'" in str(caught.value.hint)


def test_more_than_the_memory_is_a_typed_error(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError("Unable to allocate 32.0 TiB")

    monkeypatch.setattr("arcweld.runtime.arrays.aligned_empty", full)  # what inputs are copied to that are not dense
    with pytest.raises(DeviceError, match=r"not enough memory for this call: Unable to allocate 32\.0 TiB"):
        ours.run(None, {"x": np.broadcast_to(np.float32(1), (2, 8))})


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    for name in ("nothere.onnx", "nothere.engine"):
        with pytest.raises(arcweld.EngineFileError, match=f"there is no engine file '.*{name}'"):
            arcweld.InferenceSession(tmp_path / name, "sim")
    (tmp_path / "here.onnx").write_bytes(b"")
    with pytest.raises(arcweld.EngineFileError, match="is a model, not an engine"):
        arcweld.InferenceSession(tmp_path / "here.onnx", "sim")


def test_options_of_compile_are_a_public_type() -> None:
    options: arcweld.CompileOptions = {"precision": "fp16", "verify": "off", "keep_f32": ["fc1"]}
    assert set(options) <= set(arcweld.CompileOptions.__annotations__)
