"""What the implementations of attention share: a kernel's operands by role, and the hooks that all of them print.

Roles: axes ``b h s t d dv``, one each: batch, head, query, key, head size of q and k, head size of v. Loads ``q`` over
b h s d, ``k`` over b h t d, ``v`` over b h t dv, and possibly ``mask`` over b h s t: floats are added to the scores, of
bools true means that the query attends to the key, false that the score is ``fill``. Stores over b h s dv with the
variable ``acc``. Possibly a load ``sink`` over h: the score of one more key, whose value is 0.

Attributes: ``scale``; ``softcap`` (scores become ``softcap * tanh(score / softcap)`` before the mask; 0 if absent);
``causal`` (query i attends to keys j <= i + ``causal_offset``, which is 0 if absent); ``precision``; ``fill`` (minus
infinity if absent). A query that attends to no key gives zeros.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from arcweld.codegen.kernel import Axis, Kernel, axis
from arcweld.codegen.printing.hooks import Hooks, plain_load, vector_width
from arcweld.codegen.printing.nest import rewrite
from arcweld.codegen.printing.printer import Block
from arcweld.codegen.printing.scalar import literal
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index, loads, mentions
from arcweld.compiler.ops.registry import MOST_HEAD_SIZE

LOG2E = math.log2(math.e)
ABSORBING = -1e30  # so low that adding a score doesn't change it, and that its probability is 0 beside any score


@dataclass(frozen=True)
class Attention:
    """An attention kernel's parts.

    mask_kind  ``none``, ``add`` or ``bool``
    period     0, or where the heads of a group follow one another on the query axis, the queries of one head
    """

    kernel: Kernel
    b: Axis
    h: Axis
    s: Axis
    t: Axis
    d: Axis
    dv: Axis
    mask: Expr | None
    mask_kind: str
    scale: float
    fill: float
    causal: bool
    causal_offset: Dim
    period: int
    softcap: float
    sink: Expr | None

    @property
    def size(self) -> int:
        """Head size of q and k."""
        assert isinstance(self.d.extent, int)
        return self.d.extent

    @property
    def value_size(self) -> int:
        """Head size of v."""
        assert isinstance(self.dv.extent, int)
        return self.dv.extent

    @property
    def ctype(self) -> DType:
        """The type that the ordinary arithmetic units compute in: f32 or f64."""
        return self.kernel.loads["q"].dtype

    @property
    def heads(self) -> Dim:
        """The number of heads in all batches."""
        return self.b.extent * self.h.extent

    def fill_text(self, unit: float = 1.0) -> str:
        """The score of a key that a bool mask excludes, times ``unit``; empty for other masks."""
        if self.mask_kind != "bool":
            return ""
        if math.isinf(self.fill):
            return f"-({self.ctype.cuda})INFINITY"
        least = float(np.finfo(self.ctype.numpy).min)  # a finite number stays finite
        return literal(const(max(self.fill * unit, least), self.ctype))

    @property
    def folds(self) -> bool:
        """True if the softmax can scale raw scores itself."""
        return self.mask_kind == "none" and self.scale > 0 and not self.softcap

    def scaled(self, score: str, unit: float, fast: bool = False) -> str:
        """C text of the raw score ``score`` times the scale and ``unit``, capped before that if there is a cap.

        ``fast``: by approximate functions, for scores of operands of 16 bits.
        """
        if not self.softcap:
            return f"{score} * {self.scale * unit!r}f"
        factor, cap = self.scale / self.softcap, self.softcap * unit
        if fast:
            return f"soft_capped({score} * {2 * factor * LOG2E!r}f, {cap!r}f)"
        t = self.ctype.cuda
        return f"{t}({cap!r}) * {'tanh' if self.ctype is DType.F64 else 'tanhf'}({score} * {t}({factor!r}))"

    @property
    def mask_rows(self) -> bool:
        """True if the mask differs between queries."""
        return self.mask is not None and mentions(self.mask, self.s.sym)


def parts(kernel: Kernel) -> Attention:
    """The kernel's parts by role."""
    b, h, s, t, d, dv = (kernel.axes[role][0] for role in ("b", "h", "s", "t", "d", "dv"))
    mask = kernel.loads.get("mask")
    kind = "none" if mask is None else ("bool" if mask.dtype is DType.BOOL else "add")
    attrs = kernel.attrs
    scale, causal, offset = float(attrs["scale"]), bool(attrs["causal"]), attrs.get("causal_offset", 0)
    fill = attrs.get("fill", -math.inf)
    return Attention(
        kernel, b, h, s, t, d, dv, mask, kind, scale, fill, causal, offset, attrs.get("period", 0),
        attrs.get("softcap", 0.0), kernel.loads.get("sink"),
    )  # fmt: skip


