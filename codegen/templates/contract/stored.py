"""Weights as they are stored: numbers of few bits, and scales and zero points that groups of neighbours in k share.

``b = scale * (q - zero)`` with q [n, k] contiguous along k. Elements of 5 and 6 bits are two planes of such a form: 32
neighbours are 16 bytes of the lower one, and one word or two of the upper one. Kernels of few rows copy q as it is, and
multiply exact integers ``q - zero``, or the small floats: the scale of a group is applied to the sum over its k. In
products of 8-bit floats ``b`` is q itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.params import Params
from arcweld.codegen.printing.printer import Block
from arcweld.codegen.templates.contract.mma import FLOAT8
from arcweld.codegen.templates.contract.problem import COPY_BYTES, Operand, Problem
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim, Sym, var
from arcweld.compiler.dtypes import PLANES, DType, integer_range
from arcweld.compiler.expr import Expr
from arcweld.compiler.ops.integer import BYTES

INTEGERS = (DType.U8, DType.I8, DType.U4, DType.I4, DType.U2, DType.I2)
PIECE = 32  # elements whose upper bits a lane loads at once
FLOATS = (DType.F8E4M3FN, DType.F8E5M2, DType.F4E2M1)
GROUPS = (512, 256, 128, 64, 32, 16)  # k of a group that is counted as one; several of them may share a scale
GROUP = Sym("_g", 0)  # the index of a group


@dataclass(frozen=True, slots=True)
class Stored:
    """The operand ``b`` as it is stored.

    q      the load of q, of which 16 contiguous, aligned bytes can be copied as they are
    scale  the load of the scale of a column and the group ``GROUP``; None: it is 1
    zero   the same of the zero point, of q's type; None: it is 0, a number: it is the same everywhere
    group  elements of k in a group; None: a column has one scale
    count  groups of a column
    high   the load of the bits above those of q, None: there are none
    bulk   16 bytes of either plane are aligned: they can be copied by TMA
    upper_scale  of scales of two levels, the load of what ``scale`` is multiplied with; None: they have one
    """

    q: Operand
    scale: Expr | None
    zero: Expr | int | None
    group: int | None
    count: Dim
    high: Operand | None = None
    bulk: bool = True
    upper_scale: Expr | None = None

    @property
    def dtype(self) -> DType:
        """The type that q is stored in: of two planes, the lower one."""
        assert self.q.storage is not None
        return self.q.storage

    @property
    def high_bits(self) -> int:
        """Bits of an element in the upper plane, 0 where there is none."""
        return 0 if self.high is None or self.high.storage is None else self.high.storage.bits

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return self.dtype.bits + self.high_bits

    @property
    def copied(self) -> int:
        """The least elements of k that are whole copies of 16 bytes of each plane."""
        return COPY_BYTES * 8 // min(self.dtype.bits, self.high_bits or self.dtype.bits)

    def upper_line(self, line: int) -> int:
        """Bytes of the upper plane that belong to ``line`` bytes of the lower one."""
        return line * self.high_bits // self.dtype.bits

    def pad(self, depth: int) -> int:
        """Bytes between lines of shared memory: those that a warp reads at once lie in different banks."""
        if self.high is not None:  # so that lines are an odd number of pieces
            return COPY_BYTES if depth * self.bits // 8 // COPY_BYTES % 2 == 0 else 2 * COPY_BYTES
        return max(COPY_BYTES, 4 * self.dtype.bits)

    @property
    def unit(self) -> int:
        """Elements of k in the pieces of four lanes, which then exchange words."""
        return 4 * COPY_BYTES * 8 // self.dtype.bits

    @property
    def has_zeros(self) -> bool:
        """True if zero points are read from memory."""
        return isinstance(self.zero, Expr)

    def group_of_step(self, depth: int) -> int:
        """The elements of k that have one scale in a step of ``depth``; divides that."""
        return depth if self.group is None else min(self.group, depth)

    def width(self, problem: Problem, groups: int) -> int:
        """Neighbouring groups, of ``groups`` in a step, of which a lane reads scales and zero points at once."""
        read = [e for e in (self.scale, self.zero) if isinstance(e, Expr)]
        for width in (8, 4, 2):
            block = Block(Params(problem.kernel), {GROUP: "g"}, lane=GROUP, width=width)
            whole = groups % width == 0 and dims.is_multiple(self.count, width)
            whole = whole and not (self.upper_scale is not None and block.is_laned(self.upper_scale))
            if whole and all(_base(block, problem.kernel, e) is not None for e in read):
                return width
        return 1


def _base(block: Block, kernel: Kernel, load: Expr) -> Dim | None:
    """The offset of a vector's first element, None if the elements are no vector."""
    name, _, coords = load.attr
    return block.contiguous(kernel.buffer(name), coords)


