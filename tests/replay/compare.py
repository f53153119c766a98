"""Compares two collections of kernels by text, then by object code, and says what differs.

Equal PTX gives equal object code, for the same ptxas: cubins are made only where PTX differs.
"""

from __future__ import annotations

import difflib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from records import Collection, Record

from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.compiler import Job
from arcweld.codegen.nvrtc.pool import compile_many

NEUTRAL = "replayed"  # instead of an entry point's name, which holds a hash of the text
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_NAMES = re.compile(r"\.(debug|rela?\.debug|shstrtab|strtab|symtab|note)")  # sections that no launch depends on
_NOBITS = 8  # the type of a section that takes no bytes in the file


@dataclass(frozen=True)
class Neutral(Job):
    """A compilation that shows neither lines nor names: texts of the same meaning give the same object code."""

    options: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """The revision's own options without line information."""
        target = f"-arch={self.arch.replace('sm_', 'compute_') if self.kind == 'ptx' else self.arch}"
        return (target, *(o for o in self.options if o != "-lineinfo" and not o.startswith("-arch=")))


@dataclass(frozen=True, slots=True)
class Change:
    """A kernel that differs: its id, what differs in one word or two, and the lines that show it."""

    id: str
    what: str
    diff: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Ids by verdict. ``compiled`` is the number of distinct compilations for PTX and for cubins."""

    equal: tuple[str, ...]
    moved: tuple[str, ...]
    changed: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    compiled: tuple[int, int] = (0, 0)

    @property
    def status(self) -> int:
        """The exit status: 1 if any kernel changed, came or went."""
        return 1 if self.changed or self.added or self.removed else 0


@dataclass(frozen=True, slots=True)
class _Side:
    """One revision's kernel with all that its object code depends on."""

    record: Record
    source: str
    headers: tuple[tuple[str, str], ...]
    options: tuple[str, ...]

    def same_text(self, other: _Side) -> bool:
        return (self.source, self.headers, self.options) == (other.source, other.headers, other.options)

    def job(self, kind: str) -> Neutral:
        text = self.source.replace(self.record.entry, NEUTRAL)
        return Neutral(text, self.record.arch, NEUTRAL, kind, headers=self.headers, options=self.options)


def compare(base: Collection, work: Collection, cache: DiskCache | None = None) -> Outcome:
    """The verdict on every kernel of both. Raises CompileError for a kernel that NVRTC refuses."""
    old, new = sides(base), sides(work)
    both = [i for i in old if i in new]
    relaunched = [i for i in both if launch(old[i]) != launch(new[i])]
    rest = [i for i in both if launch(old[i]) == launch(new[i])]
    differing = [i for i in rest if not old[i].same_text(new[i])]
    after_ptx, ptx = unequal(differing, old, new, "ptx", cache)
    recoded, cubins = unequal(after_ptx, old, new, "cubin", cache)
    changes = dict.fromkeys(relaunched, "launch") | dict.fromkeys(recoded, "object code")
    return Outcome(
        equal=tuple(i for i in rest if old[i].same_text(new[i])),
        moved=tuple(i for i in differing if i not in changes),
        changed=tuple(Change(i, changes[i], tuple(shown(old[i], new[i]))) for i in both if i in changes),
        added=tuple(i for i in new if i not in old),
        removed=tuple(i for i in old if i not in new),
        compiled=(ptx, cubins),
    )


def sides(c: Collection) -> dict[str, _Side]:
    """The kernels of a collection by id. Raises ValueError for an id that occurs twice."""
    found: dict[str, _Side] = {}
    for r in c.records:
        if r.id in found:
            raise ValueError(f"two kernels are called {r.id}")
        found[r.id] = _Side(r, c.texts[r.text], included(c.texts[r.text], c.headers), tuple(c.options[r.arch]))
    return found


def launch(side: _Side) -> tuple[str, ...]:
    return (f"compiled for {side.record.arch}", *side.record.launch)


def included(source: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Names and texts of the headers that a source includes, directly or not, sorted by name."""
    todo, found = [source], dict[str, str]()
    while todo:
        for name in _INCLUDE.findall(todo.pop()):
            if name in headers and name not in found:
                found[name] = headers[name]
                todo.append(headers[name])
    return tuple(sorted(found.items()))


def unequal(
    ids: Sequence[str], old: Mapping[str, _Side], new: Mapping[str, _Side], kind: str, cache: DiskCache | None
) -> tuple[list[str], int]:
    """Those of ``ids`` whose code of this kind differs, and the number of distinct compilations."""
    jobs = list(dict.fromkeys(s[i].job(kind) for i in ids for s in (old, new)))
    done = dict(zip(jobs, (c.code for c in compile_many(jobs, cache=cache))))
    same = (lambda a, b: a == b) if kind == "ptx" else (lambda a, b: loaded(a) == loaded(b))
    return [i for i in ids if not same(done[old[i].job(kind)], done[new[i].job(kind)])], len(jobs)


def loaded(cubin: bytes) -> list[tuple[str, int, bytes]]:
    """(name, size, bytes) of a cubin's sections of code, constants, memory and their attributes: no names, no lines."""
    table, size, count, names_at = *struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(count)]
    names = cubin[heads[names_at][4] :]
    found = []
    for name_at, kind, _, _, offset, length in heads:
        name = names[name_at : names.index(b"\0", name_at)].decode()
        if not _NAMES.match(name):
            found.append((name, length, b"" if kind == _NOBITS else cubin[offset : offset + length]))
    return sorted(found)


def shown(old: _Side, new: _Side) -> Iterator[str]:
    """The differing launch facts, the differing source, and the differing headers, as unified diffs."""
    pairs = [("launch", list(launch(old)), list(launch(new))), ("options", list(old.options), list(new.options))]
    texts = [s.source.replace(s.record.entry, NEUTRAL).splitlines() for s in (old, new)]
    pairs.append(("source", texts[0], texts[1]))
    before, after = dict(old.headers), dict(new.headers)
    for name in sorted({*before, *after}):
        pairs.append((name, before.get(name, "").splitlines(), after.get(name, "").splitlines()))
    for name, a, b in pairs:
        yield from difflib.unified_diff(a, b, f"base {name}", f"work {name}", lineterm="", n=2)


def report(outcome: Outcome, diffs: int = 3, names: int = 20) -> Iterator[str]:
    """The lines to print: the first ``names`` ids of what differs, the first ``diffs`` diffs, and the counts."""
    for verdict, ids in (("added", outcome.added), ("removed", outcome.removed)):
        yield from _listed(verdict, ids, names)
    yield from _listed("changed", [f"{c.id} ({c.what})" for c in outcome.changed], names)
    for c in outcome.changed[:diffs]:
        yield f"\n{c.id}: {c.what} differs"
        yield from c.diff
    yield ""
    for verdict in ("equal", "moved", "changed", "added", "removed"):
        yield f"{verdict:8}{len(getattr(outcome, verdict)):6}"
    yield f"compared as PTX: {outcome.compiled[0]} compilations; as object code: {outcome.compiled[1]}"


def _listed(verdict: str, ids: Sequence[str], most: int) -> Iterator[str]:
    yield from (f"{verdict} {i}" for i in ids[:most])
    if len(ids) > most:
        yield f"{verdict}: and {len(ids) - most} more"
