"""Callers' arrays: takes numpy, torch, CuPy and any object with ``__dlpack__``; makes results of the same kind.

Contiguous, 16-byte aligned arrays on the device are used without a copy. torch is looked up in ``sys.modules`` and
never imported: an array of its type means that the caller has imported it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType, from_numpy, pack
from arcweld.compiler.errors import ArcweldError, InputError
from arcweld.compiler.ops.host_strings import is_strings
from arcweld.runtime.device import Memory
from arcweld.runtime.plan import Shape

ALIGNMENT = 16  # bytes, which the widest vector load of a kernel needs
_CPU_DEVICES = (1, 3)  # DLPack's codes: plain and pinned host memory
_CUDA_DEVICES = (2, 13)  # device and managed memory


@dataclass(slots=True)
class Taken:
    """An input that kernels can read.

    ``address`` is in the device's memory, unless ``host`` is set: this array must still be uploaded. ``keep`` owns the
    memory. ``given`` is the caller's array, whose memory that may be.
    """

    kind: str
    address: int
    shape: Shape
    nbytes: int
    keep: object
    host: np.ndarray | None = None
    given: Any = None

    @property
    def readable(self) -> np.ndarray | None:
        """The elements, if they are in the host's memory."""
        kept = self.keep[-1] if isinstance(self.keep, tuple) else self.keep
        return kept if isinstance(kept, np.ndarray) else None


class Element:
    """An element type with its counterparts in numpy and (once torch is imported) in torch, looked up once."""

    __slots__ = ("dtype", "numpy", "packed", "torch")

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.packed = dtype.is_packed
        self.numpy = dtype.numpy
        self.torch: Any = None

    def find_torch(self) -> Any:
        """torch's dtype; None while torch is not imported, or if this version of it has no such type."""
        if self.torch is None and "torch" in sys.modules:
            name = _TORCH_NAMES.get(self.dtype, str(self.numpy))
            self.torch = getattr(sys.modules["torch"], name, None)
        return self.torch


