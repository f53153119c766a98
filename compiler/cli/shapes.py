"""Parses what users write for shapes, value ranges and files: the spellings of trtexec and Polygraphy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from arcweld.compiler.dims import Dim, IntExpr, evaluate, free_symbols, symbol
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import solve

Shape = tuple[int, ...]


def _split(text: str, what: str) -> Iterator[tuple[str, str]]:
    """``a:1,b:2`` as pairs. A name may hold colons: the last one separates. Commas inside brackets don't."""
    depth, start, parts = 0, 0, []
    for i, ch in enumerate(text):
        depth += (ch == "[") - (ch == "]")
        if ch == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    for part in (p.strip() for p in parts):
        name, colon, value = part.rpartition(":")
        if not part or not value:
            raise UsageError(f"{what}: cannot read {part!r}", hint="write name:value, separated by commas")
        yield (name if colon else ""), value


def parse_shapes(text: str) -> dict[str, Shape]:
    """``x:1x3x224x224,y:1x8`` (also ``x:[1,3,224,224]``) by input name."""
    shapes = {}
    for name, shape in parse_open_shapes(text).items():
        if not all(isinstance(d, int) for d in shape):
            raise UsageError(f"shapes: {shape} is no shape of numbers", hint="write x:1x3x224x224")
        shapes[name] = tuple(int(d) for d in shape)
    return shapes


def parse_open_shapes(text: str) -> dict[str, tuple[int | str, ...]]:
    """Shapes whose dimensions may stay open: names and expressions such as ``x:[n,3,32*h,32*w]``, or ``x:nx3x8*w``."""
    shapes: dict[str, tuple[int | str, ...]] = {}
    for name, value in _split(text, "shapes"):
        listed = value.startswith("[")
        words = [d.strip() for d in (value.strip("[]").split(",") if listed else value.split("x")) if d.strip()]
        for d in words:
            if d.startswith("-"):
                raise UsageError(f"shapes: {value!r} has a negative dimension", hint="give every dimension a size")
            if not re.fullmatch(r"\d+|(\d+\*)?[A-Za-z_]\w*", d):
                raise UsageError(f"shapes: {value!r} is not a shape", hint="write x:1x3x224x224, or x:[n,3,32*h,32*w]")
        shapes[name] = tuple(int(d) if d.isdigit() else d for d in words)
    return shapes


