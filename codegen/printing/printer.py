"""Prints expressions as CUDA statements, one scalar or a vector of lanes at a time.

The *lane axis* is the axis along which a thread handles ``width`` neighbouring elements, its lanes. A load that is
contiguous along it becomes one vector access; one that doesn't depend on it is done once; others are done lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from arcweld.codegen.kernel import Buffer, Kernel, Store
from arcweld.codegen.printing.params import STORAGE, Params
from arcweld.codegen.printing.scalar import literal, scalar_text
from arcweld.codegen.printing.uniform import below_zero, index_difference, is_negative, two_sides
from arcweld.compiler import dims
from arcweld.compiler.dims import Call, Dim, Dyn, Sym, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, coordinates, postorder, substitute, walk
from arcweld.compiler.special_functions import SPECIAL

INDEX_LIMIT = 1 << 31
VECTOR_BYTES = 16


def wide_index(kernel: Kernel) -> bool:
    """True if some buffer may hold 2**31 elements or more, so that indices take 64 bits.

    A buffer without an upper bound counts by its lower one: launches check that its elements can be counted in 32 bits.
    """
    for b in kernel.buffers:
        total: Dim = 1
        for d in b.shape:
            total = total * d
        lo, hi = dims.bounds(total)
        if (hi if hi is not None else lo or 0) >= INDEX_LIMIT:
            return True
    return False


def index_type(kernel: Kernel) -> str:
    """C type of everything that addresses the kernel's buffers."""
    return "long long" if wide_index(kernel) else "int"


class LineKind(Enum):
    """What a printed line is."""

    DEFINITION = "definition"  # gives a name to a value or an index
    DIRECTIVE = "directive"  # for the preprocessor: it starts at the left margin
    ACTION = "action"  # all else: declarations, stores, the head and the end of a loop


@dataclass(frozen=True, slots=True)
class Line:
    """A line of C; ``value`` is the expression that a definition computes, None for an index."""

    kind: LineKind
    text: str
    value: Expr | None = None

    def indented(self, by: str) -> Line:
        """The line with ``by`` in front; a directive stays as it is."""
        return self if self.kind is LineKind.DIRECTIVE else replace(self, text=by + self.text)


def texts(lines: Sequence[Line]) -> list[str]:
    """The lines as they are written."""
    return [line.text for line in lines]


