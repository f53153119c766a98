"""ONNX Runtime's classes around a session: ``SessionOptions``, ``OrtValue``, ``IOBinding`` and ``ModelMetadata``.

They have the names and meanings of ONNX Runtime's, as far as an engine has a use for them.
"""

from __future__ import annotations

import bisect
import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import DeviceError, InputError, UsageError
from arcweld.runtime.devices import on_host
from arcweld.runtime.engine import Engine

TYPES = {
    DType.F64: "double", DType.F32: "float", DType.F16: "float16", DType.BF16: "bfloat16", DType.I64: "int64",
    DType.I32: "int32", DType.I16: "int16", DType.I8: "int8", DType.U64: "uint64", DType.U32: "uint32",
    DType.U16: "uint16", DType.U8: "uint8", DType.BOOL: "bool", DType.STR: "string",
}  # fmt: skip
_CODES = {  # onnx.TensorProto.DataType
    DType.F32: 1, DType.U8: 2, DType.I8: 3, DType.U16: 4, DType.I16: 5, DType.I32: 6, DType.I64: 7, DType.BOOL: 9,
    DType.F16: 10, DType.F64: 11, DType.U32: 12, DType.U64: 13, DType.BF16: 16, DType.STR: 8,
}  # fmt: skip
_BY_CODE = {code: dtype for dtype, code in _CODES.items() if dtype is not DType.STR}  # those that memory holds


@dataclass(slots=True)
class SessionOptions:
    """ONNX Runtime's options of a session. An engine is optimised when it is built and uses no host threads, so the
    options about these are kept and have no effect. ``enable_profiling`` is refused by the session.
    """

    intra_op_num_threads: int = 0
    inter_op_num_threads: int = 0
    graph_optimization_level: Any = None
    execution_mode: Any = None
    execution_order: Any = None
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True
    enable_mem_reuse: bool = True
    enable_profiling: bool = False
    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    use_deterministic_compute: bool = False
    config: dict[str, str] = field(default_factory=dict)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keeps an entry, which has no effect."""
        self.config[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """An entry that was added. Raises UsageError for another one."""
        if key not in self.config:
            raise UsageError(f"the session options have no entry {key!r}")
        return self.config[key]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What an engine file says about itself: the model's name, and the provenance as ``custom_metadata_map``."""

    producer_name: str
    graph_name: str
    custom_metadata_map: dict[str, str]
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 0


class OrtValue:
    """A tensor in the host's memory (``cpu``) or on a GPU (``cuda``)."""

    def __init__(self, array: Any) -> None:
        """``array`` is a numpy or a CuPy array, whose memory the value shares."""
        self.array = array

    @classmethod
    def ortvalue_from_numpy(cls, numpy_obj: np.ndarray, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """A value that shares the array's memory, or holds a copy on a GPU."""
        if on_host(device_type):
            return cls(numpy_obj)
        import cupy

        with cupy.cuda.Device(device_id):
            return cls(cupy.asarray(numpy_obj))

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: Sequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0
    ) -> OrtValue:
        """An uninitialised value; ``element_type`` is numpy's type or ONNX' number of it.

        Raises InputError for a shape that no array has, DeviceError for one for which there is not enough memory.
        """
        dtype, sizes = _numpy_type(element_type), tuple(shape)
        try:
            array = np.empty(sizes, dtype)
        except MemoryError:
            nbytes = math.prod(sizes) * dtype.itemsize
            raise DeviceError(f"there is not enough memory for shape {list(sizes)}: {nbytes} bytes") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"no array has the shape {list(sizes)}: {error}") from None
        return cls.ortvalue_from_numpy(array, device_type, device_id)

    def numpy(self) -> np.ndarray:
        """The value as a numpy array, copied from a GPU."""
        return to_host(self.array)

    def shape(self) -> list[int]:
        """The sizes of all axes."""
        return list(self.array.shape)

    def data_type(self) -> str:
        """The type, such as ``tensor(float)``."""
        return f"tensor({TYPES[self._element()]})"

    def element_type(self) -> int:
        """ONNX' number of the element type."""
        return _CODES[self._element()]

    def _element(self) -> DType:
        """The element type; an array of objects holds strings."""
        return DType.STR if self.array.dtype == object else from_numpy(self.array.dtype)

    def device_name(self) -> str:
        """``cpu`` or ``cuda``."""
        return "cpu" if isinstance(self.array, np.ndarray) else "cuda"

    def data_ptr(self) -> int:
        """The address of the first element."""
        if isinstance(self.array, np.ndarray):
            return int(self.array.__array_interface__["data"][0])
        return int(self.array.data.ptr)

    def tensor_size_in_bytes(self) -> int:
        """The bytes of all elements."""
        return int(self.array.nbytes)

    def has_value(self) -> bool:
        """True: a value is never empty here."""
        return True

    def is_tensor(self) -> bool:
        """True: engines have tensors only."""
        return True

    def update_inplace(self, np_arr: np.ndarray) -> None:
        """Overwrites the elements."""
        _store(np_arr, self.array)


