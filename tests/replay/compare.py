"""Compares two collections of kernels: their texts, then what is left of them without comments, then object code.

Equal PTX gives equal object code, for the same ptxas: cubins are made only where PTX differs.
"""

from __future__ import annotations

import difflib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from records import Collection, Record, Tiled
from reduced import reduced

from arcweld.codegen.cost.choice import candidate_us
from arcweld.codegen.nvrtc.cache import DiskCache, content_key
from arcweld.codegen.nvrtc.compiler import Job
from arcweld.codegen.nvrtc.pool import compile_many
from arcweld.compiler.errors import CompileError

NEUTRAL = "replayed"  # instead of an entry point's name, which holds a hash of the text
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_GLOBAL = re.compile(r"^\.(?:global|const)\b[^;{]*?([\w$]+)(?:\[\d*\])?(?: = [^;]*)?;\n", re.M)
_FACTORS = re.compile(r"^(\s*(?:@!?%p\d+ )?(?:mul|mad|fma)\.[\w.]+\s+%\w+, )(%\w+), (%\w+)(?=[,;])", re.M)
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
class Timed:
    """A division into tiles as text, and its modelled microseconds on the card that stands for the architecture."""

    how: str
    us: float


@dataclass(frozen=True, slots=True)
class Change:
    """A kernel that differs: its id, what differs in one word or two, and the lines that show it.

    ``modelled``: how both revisions divide it into tiles, where they do so differently.
    """

    id: str
    what: str
    diff: tuple[str, ...]
    modelled: tuple[Timed, Timed] | None = None


@dataclass(frozen=True)
class Outcome:
    """Ids by verdict. ``steps`` says how many pairs of kernels, and how many compilations, each step took."""

    equal: tuple[str, ...]
    moved: tuple[str, ...]
    changed: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    steps: tuple[str, ...] = ()

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

    def text(self) -> tuple[object, ...]:
        return self.source, self.headers, self.options

    def launch(self) -> tuple[str, ...]:
        return (f"compiled for {self.record.arch}", *self.record.launch)

    def code(self) -> Neutral:
        """The compilation to PTX of what is left of the text. Its name tells it from others in an error."""
        text = reduced(self.source.replace(self.record.entry, NEUTRAL), dict(self.headers))
        name = f"kernel_{content_key([text])[:16]}"
        return Neutral(text, self.record.arch, name, "ptx", headers=(), options=self.options)


def compare(base: Collection, work: Collection, cache: DiskCache | None = None) -> Outcome:
    """The verdict on every kernel of both. A kernel that NVRTC refuses on one side only has changed."""
    old, new = sides(base), sides(work)
    both = [i for i in old if i in new]
    what = {i: "launch" for i in both if old[i].launch() != new[i].launch()}
    differing = [i for i in both if i not in what and old[i].text() != new[i].text()]
    jobs = {i: (old[i].code(), new[i].code()) for i in differing}
    left = [i for i, pair in jobs.items() if pair[0] != pair[1]]
    steps = [f"{len(jobs) - len(left)} pairs of another text are the same without comments and unused definitions"]
    codes: dict[str, tuple[Code, Code]] = {}
    for kind in ("ptx", "cubin"):
        pairs = {i: (replace(jobs[i][0], kind=kind), replace(jobs[i][1], kind=kind)) for i in left}
        distinct = list(dict.fromkeys(job for pair in pairs.values() for job in pair))
        done = compiled(distinct, cache)
        codes = {i: (done[a], done[b]) for i, (a, b) in pairs.items()}
        left = [i for i, pair in codes.items() if not same_code(*pair, kind)]
        steps.append(f"{len(pairs)} pairs compared as {kind} ({len(distinct)} compilations)")
    what |= {i: "does not compile" if CompileError in map(type, codes[i]) else "object code" for i in left}
    return Outcome(
        equal=tuple(i for i in both if i not in what and i not in jobs),
        moved=tuple(i for i in differing if i not in what),
        changed=tuple(
            Change(i, what[i], tuple(shown(old[i], new[i], codes.get(i, ()))), modelled(old[i].record, new[i].record))
            for i in both
            if i in what
        ),
        added=tuple(i for i in new if i not in old),
        removed=tuple(i for i in old if i not in new),
        steps=tuple(steps),
    )


def modelled(old: Record, new: Record) -> tuple[Timed, Timed] | None:
    """Both divisions into tiles by this revision's model of time; None for equal ones, and where one is not known."""
    if old.tiled is None or new.tiled is None or old.tiled == new.tiled:
        return None
    return timed(old.tiled, old.arch), timed(new.tiled, new.arch)


def timed(t: Tiled, arch: str) -> Timed:
    """What is printed of a division into tiles."""
    g = t.tiling
    split = f", {g.split} blocks a tile" if g.split > 1 else ""
    how = f"{g.engine} {g.dtype}, {g.tiles} tiles of {g.elements} elements, {g.steps} steps, {g.stages} stages{split}"
    return Timed(how, candidate_us(t.kind, g, t.shared_bytes, t.threads, arch))


def sides(c: Collection) -> dict[str, _Side]:
    """The kernels of a collection by id. Raises ValueError for an id that occurs twice."""
    found: dict[str, _Side] = {}
    for r in c.records:
        if r.id in found:
            raise ValueError(f"two kernels are called {r.id}")
        found[r.id] = _Side(r, c.texts[r.text], included(c.texts[r.text], c.headers), tuple(c.options[r.arch]))
    return found