class Block:
    """Prints one straight-line block of statements: first what all lanes share and vector loads, then the lane loop.

    Each sub-expression is computed once.

    names      C text of each loop index (for the lane axis: of its first lane)
    lane       the lane axis' symbol; None: single elements
    width      lanes of a vector
    variables  C text of each template variable, and whether it is an array over the lanes
    clamp      the lane axis' extent, where ``width`` need not divide it: lanes past the end compute the last element
    """

    def __init__(
        self,
        params: Params,
        names: Mapping[Sym, str],
        *,
        lane: Sym | None = None,
        width: int = 1,
        variables: Mapping[str, tuple[str, bool]] | None = None,
        clamp: Dim | None = None,
        once: bool = False,
    ) -> None:
        self.params = params
        self.once = once
        self.names = dict(names)
        self.lane = lane if width > 1 else None
        self.width = width
        self.variables = dict(variables or {})
        self.lines: list[Line] = []
        self._lane_lines: list[Line] = []
        self._clamped: Line | None = None  # defines ``at``, once something inside the lane loop needs it
        self._count = 0
        self._done: dict[Expr, str] = {}
        self._calls: dict[tuple[Call, bool], str] = {}
        self._laned: dict[Expr, bool] = {}
        self._uniform: dict[Expr, Expr] = {}
        self._in_lanes = False
        self.itype = index_type(params.kernel)
        # the lane axis' index is width * _q + _l: the vector's number, and the lane inside it
        self._q = Sym("_q", 0)
        self._l = Sym("_l", 0, width - 1)
        self._clamp = clamp
        self.lane_table: dict[dims.Atom, Dim] = {}
        if self.lane is not None and clamp is None:
            self.lane_table = {self.lane: var(self._q) * width + var(self._l)}
        elif self.lane is not None and clamp is not None:
            # the width need not divide the extent: each lane has an index of its own, at most the last one
            self._l = Sym("_clamped", 0, clamp - 1)
            self.lane_table = {self.lane: var(self._l)}

    # ----- integer expressions

    def dim(self, d: Dim, *, laned: bool = False) -> str:
        """C text of an index expression: ``laned`` inside the loop over the lanes, else at the first one."""
        saved, self._in_lanes = self._in_lanes, laned
        text = self._poly(self._at_lane(d))
        self._in_lanes = saved
        return text

    def _at_lane(self, d: Dim) -> Dim:
        """``d`` in terms of the vector's number and the lane inside it, which is lane 0 outside the lane loop."""
        if self.lane is None:
            return d
        d = dims.substitute(d, self.lane_table)
        return d if self._in_lanes else dims.substitute(d, {self._l: 0})

    def _poly(self, d: Dim) -> str:
        if isinstance(d, int):
            return str(d) if -INDEX_LIMIT < d < INDEX_LIMIT else f"{d}ll"
        out = ""
        for negative, factors in self._terms(d):
            text = " * ".join(factors)
            out += (f" - {text}" if negative else f" + {text}") if out else (f"-{text}" if negative else text)
        return out

    def _terms(self, d: dims.IntExpr) -> list[tuple[bool, list[str]]]:
        """The terms of a sum: whether each is subtracted, and the texts of its factors."""
        found = []
        for m, c in d.terms:
            factors = [self._atom(a) for a, p in m for _ in range(p)]
            if self.lane is not None and (self._q, 1) in m and c % self.width == 0:
                # the lane axis' index is a multiple of the width: in whole vectors it needs no division
                factors.remove(self._atom(self._q))
                factors.insert(0, self.names[self.lane])
                c //= self.width
            if abs(c) != 1 or not factors:
                factors.append(str(abs(c)))
            found.append((c < 0, factors))
        return found

    def _factor(self, d: Dim) -> str:
        """C text of ``d`` as a factor: in parentheses, unless it is one factor without a sign."""
        if isinstance(d, int):
            return self._poly(d) if d >= 0 else f"({self._poly(d)})"
        (negative, factors), *others = self._terms(d)
        return factors[0] if len(factors) == 1 and not negative and not others else f"({self._poly(d)})"

    def _argument(self, d: Dim) -> str:
        """C text of ``d`` as an argument of ``max`` or ``min``, whose arguments must have the same type."""
        long = isinstance(d, int) and abs(d) >= INDEX_LIMIT
        text = self._poly(d)
        return text if self.itype == "int" and not long else f"({self.itype})({text})"

    def place(self, pointer: str, offset: Dim, *, laned: bool = False) -> str:
        """C text of ``pointer`` plus ``offset`` elements; the offset is summed first, as an integer."""
        saved, self._in_lanes = self._in_lanes, laned
        at = self._at_lane(offset)
        text = self._poly(at)
        self._in_lanes = saved
        if at == 0:
            return pointer
        return f"{pointer} + {text if isinstance(at, int) or len(at.terms) == 1 else f'({text})'}"

    def _atom(self, a: dims.Atom) -> str:
        if isinstance(a, Call):
            lanes = self.lane is not None and (dims.mentions(a.a, self._l) or dims.mentions(a.b, self._l))
            payloads = [d.payload for d in dims.dynamic_atoms(var(a))]
            lanes = lanes or (self._in_lanes and any(isinstance(p, Expr) and self.is_laned(p) for p in payloads))
            key = (a, lanes)
            if key not in self._calls:
                self._calls[key] = self._define(self.itype, self._call_text(a), lanes, "ix")
            return self._calls[key]
        if isinstance(a, Dyn):
            assert isinstance(a.payload, Expr)
            return f"({self.itype}){self.value(a.payload)}" if self.itype == "int" else self.value(a.payload)
        if a == self._q:
            assert self.lane is not None
            return f"({self.names[self.lane]} / {self.width})"
        if a == self._l:
            return "lane" if self._clamp is None else self._clamped_index()
        if a in self.names:
            return self.names[a]
        # widened at once: a product of dimensions may overflow 32 bits before it is added to a 64-bit index
        return f"({self.itype}){self.params.symbol(a)}" if self.itype != "int" else self.params.symbol(a)

    def _clamped_index(self) -> str:
        if self._clamped is None:
            assert self.lane is not None
            assert self._clamp is not None
            bound = Block(self.params, {})._poly(self._clamp - 1)
            text = f"const int at = min({self.names[self.lane]} + lane, (int)({bound}));"
            self._clamped = Line(LineKind.DEFINITION, text)
        return "at"

    def _call_text(self, a: Call) -> str:
        if a.fn in ("max", "min"):
            return f"{a.fn}({self._argument(a.a)}, {self._argument(a.b)})"
        if a.fn == "floordiv" and self.lane is not None and a.a == var(self._q) and isinstance(a.b, int):
            return f"{self.names[self.lane]} / {self.width * a.b}"
        x, y = self._factor(a.a), self._factor(a.b)
        if not dims.is_nonneg(a.a):
            fn = "floor_div" if a.fn == "floordiv" else "floor_mod"
            return f"{fn}<{self.itype}>({x}, {y})"
        return f"{x} {'/' if a.fn == 'floordiv' else '%'} {y}"

    # ----- lanes

    def is_laned(self, e: Expr) -> bool:
        """True if the value differs between lanes."""
        if self.lane is None:
            return False
        if e not in self._laned:
            for x in walk([e], self._laned):
                self._laned[x] = self._compute_laned(x)
        return self._laned[e]

    def _compute_laned(self, e: Expr) -> bool:
        """``is_laned(e)``, where the answers for everything that ``e`` is computed from are known."""
        if e.op == "var":
            return self.variables[e.attr][1]
        if any(self._laned[a] for a in e.args):
            return True
        for d in coordinates(e):
            if dims.mentions(dims.substitute(d, self.lane_table), self._l):
                return True
            if any(self._laned[dyn.payload] for dyn in dims.dynamic_atoms(d)):  # type: ignore[index]
                return True
        return False

    def contiguous(self, buffer: Buffer, coords: Sequence[Dim]) -> Dim | None:
        """The flat element offset of lane 0, if the lanes are contiguous and it is aligned for a vector; else None.

        Vectors of more than 16 bytes are moved in pieces of 16, so 16 bytes are the alignment that they need.
        """
        assert self.lane is not None
        if self._clamp is not None or self.width & (self.width - 1):
            return None
        d = dims.substitute(buffer.offset(tuple(coords)), self.lane_table)
        if dims.coefficient(d, self._l) != 1 or any(self.is_laned(x.payload) for x in dims.dynamic_atoms(d)):  # type: ignore[arg-type]
            return None
        base = dims.substitute(d, {self._l: 0})
        packed = buffer.dtype.is_packed
        if packed and self.width % buffer.dtype.per_byte:
            return None
        chunk = self.width if packed else math.gcd(self.width, max(1, VECTOR_BYTES // buffer.dtype.size))
        return base if dims.is_multiple(base, chunk) else None

    def uniform(self, e: Expr) -> Expr:
        """``e`` with those tests of indices that have one outcome for all lanes written without the lane.

        ``8*q + lane < 32`` becomes ``q < 4``: a masked vector is then read as a whole, or not at all.
        """
        return e if self.lane is None else substitute(e, self._uniform_test, self._uniform)

    def _uniform_test(self, e: Expr) -> Expr | None:
        d = below_zero(e)
        if d is None:
            return None
        group = dims.floordiv(d, self.width)  # is below zero exactly where d is
        if not self.is_laned(e) or dims.mentions(dims.substitute(group, self.lane_table), self._l):
            return e
        return is_negative(group)

    # ----- values

    def _define(self, ctype: str, text: str, laned: bool, prefix: str = "t", value: Expr | None = None) -> str:
        name = f"{prefix}{self._count}"
        self._count += 1
        line = Line(LineKind.DEFINITION, f"const {ctype} {name} = {text};", value)
        (self._lane_lines if laned else self.lines).append(line)
        return name

    def value(self, e: Expr) -> str:
        """C text of ``e``: a literal, or a name that earlier lines define (in the lane loop, if lanes differ)."""
        for x in postorder([e], self._printed_operands, self._done):
            self._done[x] = self._print(x)
        return self._done[e]

    def _printed_operands(self, e: Expr) -> Sequence[Expr]:
        """The operands that get names of their own; arithmetic on indices is printed as one text instead."""
        return () if _is_of_indices(e) else e.args

    def _print(self, e: Expr) -> str:
        if e.op == "const":
            return literal(e)
        if e.op == "var":
            name, laned = self.variables[e.attr]
            return f"{name}[lane]" if laned and self.lane is not None else (f"{name}[0]" if laned else name)
        if e.op == "load":
            return self._load(e)
        laned = self.is_laned(e)
        if e.op in ("narrow", "pattern"):
            self.params.needs(STORAGE)
        if e.op in SPECIAL:
            self.params.needs("special.cuh")
        if e.op == "call":
            self.params.calls(e.attr)
        text = self._index(e, laned) if _is_of_indices(e) else scalar_text(e, [self._done[a] for a in e.args])
        return self._define(e.dtype.cuda, text, laned, value=e)

    def _index(self, e: Expr, laned: bool) -> str:
        """Text of an index as a number, of its conversion, or of a test of indices: computed as indices are."""
        if e.op in ("index", "cast"):
            saved, self._in_lanes = self._in_lanes, laned
            text = self._factor(self._at_lane((e if e.op == "index" else e.args[0]).attr))
            self._in_lanes = saved
            return f"({e.dtype.cuda}){text}"
        difference = index_difference(e)
        assert difference is not None
        saved, self._in_lanes = self._in_lanes, laned
        left, op, right = two_sides(self._at_lane(difference), e.op)
        text = f"{self._poly(left)} {op} {self._poly(right)}"
        self._in_lanes = saved
        return text

    def _load(self, e: Expr) -> str:
        name, dtype, coords = e.attr
        buffer = self.params.kernel.buffer(name)
        pointer = self.params.buffer(name)
        mask = self._done[e.args[0]] if e.args else None
        laned = self.is_laned(e)
        if laned and not (e.args and self.is_laned(e.args[0])):
            base = self.contiguous(buffer, coords)
            if base is not None:
                return self._vector_load(e, dtype, pointer, base, mask)
        offset = self.dim(buffer.offset(tuple(coords)), laned=laned)
        text = f"packed_at({pointer}, {offset})" if dtype.is_packed else _to_compute(dtype, f"{pointer}[{offset}]")
        if mask is not None:
            text = f"{mask} ? {text} : {_zero(e.dtype)}"
        return self._define(e.dtype.cuda, text, laned, value=e)

    def _vector_load(self, e: Expr, dtype: DType, pointer: str, base: Dim, mask: str | None) -> str:
        packed = dtype.is_packed
        vec = f"{'PackedVec' if packed else 'Vec'}<{dtype.cuda}, {self.width}>"
        load = ("load_packed" if packed else "load_vec") + ("_stream" if self.once else "")
        start = base // dtype.per_byte if packed else base  # a packed type's pointer counts bytes
        text = f"{load}<{self.width}>({self.place(pointer, start)})"
        if mask is not None:
            text = f"{mask} ? {text} : {vec}{{}}"
        name = self._define(vec, text, False, "v", e)
        element = f"{name}[lane]" if packed else _to_compute(dtype, f"{name}.v[lane]")
        return self._define(e.dtype.cuda, element, True, value=e)

    # ----- whole blocks

    def lines_so_far(self, sinks: Sequence[str] = (), pre: Sequence[str] = ()) -> list[Line]:
        """The lines since the last call. ``pre`` come before the lane loop, ``sinks`` are the last lines inside it."""
        clamped = [] if self._clamped is None else [self._clamped]
        body = [*clamped, *self._lane_lines, *_actions(sinks)]
        out = [*self.lines, *_actions(pre)]
        if self.lane is None:
            out += body
        elif body:
            out += [Line(LineKind.DIRECTIVE, "#pragma unroll")]
            out += _actions([f"for (int lane = 0; lane < {self.width}; ++lane) {{"])
            out += [*(line.indented("  ") for line in body), *_actions(["}"])]
        self.lines, self._lane_lines, self._clamped = [], [], None
        return [line.indented("  ") for line in out]

    def finish(self, sinks: Sequence[str] = (), pre: Sequence[str] = ()) -> list[str]:
        """The texts of ``lines_so_far``."""
        return texts(self.lines_so_far(sinks, pre))


def _actions(text: Sequence[str]) -> list[Line]:
    return [Line(LineKind.ACTION, t) for t in text]


def _is_of_indices(e: Expr) -> bool:
    """True for an index as a number, its conversion, and a test of indices."""
    if e.op == "cast":
        return e.args[0].op == "index" and e.dtype is not DType.BOOL
    return e.op == "index" or index_difference(e) is not None



def _to_compute(dtype: DType, text: str) -> str:
    return f"to_f32({text})" if dtype.compute is not dtype else text


def _zero(dtype: DType) -> str:
    return "false" if dtype is DType.BOOL else f"{dtype.cuda}(0)"


def from_compute(dtype: DType, text: str) -> str:
    """C text that rounds a computed value to its storage type."""
    return f"from_f32<{dtype.cuda}>({text})" if dtype.compute is not dtype else text


def print_stores(block: Block, stores: Sequence[Store], guard: Callable[[str], str] | None = None) -> list[Line]:
    """The statements that compute and store every output, by vector stores where the lanes are contiguous in memory.

    ``guard`` is given where the width does not divide the lane axis' extent: the C condition under which the lane of a
    given text exists. All stores are then scalar.
    """
    pre: list[str] = []
    sinks: list[str] = []
    post: list[str] = []
    for n, s in enumerate(stores):
        s = replace(s, value=block.uniform(s.value), mask=None if s.mask is None else block.uniform(s.mask))
        buffer = block.params.kernel.buffer(s.buffer)
        pointer = block.params.buffer(s.buffer)
        value = from_compute(buffer.dtype, block.value(s.value))
        conditions = [] if s.mask is None or s.mask.op == "const" else [block.value(s.mask)]
        whole = block.lane is not None and guard is None and s.reduction == "none"
        whole = whole and (not conditions or not block.is_laned(s.mask))  # type: ignore[arg-type]
        base = block.contiguous(buffer, s.coords) if whole else None
        if base is not None:
            place = block.place(pointer, base)
            vec = f"Vec<{buffer.dtype.cuda}, {block.width}>"
            pre.append(f"{vec} out{n}_lanes;")
            sinks.append(f"out{n}_lanes.v[lane] = {value};")
            masked = f"if ({conditions[0]}) " if conditions else ""
            post.append(f"{masked}store_vec<{block.width}>({place}, out{n}_lanes);")
            continue
        offset, laned = buffer.offset(s.coords), block.lane is not None
        if guard is not None:
            conditions.insert(0, guard("lane" if block.lane is not None else "0"))
        condition = f"if ({' && '.join(conditions)}) " if conditions else ""
        if s.reduction == "none":
            act = f"{pointer}[{block.dim(offset, laned=laned)}] = {value};"
        else:
            act = f"atomic_{s.reduction}({block.place(pointer, offset, laned=laned)}, {value});"
        sinks.append(condition + act)
    return [*block.lines_so_far(sinks, pre), *(line.indented("  ") for line in _actions(post))]
