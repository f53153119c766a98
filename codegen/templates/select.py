"""Which implementations can render which template, best first, and the choice among them for a set of architectures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.templates.attention import implementations as attention
from arcweld.codegen.templates.contract import chain
from arcweld.codegen.templates.contract import implementations as contract
from arcweld.codegen.templates.conv import implementations as conv
from arcweld.codegen.templates.implementation import Implementation
from arcweld.codegen.templates.pointwise import pointwise, transpose
from arcweld.codegen.templates.recurrence import recurrence
from arcweld.codegen.templates.reduce import reduce, rowwise, scan, whole, window
from arcweld.codegen.templates.sort import runs, sort
from arcweld.codegen.templates.sort import select as selection
from arcweld.codegen.templates.suppress import suppress
from arcweld.compiler.errors import UnsupportedError

log = logging.getLogger("arcweld.codegen")


def _portable(name: str, module: ModuleType) -> Implementation:
    """A module with ``render_<name>``, ``tactics`` and ``supports`` as an implementation for every architecture."""
    return Implementation(name, "sm_80", getattr(module, f"render_{name}"), module.tactics, module.supports)


IMPLEMENTATIONS: Mapping[str, tuple[Implementation, ...]] = {
    "pointwise": (_portable("transpose", transpose), _portable("pointwise", pointwise)),
    "scatter": (_portable("pointwise", pointwise),),
    "reduce": (_portable("reduce", reduce),),
    "rowwise": (_portable("whole", whole), _portable("rowwise", rowwise)),
    "scan": (_portable("scan", scan),),
    "window": (_portable("window", window),),
    "contract": contract.IMPLEMENTATIONS,
    "chain": chain.IMPLEMENTATIONS,
    "conv": conv.IMPLEMENTATIONS,
    "attention": attention.IMPLEMENTATIONS,
    "recurrence": (_portable("recurrence", recurrence),),
    "sort": (_portable("sort", sort),),
    "select": (_portable("select", selection),),
    "runs": (_portable("runs", runs),),
    "suppress": (_portable("suppress", suppress),),
}


def implementations(kernel: Kernel, arch: str) -> list[Implementation]:
    """The implementations that can render ``kernel`` for ``arch``, best first."""
    fitting = [i for i in IMPLEMENTATIONS[kernel.template] if i.fits(kernel, arch)]
    return sorted(fitting, key=lambda i: i.defers(kernel))  # stable: else in the order of the list


def select(kernel: Kernel, arch: str) -> KernelSource:
    """The kernel by the best implementation and its default tactic, without measuring.

    Raises UnsupportedError, with every implementation's reason, if none can render it for ``arch``.
    """
    found = implementations(kernel, arch)
    if not found:
        reasons = [f"{i.name}: {i.supports(kernel, arch)}" for i in IMPLEMENTATIONS[kernel.template]]
        raise UnsupportedError(f"no implementation of {kernel.stem} for {arch}: {'; '.join(reasons)}", node=kernel.stem)
    best = found[0]
    tactic = best.tactics(kernel, arch)[0]
    log.debug("%s for %s: %s with %s", kernel.stem, arch, best.name, tactic)
    return best.render(kernel, tactic, arch)


def sources(kernel: Kernel, archs: Sequence[str]) -> tuple[KernelSource, ...]:
    """The distinct sources that serve all of ``archs``: a portable one for sm_80 and newer, then those for exact ones.

    Raises UnsupportedError as ``select`` does.
    """
    portable = select(kernel, "sm_80")
    chosen = {portable.source: portable}
    for arch in archs:
        if arch.endswith("a"):
            special = select(kernel, arch)
            chosen.setdefault(special.source, special)
    return tuple(chosen.values())


def alternatives(kernel: Kernel, source: KernelSource) -> Iterator[list[KernelSource]]:
    """Groups of sources that may replace ``source``, best first, each rendered when it is asked for.

    First other tactics for its architecture. Then, for a source of one exact architecture, the portable
    implementations' sources, marked for that architecture only.
    """
    fitting = implementations(kernel, source.arch)
    found = {source.source: source}
    for group in ([i for i in fitting if i.arch == source.arch], [i for i in fitting if i.arch != source.arch]):
        known = len(found)
        for other in (i.render(kernel, t, source.arch) for i in group for t in i.tactics(kernel, source.arch)):
            found.setdefault(other.source, replace(other, arch=source.arch))
        yield list(found.values())[known:]
