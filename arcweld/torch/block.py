"""A compiled block inside a torch graph: builds its engine at the first call, and watches its parameters for changes.

Parameters and buffers are weights of the engine, packed once. If one is replaced or written in place, they are packed
again. If they change at every call, they become inputs. Tensors that the block itself writes are inputs too, which the
engine changes where they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import fx

from arcweld.compiler.dims import var
from arcweld.compiler.errors import AccuracyError, DeviceError, InputError, ModelError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.torch.fx_reader import written_input
from arcweld.compiler.torch.importer import import_fx
from arcweld.compiler.torch.layout import dense_order
from arcweld.compiler.torch.symbols import is_size, solvable
from arcweld.compiler.torch.types import Sizes, as_array, real_view
from arcweld.runtime.arrays import ALIGNMENT
from arcweld.runtime.locks import SharedLock
from arcweld.runtime.weights import model_names
from arcweld.torch.options import BackendOptions
from arcweld.torch.report import BlockReport
from arcweld.torch.truncate import truncate_double

log = logging.getLogger("arcweld.torch")

# the engine's inputs: position among the block's tensors, and the axes in memory order (None: contiguous as it is)
EngineInputs: TypeAlias = Sequence[tuple[int, tuple[int, ...] | None]]

# in messages for an index of the model, and in the simulator's for a divisor
MODELS_FAULT = ("is out of range for an axis", "an integer is divided by zero")
MAX_CHANGES = 2  # successive calls with changed parameters; after one more they become inputs


class EngineBuilder(Protocol):
    """Makes the engine of a graph: ``compile_graph`` of the driver, or a stand-in in tests."""

    def __call__(self, graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> Any:
        """The engine of ``graph``, verified on ``feeds`` (by input name)."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A block's engine, with what it was built for.

    ``constants`` lists the parameters that are weights of the engine.
    """

    engine: Any
    inputs: EngineInputs
    constants: Sequence[_Packed]

    def holds(self, args: Sequence[torch.Tensor]) -> bool:
        """True if every parameter is the tensor that was packed and has not been written since."""
        return all(p.is_current(args[p.position]) for p in self.constants)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A parameter as it was when it was packed, at its position among the block's tensors.

    ``alias`` keeps its memory: what ``parameter.data = …`` sets can't come to lie at the same address.
    """

    position: int
    tensor: torch.Tensor
    alias: torch.Tensor
    address: int
    version: int

    def is_current(self, tensor: torch.Tensor) -> bool:
        """True if ``tensor`` is the parameter, with the memory and the version that were packed.

        Strides are not compared: Dynamo's guards do that.
        """
        return tensor is self.tensor and tensor._version == self.version and tensor.data_ptr() == self.address


