"""What lowering is made of: reading values element by element, following views, and a kernel of what was read.

Values made inside the region are inlined by their operator's ``lower``; values from outside become loads of canonical
buffers; the hero's result is a variable that the template provides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from arcweld.codegen.kernel import Axis, Bound, Buffer, Kernel, Store
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import VerifyError
from arcweld.compiler.expr import Expr
from arcweld.compiler.ir import Graph, Node, TensorType, Value, merge_origins
from arcweld.compiler.region import Region
from arcweld.compiler.registry import Kind, opdef
from arcweld.compiler.weights import sources

Coords = tuple[Dim, ...]
STEM_LENGTH = 56  # of a kernel's name, before the hash


@dataclass
class Hero:
    """What a hero's own lowering gives: its axes, operand loads, and its result at ``coords`` as ``result``."""

    axes: dict[str, tuple[Axis, ...]]
    loads: dict[str, Expr]
    coords: Coords
    result: Callable[[Coords], Expr]
    attrs: dict[str, Any] = field(default_factory=dict)
    flops: Dim = 0
    # operands that the template visits element by element, with the coordinates where it does: they may be stored too
    visited: dict[str, tuple[Coords, Expr]] = field(default_factory=dict)
    template: str = ""


class RegionReader:
    """Reads values element by element while a region is lowered; collects the buffers that it meets."""

    def __init__(self, region: Region, graph: Graph) -> None:
        self.region = region
        self.graph = graph
        self.made = {o.name: n for n in region.nodes for o in n.outputs}
        self.hero: Hero | None = None
        self.override: dict[str, tuple[Coords, Expr]] = {}
        self.buffers: dict[str, Buffer] = {}
        self._memo: dict[Any, Expr] = {}

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        """The element of ``value`` at ``coords`` (0 where ``mask`` is false): inlined, or a load."""
        key = (value.name, tuple(coords), id(mask))
        found = self._memo.get(key)
        if found is None:
            found = _zero_where_not(self._read(value, tuple(coords), mask), mask)
            if found.dtype is not value.dtype.compute:
                raise VerifyError(
                    f"the lowering of {value.name} gives {found.dtype.value}, its type is {value.type}",
                    node=value.name,
                )
            self._memo[key] = found
        return found

    def _read(self, value: Value, coords: Coords, mask: Expr | None) -> Expr:
        if value.name in self.override and self.override[value.name][0] == coords:
            return self.override[value.name][1]
        node = self.made.get(value.name)
        if node is not None and node is self.region.hero:
            return self._hero_result(value, coords)
        if node is not None:
            return inline(_Masked(self, mask), node, coords)
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
        """The literal for a weight of one element; None for a vector of the model's own (a bias of one unit), which
        may be replaced later.
        """
        weight = self.graph.weights.get(value.name)
        if weight is None or value.type.numel != 1 or (value.type.rank > 0 and sources(weight)):
            return None
        return expr.const(np.asarray(weight.data).reshape(()).item(), value.dtype)

    def buffer(self, value: Value, written: bool = False) -> Buffer:
        """The canonical buffer that stands for ``value``."""
        if value.name not in self.buffers:
            n = sum(b.written == written for b in self.buffers.values())
            name = f"out{n}" if written else f"in{n}"
            self.buffers[value.name] = Buffer(name, value.dtype, value.shape, written)
        return self.buffers[value.name]


def _zero_where_not(e: Expr, mask: Expr | None) -> Expr:
    """``e`` where ``mask`` holds, else 0. Masked loads are 0 already, and so is what only moves or converts them."""
    if mask is None:
        return e
    source = e
    while source.op in ("cast", "neg", "abs"):
        source = source.args[0]
    return e if source.op == "load" and source.args else expr.where(mask, e, expr.const(0, e.dtype))


class _Masked:
    """A reader whose every read is also subject to ``mask``."""

    def __init__(self, reader: RegionReader, mask: Expr | None) -> None:
        self.reader = reader
        self.mask = mask

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        return self.reader.read(value, coords, expr.all_of([self.mask, mask]))


