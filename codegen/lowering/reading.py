"""The parts of lowering: reading values element by element, following views, and making a kernel of what was read.

Values made inside the region are inlined by their operator's ``lower``; values from outside become loads of canonical
buffers; the hero's result is a variable that the template provides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arcweld.codegen.kernel import Axis, BoundKernel, Buffer, Kernel, Stage, Store
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import VerifyError
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, Inliner, inline
from arcweld.compiler.ir import Graph, Node, TensorType, Value, merge_origins
from arcweld.compiler.ops.float8 import FACTORS
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.records import sources
from arcweld.compiler.region import Region

STEM_LENGTH = 56  # of a kernel's name, before the hash


@dataclass
class Hero:
    """What a hero's own lowering gives.

    axes      role -> axes
    loads     role -> the operand as an expression over the axes
    coords    where the template has the hero's result, over its output axes
    result    the result at ``coords``: an expression of the template's variables
    attrs     what the template needs beside expressions
    flops     operations of one launch, about
    visited   operand name -> (coordinates, expression) of operands that the template reads once at every element: the
              kernel may store them too
    template  the template, where it is not the region's ("": it is)
    """

    axes: dict[str, tuple[Axis, ...]]
    loads: dict[str, Expr]
    coords: Coords
    result: Callable[[Coords], Expr]
    attrs: dict[str, Any] = field(default_factory=dict)
    flops: Dim = 0
    visited: dict[str, tuple[Coords, Expr]] = field(default_factory=dict)
    template: str = ""


class RegionReader(Inliner):
    """Reads values element by element while a region is lowered; collects the buffers that it meets.

    ``read`` raises VerifyError also where the hero's result is wanted at other coordinates than those at which the
    kernel has it.
    """

    def __init__(self, region: Region, graph: Graph) -> None:
        super().__init__(region.nodes)
        self.region = region
        self.graph = graph
        self.hero: Hero | None = None
        self.override: dict[str, tuple[Coords, Expr]] = {}
        self.buffers: dict[str, Buffer] = {}

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        """What is not computed from other values here: the hero's result, a constant, an element of a buffer."""
        if value.name in self.override and self.override[value.name][0] == coords:
            return self.override[value.name][1]
        node = self.made.get(value.name)
        if node is not None:
            return self._hero_result(value, coords) if node is self.region.hero else None
        constant = self._scalar_weight(value)
        if constant is not None:
            return constant
        return expr.load(self.buffer(value).name, value.dtype, coords, mask)

    def _hero_result(self, value: Value, coords: Coords) -> Expr:
        assert self.hero is not None
        if 0 in value.shape:  # no element is ever read, and coordinates of an empty axis cannot be inverted
            return self.hero.result(self.hero.coords)
        if coords != self.hero.coords:
            raise VerifyError(
                f"{value.name} is read at {[str(c) for c in coords]}, the kernel makes it at "
                f"{[str(c) for c in self.hero.coords]}",
                node=value.name,
                hint="disable the pass fusion",
            )
        return self.hero.result(coords)

    def _scalar_weight(self, value: Value) -> Expr | None:
        """A weight of one element as a literal, or None.

        Tensors of the model's own with one element (the bias of a single output) stay loads: their data may be
        replaced later.
        """
        weight = self.graph.weights.get(value.name)
        if weight is None or value.type.numel != 1 or (value.type.rank > 0 and sources(weight)):
            return None
        return expr.const(np.asarray(weight.data).reshape(()).item(), value.dtype)

    def of_weights(self, e: Expr) -> bool:
        """True if ``e`` reads weights only, perhaps through views: such loads need not wait for an earlier kernel."""
        tensors = {b.name: name for name, b in self.buffers.items()}
        return all(tensors[x.attr[0]] in self.graph.weights for x in expr.loads([e]))

    def buffer(self, value: Value, written: bool = False) -> Buffer:
        """The canonical buffer that stands for ``value``: ``in0, in1, …`` in the order of reading, or ``out0, …``."""
        if value.name not in self.buffers:
            n = sum(b.written == written for b in self.buffers.values())
            name = f"out{n}" if written else f"in{n}"
            self.buffers[value.name] = Buffer(name, value.dtype, value.shape, written)
        return self.buffers[value.name]


# ------------------------------------------------------------------------------------------- following views forwards


class _Capture:
    """A reader that only notes the coordinates it is asked for."""

    mask: Expr | None = None

    def __init__(self) -> None:
        self.coords: Coords | None = None

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        self.coords = tuple(coords)
        return expr.variable("captured", value.dtype)


def _through(op: str, source: TensorType, target: TensorType, attrs: Mapping[str, Any], coords: Coords) -> Coords:
    """Where ``op``: source -> target reads, for the target element at ``coords``."""
    capture = _Capture()
    node = Node(op, (Value("x", source),), (Value("y", target),), attrs)
    inline(capture, node, coords)
    assert capture.coords is not None
    return capture.coords


