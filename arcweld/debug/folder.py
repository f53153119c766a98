"""The folder that a search leaves behind: a script that shows what was found by itself, and the data that it needs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import EnvironmentError_, InputError, UsageError
from arcweld.compiler.ir import Graph, Value
from arcweld.compiler.options import Limit, Options
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.debug.case import Case
from arcweld.runtime.devices import open_device

SCRIPT, FACTS, INPUTS = "reproduce.py", "case.json", "inputs.npz"
GRAPH, WEIGHTS = "graph.txt", "weights.npz"
SCRIPTS = Path(__file__).with_name("scripts")


def check_folder(path: str | os.PathLike[str], force: bool) -> Path:
    """The path of a folder to be written, checked before the work.

    Raises UsageError if something is there, unless ``force`` is given and it is a folder that a search has left.
    """
    target = Path(path)
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {parent}", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: no permission to write to {parent}")
    if os.path.lexists(target):
        if not (target.is_dir() and (target / SCRIPT).is_file()):
            raise UsageError(f"{path} exists, and is no folder that `debug` wrote", hint="name another folder")
        if not force:
            raise UsageError(f"{path} exists", hint="name another folder, or replace it with --force")
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes its place at the end, or is deleted on failure.

    Raises UsageError as ``check_folder``, EnvironmentError_ where it cannot be written.
    """
    target = check_folder(path, force)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        check_folder(path, force)
        if target.exists():
            old = temporary.with_suffix(".old")
            os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise EnvironmentError_(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_script(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Copies the script of a search, and writes the facts that it reads (JSON; numbers that are not finite as text)."""
    shutil.copyfile(SCRIPTS / f"{name}.py", folder / SCRIPT)
    (folder / FACTS).write_text(json.dumps(_plain(facts), indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts that ``write_script`` wrote."""
    found: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return found


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple | set | frozenset):
        return [_plain(v) for v in (sorted(x) if isinstance(x, set | frozenset) else x)]
    if isinstance(x, float | np.floating):
        return float(x) if np.isfinite(x) else str(float(x))
    return int(x) if isinstance(x, np.integer) else x


# ------------------------------------------------------------------------------------------------------------ arrays


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz file. Elements of types that numpy lacks (bfloat16, floats of 8 bits) are their bit patterns."""
    with zipfile.ZipFile(path, "w") as archive:  # np.savez fails for arrays named like its parameters
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _pattern(np.asarray(array)), allow_pickle=False)


def _pattern(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "biuf" else np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def load_arrays(path: Path, types: Mapping[str, DType]) -> dict[str, np.ndarray]:
    """The arrays of a file that ``save_arrays`` wrote, with elements of these types by name.

    Raises InputError for a missing file or array.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in types}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} lacks an array: {error}") from None
    return {n: a if from_numpy(a.dtype) is types[n] else a.view(types[n].numpy) for n, a in found.items()}


def input_types(inputs: tuple[Value, ...]) -> dict[str, DType]:
    """The element types of inputs by name."""
    return {v.name: v.dtype for v in inputs}


# ------------------------------------------------------------------------------------------------------------- cases


def save_case(folder: Path, case: Case) -> dict[str, Any]:
    """Writes a case's graph, weights and inputs; returns the facts that ``load_case`` needs beside them."""
    (folder / GRAPH).write_text(print_graph(case.graph), encoding="utf-8")
    save_arrays(folder / WEIGHTS, {n: w.data for n, w in case.graph.weights.items()})
    save_arrays(folder / INPUTS, case.feeds)
    o = case.options
    options = {"precision": o.precision, "disable": o.disable, "keep_f32": o.keep_f32, "tf32": o.tf32}
    return {"options": options, "sizes": dict(case.sizes), "tolerance": case.tolerance, "device": case.device.name}


def load_case(folder: Path, device: str = "") -> Case:
    """The case that ``save_case`` wrote, for its device or another one, which decides the architecture."""
    facts = read_facts(folder)
    graph = _with_weights(parse_graph((folder / GRAPH).read_text(encoding="utf-8")), folder / WEIGHTS)
    where = open_device(device or facts["device"])
    o = facts["options"]
    options = Options(
        o["precision"], (where.arch,), frozenset(o["disable"]), o["tf32"], frozenset(o["keep_f32"]),
        limit=Limit(*facts["limit"]) if facts.get("limit") else None,
    )  # fmt: skip
    feeds = load_arrays(folder / INPUTS, input_types(graph.inputs))
    return Case(graph, feeds, facts["sizes"], options, where, facts["tolerance"])


def _with_weights(graph: Graph, path: Path) -> Graph:
    arrays = load_arrays(path, {n: from_numpy(w.data.dtype) for n, w in graph.weights.items()})
    return graph.replace(weights={n: replace(w, data=arrays[n]) for n, w in graph.weights.items()})