def inline(reader: Any, node: Node, coords: Coords) -> Expr:
    """The element of a pointwise or movement node's result at ``coords``."""
    lower = opdef(node.op).lower
    if lower is None:
        raise VerifyError(f"{node.op} has no element-wise lowering", node=node.name)
    return lower(reader, node, coords)


# ------------------------------------------------------------------------------------------- following views forwards


class _Capture:
    """A reader that only notes the coordinates it is asked for."""

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
    """The coordinates of ``node``'s result that hold the element of ``source`` at ``coords`` (views are bijections)."""
    if node.op == "Reshape":
        return _through("Reshape", node.output.type, source.type, {"shape": source.shape}, coords)
    if node.op == "Transpose":
        perm = node.attrs["perm"]
        return tuple(coords[p] for p in perm)
    if opdef(node.op).kind is Kind.POINTWISE and node.output.shape == source.shape:
        return coords
    raise VerifyError(f"{node.op} cannot follow a hero in one kernel", node=node.name, hint="disable the pass fusion")


def epilogue_coords(region: Region, start: Value, coords: Coords) -> dict[str, Coords]:
    """The coordinates of every value of the region that is computed from ``start``, element by element."""
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
) -> Bound:  # fmt: skip
    """The kernel over the buffers that its expressions use, and their tensors."""
    masks = [s.mask for s in stores if s.mask is not None]
    printed = [*loads.values(), *(s.value for s in stores), *masks, *_places(stores), *_stage_exprs(attrs)]
    used = {e.attr[0] for e in expr.walk(printed) if e.op == "load"}
    used |= {s.buffer for s in stores}
    buffers = {n: b for n, b in reader.buffers.items() if b.name in used}
    kernel = Kernel(
        template, stem or stem_of(region, template), axes, loads, tuple(stores), tuple(buffers.values()), attrs
    )
    tensors = {b.name: n for n, b in buffers.items()}
    return Bound(kernel, tensors, merge_origins(region.nodes), flops)


def _places(stores: Sequence[Store]) -> list[Expr]:
    """What computes the run-time coordinates of stores."""
    return [expr.index(c) for s in stores for c in s.coords if dims.dynamic_atoms(c)]


def _stage_exprs(attrs: Mapping[str, Any]) -> list[Expr]:
    return [e for stage in attrs.get("stages", ()) for e in stage.exprs()]


def stem_of(region: Region, template: str) -> str:
    """A readable C identifier: the template and the operators that compute something, or all if none does."""
    ops = [n.op for n in region.nodes if n.op != "Cast" and opdef(n.op).kind is not Kind.MOVEMENT]
    words = dict.fromkeys([template, *(_short_name(op) for op in ops or [n.op for n in region.nodes])])
    return "_".join(words)[:STEM_LENGTH].rstrip("_")


def _short_name(op: str) -> str:
    """``layernorm`` for LayerNormalization, ``scatter`` for ScatterND, ``sum`` for ReduceSum."""
    name = op.lower().replace("normalization", "norm").removeprefix("reduce")
    return "scatter" if name.startswith("scatter") else name


def float_precision(values: Sequence[Value]) -> str:
    """The matrix engines' name of the operands' type: f16, bf16, or fp32 (also for mixed operands)."""
    kinds = {v.dtype for v in values}
    if kinds == {DType.F16}:
        return "f16"
    return "bf16" if kinds == {DType.BF16} else "fp32"


def delinearize(index: Dim, shape: Sequence[Dim]) -> Coords:
    """Row-major coordinates of a flat index into ``shape``."""
    if any(d == 0 for d in shape):
        return tuple(0 for _ in shape)
    coords: list[Dim] = []
    inner: Dim = 1
    for k in range(len(shape) - 1, -1, -1):
        whole = dims.floordiv(index, inner)
        coords.append(0 if shape[k] == 1 else (whole if k == 0 else dims.mod(whole, shape[k])))
        inner = inner * shape[k]
    return tuple(reversed(coords))