@dataclass(frozen=True, slots=True)
class PrintedStored:
    """What the template prints of a stored operand.

    functions  hooks ``scale_of_group`` and, where zero points are read, ``zero_of_group``
    read       what they give, a vector: name and C type
    width      neighbouring groups of one call
    group      elements of k that have one scale in a step
    index      C text of the first group of the g-th vector from k0 on
    group_of_k C text of the group of element ``k``
    zero       the zero point where it is the same everywhere
    bits       of an element, ``low_bits`` of it in the plane that ``low`` is the C type of, ``high_bits`` above
    """

    functions: list[str]
    read: list[tuple[str, str]]
    width: int
    group: int
    index: str
    group_of_k: str
    ctype: str
    bits: int
    pad: int
    is_integer: bool
    zero: int
    has_zeros: bool
    low: str
    low_bits: int
    high: str
    high_bits: int
    levels: int

    def scale_at(self, line: int, further: int = 0) -> str:
        """C text of the scale of the g-th group, or of one ``further``, in f32."""
        if not self.read:
            return "1.0f"
        g = f"(g + {further})" if further else "g"
        scale = f"now.scale[{line}][{g} / NEAR][{g} % NEAR]"
        return f"to_f32({scale})" if self.levels == 1 else f"{scale} * to_f32(now.unit[{line}][{g} / NEAR][0])"

    def scale_of(self, place: str) -> str:
        """C text of the scale of the group ``g`` that hooks called at ``place`` give, in f32."""
        scale = f"scale_of_group{place}[g % NEAR]"
        return f"to_f32({scale})" if self.levels == 1 else f"{scale} * to_f32(unit_of_group{place}[0])"

    @property
    def has_zero(self) -> bool:
        """True if something is subtracted."""
        return self.has_zeros or self.zero != 0


