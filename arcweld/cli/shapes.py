"""Parses shapes, values, ranges and file names of the command line, in the syntax of trtexec and Polygraphy."""

from __future__ import annotations

import fnmatch
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, Sym, substitute, symbol
from arcweld.compiler.dims.binding import DimFunction, solve
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph

Shape = tuple[int, ...]


def split_pairs(text: str, what: str, named: bool = True) -> Iterator[tuple[str, str]]:
    """``a:1,b:2`` as pairs (name, value). The last colon separates; commas inside brackets do not.

    Without ``named`` a value may have no name, which is "" then. Raises UsageError, which begins with ``what``, for a
    part that is no pair.
    """
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
        if named and not (colon and name):
            raise UsageError(f"{what}: {part!r} does not name an input", hint=f"write name:{value}")
        yield (name if colon else ""), value


def parse_shapes(text: str) -> dict[str, Shape]:
    """``x:1x3x224x224,y:1x8`` (also ``x:[1,3,224,224]``) by input name. Raises UsageError."""
    shapes = {}
    for name, shape in parse_open_shapes(text).items():
        if not all(isinstance(d, int) for d in shape):
            raise UsageError(f"shapes: {shape} is no shape of numbers", hint="write x:1x3x224x224")
        shapes[name] = tuple(int(d) for d in shape)
    return shapes


def parse_open_shapes(text: str) -> dict[str, tuple[int | str, ...]]:
    """Shapes with symbolic dimensions, such as ``x:[n,3,32*h,32*w]`` or ``x:nx3x8*w``; ``x:scalar`` has none.

    Raises UsageError.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    for name, value in split_pairs(text, "shapes"):
        listed = value.startswith("[")
        parts = [] if value == "scalar" else value.strip("[]").split(",") if listed else value.split("x")
        words = [d.strip() for d in parts if d.strip()]
        for d in words:
            if d.startswith("-"):
                raise UsageError(f"shapes: {value!r} has a negative dimension", hint="give every dimension a size")
            if not re.fullmatch(r"\d+|(\d+\*)?[A-Za-z_]\w*", d):
                raise UsageError(f"shapes: {value!r} is not a shape", hint="write x:1x3x224x224, or x:[n,3,32*h,32*w]")
        shapes[name] = tuple(int(d) if d.isdigit() else d for d in words)
    return shapes


def parse_ranges(items: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Polygraphy's ``--val-range``: ``[0,1]`` for all inputs, ``x:[0,1]`` for one. Raises UsageError."""
    ranges = {}
    for item in items:
        for name, value in split_pairs(item, "val-range", named=False):
            try:
                low, high = (float(v) for v in value.strip("[]()").split(","))
            except ValueError:
                raise UsageError(f"val-range: cannot read {value!r}", hint="write x:[0,1]") from None
            if not -math.inf < low <= high < math.inf:
                raise UsageError(f"val-range: {value!r} is no range of finite numbers", hint="write x:[0,1]")
            ranges[name] = (low, high)
    return ranges


def parse_values(text: str) -> dict[str, Any]:
    """``sr:16000,mode:[1,0],table:t.npy``: numbers, lists and arrays by input name. Raises UsageError."""
    values: dict[str, Any] = {}
    for name, value in split_pairs(text, "values") if text else ():
        if value.endswith(".npy"):
            values[name] = _read_numpy(_existing(value))
            continue
        try:
            values[name] = np.asarray(json.loads(value.lower()))
        except ValueError:
            raise UsageError(f"values: cannot read {value!r}", hint="write sr:16000, or mode:[1,0]") from None
    return values


def parse_inout(text: str, inputs: Sequence[str]) -> dict[str, str | bool]:
    """``past*,state:state_out``: patterns of inputs, or an input and its output; as ``with_state`` takes them.

    Raises UsageError for a pattern that no input fits.
    """
    found: dict[str, str | bool] = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        name, _, output = word.rpartition(":")
        fitting = fnmatch.filter(inputs, word)  # a colon may be part of a name
        if not fitting and name not in inputs:
            raise UsageError(f"inout: no input is called {name or word!r}", hint=f"inputs: {', '.join(inputs)}")
        found.update(dict.fromkeys(fitting, True) if fitting else {name: output})
    return found


