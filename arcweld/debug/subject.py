"""An engine with the graph that its kernels compute and with inputs: what is compared at the kernels' results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.dtypes import DType, unpack
from arcweld.compiler.errors import EngineFileError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import bind_symbols
from arcweld.compiler.text import parse_graph
from arcweld.debug.case import Case, refuse_stages
from arcweld.driver.evidence import engine_tolerance
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
        if not data.graph:
            raise EngineFileError(f"{data.program.name} holds no graph to compare with", hint="build the engine again")
        graph = _with_weights(parse_graph(data.graph), data)
        noted = [float(r["tolerance"]) for r in (data.verify or {}).get("outputs", ()) if r.get("tolerance")]
        limit = max([engine_tolerance(graph, "fp32"), *noted]) if tolerance is None else tolerance
        return cls(data, graph, feeds, bind_symbols(graph.inputs, feeds), engine.device, limit)


def graph_name(name: str, labels: Mapping[str, str], known: Mapping[str, object]) -> str:
    """The graph's name of a tensor that the program calls ``name``: ``driver.assemble.Names`` backwards.

    labels  the outputs' values by label
    known   has the names of the graph's values and weights

    Raises EngineFileError for a tensor that the graph does not have.
    """
    found = labels.get(name, name if name in known else name.rpartition(".")[0])
    if found not in known:
        raise EngineFileError(f"the engine's graph has no value {name!r}", hint="build the engine again")
    return found


def _with_weights(graph: Graph, data: EngineData) -> Graph:
    """A stored graph with the arrays of the engine's weights."""
    weights = dict(graph.weights)
    initial = {f"{s.input}.initial" for s in data.program.state}
    for entry in (w for w in data.program.weights if w.name not in initial):
        name = graph_name(entry.name, {}, weights)
        array, dtype = data.weights[entry.name], DType(entry.dtype)
        weights[name] = replace(weights[name], data=unpack(array, dtype, entry.shape) if dtype.is_packed else array)
    return graph.replace(weights=weights)
