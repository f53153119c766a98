"""Mutation of kernels: deletes one synchronisation at a time, to show that tests would notice its absence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from arcweld.codegen.nvrtc.compiler import headers
from arcweld.compiler.errors import DeviceError

_CALLS = (
    r"__syncthreads\(\)",
    r"__syncwarp\([^();]*\)",
    r"cp_async_wait<[^<>;]*>\(\)",
    r"mbar_wait\([^;]*?\)",
    r"\w+\.wait_(?:full|empty)\(\)",  # of a Ring: mbar_wait on a stage's barrier
    r"named_bar_sync\([^;]*?\)",
    r"Group::sync\(\)",  # of Groups: a barrier of one group of threads
    r"wgmma_fence\(\)",
    r"wgmma_wait<[^<>;]*>\(\)",
    r"tma_store_wait(?:_read)?<[^<>;]*>\(\)",
    r"fence_proxy_async\(\)",
    r"threadfence\(\)",
    r"barrier\.(?:wait|arrive|leave)\(\)",  # of a GridBarrier
    r"add_release\([^;]*?\)",
    r"wait_acquire\([^;]*?\)",
    r"\*\w+ = atomic_inc\([^;]*\)",
)
_TRAP = "*reinterpret_cast<volatile int*>(8) = 0;"  # noticed wherever it is reached
_STATEMENT = re.compile(rf"(?<![\w.])(?:{'|'.join(_CALLS)});")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A source with the statement ``deleted`` of line ``line`` (1-based) replaced by an empty one.

    ``trapped`` is the source with an access to address 8 instead: it passes only where the statement is never reached.
    """

    line: int
    deleted: str
    source: str
    trapped: str


def mutations(source: str) -> list[Mutation]:
    """One mutation for each ``__syncthreads();``, ``cp_async_wait<..>();``, ``mbar_wait(..);`` and the like.

    Comments are left alone. Equal statements on different lines are separate mutations.
    """
    found = []
    for match in _STATEMENT.finditer(source):
        start, end = match.span()
        if "//" in source[source.rfind("\n", 0, start) + 1 : start]:
            continue
        empty, trap = (source[:start] + text + source[end:] for text in (";", _TRAP))
        found.append(Mutation(source.count("\n", 0, start) + 1, match.group(), empty, trap))
    return found


def survivors(source: str, passes: Callable[[str], bool], header: str | None = None) -> list[Mutation]:
    """The mutations that nobody notices: ``passes(source)`` returns True for them.

    ``passes`` runs the kernel and compares its result; a DeviceError counts as noticed. The statements of ``header``,
    which the kernel includes, are mutated as well; those that this kernel never reaches don't count.
    """
    if header is None:
        return [m for m in mutations(source) if _unnoticed(m.source, passes)]
    text, inside = with_header(source, header)
    found = [m for m in mutations(text) if _unnoticed(m.source, passes)]
    return [m for m in found if m.line not in inside or not _unnoticed(m.trapped, passes)]


def with_header(source: str, header: str) -> tuple[str, range]:
    """The source with a header's text in place of its include, and the lines (from 1) that are the header's."""
    before, include, after = source.partition(f'#include "{header}"\n')
    if not include:
        raise ValueError(f"the source does not include {header}")
    text = dict(headers())[header].replace("#pragma once\n", "\n")
    first = before.count("\n") + 1
    return before + text + after, range(first, first + text.count("\n"))


def _unnoticed(source: str, passes: Callable[[str], bool]) -> bool:
    try:
        return passes(source)
    except DeviceError:
        return False
