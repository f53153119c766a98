"""What differs between two engines: kernels with their source, launches, element types, bytes, weights, the interface.

Kernels' names end in a hash of what they are, so that a kernel that changed has another name. Kernels that only one
engine has are therefore paired by what they compute: by template and the model's nodes.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.driver.metrics import relative_error
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import Launch, Program

_HASH = re.compile(r"_[0-9a-f]{8}$")
_COMMENT = re.compile(r"\s*//.*")  # the only kind that templates write
Change = tuple[Any, Any]  # what the first engine has, and the second


@dataclass(frozen=True, slots=True)
class KernelDiff:
    """A kernel that is ``added``, ``removed`` or ``changed``.

    before, after  its name in the first and in the second engine; empty where it has none
    nodes          the model's nodes that it computes, in the engine that has it, or in the second one
    launches       how often a call launches it: in all parts and stages, before and after
    source         the unified diff of the CUDA texts, without the kernels' names; empty unless it is changed
    """

    status: str
    before: str
    after: str
    template: str
    nodes: tuple[str, ...]
    launches: tuple[int, int]
    source: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """A weight that is ``added``, ``removed`` or ``changed``.

    before, after   element type, shape and bytes; empty and 0 where an engine has no such weight
    relative_error  of the values as in ``arcweld.driver.metrics``; None where they have other types or shapes, or are
                    packed
    """

    status: str
    name: str
    before: str
    after: str
    nbytes: tuple[int, int]
    relative_error: float | None = None


@dataclass(frozen=True, slots=True)
class EngineDiff:
    """What differs; each change has the value of the first and that of the second engine.

    interface  inputs, outputs and ranges of dimensions that differ, by what they are
    launches   launches of a call, in all parts and stages
    types      how many launches write results of each element type, where that differs
    nbytes     bytes of weights and of object code
    objects    kernels of the same source with other object code, as ``architecture/kernel``
    settings   launches of the same kernels with another grid, block, shared memory or parameters
    order      whether the program differs in anything else, such as the order of launches or names of tensors
    """

    interface: Mapping[str, Change]
    kernels: tuple[KernelDiff, ...]
    weights: tuple[WeightDiff, ...]
    launches: tuple[int, int]
    types: Mapping[str, tuple[int, int]]
    nbytes: Mapping[str, tuple[int, int]]
    archs: tuple[tuple[str, ...], tuple[str, ...]]
    objects: tuple[str, ...]
    settings: tuple[str, ...]
    order: bool

    @property
    def differs(self) -> bool:
        """Whether the engines differ in what runs; evidence and provenance do not count."""
        changed = (self.interface, self.kernels, self.weights, self.objects, self.settings, self.order)
        return any(changed) or self.archs[0] != self.archs[1]


def compare_engines(a: EngineData, b: EngineData) -> EngineDiff:
    """The differences from engine ``a`` to engine ``b``."""
    kernels = tuple(_kernels(a, b))
    renamed = {k.before: k.after for k in kernels if k.status == "changed"}
    code = tuple(sum(map(len, e.cubins.values())) for e in (a, b))
    weights = tuple(sum(w.nbytes for w in e.weights.values()) for e in (a, b))
    types = [_result_types(e.program) for e in (a, b)]
    settings = tuple(_settings(a.program, b.program, renamed))
    found = tuple(_weights(a, b))
    interface = _interface(a.program, b.program)
    same = not (kernels or settings or found or interface)
    return EngineDiff(
        interface=interface, kernels=kernels, weights=found,
        launches=(len(a.program.all_launches()), len(b.program.all_launches())),
        types={t: (types[0][t], types[1][t]) for t in sorted({*types[0], *types[1]}) if types[0][t] != types[1][t]},
        nbytes={"weights": (weights[0], weights[1]), "object code": (code[0], code[1])},
        archs=(a.archs, b.archs),
        objects=tuple(
            f"{arch}/{name}" for (arch, name), binary in sorted(a.cubins.items())
            if _same_code(a, b, name) and b.cubins.get((arch, name), binary) != binary
        ),
        settings=settings, order=same and msgspec.json.encode(a.program) != msgspec.json.encode(b.program),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- kernels


@dataclass(frozen=True, slots=True)
class _Use:
    """What a kernel is used for: template, nodes and number of launches."""

    template: str
    nodes: tuple[str, ...]
    launches: int


def _uses(program: Program) -> dict[str, _Use]:
    """The use of each kernel by its name; a variant for a single architecture is a kernel of its own."""
    found: dict[str, list[Launch]] = {}
    for x in program.all_launches():
        for name in dict.fromkeys(v.kernel for v in x.variants):
            found.setdefault(name, []).append(x)
    return {
        name: _Use(own[0].template, tuple(dict.fromkeys(n for x in own for n in x.origin)), len(own))
        for name, own in found.items()
    }


def _kernels(a: EngineData, b: EngineData) -> Iterator[KernelDiff]:
    uses, nothing = (_uses(a.program), _uses(b.program)), _Use("", (), 0)
    only = [{n: own.get(n, nothing) for n in e.sources} for e, own in zip((a, b), uses)]
    shared = [n for n in a.sources if _same_code(a, b, n)]
    for name in shared:
        before, after = only[0].pop(name), only[1].pop(name)
        if before.launches != after.launches:
            yield KernelDiff("changed", name, name, after.template, after.nodes, (before.launches, after.launches))
    pairs = _paired(*only)
    for x, y in sorted(pairs.items()):
        before, after = only[0][x], only[1][y]
        lines = _source_diff(x, a.sources[x], y, b.sources[y])
        yield KernelDiff("changed", x, y, after.template, after.nodes, (before.launches, after.launches), lines)
    for x, use in sorted(only[0].items()):
        if x not in pairs:
            yield KernelDiff("removed", x, "", use.template, use.nodes, (use.launches, 0))
    for y, use in sorted(only[1].items()):
        if y not in pairs.values():
            yield KernelDiff("added", "", y, use.template, use.nodes, (0, use.launches))


def _same_code(a: EngineData, b: EngineData, name: str) -> bool:
    """Whether both engines have a kernel of that name with the same text but for comments, which name tensors."""
    if name not in a.sources or name not in b.sources:
        return False
    return _COMMENT.sub("", a.sources[name]) == _COMMENT.sub("", b.sources[name])


def _paired(before: Mapping[str, _Use], after: Mapping[str, _Use]) -> dict[str, str]:
    """Kernels that stand for each other: those that share most nodes first, then those of one name but for its hash.
    """
    scores = []
    for x, old in before.items():
        for y, new in after.items():
            common, named = len({*old.nodes} & {*new.nodes}), _stem(x) == _stem(y)
            if x == y or (old.template == new.template and (common or (named and not old.nodes))):
                alike = common / max(1, len({*old.nodes} | {*new.nodes}))
                scores.append((x == y, alike, named, x, y))
    pairs: dict[str, str] = {}
    for *_, x, y in sorted(scores, key=lambda s: (*(-float(v) for v in s[:3]), s[3], s[4])):
        if x not in pairs and y not in pairs.values():
            pairs[x] = y
    return pairs


def _stem(name: str) -> str:
    return _HASH.sub("", name)


def _source_diff(x: str, before: str, y: str, after: str) -> tuple[str, ...]:
    """The unified diff of two texts in which each kernel's name is without its hash."""
    old, new = (text.replace(name, _stem(name)).splitlines() for name, text in ((x, before), (y, after)))
    return tuple(difflib.unified_diff(old, new, f"{x}.cu", f"{y}.cu", lineterm=""))


