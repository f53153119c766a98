"""The summary line of a build: kernels, precision, accuracy, bytes, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from arcweld.compiler.dims import evaluate
from arcweld.compiler.errors import InputError
from arcweld.compiler.ops.host import OF_SIZES
from arcweld.compiler.region import Region
from arcweld.driver.build import Build
from arcweld.runtime.device import Device
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan
from arcweld.runtime.steps import Call, Choose, Read, Repeat, every_step


def summary(build: Build, device: Device) -> str:
    """``122 nodes -> 41 launches, 36 kernels, 0 fallbacks, fp16 97 % of FLOPs, max err 3.1e-03 (36/36 kernels verified
    on sim), 42.0 MB weights, 11.2 MB workspace at batch=1, built in 3.8 s``.

    FLOPs are those of matrix products, convolutions, pools and attention. Fallbacks are operators that the host
    computes because there is no kernel for them.
    """
    data = build.data
    weights = sum(w.nbytes for w in data.weights.values())
    parts = [
        f"{_counted(len(build.imported.nodes), 'node')} -> {kernels_text(data)}", host_text(data),
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
    own = (data.program, *data.program.stages)
    launches, kernels = sum(len(p.launches) for p in own), len(data.sources)
    shown = _counted(kernels, "kernel")
    if data.program.ranges:
        narrower = ", ".join(f"{len(r.launches)} at {r.sizes.label}" for r in data.program.ranges)
        return f"{_counted(launches, 'launch', 'launches')} ({narrower}), {shown}"
    return shown if launches == kernels else f"{_counted(launches, 'launch', 'launches')}, {shown}"


def host_text(data: EngineData) -> str:
    """What the host does in a call: ``1 fallback (NonMaxSuppression), 3 stages, 2 sizes read``."""
    found = (s.op for s in every_step(data.program.steps) if isinstance(s, Call))
    calls = Counter(op for op in found if op not in OF_SIZES)
    names = ", ".join(f"{n} {op}" if n > 1 else op for op, n in calls.items())
    parts = [_counted(calls.total(), "fallback") + (f" ({names})" if names else "")]
    if data.program.steps:
        parts.append(_counted(len(data.program.stages), "stage"))
        kinds = (Read, "read", "reads"), (Choose, "branch", "branches"), (Repeat, "loop", "loops")
        for kind, one, many in kinds:
            if count := sum(isinstance(s, kind) for s in every_step(data.program.steps)):
                parts.append(_counted(count, f"host {one}", f"host {many}"))
    return ", ".join(parts)


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
    if build.data.program.steps:
        return None
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
    if build.data.program.steps:
        return "workspace by stage"
    try:
        found = bytes_text(workspace_bytes(build.data, device.arch, sizes))
    except InputError:  # the typical sizes of an unverified build may be too small for a convolution's window
        return f"workspace depends on {', '.join(sizes)}"
    return f"{found} workspace" + (" at " + " ".join(f"{k}={v}" for k, v in sizes.items()) if sizes else "")
