"""Hooks: the device functions through which a template reads its operands and writes its results.

A hook takes the template's own loop indices and handles ``width`` neighbouring elements (lanes). What is fused is in
the hooks: a template does not know it. A hook that reads an array in shared memory takes it behind the indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcweld.codegen.kernel import Buffer, Kernel, Store
from arcweld.codegen.printing.params import Params
from arcweld.codegen.printing.printer import VECTOR_BYTES, Block, index_type, print_stores, texts
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Sym, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, walk


@dataclass(frozen=True, slots=True)
class Plain:
    """An operand that is one unmasked load with an affine address: ``buffer[offset + sum(stride[sym] * sym)]``."""

    buffer: Buffer
    offset: Dim
    strides: Mapping[Sym, Dim]


def plain_load(kernel: Kernel, e: Expr, symbols: Sequence[Sym]) -> Plain | None:
    """``e`` as a Plain access over ``symbols``; None if it computes, is masked, or is not affine."""
    if e.op != "load" or e.args:
        return None
    name, _, coords = e.attr
    buffer = kernel.buffer(name)
    rest = buffer.offset(coords)
    if dims.dynamic_atoms(rest):
        return None
    strides: dict[Sym, Dim] = {}
    for s in symbols:
        c = dims.coefficient(rest, s)
        if c is None or any(dims.mentions(c, o) for o in symbols):
            return None
        strides[s] = c
        rest = rest - c * var(s)
    return Plain(buffer, rest, strides)


class Hooks:
    """Prints a kernel's hooks, and collects the parameters that they need."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.params = Params(kernel)
        self.itype = index_type(kernel)

    def load(
        self,
        fn: str,
        e: Expr,
        args: Sequence[tuple[str, Sym]],
        *,
        lane: Sym | None = None,
        width: int = 1,
        variables: Mapping[str, tuple[str, DType, bool]] | None = None,
        once: bool = False,
    ) -> str:
        """The text of ``void fn(const Params& p, int a, …, T (&out)[width])``, which computes ``e`` for all lanes.

        ``args``: C name and symbol of each index; that of ``lane`` is the first lane's. T is the compute type of ``e``.
        ``variables`` (as in ``store``) become parameters between the indices and ``out``. ``once``: no other load needs
        what it reads, so that caches may drop it first.
        """
        ctype = e.dtype.cuda
        laned = {k: (c, is_laned) for k, (c, _, is_laned) in (variables or {}).items()}
        block = Block(self.params, {s: n for n, s in args}, lane=lane, width=width, variables=laned, once=once)
        target = "out[lane]" if block.lane is not None else "out[0]"
        text = block.value(block.uniform(e))
        shared = self._shared([e])
        head = self._head(fn, args, *shared, *_formal(variables or {}, width), f"{ctype} (&out)[{width}]")
        return "\n".join([head, *block.finish([f"{target} = {text};"]), "}"])

    def store(
        self,
        fn: str,
        stores: Sequence[Store],
        args: Sequence[tuple[str, Sym]],
        *,
        lane: Sym | None = None,
        width: int = 1,
        variables: Mapping[str, tuple[str, DType, bool]] | None = None,
        extent: Dim | None = None,
    ) -> str:
        """The text of ``void fn(const Params& p, int a, …, const T (&x)[width], …)``: the epilogue and its stores.

        ``variables``: name in expressions -> (C name, dtype, whether there is one value for each lane). ``extent``: the
        extent of the lane axis; where ``width`` does not divide it, lanes past the end are not stored.
        """
        laned = {k: (c, is_laned) for k, (c, _, is_laned) in (variables or {}).items()}
        block = Block(self.params, {s: n for n, s in args}, lane=lane, width=width, variables=laned)
        guard = None
        if lane is not None and width > 1 and extent is not None and not dims.is_multiple(extent, width):
            first = next(n for n, s in args if s == lane)
            bound = block.dim(extent)
            guard = lambda lane_text: f"{first} + {lane_text} < {bound}"
            block = Block(self.params, {s: n for n, s in args}, lane=lane, width=width, variables=laned, clamp=extent)
        body = texts(print_stores(block, stores, guard))
        shared = self._shared([s.value for s in stores])
        head = self._head(fn, args, *shared, *_formal(variables or {}, width))
        return "\n".join([head, *body, "}"])

    def _head(self, fn: str, args: Sequence[tuple[str, Sym]], *extra: str) -> str:
        listed = ", ".join(["const Params& p", *(f"{self.itype} {n}" for n, _ in args), *extra])
        return f"__device__ __forceinline__ void {fn}({listed}) {{"

    def _shared(self, roots: Sequence[Expr]) -> list[str]:
        """The parameter declarations of the arrays in shared memory that expressions read."""
        read = {e.attr[0] for e in walk(roots) if e.op == "load"}
        return [f"const {b.dtype.cuda}* {b.name}" for b in self.kernel.scratch if b.name in read]

    def plain(self, role: str, symbols: Sequence[Sym]) -> Plain | None:
        """The operand ``role`` as an affine load without a mask, or None."""
        return plain_load(self.kernel, self.kernel.loads[role], symbols)

    def dim(self, d: Dim, names: Mapping[Sym, str] | None = None) -> str:
        """C text of a dimension inside the kernel; symbols become members of ``p``, or the ``names`` given.

        Raises ValueError for a dimension that takes statements to compute.
        """
        block = Block(self.params, names or {})
        text = block._factor(d)
        if block.lines:
            raise ValueError(f"{d} needs statements; pass it as a scalar parameter instead")
        return text


def _formal(variables: Mapping[str, tuple[str, DType, bool]], width: int) -> list[str]:
    """The parameter declarations of template variables."""
    return [f"const {t.cuda} (&{c})[{width}]" if is_laned else f"{t.cuda} {c}" for c, t, is_laned in variables.values()]


def vector_width(kernel: Kernel, extent: Dim, exprs: Sequence[Expr], stores: Sequence[Store], lane: Sym) -> int:
    """Lanes of a vector along ``lane``: the most of 8, 4, 2, 1 that divide ``extent``.

    The access with the smallest element takes at most 16 bytes, and at least one access is contiguous and aligned.
    """
    params = Params(kernel)
    bits = [kernel.buffer(e.attr[0]).dtype.bits for e in walk(list(exprs)) if e.op == "load"]
    bits += [kernel.buffer(s.buffer).dtype.bits for s in stores]
    for width in (8, 4, 2):
        if not dims.is_multiple(extent, width) or width * min(bits, default=32) > 8 * VECTOR_BYTES:
            continue
        block = Block(params, {lane: "i"}, lane=lane, width=width)
        block.variables = {e.attr: ("x", True) for e in walk(list(exprs)) if e.op == "var"}
        hits = [block.contiguous(kernel.buffer(s.buffer), s.coords) is not None for s in stores]
        hits += [
            block.contiguous(kernel.buffer(e.attr[0]), e.attr[2]) is not None
            for e in walk(list(exprs))
            if e.op == "load" and block.is_laned(e)
        ]
        if any(hits):
            return width
    return 1
