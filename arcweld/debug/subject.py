"""An engine with the graph that its kernels compute and with inputs: what is compared at the kernels' results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import bind_symbols
from arcweld.debug.case import Case, refuse_stages
from arcweld.driver.evidence import engine_tolerance
from arcweld.driver.stored_graph import stored_graph
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is compared.

    graph      after the passes, in regions of which kernels were made; its weights have their data
    tolerance  largest relative error of an output
    imported   the graph before the passes; None for an engine file, which does not hold it
    """

    data: EngineData
    graph: Graph
    feeds: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    device: Device
    tolerance: float
    imported: Graph | None = None

    @classmethod
    def of_case(cls, case: Case) -> Subject:
        """The build of a case. Raises as ``Case.build``."""
        build = case.build()
        return cls(build.data, build.fused.graph, case.feeds, case.sizes, case.device, case.tolerance, case.graph)

    @classmethod
    def of_engine(cls, engine: Engine, feeds: Mapping[str, np.ndarray], tolerance: float | None = None) -> Subject:
        """An engine that was loaded; the tolerance is that of its evidence, if it has one and none is given.

        Raises UnsupportedError for an engine in stages, EngineFileError for one without a graph, InputError for inputs
        that do not fit.
        """
        data = engine.data
        refuse_stages(bool(data.program.steps), data.program.name)
        graph = stored_graph(data)
        noted = [float(r["tolerance"]) for r in (data.verify or {}).get("outputs", ()) if r.get("tolerance")]
        limit = max([engine_tolerance(graph, "fp32"), *noted]) if tolerance is None else tolerance
        return cls(data, graph, feeds, bind_symbols(graph.inputs, feeds), engine.device, limit)
