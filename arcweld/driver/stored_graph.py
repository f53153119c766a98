"""The graph that an engine file holds, with the arrays of its weights: what numpy can compute instead of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arcweld.compiler.dtypes import DType, unpack
from arcweld.compiler.errors import EngineFileError
from arcweld.compiler.ir import Graph
from arcweld.compiler.text import parse_graph
from arcweld.runtime.engine_file import EngineData


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


def stored_graph(data: EngineData) -> Graph:
    """The graph of an engine, after the passes. Raises EngineFileError for an engine without one."""
    if not data.graph:
        raise EngineFileError(f"{data.program.name} holds no graph to compare with", hint="build the engine again")
    graph = parse_graph(data.graph)
    weights = dict(graph.weights)
    initial = {f"{s.input}.initial" for s in data.program.state}
    for entry in (w for w in data.program.weights if w.name not in initial):
        name = graph_name(entry.name, {}, weights)
        array, dtype = data.weights[entry.name], DType(entry.dtype)
        weights[name] = replace(weights[name], data=unpack(array, dtype, entry.shape) if dtype.is_packed else array)
    return graph.replace(weights=weights)
