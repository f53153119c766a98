"""Compiles the kernels of planned launches, each source for every architecture that it serves.

The default tactic is an estimate. If ptxas spills registers for it, or warns (say, that it serialised wgmma), the
kernel's other tactics are compiled too and the one that spills least replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from arcweld.codegen.kernel import BoundKernel, Kernel, KernelSource
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.compiler import Compiled, Job, require_clean
from arcweld.codegen.nvrtc.pool import Progress as PoolProgress
from arcweld.codegen.nvrtc.pool import compile_many
from arcweld.codegen.templates.select import alternatives
from arcweld.compiler.archs import runs_on
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.size_ranges import SizeRange

log = logging.getLogger("arcweld.codegen")

PTX_ARCH = "sm_80"  # the target of the PTX, which newer GPUs can load
SPILL_BYTES = 64  # a thread; ptxas spills a few values even if registers are free, more than this needs another tactic


@dataclass(frozen=True)
class PlannedLaunch:
    """A launch before assembly: a kernel bound to its tensors, and the sources that together serve all architectures.

    ``before`` are launches that write the same tensor first (a scatter's copy of its data). ``in_place`` as in
    ``Region``.
    """

    name: str
    bound: BoundKernel
    sources: tuple[KernelSource, ...]
    before: tuple[PlannedLaunch, ...] = ()
    in_place: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """What is launched for a range of sizes: the regions of the graph, and one launch for each, in their order.

    ``sizes`` is None for what serves all sizes.
    """

    sizes: SizeRange | None
    fused: FusedGraph
    launches: tuple[PlannedLaunch, ...]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """True if these sizes are in its range."""
        return self.sizes is None or self.sizes.holds(sizes)


@dataclass(frozen=True, slots=True)
class ObjectCode:
    """Cubins by (architecture, kernel) and PTX by kernel; a kernel is named by its entry."""

    cubins: Mapping[tuple[str, str], bytes]
    ptx: Mapping[str, bytes]


def in_order(planned: Sequence[PlannedLaunch]) -> list[PlannedLaunch]:
    """All launches in the order of execution, including those in ``before``."""
    return [x for p in planned for x in (*p.before, p)]


def compile_launches(
    planned: Sequence[PlannedLaunch], archs: Sequence[str], cache: DiskCache, progress: PoolProgress | None = None
) -> tuple[tuple[PlannedLaunch, ...], ObjectCode]:
    """Compiles every kernel. Returns the launches, with better tactics instead of those that spill, and the code.

    Raises CompileError for a kernel that NVRTC refuses, and for one whose tactics all make ptxas warn.
    """
    done = _compile(planned, archs, cache, progress)
    spilled = {c.name for c in done.values() if not _acceptable(len(c.warnings), c.spill_bytes)}
    if spilled:
        planned = _exchange(planned, spilled, archs, cache)
        done = _compile(planned, archs, cache, progress)
    for c in done.values():
        if c.warnings:
            require_clean(c)
        if c.spill_bytes:
            level = logging.WARNING if c.spill_bytes > SPILL_BYTES else logging.INFO
            log.log(level, "%s for %s spills %d bytes of registers a thread", c.name, c.arch, c.spill_bytes)
    cubins = {where: c.code for where, c in done.items() if where[0] != "ptx"}
    return tuple(planned), ObjectCode(cubins, {where[1]: c.code for where, c in done.items() if where[0] == "ptx"})


def _compile(
    planned: Sequence[PlannedLaunch], archs: Sequence[str], cache: DiskCache, progress: PoolProgress | None
) -> dict[tuple[str, str], Compiled]:
    """Object code by (architecture or "ptx", kernel). An architecture with its own source gets no portable one."""
    jobs: dict[Job, tuple[str, str]] = {}
    for p in in_order(planned):
        for arch in archs:
            fit = [s for s in p.sources if runs_on(s.arch, arch)]
            best = max(fit, key=lambda s: s.arch.endswith("a"))
            jobs[Job(best.source, arch, best.entry)] = (arch, best.entry)
        for s in p.sources:
            if not s.arch.endswith("a"):
                jobs[Job(s.source, PTX_ARCH, s.entry, kind="ptx")] = ("ptx", s.entry)
    return dict(zip(jobs.values(), compile_many(list(jobs), cache=cache, progress=progress)))


def _exchange(
    planned: Sequence[PlannedLaunch], spilled: set[str], archs: Sequence[str], cache: DiskCache
) -> tuple[PlannedLaunch, ...]:
    """The launches, with each source in ``spilled`` replaced by the kernel's tactic that spills least."""
    better: dict[str, KernelSource] = {}
    for p in in_order(planned):
        for s in p.sources:
            if s.entry in spilled and s.entry not in better:
                better[s.entry] = _least_spilling(p.bound.kernel, s, archs, cache)

    def mended(p: PlannedLaunch) -> PlannedLaunch:
        sources: dict[str, KernelSource] = {}
        for s in p.sources:  # the portable one first: it serves an exact architecture that got the same text
            new = better.get(s.entry, s)
            sources.setdefault(new.source, new)
        return replace(p, sources=tuple(sources.values()), before=tuple(mended(b) for b in p.before))

    return tuple(mended(p) for p in planned)


def _least_spilling(kernel: Kernel, source: KernelSource, archs: Sequence[str], cache: DiskCache) -> KernelSource:
    """The alternative that fares best, the first of equals; for an exact architecture, portable implementations are
    tried only where none of its own tactics is acceptable."""
    targets = [a for a in archs if runs_on(source.arch, a)]
    (before,) = _verdicts([source], targets, cache)
    best, least = source, before
    for group in alternatives(kernel, source):
        for other, verdict in zip(group, _verdicts(group, targets, cache)):
            if verdict < least:
                best, least = other, verdict
        if _acceptable(*least):
            break
    log.info("%s spills %d bytes; %s spills %d", source.entry, before[1], best.entry, least[1])
    return best


def _verdicts(sources: Sequence[KernelSource], targets: Sequence[str], cache: DiskCache) -> list[tuple[int, int]]:
    """Warnings and bytes of spills of each source, on the target where it fares worst."""
    done = compile_many([Job(s.source, a, s.entry) for s in sources for a in targets], cache=cache)
    groups = [done[i * len(targets) : (i + 1) * len(targets)] for i in range(len(sources))]
    return [max((len(c.warnings), c.spill_bytes) for c in group) for group in groups]


def _acceptable(warnings: int, spill_bytes: int) -> bool:
    return not warnings and spill_bytes <= SPILL_BYTES