def forward(node: Node, source: Value, coords: Coords) -> Coords:
    """The coordinates of ``node``'s result that hold the element of ``source`` at ``coords``.

    ``node`` is pointwise, a Reshape or a Transpose, which map elements one to one; others raise VerifyError.
    """
    if node.op == "Reshape":
        return _through("Reshape", node.output.type, source.type, {"shape": source.shape}, coords)
    if node.op == "Transpose":
        perm = node.attrs["perm"]
        return tuple(coords[p] for p in perm)
    if opdef(node.op).kind is Kind.POINTWISE and node.output.shape == source.shape:
        return coords
    raise VerifyError(f"{node.op} cannot follow a hero in one kernel", node=node.name, hint="disable the pass fusion")


def epilogue_coords(region: Region, start: Value, coords: Coords) -> dict[str, Coords]:
    """Name -> coordinates of the values that the region computes from ``start``, one element from one element."""
    at = {start.name: coords}
    for node in region.nodes:
        if node is region.hero:
            continue
        for v in node.operands():
            if (
                v.name in at
                and node.output.name not in at
                and (v.shape == node.output.shape or node.op in ("Reshape", "Transpose"))
            ):
                at[node.output.name] = forward(node, v, at[v.name])
                break
    return at


# -------------------------------------------------------------------------------------------------------- the kernel


def finish(
    region: Region, reader: RegionReader, template: str, axes: dict[str, tuple[Axis, ...]], loads: dict[str, Expr],
    stores: Sequence[Store], attrs: dict[str, Any], flops: Dim, *, stem: str = "",
    scratch: tuple[Buffer, ...] = (),
) -> BoundKernel:  # fmt: skip
    """The bound kernel of what lowering found, over the buffers that its expressions use.

    ``stem`` defaults to a name made of the template and the region's operators. ``scratch`` as in ``Kernel``.
    """
    masks = [s.mask for s in stores if s.mask is not None]
    printed = [*loads.values(), *(s.value for s in stores), *masks, *_places(stores), *_stage_exprs(attrs)]
    used = {e.attr[0] for e in expr.walk(printed) if e.op == "load"}
    used |= {s.buffer for s in stores}
    buffers = {n: b for n, b in reader.buffers.items() if b.name in used}
    kernel = Kernel(
        template, stem or stem_of(region, template), axes, loads, tuple(stores), tuple(buffers.values()), attrs,
        scratch=scratch,
    )  # fmt: skip
    tensors = {b.name: n for n, b in buffers.items()}
    return BoundKernel(kernel, tensors, merge_origins(region.nodes), flops)


def _places(stores: Sequence[Store]) -> list[Expr]:
    """The expressions of the stores' coordinates that are read at run time."""
    return [expr.index(c) for s in stores for c in s.coords if dims.dynamic_atoms(c)]


def _stage_exprs(attrs: Mapping[str, Any]) -> list[Expr]:
    stages = (s for v in attrs.values() if isinstance(v, tuple) for s in v if isinstance(s, Stage))
    return [e for stage in stages for e in stage.exprs()]


def stem_of(region: Region, template: str) -> str:
    """A readable C identifier of at most STEM_LENGTH characters: the template and the operators.

    Casts and movements are left out, unless the region has nothing else.
    """
    ops = [n.op for n in region.nodes if n.op != "Cast" and opdef(n.op).kind is not Kind.MOVEMENT]
    words = dict.fromkeys([template, *(_short_name(op) for op in ops or [n.op for n in region.nodes])])
    return "_".join(words)[:STEM_LENGTH].rstrip("_")


def _short_name(op: str) -> str:
    """``layernorm`` for LayerNormalization, ``scatter`` for ScatterND, ``sum`` for ReduceSum."""
    name = op.lower().replace("normalization", "norm").removeprefix("reduce")
    return "scatter" if name.startswith("scatter") else name


def precision_of(values: Sequence[Value]) -> str:
    """The attribute ``precision`` of a matrix product.

    ``f16`` or ``bf16`` if all operands are, ``int8`` if all are integers of 8 bits, the two types of 8-bit floats
    (``f8e4m3fn x f8e5m2``), else ``fp32``.
    """
    kinds = {v.dtype for v in values}
    if kinds <= set(FACTORS):
        return " x ".join(v.dtype.value for v in values)
    if kinds <= {DType.I8, DType.U8}:
        return "int8"
    if kinds == {DType.F16}:
        return "f16"
    return "bf16" if kinds == {DType.BF16} else "fp32"


def delinearize(index: Dim, shape: Sequence[Dim]) -> Coords:
    """Row-major coordinates of the flat element index ``index`` into ``shape``; zeros if that has no elements."""
    if any(d == 0 for d in shape):
        return tuple(0 for _ in shape)
    coords: list[Dim] = []
    inner: Dim = 1
    for k in range(len(shape) - 1, -1, -1):
        whole = dims.floordiv(index, inner)
        coords.append(0 if shape[k] == 1 else (whole if k == 0 else dims.mod(whole, shape[k])))
        inner = inner * shape[k]
    return tuple(reversed(coords))
