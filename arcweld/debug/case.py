"""A model with inputs and the options of a build: what every search for a fault builds, runs and compares."""

from __future__ import annotations

import math
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.errors import (
    AccuracyError,
    ArcweldError,
    CompileError,
    DeviceError,
    InternalError,
    UnsupportedError,
    UsageError,
    VerifyError,
)
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Limit, Options
from arcweld.compiler.reference import run_reference
from arcweld.driver.api import checked_feeds, known_nodes
from arcweld.driver.build import Build, build_graph
from arcweld.driver.costs import Costs
from arcweld.driver.draws import draw_sample, given_sample
from arcweld.driver.evidence import HANG_FACTOR, HANG_SECONDS, engine_tolerance
from arcweld.driver.isolation import Notes, ignore_notes, in_child
from arcweld.driver.metrics import relative_error
from arcweld.driver.promotion import KERNELS, promote
from arcweld.driver.stages import has_host_nodes
from arcweld.passes.pipeline import pass_names
from arcweld.runtime.device import Device
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine import Engine

PROMOTION_SECONDS = 60.0  # of the search for the nodes that stay in f32
# what a wrong build or a wrong kernel raises; other errors of ours are the caller's, the model's or the machine's
FAULTS = (AccuracyError, CompileError, DeviceError, InternalError, VerifyError)


@dataclass(frozen=True, slots=True)
class Failure:
    """How a build is wrong.

    kind    ``differs``, or what was raised: the code of an error, or the name of an exception and its place
    detail  one line for people
    error   the largest relative error of an output; infinite if there are none
    """

    kind: str
    detail: str
    error: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model and all that decides what is built of it and what its results should be.

    graph      as it was imported
    feeds      an array for each input, by name
    sizes      of all symbols
    tolerance  largest relative error of an output, as verification has it
    """

    graph: Graph
    feeds: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    options: Options
    device: Device
    tolerance: float

    def limited(self, limit: Limit) -> Case:
        """The case with a limit of optimising."""
        return replace(self, options=replace(self.options, limit=limit))

    def build(self) -> Build:
        """The build, unverified. Raises as ``build_graph``."""
        return build_graph(self.graph, self.options, compile_kernels=self.device.needs_object_code)

    def wanted(self) -> dict[str, np.ndarray]:
        """The outputs by label, from the references of the imported graph."""
        values = run_reference(self.graph, self.feeds, bind=self.sizes)
        return {label: values[o.name] for label, o in zip(self.graph.labels(), self.graph.outputs)}

    def failure(self, want: Mapping[str, np.ndarray] | None = None) -> Failure | None:
        """How the case is wrong, built and run on its device; None if it is right. ``want``: as ``wanted`` gives it.

        Raises UsageError, ModelError, UnsupportedError and EnvironmentError_ for what is no fault of a pass or kernel.
        """
        want = self.wanted() if want is None else want
        try:
            got = run_build(self.build(), self.feeds, self.sizes, self.device)
        except FAULTS as error:
            return Failure(error.code, error.message)
        except (ArcweldError, MemoryError):
            raise
        except Exception as error:  # a pass or a template that fails is a finding like a wrong result
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
            return Failure(kind, f"{kind}: {error}")
        return compared(got, want, self.tolerance)


def compared(
    got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], tolerance: float
) -> Failure | None:  # fmt: skip
    """The failure of the worst output whose relative error is above ``tolerance``; None if there is none."""
    errors = {label: relative_error(got[label], w) for label, w in want.items()}
    worst = max(errors, key=errors.__getitem__, default="")
    if not worst or errors[worst] <= tolerance:
        return None
    text = f"output {worst} has relative error {errors[worst]:.2e}, above {tolerance:.0e}"
    return Failure("differs", text, errors[worst])


def run_build(
    build: Build, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: Device
) -> dict[str, np.ndarray]:
    """The outputs of a build by label. On the simulator it runs in a child process, which a crash may end.

    Every loop runs there as the kernel shows it.

    Raises AccuracyError for such a crash and for a run that does not end, DeviceError as the device does.
    """
    engine = Engine(build.data, device.adversary(), borrow=True)
    costs = Costs.of(build.fused.graph, build.all_planned())
    seconds = sum(costs.simulated(p, sizes, adverse=True) for p in build.part_at(sizes).launches)

    def work(note: Notes) -> dict[str, np.ndarray]:
        note("the engine", HANG_SECONDS + HANG_FACTOR * seconds)
        with engine.poisoned():
            changed = {s.input: feeds[s.input].copy() for s in engine.program.state}
            return engine.run_tensors({**feeds, **changed})

    return in_child(work) if device.is_simulator else work(ignore_notes)


def prepare(
    graph: Graph, *, precision: str = "fp32", device: Device | str | None = None,
    feeds: Mapping[str, Any] | None = None, sizes: Mapping[str, int] | None = None,
    disable: Sequence[str] = (), tolerance: float | None = None, keep_f32: Collection[str] = (),
    promoted: bool = True,
) -> Case:  # fmt: skip
    """The case of an imported graph, with random inputs unless ``feeds`` has them.

    ``promoted``: whether nodes stay in f32 that a build in half precision would keep there. Raises UsageError for an
    unknown pass or node, InputError for inputs that do not fit, UnsupportedError for a model in stages.
    """
    refuse_stages(has_host_nodes(graph), graph.name)
    if unknown := sorted(set(disable) - set(pass_names())):
        raise UsageError(f"no pass is called {unknown[0]}", hint=f"passes: {', '.join(pass_names())}")
    where = open_device(device)
    sample = draw_sample(graph, sizes) if feeds is None else given_sample(graph, sizes, checked_feeds(graph, feeds))
    options = Options(precision, (where.arch,), frozenset(disable), keep_f32=known_nodes(graph, keep_f32))
    limit = engine_tolerance(graph, precision) if tolerance is None else tolerance
    if precision != "fp32" and promoted:
        kept = promote(graph, options, sample.feeds, sample.sizes, tolerance=KERNELS * limit, budget=PROMOTION_SECONDS)
        options = replace(options, keep_f32=options.keep_f32 | kept.origins)
    plain = graph.replace(output_labels=graph.labels(), initial={})
    return Case(plain, sample.feeds, sample.sizes, options, where, limit)


def refuse_stages(staged: bool, name: str) -> None:
    """Raises UnsupportedError if the host takes part in each call of a model."""
    if staged:
        what = f"{name} is in stages, between which the host reads sizes or takes branches: debug takes models of one"
        raise UnsupportedError(what, hint="fix what decides its sizes and branches with --values or --shapes")
