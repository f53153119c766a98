"""Mutation of kernels: deletes one synchronisation at a time, to show that tests would notice its absence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from arcweld.compiler.errors import DeviceError

_CALLS = (
    r"__syncthreads\(\)",
    r"__syncwarp\([^();]*\)",
    r"cp_async_wait<[^<>;]*>\(\)",
    r"mbar_wait\([^;]*?\)",
    r"\w+\.wait_(?:full|empty)\(\)",  # of a Ring: mbar_wait on a stage's barrier
    r"named_bar_sync\([^;]*?\)",
    r"wgmma_fence\(\)",
    r"wgmma_wait<[^<>;]*>\(\)",
    r"tma_store_wait(?:_read)?<[^<>;]*>\(\)",
    r"fence_proxy_async\(\)",
)
_STATEMENT = re.compile(rf"(?<![\w.])(?:{'|'.join(_CALLS)});")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A source with the statement ``deleted`` of line ``line`` (1-based) replaced by an empty one."""

    line: int
    deleted: str
    source: str


def mutations(source: str) -> list[Mutation]:
    """One mutation for each ``__syncthreads();``, ``cp_async_wait<..>();``, ``mbar_wait(..);`` and the like.

    Comments are left alone. Equal statements on different lines are separate mutations.
    """
    found = []
    for match in _STATEMENT.finditer(source):
        start, end = match.span()
        if "//" in source[source.rfind("\n", 0, start) + 1 : start]:
            continue
        mutated = source[:start] + ";" + source[end:]
        found.append(Mutation(source.count("\n", 0, start) + 1, match.group(), mutated))
    return found


def survivors(source: str, passes: Callable[[str], bool]) -> list[Mutation]:
    """The mutations that nobody notices: ``passes(source)`` returns True for them.

    ``passes`` runs the kernel and compares its result; a DeviceError counts as noticed.
    """
    return [mutation for mutation in mutations(source) if _unnoticed(mutation, passes)]


def _unnoticed(mutation: Mutation, passes: Callable[[str], bool]) -> bool:
    try:
        return passes(mutation.source)
    except DeviceError:
        return False
