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