def parse_ranges(items: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Polygraphy's ``--val-range``: ``[0,1]`` for all inputs, ``x:[0,1]`` for one."""
    ranges = {}
    for item in items:
        for name, value in _split(item, "val-range"):
            try:
                low, high = (float(v) for v in value.strip("[]()").split(","))
            except ValueError:
                raise UsageError(f"val-range: cannot read {value!r}", hint="write x:[0,1]") from None
            if not -math.inf < low <= high < math.inf:
                raise UsageError(f"val-range: {value!r} is no range of finite numbers", hint="write x:[0,1]")
            ranges[name] = (low, high)
    return ranges


def load_arrays(text: str, shapes: Mapping[str, tuple[np.dtype, Shape | None]]) -> dict[str, np.ndarray]:
    """``x:file.npy,y:data.bin`` or one ``all.npz``. Raw files hold elements of the input's type in row-major order."""
    if text.endswith(".npz"):
        with np.load(_existing(text), allow_pickle=False) as archive:
            return {k: archive[k] for k in archive.files}
    arrays = {}
    for name, file in _split(text, "loadInputs"):
        if name not in shapes:
            raise UsageError(f"loadInputs: there is no input {name!r}", hint=f"inputs: {', '.join(shapes)}")
        path = _existing(file)
        dtype, shape = shapes[name]
        if path.suffix == ".npy":
            arrays[name] = np.load(path, allow_pickle=False)
            continue
        if shape is None:
            raise UsageError(f"loadInputs: {file} has no shape of its own", hint="give --shapes, or use .npy files")
        data = np.fromfile(path, dtype)
        if data.size != int(np.prod(shape)):
            raise UsageError(f"loadInputs: {file} holds {data.size} elements, {name} needs {int(np.prod(shape))}")
        arrays[name] = data.reshape(shape)
    return arrays


def _existing(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {file}")
    return path


def dynamic_shapes(graph: Graph, low: Mapping[str, Shape], high: Mapping[str, Shape]) -> dict[str, list[Dim]]:
    """Input shapes whose open dimensions range from ``low`` to ``high``: one symbol for each of the model's own."""
    ranges: dict[str, tuple[int, int]] = {}
    for shapes in (low, high):
        _check_names(graph, shapes)
    for v in graph.inputs:
        lo, hi = low.get(v.name), high.get(v.name)
        for i, d in enumerate(v.shape):
            if isinstance(d, IntExpr) and (lo or hi):
                s = next(iter(free_symbols(d)))
                a = lo[i] if lo else (hi or ())[i]
                b = hi[i] if hi else (lo or ())[i]
                if a > b:
                    raise UsageError(f"axis {i} of input {v.name} ranges from {a} to {b}", hint="swap them")
                known_range = ranges.setdefault(s.name, (a, b))
                if known_range != (a, b):
                    raise UsageError(f"dimension {s.name} has the ranges {known_range} and {(a, b)}", node=v.name)
            elif not isinstance(d, IntExpr):
                _fixed(v.name, i, d, lo, hi)
    return {v.name: [_ranged(d, ranges) for d in v.shape] for v in graph.inputs}


def _check_names(graph: Graph, shapes: Mapping[str, Shape]) -> None:
    """Raises UsageError for a shape of no input, or of another rank than the input's."""
    known = {v.name: v for v in graph.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise UsageError(f"there is no input {name!r}", hint=f"the inputs are {', '.join(known)}")
        rank = len(known[name].shape)
        if len(shape) != rank:
            raise UsageError(f"input {name} has rank {rank}, a shape of rank {len(shape)} was given")


def _fixed(name: str, axis: int, d: int, lo: Shape | None, hi: Shape | None) -> None:
    for shape in (lo, hi):
        if shape is not None and shape[axis] != d:
            raise UsageError(f"axis {axis} of input {name} is {d} in the model, not {shape[axis]}")


def _ranged(d: Dim, ranges: Mapping[str, tuple[int, int]]) -> Dim:
    if not isinstance(d, IntExpr):
        return d
    s = next(iter(free_symbols(d)))
    if s.name not in ranges:
        return d
    lo, hi = ranges[s.name]
    return lo if lo == hi else symbol(s.name, max(lo, 1), hi)


def check_ranges(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raises UsageError for a size outside its dimension's range."""
    for s in graph.symbols():
        high = s.hi if isinstance(s.hi, int) else None
        if s.name in sizes and not s.lo <= sizes[s.name] <= (sizes[s.name] if high is None else high):
            limit = "" if high is None else f" to {high}"
            raise UsageError(f"dimension {s.name} is {sizes[s.name]} in --optShapes, its range is {s.lo}{limit}")


def sizes_of(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of the graph's symbols that concrete input shapes imply. Raises UsageError where they disagree with
    each other or with the graph.
    """
    sizes: dict[str, int] = {}
    _check_names(graph, shapes)
    known = [(v, i, d) for v in graph.inputs for i, d in enumerate(v.shape if v.name in shapes else ())]
    while any(isinstance(d, IntExpr) and solve(d, shapes[v.name][i], sizes) for v, i, d in known):
        pass
    for v, i, d in known:
        size = shapes[v.name][i]
        if not isinstance(d, IntExpr):
            _fixed(v.name, i, d, shapes[v.name], None)
        elif not {s.name for s in free_symbols(d)} <= set(sizes):
            raise UsageError(f"axis {i} of input {v.name} is {d} in the model, which cannot be {size}")
        elif evaluate(d, sizes) != size:
            raise UsageError(f"axis {i} of input {v.name} is {d} = {evaluate(d, sizes)}, not {size}")
    return sizes
