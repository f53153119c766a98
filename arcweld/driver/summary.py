"""The summary line of a build: kernels, precision, accuracy, bytes, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcweld.compiler.dims import evaluate
from arcweld.compiler.errors import InputError
from arcweld.compiler.region import Region
from arcweld.driver.build import Build
from arcweld.runtime.device import Device
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan


def summary(build: Build, device: Device) -> str:
    """``122 nodes -> 41 launches, 36 kernels, 0 fallbacks, fp16 97 % of FLOPs, max err 3.1e-03 (36/36 kernels verified
    on sim), 42.0 MB weights, 11.2 MB workspace at batch=1, built in 3.8 s``.

    FLOPs are those of matrix products, convolutions, pools and attention. There are never fallbacks: a model that
    cannot be compiled as a whole is refused.
    """
    data = build.data
    weights = sum(w.nbytes for w in data.weights.values())
    parts = [
        f"{_counted(len(build.imported.nodes), 'node')} -> {kernels_text(data)}", "0 fallbacks",
        *_precision(build), accuracy(data, device), f"{bytes_text(weights)} weights",
        _workspace(build, device),
        f"built in {build.seconds['total']:.1f} s",
    ]  # fmt: skip
    return ", ".join(parts)


def accuracy(data: EngineData, device: Device) -> str:
    """The largest relative error of an output and the number of kernels compared, as text."""
    evidence: Mapping[str, Any] = data.verify or {"level": "off"}
    if evidence["level"] == "off":
        return "not verified"
    errors = [o["error"] for o in evidence["outputs"] if o["status"] == "verified" and o.get("nonfinite", 0) < 1]
    worst = f"max err {max(errors):.1e}" if errors else "outputs not compared"
    return f"{worst} ({len(verified_kernels(data))}/{len(data.sources)} kernels verified on {device.name})"


def kernels_text(data: EngineData) -> str:
    """``2 kernels`` where each is launched once a call, else ``41 launches, 36 kernels``.

    Ranges of sizes with launches of their own are added: ``41 launches (26 at s=1), 60 kernels``. Kernels are distinct
    sources, those for single architectures included.
    """
    launches, kernels = len(data.program.launches), len(data.sources)
    shown = _counted(kernels, "kernel")
    if data.program.ranges:
        narrower = ", ".join(f"{len(r.launches)} at {r.sizes.label}" for r in data.program.ranges)
        return f"{_counted(launches, 'launch', 'launches')} ({narrower}), {shown}"
    return shown if launches == kernels else f"{_counted(launches, 'launch', 'launches')}, {shown}"


def verified_kernels(data: EngineData) -> set[str]:
    """The kernels that were compared; those of launches that write the same tensor before are part of a comparison."""
    rows = [k for k in (data.verify or {}).get("kernels", ()) if k["status"] == "verified"]
    compared = {k["launch"] for k in rows}
    before = {
        v.kernel for x in data.program.all_launches() if x.name.rpartition(":")[0] in compared for v in x.variants
    }  # fmt: skip
    return ({k["kernel"] for k in rows} | before) & set(data.sources)


def _counted(n: int, noun: str, plural: str = "") -> str:
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def bytes_text(n: int) -> str:
    """A number of bytes as text: ``42.0 MB`` (10^6 bytes), ``26.5 kB``."""
    return f"{n / 1e6:.1f} MB" if n >= 100_000 else f"{n / 1e3:.1f} kB"


def workspace_bytes(data: EngineData, arch: str, sizes: Mapping[str, int]) -> int:
    """The exact bytes of the arena for symbolic dimensions of ``sizes``. Raises InputError outside their ranges."""
    symbols = {s.name: sizes[s.name] for s in data.program.symbols}
    return compute_sizes(ExecutionPlan(data.program.at(symbols), arch), symbols).arena_bytes


def half_share(build: Build, element: str) -> float | None:
    """The share of FLOPs, 0 to 1, with operands of type ``element`` (``f16``); None if there are no FLOPs."""
    flops = {True: 0, False: 0}
    part = build.part_at(build.sizes)
    for region, planned in zip(part.fused.regions, part.launches, strict=True):
        flops[_computes_in(region, element)] += evaluate(planned.bound.flops, build.sizes)
    total = flops[True] + flops[False]
    return flops[True] / total if total else None


def _computes_in(region: Region, element: str) -> bool:
    return region.hero is not None and region.hero.operands()[0].dtype.value == element


def _precision(build: Build) -> list[str]:
    if build.precision == "fp32":
        return []
    share = half_share(build, {"fp16": "f16", "bf16": "bf16"}[build.precision])
    return [] if share is None else [f"{build.precision} {100 * share:.0f} % of FLOPs"]


def _workspace(build: Build, device: Device) -> str:
    sizes = build.sizes
    try:
        found = bytes_text(workspace_bytes(build.data, device.arch, sizes))
    except InputError:  # the typical sizes of an unverified build may be too small for a convolution's window
        return f"workspace depends on {', '.join(sizes)}"
    return f"{found} workspace" + (" at " + " ".join(f"{k}={v}" for k, v in sizes.items()) if sizes else "")