class IOBinding:
    """The inputs and outputs of coming calls of ``run_with_iobinding``.

    An input that an output takes over is changed in place. The output may be bound to the same memory, and then nothing
    is copied. Any other output that is bound to memory is copied there at the end of a call.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inputs: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}  # by output: an array to write, or whether a new one is on the host
        self._results: dict[str, Any] = {}

    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        """Takes an input from a numpy array, which is read at each call."""
        self._inputs[self._known(name, "input")] = arr_on_cpu

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Takes an input from memory that the caller keeps alive."""
        array = _view(device_type, device_id, element_type, shape, buffer_ptr)
        self._inputs[self._known(name, "input")] = array

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Takes an input from a value."""
        self._inputs[self._known(name, "input")] = ortvalue.array

    def bind_output(
        self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
        shape: Sequence[int] | None = None, buffer_ptr: int | None = None,
    ) -> None:  # fmt: skip
        """Asks for an output, as a new array on that device, or copied into memory that the caller keeps alive.

        Raises UsageError for an address without type and shape.
        """
        self._known(name, "output")
        if buffer_ptr is None:
            self._targets[name] = on_host(device_type)
        elif element_type is None or shape is None:
            raise UsageError("the element type and the shape of the memory are needed", hint="give both")
        else:
            self._targets[name] = _view(device_type, device_id, element_type, shape, buffer_ptr)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Copies an output into a value."""
        self._known(name, "output")
        self._targets[name] = ortvalue.array

    def run(self) -> None:
        """Calls the engine; ``run_with_iobinding`` is ONNX Runtime's name of this.

        Raises InputError where no output is bound, or where one has another shape or type than what it is copied into;
        before the call, where memory is read-only or has something in it that the call changes in place.
        """
        if not self._targets:
            raise InputError("no output is bound", hint='binding.bind_output("name")')
        self._check_memory()
        found = self._engine.run(self._inputs)
        self._results = {name: self._delivered(name, found[name], to) for name, to in self._targets.items()}

    def get_outputs(self) -> list[OrtValue]:
        """The bound outputs of the last call, in the order of binding."""
        return [OrtValue(a) for a in self._results.values()]

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        """The bound outputs of the last call as numpy arrays, in the order of binding."""
        return [to_host(a) for a in self._results.values()]

    def clear_binding_inputs(self) -> None:
        """Forgets the inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forgets the outputs, and those of the last call."""
        self._targets.clear()
        self._results.clear()

    def synchronize_inputs(self) -> None:
        """Waits for the device."""
        self._engine.device.synchronize()

    def synchronize_outputs(self) -> None:
        """Waits for the device."""
        self._engine.device.synchronize()

    def _known(self, name: str, kind: str) -> str:
        arguments = self._engine.arguments if kind == "input" else self._engine.results
        if any(a.name == name and a.kind != "tensor" for a in arguments):
            raise InputError(f"{kind} {name!r} is no tensor, and memory is bound to tensors", hint="call run instead")
        names = [a.name for a in arguments if a.kind == "tensor"]
        if name not in names:
            raise InputError(f"the engine has no {kind} {name!r}; it has {', '.join(names)}")
        return name

    def _check_memory(self) -> None:
        """Raises InputError for outputs that cannot be written where they are bound, while nothing is written yet."""
        taken_over = {s.output: s.input for s in self._engine.program.state}
        changed = {_span(self._inputs[n]): n for n in taken_over.values() if n in self._inputs}
        spans = sorted(changed)
        for name, to in self._targets.items():
            if isinstance(to, bool):
                continue
            if isinstance(to, np.ndarray) and not to.flags.writeable:
                raise InputError(f"output {name!r} is bound to memory that is read-only")
            own = self._inputs.get(taken_over.get(name, ""))
            if own is not None and (own.shape, own.dtype) != (to.shape, to.dtype):
                what = f"output {name!r} takes over input {taken_over[name]!r}, which is {own.dtype}{list(own.shape)}"
                raise InputError(f"{what}, and is bound to {to.dtype}{list(to.shape)}")
            begin, end = _span(to)
            at = bisect.bisect_left(spans, (begin + 1, 0))  # the first that begins behind this one
            for other in spans[max(at - 1, 0) : at + 1]:
                mine = own is not None and other == (begin, end) and changed[other] == taken_over[name]
                if other[0] < end and begin < other[1] and not mine:
                    raise InputError(
                        f"output {name!r} is bound to memory of input {changed[other]!r}, which is changed in place",
                        hint="give each of them memory of its own",
                    )

    def _delivered(self, name: str, result: Any, to: Any) -> Any:
        if isinstance(to, bool):
            if not to and result.dtype == object:
                raise InputError(f"output {name!r} is strings, which stay on the host", hint="bind it to the cpu")
            return to_host(result) if to else _to_gpu(result)
        if (result.shape, result.dtype) != (to.shape, to.dtype):
            shared = next((n for n, a in self._inputs.items() if OrtValue(a).data_ptr() == OrtValue(to).data_ptr()), "")
            hint = f"to update {shared} in place, build with Input({shared!r}, inout={name!r})" if shared else None
            what = f"output {name!r} is {result.dtype}{list(result.shape)}, bound to {to.dtype}{list(to.shape)}"
            raise InputError(what, hint=hint)
        if _span(result) != _span(to):
            _store(result, to)
        return to