class Block(torch.nn.Module):  # type: ignore[misc]
    """Runs one block of the partition as an engine, or as ATen if it turns out that it cannot be compiled.

    ``module`` holds the block's ATen nodes. Its placeholders are the block's inputs in order: tensors and symbolic
    sizes (the engine takes sizes from the tensors' shapes). ``static`` marks inputs that are parameters or buffers.
    ``restride`` maps the position of a result to the strides that PyTorch relies on.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        report: BlockReport,
        build: EngineBuilder,
        options: BackendOptions,
        *,
        static: Sequence[bool],
        restride: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.aten = [module]  # in a list: as a submodule its parameters would be registered twice
        self.report = report
        self.options = options
        self._build_engine = build
        self._lock = SharedLock()  # read by calls, so that nobody updates the engine's weights meanwhile
        self._restride = dict(restride or {})
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._tensors = [k for k, n in enumerate(placeholders) if isinstance(n.meta.get("val"), torch.Tensor)]
        tensors = [placeholders[k] for k in self._tensors]
        written = list(dict.fromkeys(t for n in module.graph.nodes if (t := written_input(n)) is not None))
        self._state = frozenset(tensors.index(n) for n in written)  # positions among the tensors
        self._is_impure = bool(written)  # FX keeps the call, whether or not its results are read
        self._static = tuple(static[k] and options.freeze and placeholders[k] not in written for k in self._tensors)
        self._placeholders = [n.name for n in placeholders]
        self._names = [n.name for n in tensors]
        sizes = Sizes()
        self._carried = _carried(placeholders, sizes)
        self._in_orders = [dense_order(n.meta["val"], sizes) for n in tensors]
        results = [n for n in _results(module) if isinstance(n, fx.Node)]
        self._out_orders = [dense_order(n.meta["val"], sizes) for n in results]
        self._out_types = [n.meta["val"].dtype for n in results]
        self._device = next((n.meta["val"].device for n in (*tensors, *results)), None)
        self._changes = 0
        self._ready: _Ready | None = None  # replaced as a whole, because other threads may be running

    def forward(self, *given: Any) -> Any:
        """The block's results for its inputs, as a tuple. Builds the engine at the first call.

        If that fails, PyTorch runs the block, or with ``require_full_compilation`` UnsupportedError or AccuracyError is
        raised. Raises DeviceError if the device fails.
        """
        args: list[torch.Tensor] = [given[k] for k in self._tensors]
        unchanged = True
        while self.report.fallback is None:
            self._lock.acquire_read()
            try:
                ready = self._ready
                if ready is not None and ready.holds(args):
                    if unchanged:
                        self._changes = 0
                    return self._run(ready, given, args)
            finally:
                self._lock.release_read()
            unchanged = False
            with self._lock:
                self._prepare(given, args)
        return self.aten[0](*given)

    def _run(self, ready: _Ready, given: Sequence[Any], args: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The results of the engine, which changes the state among ``args``."""
        moving = self._moving(ready.inputs, args)
        copied = []  # state that the engine cannot change where it is
        for position, (k, _) in enumerate(ready.inputs):
            if k in self._state and not _is_writable(moving[position], args[k]):
                moving[position] = _dense_copy(moving[position])
                copied.append((k, position))
        try:
            found = ready.engine(*moving, *self._carrier(given, args))
        except (DeviceError, InputError) as error:
            if any(text in error.message for text in MODELS_FAULT):
                self.aten[0](*given)  # raises eager's own error
            raise
        for k, position in copied:
            order = ready.inputs[position][1]
            target = args[k] if order is None else args[k].permute(order)
            target.copy_(torch.view_as_complex(moving[position]) if target.is_complex() else moving[position])
        results = found if isinstance(found, tuple) else (found,)
        return tuple(self._returned(k, r) for k, r in enumerate(results[len(self._state) :]))

    def _moving(self, inputs: EngineInputs, args: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors to call the engine with, permuted to memory order and therefore contiguous."""
        return [self._narrowed(args[k] if o is None else args[k].permute(o)) for k, o in inputs]

    def _carrier(self, given: Sequence[Any], args: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """An input of shape ``[sizes…, 0]`` that carries the sizes which no other input's shape determines; or none.

        An engine needs some input: that of a block that reads no tensor is this one.
        """
        if args and not self._carried:
            return []
        return [torch.empty([*(given[k] for k in self._carried), 0], dtype=torch.uint8, device=self._device)]

    def _returned(self, k: int, result: torch.Tensor) -> torch.Tensor:
        """Result ``k`` with the axes, the dtype and the strides that PyTorch expects."""
        order = self._out_orders[k]
        if self._out_types[k].is_complex:
            result = torch.view_as_complex(result)
        if order is not None:
            result = result.permute([order.index(a) for a in range(len(order))])
        if result.dtype is not self._out_types[k]:
            result = result.to(self._out_types[k])
        if k in self._restride:
            strided = torch.empty_strided(result.shape, self._restride[k], dtype=result.dtype, device=result.device)
            result = strided.copy_(result)
        return result

    # ---------------------------------------------------------------------------------------------------- weights

    def _prepare(self, given: Sequence[Any], args: Sequence[torch.Tensor]) -> None:
        """Builds the engine, for the first time or because a parameter has changed."""
        before, self._ready = self._ready, None
        if before is None:
            self._static = tuple(s and not _is_count(a) for s, a in zip(self._static, args))
        else:
            if before.holds(args):
                self._ready = before  # another thread was first
                return
            self._changes += 1
            if self._changes > MAX_CHANGES:
                log.warning("%s: its parameters change at every call; they are inputs from now on", self.report.name)
                self._static = (False,) * len(self._static)
            elif self._update(before, args):
                return
            else:  # what was a literal and has changed may change again: it becomes an input
                literals = self._changed_literals(before, args)
                self._static = tuple(s and k not in literals for k, s in enumerate(self._static))
        if any(s and a.is_inference() for s, a in zip(self._static, args)) or all(self._static):
            # inference tensors have no version counter, and an engine without inputs could not be called
            self._static = (False,) * len(self._static)
        try:
            self._build(given, args)
        except ModelError:
            self.aten[0](*given)  # if the values of the inputs are at fault, this raises eager's own error
            raise
        except (UnsupportedError, AccuracyError) as error:
            if self.options.require_full_compilation:
                raise
            self.report.fallback = str(error.message)
            log.warning("%s: left to PyTorch: %s", self.report.name, error)

    def _update(self, before: _Ready, args: Sequence[torch.Tensor]) -> bool:
        """Updates the engine's weights from the parameters; False if the engine has to be built again."""
        engine = before.engine
        if not hasattr(engine, "update_weights"):
            return False
        if self._changed_literals(before, args):
            return False
        packed = [(p.position, args[p.position]) for p in before.constants]
        used = {s for w in engine.program.weights for s in model_names(w)}
        values = {self._names[k]: self._narrowed(a) for k, a in packed if self._names[k] in used}
        found = _Ready(engine, before.inputs, _remember(packed))
        if values:
            engine.update_weights(values)
        self._ready = found
        self.report.updates += 1
        return True

    def _changed_literals(self, before: _Ready, args: Sequence[torch.Tensor]) -> set[int]:
        """Positions of changed parameters that kernels, or the records of packed weights, hold as literals."""
        program = getattr(before.engine, "program", None)
        fixed = () if program is None else program.fixed
        changed = [p.position for p in before.constants if not p.is_current(args[p.position])]
        return {k for k in changed if args[k].dim() == 0 or self._names[k] in fixed}

    def _narrowed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as the engine takes it: a complex one as a view with its parts as the last axis."""
        tensor = real_view(tensor)
        return tensor.float() if self.options.truncate_double and tensor.dtype is torch.float64 else tensor

    def _build(self, given: Sequence[Any], args: Sequence[torch.Tensor]) -> None:
        started = time.monotonic()
        wanted = [(k, o) for k, (o, s) in enumerate(zip(self._in_orders, self._static)) if not s]
        fixed = {n: a for n, a, s in zip(self._names, args, self._static) if s}
        graph = import_fx(
            self.aten[0],
            name=self.report.name,
            weights=fixed,
            input_orders={self._names[k]: o for k, o in wanted if o is not None},
            output_orders={k: o for k, o in enumerate(self._out_orders) if o is not None},
            carried=[self._placeholders[k] for k in self._carried] if self._carried or not args else None,
        )
        if self.options.truncate_double:
            graph = truncate_double(graph)
        inputs = [*self._moving(wanted, args), *self._carrier(given, args)]
        feeds = {v.name: as_array(t) for v, t in zip(graph.inputs, inputs, strict=True)}
        packed = _remember([(k, a) for k, (a, s) in enumerate(zip(args, self._static)) if s])
        engine = self._build_engine(graph, feeds=feeds)
        self._ready = _Ready(engine, wanted, packed)
        self.report.builds += 1
        self.report.seconds += time.monotonic() - started
        program = getattr(engine, "program", None)
        self.report.kernels = None if program is None else len(program.launches)


def _carried(placeholders: Sequence[fx.Node], sizes: Sizes) -> list[int]:
    """The positions of those inputs that are symbolic sizes which the tensors' shapes do not determine."""
    values = [n.meta.get("val") for n in placeholders]
    try:
        shapes = [d for v in values if isinstance(v, torch.Tensor) for d in sizes.type_of(v).shape]
    except UnsupportedError:  # the import will say so
        return []
    told = {var(s) for s in solvable(shapes)}
    return [k for k, v in enumerate(values) if is_size(v) and sizes.dim(v) not in told]


def _is_writable(tensor: torch.Tensor, given: torch.Tensor) -> bool:
    """True if an engine can write ``tensor``, which stands for ``given``, where it is."""
    own = given.dtype.to_real() if given.is_complex() else given.dtype
    same = tensor.dtype is own and not tensor.is_neg() and not given.is_conj()
    return same and tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


def _is_count(tensor: torch.Tensor) -> bool:
    """True for a single integer: it counts something, and so changes."""
    return tensor.dim() == 0 and not tensor.is_floating_point() and not tensor.is_complex()


def _dense_copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)


def _remember(packed: Sequence[tuple[int, torch.Tensor]]) -> list[_Packed]:
    return [_Packed(k, a, a.detach(), a.data_ptr(), a._version) for k, a in packed]


def _results(module: fx.GraphModule) -> Sequence[Any]:
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    result: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    return result
