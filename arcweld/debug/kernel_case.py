"""Writes what a comparison of kernels found as a folder: the kernel at fault as an engine of its own, with data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.errors import AccuracyError, DeviceError
from arcweld.compiler.ir import Graph
from arcweld.debug.boundaries import Boundary, Divergence
from arcweld.debug.divergence import REFERENCES, Comparison
from arcweld.debug.exact import evaluate_exactly, evaluated, narrowed
from arcweld.debug.folder import INPUTS, new_folder, save_arrays, write_script
from arcweld.debug.subject import Subject
from arcweld.driver.isolation import Notes, in_child
from arcweld.driver.single_launch import single_launch
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData, write_engine
from arcweld.runtime.sim.device import SimDevice

CHECKED_SECONDS = 120.0
ENGINE, EXPECTED = "case.engine", "expected.npz"


def write_divergence(
    path: str | Path, subject: Subject, found: Divergence, reference: str = REFERENCES[0], force: bool = False
) -> None:
    """Writes a folder with a script that runs the first kernel that is wrong, on the reference's values.

    Where no kernel is wrong by itself, it is the whole engine with the model's inputs and outputs. ``reference`` as for
    ``compare_kernels``.
    """
    b = found.first
    with new_folder(path, force) as folder:
        single, inputs, expected = _whole(subject, reference) if b is None else _kernel(subject, b, reference)
        write_engine(folder / ENGINE, single)
        save_arrays(folder / INPUTS, inputs)
        save_arrays(folder / EXPECTED, expected)
        write_script(folder, "divergence", {
            "what": "the engine" if b is None else f"kernel {b.kernel} ({b.source})", "device": subject.device.name,
            "nodes": b.nodes if b else (), "limit": b.limit if b else found.tolerance,
            "expected": {n: from_numpy(a.dtype).value for n, a in expected.items()},
        })  # fmt: skip


def checked(subject: Subject, b: Boundary, reference: str = REFERENCES[0]) -> str:
    """What checked mode says of a kernel on the reference's operands: a race, a missing barrier, a bad access.

    It is empty where checked mode finds nothing, does not end in ``CHECKED_SECONDS`` of CPU time, or is not to be had:
    only the simulator has it.
    """
    if not subject.device.is_simulator:
        return ""
    single, inputs, _ = _kernel(subject, b, reference)
    device = SimDevice(subject.device.arch, checked=True)

    def work(note: Notes) -> str:
        note(f"checked mode of kernel {b.kernel}", CHECKED_SECONDS)
        try:
            Engine(single, device, graphs=False, borrow=True).run({n: a.copy() for n, a in inputs.items()})
        except DeviceError as error:
            return error.message
        return ""

    try:
        return in_child(work)
    except AccuracyError:  # the child was ended; how the kernel ends its process is the boundary's to say
        return ""


Parts = tuple[EngineData, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # an engine, inputs, expected outputs


def _whole(subject: Subject, reference: str) -> Parts:
    """The engine as it is, with the outputs of the imported graph, if it is known."""
    graph = subject.imported or subject.graph
    names = dict(zip(graph.labels(), (o.name for o in graph.outputs)))
    values = _values(graph, subject, set(names.values()), reference)
    return subject.data, subject.feeds, {label: values[n] for label, n in names.items() if n in values}


def _kernel(subject: Subject, b: Boundary, reference: str) -> Parts:
    """The engine of a boundary's kernel, its operands, and the value that it should compute, by the program's names."""
    whole = Comparison(subject, reference)
    step = next(s for s in whole.steps if s.plan.launch.name == b.launch)
    single = single_launch(subject.data, step.launches, step.plan.variant.entry, subject.sizes)
    read = {t.name: whole.name[t.name] for t in single.program.inputs}
    written = {t: whole.name[t] for t in step.writes}
    values = _values(subject.graph, subject, {*read.values(), *written.values()}, reference)
    inputs = {t: narrowed(values[n], whole.values[n].dtype) for t, n in read.items()}
    expected = {t: values[n] for t, n in written.items() if n == b.value}
    return single, {t: a for t, a in inputs.items() if a is not None}, expected


def _values(graph: Graph, subject: Subject, names: set[str], reference: str) -> dict[str, np.ndarray]:
    """The reference's values of these names."""
    evaluate = evaluate_exactly if reference == "f64" else None
    return evaluated(graph, subject.feeds, subject.sizes, names, evaluate)
