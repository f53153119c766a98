"""Chooses and opens the device that an engine runs on. The log says which device was chosen and why."""

from __future__ import annotations

import ctypes
import functools
import logging
import os

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.runtime.device import Device

log = logging.getLogger("arcweld.runtime")

VARIABLE = "ARCWELD_DEVICE"


@functools.cache
def gpu_count() -> int:
    """Number of GPUs that the NVIDIA driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def choose(name: str | None = None) -> str:
    """``name`` if given, else the variable ARCWELD_DEVICE, else ``cuda`` if there is a GPU, else ``sim``."""
    if name is not None:
        return name
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return "cuda" if gpu_count() else "sim"


def numbered(name: str) -> str:
    """A device's name with the GPU's index: ``cuda:0`` for ``cuda``."""
    return "cuda:0" if name == "cuda" else name


def torch_device(name: str) -> str:
    """The PyTorch device whose tensors the device of that name can read: ``cpu`` for the simulator."""
    return "cpu" if name.partition(":")[0] == "sim" else name


def on_host(place: str) -> bool:
    """True for tensors in the host's memory (``cpu``), false for those on a GPU (``cuda``), as ONNX Runtime names them.

    Raises UsageError for another place.
    """
    kind = place.lower()
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {place!r} for tensors", hint="cpu or cuda")
    return kind == "cpu"


@functools.cache
def _say(name: str, why: str) -> None:
    """Logs each choice once. Falling back to the simulator is a warning, because it is about 1000 times slower."""
    level = logging.WARNING if why == "no NVIDIA GPU found" else logging.INFO
    log.log(level, "running on device %s (%s)", name, why)


def open_device(name: Device | str | int | None = None) -> Device:
    """The device of that name: ``cuda``, ``cuda:1`` (also ``1``), ``sim`` or ``sim:sm_80`` (for portable kernels).

    An open device is returned as it is, a ``torch.device`` is taken by its name, and None by ``choose``. Raises
    UsageError for another name, EnvironmentError_ if this machine lacks the device.
    """
    if isinstance(name, int) or type(name).__module__ == "torch":
        name = str(name)  # a GPU's number, a torch.device
    if name is not None and not isinstance(name, str):
        if not hasattr(name, "arch"):
            raise UsageError(f"a {type(name).__name__} is not a device", hint="use cuda, cuda:N, sim or sim:sm_80")
        return name
    chosen = choose(name)
    if name is not None:
        why = "as asked"
    elif os.environ.get(VARIABLE):
        why = f"from {VARIABLE}"
    else:
        why = "the default" if gpu_count() else "no NVIDIA GPU found"
    kind, _, detail = chosen.partition(":") if not chosen.isdigit() else ("cuda", ":", chosen)
    if kind == "cuda" and (not detail or detail.isdigit()):
        device = _cuda(int(detail or 0))
    elif kind == "sim" and detail in ("", "sm_80", "sm_90a"):
        device = _sim(detail or "sm_90a")
    else:
        raise UsageError(f"{chosen!r} is not a device", hint="use cuda, cuda:N, sim or sim:sm_80")
    _say(chosen, why)
    return device


@functools.cache
def _cuda(index: int) -> Device:
    if index >= gpu_count():
        raise EnvironmentError_(
            f"there is no GPU {index}: the NVIDIA driver shows {gpu_count()}",
            hint='check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with device="sim"',
        )
    from arcweld.runtime.cuda import CudaDevice

    return CudaDevice(index)


@functools.cache
def _sim(arch: str) -> Device:
    from arcweld.runtime.sim.device import SimDevice

    return SimDevice(arch)
