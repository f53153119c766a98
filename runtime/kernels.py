"""Chooses the variant of each launch for a device, and loads its code: a matching cubin, else PTX, else a rebuild."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from arcweld.compiler.archs import parse_arch, runs_on
from arcweld.compiler.errors import ArcweldError, DeviceError
from arcweld.runtime.device import Device, KernelImage
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.injected import Rebuild
from arcweld.runtime.program import Launch, Variant

log = logging.getLogger("arcweld.runtime")

def _parsed(arch: str) -> tuple[int, str]:
    found = parse_arch(arch)
    if found is None:
        raise DeviceError(f"{arch!r} is not an architecture", hint="it is written like sm_80 or sm_90a")
    return found


def choose_variant(launch: Launch, arch: str) -> Variant:
    """The most specific variant that runs on ``arch``; the first of equals. Raises DeviceError if none does."""
    fit = [v for v in launch.variants if runs_on(v.arch, arch)]
    if not fit:
        built = ", ".join(sorted({v.arch for v in launch.variants}))
        raise DeviceError(f"launch {launch.name} exists for {built}, not for {arch}", hint=f"build with --arch {arch}")
    return max(fit, key=lambda v: (_parsed(v.arch)[0], bool(_parsed(v.arch)[1])))


def binary_archs(archs: Sequence[str], device: str) -> list[str]:
    """Those of ``archs`` whose cubins run on a device of architecture ``device``, best first.

    Cubins are compatible with GPUs of the same major version and the same or a higher minor one; those of an ``a``
    architecture with exactly that one (CUDA C++ Programming Guide, "Binary Compatibility").
    """
    have, _ = _parsed(device)

    def fits(arch: str) -> bool:
        number, suffix = _parsed(arch)
        if suffix == "a":
            return number == have
        return number // 10 == have // 10 and number <= have

    return sorted(filter(fits, archs), key=_parsed, reverse=True)


class KernelLoader:
    """Loads each kernel of an engine once.

    ``loaded_from`` maps a kernel to the kind of code that was loaded: ``cubin sm_90a``, ``ptx``, ``rebuilt from
    source`` or ``source``. ``loaded`` counts kernels that the device has loaded; one is compiled only to be loaded.
    """

    def __init__(self, data: EngineData, device: Device, rebuild: Rebuild | None) -> None:
        self.data = data
        self.device = device
        self.rebuild = rebuild
        self.loaded_from: dict[str, str] = {}
        self.loaded = 0
        self._handles: dict[tuple[str, str, int], Any] = {}

    def load(self, variants: Sequence[Variant]) -> list[Any]:
        """The device's handle of each variant's kernel.

        Raises DeviceError, with the reason for each candidate, if none can be loaded or a rebuild fails.
        """
        return [self._handle(v) for v in variants]

    def prepare(self, variants: Sequence[Variant]) -> None:
        """Compiles the kernels of these variants together, on a device that takes sources."""
        if not self.device.needs_object_code:
            names = dict.fromkeys((v.kernel, v.entry) for v in variants)
            self.device.compile_many([self._image(k, e) for k, e in names])

    def _handle(self, v: Variant) -> Any:
        key = (v.kernel, v.entry, v.shared_bytes)
        if key not in self._handles:
            self._handles[key] = self._load_one(v)
        return self._handles[key]

    def _load_one(self, v: Variant) -> Any:
        reasons: list[str] = []
        for origin, image in self._images(v):
            try:
                handle = self.device.load_kernel(image, v.shared_bytes)
            except DeviceError as error:
                log.info("kernel %s from %s: %s", v.kernel, origin, error.message)
                reasons.append(f"{origin}: {error.message}")
                continue
            self.loaded_from[v.kernel] = origin
            self.loaded += 1
            return handle
        why = "; ".join(reasons) or "the engine holds neither object code for it nor PTX"
        raise DeviceError(
            f"kernel {v.kernel} cannot be loaded on {self.device.name} ({self.device.arch}): {why}",
            node=v.kernel,
            hint=f"build the engine with --arch {self.device.arch}, or install NVRTC to rebuild it here",
        )

    def _images(self, v: Variant) -> Iterator[tuple[str, KernelImage]]:
        if not self.device.needs_object_code:
            yield "source", self._image(v.kernel, v.entry)
            return
        data, arch = self.data, self.device.arch
        have = [a for a, k in data.cubins if k == v.kernel]
        for candidate in binary_archs(have, arch):
            cubin = data.cubins[candidate, v.kernel]
            yield f"cubin {candidate}", self._image(v.kernel, v.entry, cubin=cubin)
        if v.kernel in data.ptx:
            yield "ptx", self._image(v.kernel, v.entry, ptx=data.ptx[v.kernel])
        if self.rebuild is not None:
            try:
                cubin = self.rebuild(v.kernel, data.sources[v.kernel], dict(data.headers), arch)
            except ArcweldError as error:
                raise DeviceError(f"kernel {v.kernel} could not be rebuilt: {error}", node=v.kernel) from error
            yield "rebuilt from source", self._image(v.kernel, v.entry, cubin=cubin)

    def _image(self, kernel: str, entry: str, *, cubin: bytes | None = None, ptx: bytes | None = None) -> KernelImage:
        return KernelImage(kernel, entry, self.data.sources[kernel], cubin, ptx)