class Arrays:
    """Takes inputs for one device and makes results on it: the GPU with index ``gpu``, or the host for None.

    The kinds of arrays are ``numpy``, ``torch`` (on the CPU), ``torch-gpu`` and ``cupy``; and ``device``, memory that
    ``allocate`` gives, which no caller sees.
    """

    def __init__(self, gpu: int | None, allocate: Callable[[int], Memory] | None = None) -> None:
        self.on_gpu = gpu is not None
        self.index = gpu or 0
        self._allocate = allocate
        # a session's buffers come as they are
        self._takers: dict[type, Callable[[str, Any, Element], Taken]] = {Taken: lambda name, taken, element: taken}

    def take(self, name: str, array: Any, element: Element) -> Taken:
        """The input ``name`` as kernels can read it: dense, aligned, and copied only if it is not.

        Raises InputError for an object that is no array, another element type than ``element``, or another device.
        """
        if element.dtype is DType.STR:
            return take_strings(name, array)
        if element.packed and not isinstance(array, np.ndarray | np.generic):
            raise InputError(
                f"input {name!r} is {element.dtype.value}, which only numpy arrays hold",
                hint=f"give an array of ml_dtypes.{element.numpy}: it is packed as it is copied",
            )
        taker = self._takers.get(type(array))
        if taker is None:
            taker = self._takers[type(array)] = self._taker(name, array)
        return taker(name, array, element)

    def _taker(self, name: str, array: Any) -> Callable[[str, Any, Element], Taken]:
        if isinstance(array, np.ma.MaskedArray):
            raise InputError(f"input {name!r} is a masked array, whose mask would be lost", hint="call .filled() on it")
        if isinstance(array, np.ndarray | np.generic):
            return self._take_numpy
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(array, torch.Tensor):
            return self._take_torch
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(array, cupy.ndarray):
            return self._take_cupy
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            return self._take_dlpack
        raise InputError(
            f"input {name!r} is a {type(array).__name__}, not an array",
            hint="pass a numpy array, a torch tensor, a CuPy array or an object with __dlpack__",
        )

    # ------------------------------------------------------------------------------------------ one kind each

    def _take_numpy(self, name: str, array: Any, element: Element) -> Taken:
        if array.dtype != element.numpy:
            raise _wrong_dtype(name, str(array.dtype), element.dtype)
        host = dense(pack(np.asarray(array)) if element.packed else np.asarray(array))
        address = int(host.__array_interface__["data"][0])
        return Taken("numpy", address, array.shape, host.nbytes, host, host if self.on_gpu else None)

    def _take_torch(self, name: str, tensor: Any, element: Element) -> Taken:
        if tensor.dtype is not (element.torch or element.find_torch()):
            raise _wrong_dtype(name, str(tensor.dtype).removeprefix("torch."), element.dtype)
        if str(tensor.layout) != "torch.strided":
            raise InputError(f"input {name!r} is a {tensor.layout} tensor", hint="call .to_dense() on it")
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        shape = tuple(tensor.shape)
        if tensor.is_cuda:
            self._check_gpu(name, tensor.device.index)
            if tensor.data_ptr() % ALIGNMENT:
                tensor = tensor.clone()
            return Taken("torch-gpu", tensor.data_ptr(), shape, tensor.nbytes, tensor)
        if tensor.device.type != "cpu":
            raise InputError(f"input {name!r} is on {tensor.device}", hint="move it to the CPU or to CUDA")
        host = dense(host_view(tensor, element.numpy))
        address = int(host.__array_interface__["data"][0])
        return Taken("torch", address, shape, host.nbytes, (tensor, host), host if self.on_gpu else None)

    def _take_cupy(self, name: str, array: Any, element: Element) -> Taken:
        if array.dtype != element.numpy:
            raise _wrong_dtype(name, str(array.dtype), element.dtype)
        self._check_gpu(name, array.device.id)
        if not array.flags.c_contiguous or array.data.ptr % ALIGNMENT:
            array = array.copy(order="C")
        return Taken("cupy", array.data.ptr, array.shape, array.nbytes, array)

    def _take_dlpack(self, name: str, array: Any, element: Element) -> Taken:
        place, index = array.__dlpack_device__()
        if int(place) in _CPU_DEVICES:
            try:
                host = np.from_dlpack(array)
            except (BufferError, RuntimeError, TypeError) as error:
                raise InputError(f"input {name!r} cannot be read through DLPack: {error}") from None
            return self._take_numpy(name, host, element)
        if int(place) not in _CUDA_DEVICES:
            raise InputError(f"input {name!r} is on a device that is neither CPU nor CUDA")
        self._check_gpu(name, int(index))
        import cupy

        return self._take_cupy(name, cupy.from_dlpack(array), element)

    def _check_gpu(self, name: str, index: int) -> None:
        if not self.on_gpu:
            raise InputError(
                f"input {name!r} is on a GPU, but the engine runs on the sim device",
                hint='load it with device="cuda", or pass .cpu()',
            )
        if index != self.index:
            raise InputError(f"input {name!r} is on GPU {index}, the engine on GPU {self.index}")

    # ------------------------------------------------------------------------------------------------ results

    def empty(self, kind: str, shape: Shape, element: Element) -> tuple[Any, int, np.ndarray | None]:
        """A new result array of a kind, its address, and the host view to download into (None: on the device).

        Raises MemoryError for an array on the host for which there is not enough memory.
        """
        if kind == "device":
            assert self._allocate is not None
            nbytes = element.dtype.nbytes(math.prod(shape))
            memory = self._allocate(max(nbytes, 1))
            return Taken(kind, memory.address, shape, nbytes, memory), memory.address, None
        if kind == "torch-gpu":
            torch = sys.modules["torch"]
            tensor = torch.empty(shape, dtype=element.torch or element.find_torch(), device=f"cuda:{self.index}")
            return tensor, tensor.data_ptr(), None
        if kind == "cupy":
            cupy = sys.modules["cupy"]
            array = cupy.empty(shape, element.numpy)
            return array, array.data.ptr, None
        if kind == "torch":
            try:
                tensor = sys.modules["torch"].empty(shape, dtype=element.torch or element.find_torch())
            except RuntimeError as error:  # torch's allocator raises nothing else for a valid shape
                raise MemoryError(str(error).splitlines()[0]) from None
            return tensor, tensor.data_ptr(), host_view(tensor, element.numpy) if self.on_gpu else None
        host = aligned_empty(shape, element.numpy)
        return host, int(host.__array_interface__["data"][0]), host if self.on_gpu else None

    def stream(self, kind: str) -> int:
        """The current stream of torch or CuPy, by the kind of the arrays; 0 for arrays on the host."""
        if kind == "torch-gpu":
            return int(sys.modules["torch"].cuda.current_stream(self.index).cuda_stream)
        if kind == "cupy":
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
        return 0