def print_stored(hooks: Hooks, problem: Problem, s: Stored, depth: int) -> PrintedStored:
    """The hooks and sizes of a stored operand in steps of ``depth``."""
    group = s.group_of_step(depth)
    width = s.width(problem, depth // group)
    args = [("b", problem.batch.sym), ("row", problem.n.sym), ("g", GROUP)]
    every = (("scale", s.scale, width), ("unit", s.upper_scale, 1), ("zero", s.zero, width))
    read = {name: (e, count) for name, e, count in every if isinstance(e, Expr)}
    printed = [_raw_load(hooks, f"{name}_of_group", e, args, count) for name, (e, count) in read.items()]
    low, high = s.dtype, s.high.storage if s.high is not None else None
    ctype = low.cuda if high is None else f"Planes<{low.cuda}, {high.cuda}>"
    index = "0" if s.group is None else f"k0 / {s.group} + g * NEAR"
    group_of_k = "0" if s.group is None else f"k / {s.group}"
    return PrintedStored(
        [p.text for p in printed], [(n, p.ctype) for n, p in zip(read, printed)], width, group, index, group_of_k,
        ctype, s.bits, s.pad(depth), low in INTEGERS, s.zero if isinstance(s.zero, int) else 0, s.has_zeros,
        low.cuda, low.bits, high.cuda if high else "", s.high_bits,
        1 if s.upper_scale is None else 2,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _RawLoad:
    """A function that loads a vector, and the vector's C type."""

    text: str
    ctype: str


def _raw_load(hooks: Hooks, fn: str, load: Expr, args: Sequence[tuple[str, Sym]], width: int) -> _RawLoad:
    """Loads ``width`` neighbours as they are stored: converting them would wait for them."""
    name, dtype, coords = load.attr
    block = Block(hooks.params, {s: c for c, s in args}, lane=GROUP, width=width)
    buffer, pointer = hooks.kernel.buffer(name), hooks.params.buffer(name)
    ctype = f"Vec<{dtype.cuda}, {width}>"
    if width > 1:
        base = _base(block, hooks.kernel, load)
        assert base is not None, "the width of a vector"
        place = block.place(pointer, dims.floordiv(base, dtype.per_byte))  # a packed type's pointer counts bytes
        value = f"load_{'packed' if dtype.is_packed else 'vec'}<{width}>({place})"
        ctype = f"Packed{ctype}" if dtype.is_packed else ctype
    elif dtype.is_packed:
        ctype = f"Vec<{load.dtype.cuda}, 1>"
        value = f"{ctype}{{{{packed_at({pointer}, {block.dim(buffer.offset(coords))})}}}}"
    else:
        value = f"load_vec<1>({block.place(pointer, buffer.offset(coords))})"
    listed = ", ".join(["const Params& p", *(f"{block.itype} {c}" for c, _ in args)])
    head = f"__device__ __forceinline__ {ctype} {fn}({listed}) {{"
    return _RawLoad("\n".join([head, *block.finish(), f"  return {value};", "}"]), ctype)


def stored_of(problem: Problem) -> Stored | None:
    """How ``b`` is stored, None if it isn't of the form that this module is for."""
    memo = problem.kernel.memo.setdefault("stored", {})
    if problem.b.expr not in memo:
        memo[problem.b.expr] = _stored_of(problem)
    found: Stored | None = memo[problem.b.expr]
    return found


def _stored_of(problem: Problem) -> Stored | None:
    e = problem.b.expr
    if problem.kernel.attrs.get("precision") in FLOAT8 and e.op == "load":
        whole = _operand(problem, e)
        return None if whole is None else Stored(whole, None, None, None, 1)
    if e.op != "mul" or e.dtype is not DType.F32:
        return None
    for value, scale in (e.args, e.args[::-1]):
        for load, high, zero in _numbers(value):
            q, above = _operand(problem, load), None if high is None else _operand(problem, high, PIECE)
            levels = _levels(scale)
            plain = levels and not any(x.args for x in levels) and (zero is None or not zero.args)
            shared = _by_groups(problem, [*levels, *([] if zero is None else [zero])], zero) if plain else None
            if q is not None and shared is not None and (high is None or above is not None):
                group, (by_group, *rest) = shared
                unit, zeros = (rest[0] if len(levels) > 1 else None), rest[len(levels) - 1 :]
                count = 1 if group is None else dims.ceildiv(problem.k.extent, group)
                bulk = high is None or _operand(problem, high) is not None
                return Stored(q, by_group, _literal(zeros), group, count, above, bulk, unit)
    return None


def _literal(zeros: list[Expr]) -> Expr | int | None:
    if not zeros:
        return None
    return int(zeros[0].attr) if zeros[0].op == "const" else zeros[0]


def _numbers(value: Expr) -> Iterator[tuple[Expr, Expr | None, Expr | None]]:
    """``value`` as the load of q, that of the bits above, and the zero point that is subtracted from it."""
    if value.op == "load" and value.attr[1] in FLOATS:
        yield value, None, None
    if value.op != "cast":
        return
    (x,) = value.args
    if (q := _integer(x)) is not None:
        yield q, None, None
    elif (both := _both_planes(x)) is not None:
        yield *both, None
    elif x.op == "sub" and x.dtype is DType.I32:
        zero = x.args[1] if x.args[1].op == "const" else _integer(x.args[1])
        if zero is None:
            return
        if (q := _integer(x.args[0])) is not None and _is_in_range(zero, q.attr[1]):
            yield q, None, zero
        elif (both := _both_planes(x.args[0])) is not None and _is_below(zero, sum(p.attr[1].bits for p in both)):
            yield *both, zero


def _levels(scale: Expr) -> tuple[Expr, ...]:
    """The load of a scale; of one of two levels, that of its integer and that of the float; empty for anything else."""
    if scale.op == "load":
        return (scale,)
    if scale.op != "mul" or scale.dtype is not DType.F32:
        return ()
    codes, unit = scale.args
    while codes.op == "cast":
        codes = codes.args[0]
    found = codes.op == unit.op == "load" and codes.attr[1] in BYTES
    return (codes, unit) if found else ()


def _both_planes(e: Expr) -> tuple[Expr, Expr] | None:
    """The loads of the lower and the upper bits of an integer of 5 or 6, which ``e`` may convert to i32."""
    e = e.args[0] if e.op == "cast" and e.dtype is DType.I32 else e
    if e.op != "bitor" or e.args[1].op != "shl":
        return None
    low, (high, shift) = e.args[0], e.args[1].args
    planes = low.op == high.op == "load" and low.attr[1] is DType.U4 and high.attr[1] in PLANES
    return (low, high) if planes and shift.op == "const" and shift.attr == 4 else None


def _integer(e: Expr) -> Expr | None:
    """The load of an integer, which ``e`` may convert to i32."""
    load = e.args[0] if e.op == "cast" and e.dtype is DType.I32 else e
    return load if load.op == "load" and load.attr[1] in INTEGERS else None


def _is_below(zero: Expr, bits: int) -> bool:
    """True if a zero point is a constant of so many bits."""
    return bool(zero.op == "const" and 0 <= zero.attr < 1 << bits)


def _is_in_range(zero: Expr, dtype: DType) -> bool:
    """True if a zero point is a number of q's type, so that differences are exact in 16 bits."""
    if zero.op == "load":
        return bool(zero.attr[1] is dtype)
    least, largest = integer_range(dtype)
    return bool(least <= zero.attr <= largest)


def _operand(problem: Problem, load: Expr, width: int = 0) -> Operand | None:
    """The load of q as an operand that is copied as it is, 16 bytes or ``width`` elements; None if it can't be."""
    k, dtype = problem.k, load.attr[1]
    width = width or COPY_BYTES * 8 // dtype.bits
    block = Block(Params(problem.kernel), {k.sym: "i"}, lane=k.sym, width=width)
    if load.args or not dims.is_multiple(k.extent, width) or _base(block, problem.kernel, load) is None:
        return None
    return replace(problem.b, expr=load, along_k=True, width=width, source=load, copyable=True)


def _by_groups(problem: Problem, shared: list[Expr], zero: Expr | None) -> tuple[int | None, list[Expr]] | None:
    """The k of a group, and expressions by its index instead of k; None if they differ inside groups of 16.

    ``zero``: the zero point among them, which may not be read where groups are so small.
    """
    k = problem.k.sym
    if not any(expr.mentions(e, k) for e in shared):
        return None, shared
    for group in GROUPS if zero is None or zero.op == "const" else GROUPS[:-1]:
        inside = Sym("_l", 0, group - 1)
        found = [expr.substitute_index(e, {k: var(GROUP) * group + var(inside)}) for e in shared]
        if not any(expr.mentions(e, inside) for e in found):
            return group, found
    return None