def included(source: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Names and texts of the headers that a source includes, directly or not, sorted by name."""
    todo, found = [source], dict[str, str]()
    while todo:
        for name in _INCLUDE.findall(todo.pop()):
            if name in headers and name not in found:
                found[name] = headers[name]
                todo.append(headers[name])
    return tuple(sorted(found.items()))


# ----------------------------------------------------------------------------------------------------- object code

Code = bytes | CompileError


def compiled(jobs: Sequence[Neutral], cache: DiskCache | None) -> dict[Neutral, Code]:
    """The code of every compilation, or the error that NVRTC gave."""
    todo, failed = list(jobs), dict[Neutral, Code]()
    while True:
        try:
            done = compile_many(todo, cache=cache)
        except CompileError as error:  # the batch ends at its first error: the others are compiled without that one
            refused = [j for j in todo if str(error.node).startswith(j.name) and f" {j.arch}:" in str(error)]
            if not refused:
                raise
            failed.update(dict.fromkeys(refused, error))
            todo = [j for j in todo if j not in failed]
            continue
        return {**failed, **{job: c.code for job, c in zip(todo, done)}}


def same_code(a: Code, b: Code, kind: str) -> bool:
    """True for equal code, whatever its names, and for two kernels that NVRTC refuses."""
    if isinstance(a, CompileError) or isinstance(b, CompileError):
        return isinstance(a, CompileError) and isinstance(b, CompileError)
    return same_ptx(a, b) if kind == "ptx" else loaded(a) == loaded(b)


def same_ptx(a: bytes, b: bytes) -> bool:
    """True for PTX that differs in nothing but variables that it doesn't use and the order of a product's factors.

    PTX ISA, 9.7: ``mul``, ``mad`` and ``fma`` give the same number for factors in either order.
    """
    return a == b or _ordered(_used(a.decode())) == _ordered(_used(b.decode()))


def _ordered(ptx: str) -> str:
    return _FACTORS.sub(lambda m: f"{m[1]}{', '.join(sorted((m[2], m[3])))}", ptx)


def _used(ptx: str) -> str:
    return _GLOBAL.sub(lambda m: m[0] if len(re.findall(rf"\b{re.escape(m[1])}\b", ptx)) > 1 else "", ptx)


def loaded(cubin: bytes) -> list[tuple[str, int, bytes]]:
    """(name, size, bytes) of the sections of an ELF file that a launch depends on."""
    table, size, count, names_at = *struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(count)]
    names = cubin[heads[names_at][4] :]
    found = []
    for name_at, kind, _, _, offset, length in heads:
        name = names[name_at : names.index(b"\0", name_at)].decode()
        if not _NAMES.match(name):
            found.append((name, length, b"" if kind == _NOBITS else cubin[offset : offset + length]))
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------- report


def shown(old: _Side, new: _Side, codes: Sequence[Code] = ()) -> Iterator[str]:
    """NVRTC's errors, then launch facts, options, source and headers that differ, as unified diffs."""
    for code in codes:
        if isinstance(code, CompileError):
            yield from str(code).splitlines()
    pairs = [("launch", old.launch(), new.launch()), ("options", old.options, new.options)]
    before, after = (s.source.replace(s.record.entry, NEUTRAL).splitlines() for s in (old, new))
    pairs.append(("source", tuple(before), tuple(after)))
    headers, theirs = dict(old.headers), dict(new.headers)
    for name in sorted({*headers, *theirs}):
        pairs.append((name, tuple(headers.get(name, "").splitlines()), tuple(theirs.get(name, "").splitlines())))
    for name, a, b in pairs:
        yield from difflib.unified_diff(a, b, f"base {name}", f"work {name}", lineterm="", n=2)


def report(outcome: Outcome, diffs: int = 3, names: int = 20) -> Iterator[str]:
    """The lines to print: the first ``names`` ids of what differs, the first ``diffs`` diffs, and the counts."""
    for verdict, ids in (("added", outcome.added), ("removed", outcome.removed)):
        yield from _listed(verdict, ids, names)
    yield from _listed("changed", [f"{c.id} ({c.what})" for c in outcome.changed], names)
    for c in outcome.changed[:diffs]:
        yield f"\n{c.id} ({c.what})"
        yield from c.diff
    yield from gains(outcome.changed)
    yield ""
    for verdict in ("equal", "moved", "changed", "added", "removed"):
        yield f"{verdict:8}{len(getattr(outcome, verdict)):6}"
    yield from outcome.steps


def gains(changes: Sequence[Change]) -> Iterator[str]:
    """A line for each kernel that is divided otherwise, with its modelled gain; of equal ones the first is named."""
    alike: dict[tuple[Timed, Timed], list[str]] = {}
    for c in changes:
        if c.modelled is not None:
            alike.setdefault(c.modelled, []).append(c.id)
    for (old, new), ids in sorted(alike.items(), key=lambda item: item[0][1].us / item[0][0].us):
        others = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        yield f"modelled {old.us:.2f} -> {new.us:.2f} us ({new.us / old.us - 1:+.1%}): {ids[0]}{others}"
        yield f"    {old.how} -> {new.how}"


def _listed(verdict: str, ids: Sequence[str], most: int) -> Iterator[str]:
    yield from (f"{verdict} {i}" for i in ids[:most])
    if len(ids) > most:
        yield f"{verdict}: and {len(ids) - most} more"