# ---------------------------------------------------------------------------------------------- program and weights


def _result_types(program: Program) -> Counter[str]:
    """How many launches write each element type."""
    parts = [p for own in (program.stages or (program,)) for p in own.parts()]
    return Counter(t for p in parts for x in p.launches for t in {_types(p)[n] for n in x.writes})


def _types(program: Program) -> dict[str, str]:
    found = {t.name: t.dtype for t in (*program.inputs, *program.outputs, *program.temps)}
    return found | {w.name: w.dtype for w in program.weights}


def _settings(a: Program, b: Program, renamed: Mapping[str, str]) -> Iterator[str]:
    """Launches in the same place of both programs, of the same kernel, that are launched in another way."""
    before, after = a.all_launches(), b.all_launches()
    for x, y in zip(before, after) if len(before) == len(after) else ():
        for v, w in zip(x.variants, y.variants):
            if renamed.get(v.kernel, v.kernel) != w.kernel:
                continue
            parts = {
                "grid": (v.grid, w.grid), "block": (v.block, w.block), "cluster": (v.cluster, w.cluster),
                "shared memory": (v.shared_bytes, w.shared_bytes),
            }  # fmt: skip
            told = [f"{n} {_text(p)} -> {_text(q)}" for n, (p, q) in parts.items() if p != q]
            if not told and v.kernel == w.kernel and v.params != w.params:
                told = ["other parameters"]
            if told:
                yield f"{y.name} ({w.kernel}, {w.arch}): {', '.join(told)}"


def _text(x: object) -> str:
    return " x ".join(map(str, x)) if isinstance(x, tuple) else str(x)


def _interface(a: Program, b: Program) -> dict[str, Change]:
    """Inputs, outputs and dimensions that differ, as text; None where an engine has no such thing."""
    found: dict[str, Change] = {}
    for kind in ("inputs", "outputs", "symbols"):
        ours, theirs = ({t.name: _declared(t) for t in getattr(p, kind)} for p in (a, b))
        for name in dict.fromkeys((*ours, *theirs)):
            if ours.get(name) != theirs.get(name):
                label = "dimension" if kind == "symbols" else kind.removesuffix("s")
                found[f"{label} {name}"] = (ours.get(name), theirs.get(name))
    return found


def _declared(x: Any) -> str:
    if hasattr(x, "dtype"):
        return f"{x.dtype}[{', '.join(x.shape)}]"
    return f"from {x.lo}" + ("" if x.hi is None else f" to {x.hi}")


def _weights(a: EngineData, b: EngineData) -> Iterator[WeightDiff]:
    ours, theirs = ({w.name: w for w in e.program.weights} for e in (a, b))
    for name in sorted({*ours, *theirs}):
        old, new = ours.get(name), theirs.get(name)
        before, after = (f"{w.dtype}{list(w.shape)}" if w else "" for w in (old, new))
        nbytes = (a.weights[name].nbytes if old else 0, b.weights[name].nbytes if new else 0)
        if old is None or new is None:
            yield WeightDiff("added" if new else "removed", name, before, after, nbytes)
        elif before != after:
            yield WeightDiff("changed", name, before, after, nbytes)
        elif not _equal(a.weights[name], b.weights[name]):
            packed = DType(new.dtype).is_packed
            error = None if packed else relative_error(b.weights[name], a.weights[name])
            yield WeightDiff("changed", name, before, after, nbytes, error)


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether all bytes are equal: other NaNs and signed zeros are other weights."""
    mine, theirs = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (x, y))
    return bool(np.array_equal(mine, theirs))