def _span(array: Any) -> tuple[int, int]:
    """The addresses of the first byte and behind the last one."""
    value = OrtValue(array)
    begin = value.data_ptr()
    return begin, begin + value.tensor_size_in_bytes()


def to_host(array: Any) -> np.ndarray:
    """A numpy array as it is, a CuPy array copied."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.get())


def _to_gpu(array: Any) -> Any:
    import cupy

    return cupy.asarray(array)


def _store(source: Any, target: Any) -> None:
    """Copies between arrays of any kind."""
    if isinstance(target, np.ndarray):
        target[...] = to_host(source)
    else:
        target[...] = _to_gpu(source)


def _numpy_type(element_type: Any) -> np.dtype:
    if isinstance(element_type, int):
        if element_type not in _BY_CODE:
            raise UsageError(f"ONNX' element type {element_type} is not supported")
        return _BY_CODE[element_type].numpy
    return from_numpy(element_type).numpy


def _view(device_type: str, device_id: int, element_type: Any, shape: Sequence[int], address: int) -> Any:
    """An array over memory at an address; the caller keeps it alive."""
    dtype, sizes = _numpy_type(element_type), tuple(int(n) for n in shape)
    nbytes = math.prod(sizes) * dtype.itemsize
    if on_host(device_type):
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
        return np.frombuffer(memory, dtype).reshape(sizes)
    import cupy

    foreign = cupy.cuda.UnownedMemory(address, nbytes, None, device_id)
    return cupy.ndarray(sizes, dtype, cupy.cuda.MemoryPointer(foreign, 0))


def is_session_options(found: Any) -> bool:
    """True for options of this module's class or of ONNX Runtime's."""
    return isinstance(found, SessionOptions) or type(found).__name__ == "SessionOptions"


def provider_options(
    providers: Sequence[str | tuple[str, Mapping[str, Any]]], options: Sequence[Mapping[str, Any]] | None
) -> Sequence[str | tuple[str, Mapping[str, Any]]]:
    """Providers with the options of a separate list. Raises UsageError for lists of different lengths."""
    if options is None:
        return providers
    if len(options) != len(providers):
        raise UsageError(f"{len(options)} provider_options for {len(providers)} providers", hint="give one for each")
    return [(p if isinstance(p, str) else p[0], o) for p, o in zip(providers, options)]