def parse_tolerance(text: str, what: str, outputs: Sequence[str]) -> dict[str, float]:
    """Polygraphy's ``--atol``: ``1e-3`` for all outputs, ``y:1e-3`` for one. By output name, "" for the others.

    Raises UsageError for a negative or non-finite number, or an unknown output.
    """
    found: dict[str, float] = {}
    for name, value in split_pairs(text, what, named=False) if text else ():
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] < math.inf:
            raise UsageError(f"{what}: {value!r} is no tolerance", hint="write 1e-3, or y:1e-3")
        if name and name not in outputs:
            raise UsageError(f"{what}: there is no output {name!r}", hint=f"outputs: {', '.join(outputs)}")
    return found


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of raw elements in row-major order."""

    path: Path

    def read(self, name: str, dtype: np.dtype, shape: Shape) -> np.ndarray:
        """The file as an array, for the input ``name``. Raises UsageError for a file of another size."""
        data = np.fromfile(self.path, dtype)
        if data.nbytes != self.path.stat().st_size or data.size != math.prod(shape):
            size = self.path.stat().st_size / dtype.itemsize
            raise UsageError(
                f"loadInputs: {self.path} holds {size:g} elements, {name} of shape {list(shape)} needs "
                f"{math.prod(shape)}",
                hint="say with --shapes how large the input is",
            )
        return data.reshape(shape)


def load_arrays(text: str, types: Mapping[str, DType]) -> dict[str, np.ndarray | RawFile]:
    """``x:file.npy,y:data.bin`` or one ``all.npz``: arrays, and raw files to be read once their shapes are known.

    ``types`` are the element types by input name. Raises UsageError for an unknown input or an unreadable file.
    """
    arrays: dict[str, np.ndarray | RawFile] = {}
    if text.endswith(".npz") and ":" not in text:
        arrays.update(_read_numpy(_existing(text)))
    else:
        for name, file in split_pairs(text, "loadInputs"):
            path = _existing(file)
            arrays[name] = _read_numpy(path) if path.suffix == ".npy" else RawFile(path)
    for name, array in arrays.items():
        if name not in types:
            raise UsageError(f"loadInputs: there is no input {name!r}", hint=f"inputs: {', '.join(types)}")
        wanted = types[name].numpy
        if types[name].is_string:
            if not isinstance(array, np.ndarray) or array.dtype.kind != "U":
                raise UsageError(f"loadInputs: {name} is strings", hint="np.save an array of strings as a .npy file")
        elif isinstance(array, np.ndarray) and array.dtype.kind == "V" and array.dtype.itemsize == wanted.itemsize:
            arrays[name] = array.view(wanted)  # numpy's file format has no bfloat16
    return arrays


def _read_numpy(path: Path) -> Any:
    """The array of a ``.npy`` file, or the arrays of a ``.npz`` file by name. Raises UsageError."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray) != (path.suffix == ".npy"):
            raise ValueError("the file's name does not say what it is")
        return found if isinstance(found, np.ndarray) else {k: found[k] for k in found.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as an array: {error}") from None


def _existing(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no file {file}")
    return path


def dynamic_shapes(graph: Graph, low: Mapping[str, Shape], high: Mapping[str, Shape]) -> dict[str, list[Dim]]:
    """Input shapes with symbolic dimensions that range from ``low`` to ``high``, both included.

    A dimension that only one of them determines is constant. Raises UsageError for shapes that do not fit the graph,
    and for empty ranges.
    """
    for name in sorted({*low, *high}):
        for i, (a, b) in enumerate(zip(low.get(name, ()), high.get(name, ()))):
            if a > b:
                raise UsageError(f"axis {i} of input {name} ranges from {a} to {b}", hint="swap them")
    least, most = sizes_of(graph, low), sizes_of(graph, high)
    table: dict[Any, Dim] = {}
    for s in graph.symbols():
        if s.name in least or s.name in most:
            table[s] = _ranged(s, least.get(s.name, most.get(s.name, 0)), most.get(s.name, least.get(s.name, 0)))
    return {v.name: [substitute(d, table) for d in v.shape] for v in graph.inputs}


def _ranged(s: Sym, low: int, high: int) -> Dim:
    if low > high:
        raise UsageError(f"dimension {s.name} ranges from {low} to {high}", hint="swap them")
    return low if low == high else symbol(s.name, max(low, 1), high)


def _check_names(graph: Graph, shapes: Mapping[str, Shape]) -> None:
    """Raises UsageError for a shape of no input, or of another rank than the input's."""
    known = {v.name: v for v in graph.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise UsageError(f"there is no input {name!r}", hint=f"the inputs are {', '.join(known)}")
        rank = len(known[name].shape)
        if len(shape) != rank:
            raise UsageError(f"input {name} has rank {rank}, a shape of rank {len(shape)} was given")


def check_ranges(graph: Graph, sizes: Mapping[str, int], option: str = "--optShapes") -> None:
    """Raises UsageError for a size, which ``option`` gave, outside its dimension's range."""
    for s in graph.symbols():
        high = s.hi if isinstance(s.hi, int) else None
        if s.name in sizes and not s.lo <= sizes[s.name] <= (sizes[s.name] if high is None else high):
            limit = "" if high is None else f" to {high}"
            raise UsageError(f"dimension {s.name} is {sizes[s.name]} in {option}, its range is {s.lo}{limit}")


def sizes_of(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of the graph's symbols for concrete input shapes.

    Raises UsageError for shapes that contradict each other or the graph.
    """
    sizes: dict[str, int] = {}
    _check_names(graph, shapes)
    known = [
        (f"axis {i} of input {v.name}", DimFunction(d), shapes[v.name][i])
        for v in graph.inputs
        for i, d in enumerate(v.shape if v.name in shapes else ())
    ]
    solve([(f, size) for _, f, size in known], sizes)
    for axis, f, size in known:
        if not f.names <= sizes.keys():
            raise UsageError(f"{axis} is {f.dim} in the model, which cannot be {size}")
        if f(sizes) != size:
            value = f" = {f(sizes)}" if f.names else ""
            raise UsageError(f"{axis} is {f.dim}{value}, not {size}")
    return sizes


def batch_sizes(graph: Graph, batch: int) -> dict[str, int]:
    """The sizes of the symbols that make the first dimension of every input ``batch``, where it is open; {} for 0.

    Raises UsageError if an open one cannot be that, or if none is open and they are fixed to something else.
    """
    first = {v.name: DimFunction(v.shape[0]) for v in graph.inputs if v.shape} if batch else {}
    sizes: dict[str, int] = {}
    solve([(f, batch) for f in first.values()], sizes)
    fits = [f.names <= sizes.keys() and f(sizes) == batch for f in first.values()]
    for (name, f), fine in zip(first.items(), fits):
        if not fine and (f.names or not (any(fits) or any(g.names for g in first.values()))):
            hint = None if f.names else "the model fixes its batch: leave --batch out"
            raise UsageError(f"--batch: the first dimension of input {name} is {f.dim}, not {batch}", hint=hint)
    check_ranges(graph, sizes, "--batch")
    return sizes