def take_strings(name: str, array: Any) -> Taken:
    """A copy of an array of strings, which stays on the host: it has no address and no bytes.

    Raises InputError for anything else than a numpy array of strings, or of objects that all are strings.
    """
    if isinstance(array, np.ndarray | np.generic) and not isinstance(array, np.ma.MaskedArray):
        kept = np.array(array, object)
        if is_strings(kept):
            return Taken("numpy", 0, kept.shape, 0, kept)
    raise InputError(
        f"input {name!r} must be strings, got {getattr(array, 'dtype', type(array).__name__)}",
        hint='give a numpy array of strings: np.array(["a", "b"], object)',
    )


_TORCH_NAMES = {DType.BF16: "bfloat16", DType.BOOL: "bool"}


def result_kind(taken: Sequence[Taken]) -> str:
    """The kind of the results for these inputs: ``torch-gpu``, ``cupy``, ``torch`` or ``numpy``, the first present."""
    kinds = {t.kind for t in taken}
    return next((k for k in ("torch-gpu", "cupy", "torch") if k in kinds), "numpy")


def dense(array: np.ndarray) -> np.ndarray:
    """``array`` itself where it is C-contiguous and 16-byte aligned, else a copy that is."""
    if array.flags.c_contiguous and array.__array_interface__["data"][0] % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned_empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose data begin at a multiple of 16 bytes."""
    array: np.ndarray = np.empty(shape, dtype)
    if array.__array_interface__["data"][0] % ALIGNMENT == 0:
        return array
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + array.nbytes].view(dtype).reshape(shape)


def host_view(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """The numpy view of a contiguous CPU tensor with elements of ``dtype``, bfloat16 included."""
    flat = tensor.detach().reshape(-1).view(sys.modules["torch"].uint8)
    view: np.ndarray = flat.numpy().view(dtype).reshape(tuple(tensor.shape))
    return view


def host_array(value: Any) -> np.ndarray:
    """An array of any kind as numpy; copied from a GPU. Raises InputError for a torch dtype that engines lack."""
    if hasattr(value, "detach"):  # torch
        return host_view(value.detach().cpu().contiguous(), torch_element(value.dtype).numpy)
    return np.asarray(value.get() if hasattr(value, "get") else value)  # CuPy has get


def torch_element(dtype: Any) -> Element:
    """The element type of a torch dtype. Raises InputError for one that engines do not support."""
    for candidate in map(Element, DType):
        if candidate.find_torch() is dtype:
            return candidate
    raise InputError(f"tensors of {dtype} are not supported")


def check_state(taken: Sequence[Taken], given: Sequence[Any], state: Sequence[int], names: Sequence[str]) -> None:
    """Notes the callers' arrays of the inputs at the positions ``state``, which a run changes.

    Raises InputError for one on the device that cannot be changed where it is, or that shares bytes with another input.
    """
    for k in state:
        if taken[k] is given[k]:
            continue
        taken[k].given = given[k]
        if taken[k].host is None and _memory(given[k]) != (taken[k].address, True):
            raise InputError(
                f"input {names[k]!r} is changed in place: it must be contiguous, writable, and begin at a multiple of "
                f"{ALIGNMENT} bytes",
                hint="give an array of its own, such as one that torch or CuPy has made",
            )
    spans = sorted((t.address, t.address + t.nbytes, k) for k, t in enumerate(taken) if t.host is None and t.nbytes)
    reached, last = 0, -1
    for begin, end, k in spans:
        if begin < reached and (k in state or last in state):
            raise InputError(
                f"inputs {names[last]!r} and {names[k]!r} overlap, and one of them is changed in place",
                hint="give each of them memory of its own",
            )
        if end > reached:
            reached, last = end, k


def _memory(array: Any) -> tuple[int, bool]:
    """The address of a caller's array, and whether it may be written."""
    if hasattr(array, "data_ptr"):
        return array.data_ptr(), True
    if hasattr(array, "__cuda_array_interface__"):
        address, read_only = array.__cuda_array_interface__["data"]
    else:
        address, read_only = np.asarray(array).__array_interface__["data"]
    return address, not read_only


def _wrong_dtype(name: str, got: str, want: DType) -> InputError:
    try:
        shown = from_numpy(np.dtype(got)).value
    except (ArcweldError, TypeError):
        shown = got
    return InputError(
        f"input {name!r} must be {want.value}, got {shown}",
        hint="pass real and imaginary parts as a last axis of 2, as torch.view_as_real gives them"
        if got.startswith("complex")
        else f"convert it first, for example with .astype(np.{want.numpy}) or .to(torch.{want.numpy})",
    )
