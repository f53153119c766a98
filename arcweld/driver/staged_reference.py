"""Runs a graph in stages by the references alone, and notes what each stage was given: builds verify stages with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError
from arcweld.compiler.ir import Graph
from arcweld.compiler.ops import host
from arcweld.compiler.reference import bind_symbols, run_reference
from arcweld.driver.stages import Stages, has_host_nodes, in_stages
from arcweld.runtime.expressions import Expression
from arcweld.runtime.steps import Block, Call, Check, Choose, Read, Repeat, Run, Step, Symbol, Tensor, View

MOST_TURNS = 64  # of a loop, whose later turns show nothing new


def reference_outputs(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of any graph by value name, with host nodes or without. Raises as ``run_reference``."""
    if not has_host_nodes(graph):
        return run_reference(graph, feeds)
    return StagedReference(in_stages(graph), feeds, bind_symbols(graph.inputs, feeds)).run()


class StagedReference:
    """A run of the references. ``fed`` has the inputs of each stage that has run, by its index, the first time."""

    def __init__(self, cut: Stages, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        self.cut = cut
        self.values: dict[str, np.ndarray] = {
            n: a.astype(object) if a.dtype.kind == "U" else a for n, a in feeds.items()
        }
        self.sizes: dict[str, int] = dict(sizes)
        self.fed: dict[int, dict[str, np.ndarray]] = {}

    def run(self) -> dict[str, np.ndarray]:
        """The graph's outputs by value name. Raises InputError for sizes that the graph does not serve."""
        self._steps(self.cut.steps)
        return {o.name: self.values[o.name] for o in self.cut.graph.outputs}

    def _steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Run():
                    self._run(step)
                case Read():
                    values = self.values[step.tensor].reshape(-1)
                    for symbol, value in zip(step.symbols, values, strict=True):
                        self._set(symbol, int(value))
                    for name, tensor in zip(step.whole, step.outputs):
                        self.values[tensor.name] = self.values[name][: self._size(tensor.shape[0])]
                case View():
                    shape = tuple(self._size(d) for d in step.output.shape)
                    whole = self.values[step.tensor]
                    if math.prod(shape) != whole.size or min(shape, default=0) < 0:
                        raise InputError(f"{list(whole.shape)} cannot become {list(shape)}")
                    self.values[step.output.name] = whole.reshape(shape)
                case Check():
                    if self._size(step.zero) != 0:
                        raise InputError(step.what)
                case Call():
                    operands = step.operands(self.values.__getitem__, self._size)
                    self._keep(step.outputs, host.compute(step.op, operands, step.attrs, step.origin), step.symbols)
                case Choose():
                    chosen = step.then if self._first(step.condition) else step.otherwise
                    self._keep(step.outputs, self._block(chosen), step.symbols)
                case Repeat():
                    self._repeat(step)

    def _block(self, block: Block) -> list[np.ndarray]:
        self._steps(block.steps)
        return [self.values[n] for n in block.results]

    def _run(self, step: Run) -> None:
        stage = self.cut.stages[step.stage]
        feeds = {v.name: self.values[v.name] for v in stage.inputs if v.name != step.carrier}
        if step.carrier:
            feeds[step.carrier] = np.empty((*(self.sizes[n] for n in step.sizes), 0), np.uint8)
        self.values.update(run_reference(stage, feeds))
        self.fed.setdefault(step.stage, feeds)

    def _repeat(self, step: Repeat) -> None:
        trips = int(self._first(step.trips)) if step.trips else step.most
        going = bool(self._first(step.condition)) if step.condition else True
        carried = [self.values[n] for n in step.inputs]
        columns: list[list[np.ndarray]] = [[] for _ in step.outputs[len(carried) :]]
        done = 0
        while going and (trips is None or done < trips):
            if done >= min(step.limit, MOST_TURNS):
                raise InputError(f"the loop has not ended after {done} iterations")
            self.values |= {step.counter: np.array(done, np.int64), step.going: np.array(True)}
            self._keep(step.formals, carried, step.symbols)
            first, *rest = self._block(step.body)
            going, carried = bool(first.reshape(-1)[0]), rest[: len(carried)]
            for column, item in zip(columns, rest[len(carried) :]):
                column.append(item)
            done += 1
        scanned = [
            np.stack(c) if c else np.empty((0, *(self._size(d) for d in t.shape[1:])), DType(t.dtype).numpy)
            for c, t in zip(columns, step.outputs[len(carried) :])
        ]
        self._keep(step.outputs, [*carried, *scanned], step.symbols)

    def _first(self, name: str) -> np.generic:
        found = self.values[name].reshape(-1)
        if found.size != 1:
            raise InputError(f"a condition has {found.size} elements, not one")
        first: np.generic = found[0]
        return first

    def _size(self, text: str) -> int:
        expression = Expression(text)
        return expression(self.sizes) if expression.names <= self.sizes.keys() else 0

    def _keep(self, tensors: Sequence[Tensor], arrays: Sequence[np.ndarray], symbols: Sequence[Symbol]) -> None:
        own = {s.name: s for s in symbols}
        for tensor, array in zip(tensors, arrays, strict=True):
            self.values[tensor.name] = array
            for text, size in zip(tensor.shape, array.shape):
                if text in own:
                    self._set(own[text], size)

    def _set(self, symbol: Symbol, value: int) -> None:
        if value < symbol.lo or (symbol.hi is not None and value > symbol.hi):
            raise InputError(f"dimension {symbol.name} is {value}")
        self.sizes[symbol.name] = value