def grouped(kernel: Kernel) -> Kernel | None:
    """The kernel with the query heads that share keys and values laid along the query axis (grouped-query attention).

    The keys are then read once for the whole group, which counts when there are few queries. None if no heads share
    keys, or if an extent is not constant.
    """
    h, s = kernel.axes["h"][0], kernel.axes["s"][0]
    shared = shared_heads(kernel, "k")
    group = None if shared is None else shared.b
    if not any(mentions(kernel.loads[role], h.sym) for role in ("k", "v")) and h.extent != 1:
        group = h.extent  # all heads share one
    if not isinstance(group, int) or not isinstance(s.extent, int) or not isinstance(h.extent, int) or h.extent % group:
        return None
    head, row = axis("h", h.extent // group), axis("s", group * s.extent)
    table: dict[dims.Atom, Dim] = {
        h.sym: head.index * group + dims.floordiv(row.index, s.extent),
        s.sym: dims.mod(row.index, s.extent),
    }
    new = rewrite(kernel, {**kernel.axes, "h": (head,), "s": (row,)}, table)
    if any(mentions(new.loads[role], row.sym) for role in ("k", "v")):
        return None
    return replace(new, attrs={**new.attrs, "period": s.extent})


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """The keys that a mask admits to a query: none from ``end`` on (an i64 over b, h, s).

    every_query  the rest adds nothing only where each query has a key before its end
    is_shared    the end is the same for all queries of a head
    """

    end: Expr
    every_query: bool
    is_shared: bool


def key_limit(a: Attention) -> KeyLimit | None:
    """Which keys the mask excludes by their position, if it compares it with what does not depend on the key."""
    condition, written = a.mask, a.fill
    if a.mask is not None and a.mask_kind == "add":
        if a.mask.op != "where" or a.mask.args[1].op != "const" or a.mask.args[2].op != "const":
            return None
        condition, written = a.mask.args[0], float(a.mask.args[2].attr)
        if a.mask.args[1].attr != 0:
            return None
    if condition is None or written > ABSORBING:
        return None
    terms = _conjunction(condition)
    ends = [e for e in (_end(term, a.t) for term in terms) if e is not None]
    if not ends or (math.isfinite(written) and len(terms) > 1):
        return None
    end = functools.reduce(lambda x, y: binary("min", x, y), ends)
    return KeyLimit(end, math.isfinite(written), not mentions(end, a.s.sym))


def print_limit(a: Attention, hooks: Hooks) -> tuple[KeyLimit | None, list[str]]:
    """The limit that the mask sets, if any, and the function ``load_end(p, b, h, s, out)`` that computes its end."""
    limit = key_limit(a)
    if limit is None:
        return None, []
    return limit, [hooks.load("load_end", limit.end, [("b", a.b.sym), ("h", a.h.sym), ("s", a.s.sym)])]


def _conjunction(e: Expr) -> list[Expr]:
    return [x for arg in e.args for x in _conjunction(arg)] if e.op == "and" else [e]


def _end(term: Expr, t: Axis) -> Expr | None:
    """The first key that the comparison ``term`` excludes with all after it; None for other terms."""
    if term.op not in ("le", "lt", "ge", "gt"):
        return None
    key, limit = term.args if term.op in ("le", "lt") else term.args[::-1]
    if key.op != "index" or limit.dtype is not DType.I64 or mentions(limit, t.sym):
        return None
    offset = key.attr - t.index
    if dims.mentions(offset, t.sym) or t.extent == 1:
        return None
    beyond = 1 if term.op in ("le", "ge") else 0
    return binary("add", binary("sub", limit, index(offset)), const(beyond, DType.I64))


def shared_heads(kernel: Kernel, role: str) -> dims.Call | None:
    """The expression ``floordiv(h, g)`` by which the operand is read, if g query heads share it; else None."""
    for e in loads([kernel.loads[role]]):
        for coord in e.attr[2]:
            for a in dims.atoms(coord):
                if isinstance(a, dims.Call) and a.fn == "floordiv" and a.a == kernel.axes["h"][0].index:
                    return a
    return None


def unsupported(kernel: Kernel) -> str | None:
    """The reason why no implementation can render the kernel, or None."""
    for role in ("d", "dv"):
        extent = kernel.axes[role][0].extent
        if not isinstance(extent, int) or not 1 <= extent <= MOST_HEAD_SIZE:
            return f"head size {extent} is not a constant between 1 and {MOST_HEAD_SIZE}"
    kinds = {kernel.loads[r].dtype for r in ("q", "k", "v")}
    if len(kinds) > 1 or not kinds <= {DType.F32, DType.F64}:
        return f"q, k and v are computed in {', '.join(sorted(k.value for k in kinds))}"
    sink = kernel.loads.get("sink")
    if sink is not None and sink.dtype not in kinds:
        return f"the sink is {sink.dtype.value}, not of the scores' type"
    mask = kernel.loads.get("mask")
    if mask is not None and mask.dtype is not DType.BOOL and mask.dtype not in kinds:
        return f"the mask is {mask.dtype.value}: neither bool nor of the scores' type"
    return None


@dataclass(frozen=True, slots=True)
class PrintedHooks:
    """The hooks' texts, and the lanes of an access of q, k, v, the mask and the result."""

    functions: tuple[str, ...]
    q: int
    k: int
    v: int
    mask: int
    out: int


def print_hooks(a: Attention, hooks: Hooks, widest: dict[str, int]) -> PrintedHooks:
    """The hooks of an implementation.

    ``load_q(p, b, h, s, d, out)``, ``load_k(p, b, h, t, d, out)``, ``load_v(p, b, h, t, e, out)``,
    ``load_mask(p, b, h, s, t, out)``, ``load_sink(p, b, h, s, out)`` and ``store_out(p, b, h, s, e, acc)``. ``widest``
    says which of them are wanted, and the most lanes of each. Only a kernel with a sink has a hook for it.
    """
    lead = [("b", a.b.sym), ("h", a.h.sym)]
    spans = {
        "q": ("s", a.s, "d", a.d),
        "k": ("t", a.t, "d", a.d),
        "v": ("t", a.t, "e", a.dv),
        "mask": ("s", a.s, "t", a.t),
    }
    width: dict[str, int] = dict.fromkeys(("q", "k", "v", "mask"), 1)
    functions: list[str] = []
    for role, (row, row_axis, col, lane) in spans.items():
        e = a.kernel.loads.get(role)
        if e is None or role not in widest:
            continue
        width[role] = min(vector_width(a.kernel, lane.extent, [e], (), lane.sym), widest[role])
        args = [*lead, (row, row_axis.sym), (col, lane.sym)]
        functions.append(hooks.load(f"load_{role}", e, args, lane=lane.sym, width=width[role]))
    if a.sink is not None:
        functions.append(hooks.load("load_sink", a.sink, [*lead, ("s", a.s.sym)]))
    values = [s.value for s in a.kernel.stores]
    out = min(vector_width(a.kernel, a.dv.extent, values, a.kernel.stores, a.dv.sym), widest["out"])
    args = [*lead, ("s", a.s.sym), ("e", a.dv.sym)]
    acc = {"acc": ("acc", a.ctype, True)}
    functions.append(hooks.store("store_out", a.kernel.stores, args, lane=a.dv.sym, width=out, variables=acc))
    return PrintedHooks(tuple(functions), width["q"], width["k"], width["v"], width["mask"], out)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How the rows of keys or values reach shared memory: by asynchronous copies, or through the load hook.

    per       elements of a copy of 16 bytes
    function  the text of the function that gives the address of row 0, or of any row if ``looked_up``
    stride    C text of the elements between rows
    buffer    C text of the operand's address
    """

    role: str
    is_async: bool
    per: int
    function: str = ""
    stride: str = ""
    buffer: str = ""

    @property
    def looked_up(self) -> bool:
        """True if rows lie where a table says, or some don't exist: their address is then null."""
        return self.is_async and not self.stride

    def row(self, t: str) -> str:
        """C text of the address of row ``t``."""
        if self.looked_up:
            return f"{self.role}_row(p, b, h, {t})"
        return f"{self.role}_row0(p, b, h) + {t} * {self.stride}"


def transfer(a: Attention, hooks: Hooks, role: str, element: DType) -> Transfer:
    """The transfer of an operand: asynchronous where rows are contiguous, 16-byte aligned and stored as ``element``."""
    lane, per = (a.d if role == "k" else a.dv), 16 // element.size
    e = a.kernel.loads[role]
    if e.op != "load" or e.attr[1] is not element or not dims.is_multiple(lane.extent, per):
        return Transfer(role, False, per)
    plain = plain_load(a.kernel, e, [a.t.sym, lane.sym])
    if plain is None:
        return _looked_up(a, hooks, role, per)
    if (
        plain.strides[lane.sym] != 1
        or not dims.is_multiple(plain.strides[a.t.sym], per)
        or not dims.is_multiple(plain.offset, per)
    ):
        return Transfer(role, False, per)
    block, head = _row_function(a, hooks, f"{role}_row0", element)
    buffer = hooks.params.buffer(plain.buffer.name)
    row = block.place(buffer, plain.offset)
    body = [*block.finish([]), f"  return {row};", "}"]
    stride = hooks.params.scalar(f"{role}_stride", plain.strides[a.t.sym])
    wide = "" if block.itype == "int" else f"({block.itype})"
    return Transfer(role, True, per, "\n".join([head, *body]), wide + stride, buffer)


def _looked_up(a: Attention, hooks: Hooks, role: str, per: int) -> Transfer:
    """The transfer of an operand whose rows are not at one distance, such as those of pages, or don't all exist."""
    e, lane = a.kernel.loads[role], (a.d if role == "k" else a.dv).sym
    name, element, coords = e.attr
    offset = a.kernel.buffer(name).offset(coords)
    start = offset - dims.var(lane)
    if any(mentions(x, lane) for x in (index(start), *e.args)) or not dims.is_multiple(start, per):
        return Transfer(role, False, per)
    block, head = _row_function(a, hooks, f"{role}_row", element, ("t", a.t.sym))
    buffer, exists = hooks.params.buffer(name), [block.value(m) for m in e.args]
    row = block.place(buffer, start)
    found = f"{exists[0]} ? {row} : nullptr" if exists else row
    return Transfer(role, True, per, "\n".join([head, *block.finish([]), f"  return {found};", "}"]), buffer=buffer)


def _row_function(
    a: Attention, hooks: Hooks, name: str, element: DType, *more: tuple[str, Sym]
) -> tuple[Block, str]:  # fmt: skip
    """The block that computes a row's address, of b, h and ``more`` indices, and the head of its function."""
    args = [("b", a.b.sym), ("h", a.h.sym), *more]
    block = Block(hooks.params, {symbol: text for text, symbol in args})
    listed = ", ".join(["const Params& p", *(f"{block.itype} {text}" for text, _ in args)])
    return block, f"__device__ __forceinline__ const {element.cuda}* {name}({listed}) {{"
