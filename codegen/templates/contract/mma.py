"""Matrix products on tensor cores by ``mma.sync`` (PTX ISA): f16, bf16, tf32 and 8-bit operands, for sm_80 and newer.

``tf32x3`` splits each f32 operand into two tf32 numbers and adds three of the four products. The relative error of a
product is about 2**-21, nearly that of f32, at a third of tf32's rate. ``int8`` multiplies 8-bit integers of any signs;
its i32 sums are exact. Where ``b`` has zero points, sums of the rows of ``a`` are added up from its fragments. 8-bit
floats are multiplied as they are on sm_89 and sm_120, and exactly as f16 elsewhere (by ``include/float8.cuh`` before
sm_89); what one instruction sums is added in f32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SHARED_LIMIT
from arcweld.codegen.templates.contract.ffma import load_hook, store_hook
from arcweld.codegen.templates.contract.problem import (
    Operand,
    Problem,
    address_hook,
    extent,
    tile_context,
    tile_count,
    zero_hook,
)
from arcweld.codegen.templates.contract.tactic import CANDIDATES, ContractTactic, estimated_time, splits, tiled
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler.archs import parse_arch
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ops.float8 import FACTORS

ARCH = "sm_80"
ELEMENTS = {"f16": DType.F16, "bf16": DType.BF16, "tf32": DType.F32, "tf32x3": DType.F32}
INT8 = "int8"  # the precision of products of 8-bit integers
# those of products of 8-bit floats, by ``precision_of``
FLOAT8 = {f"{a.value} x {b.value}": (a, b) for a in FACTORS for b in FACTORS}
# the first architecture with mma.sync of 8-bit floats, and the generations for which ptxas makes that of f16 products
FLOAT8_ARCH, WIDENING = 89, (9, 10)
# rows and columns of a block's tile, then of a warp's, and the share of peak it reaches with all multiprocessors busy
TILES = (
    (128, 128, 64, 32, 1.0),
    (128, 64, 64, 32, 0.8),
    (64, 128, 32, 64, 0.8),
    (64, 64, 32, 32, 0.6),
    (64, 32, 32, 16, 0.4),
    (32, 64, 16, 32, 0.4),
    (32, 32, 16, 16, 0.25),
    (16, 64, 16, 16, 0.2),
)
STAGE_BYTES = 128  # of k that one stage holds for each row and column; half of it for large tiles


def supports(problem: Problem, arch: str) -> str | None:
    """The reason why this implementation can't compute the problem, or None."""
    precision = problem.kernel.attrs.get("precision", "fp32")
    known = (*ELEMENTS, INT8, *FLOAT8)
    if precision not in known:
        return f"precision {precision} is not one of {', '.join(known)}"
    wanted = DType.I32 if precision == INT8 else DType.F32
    return None if problem.acc is wanted else f"the accumulator is {problem.acc.value}"


def elements_of(problem: Problem) -> tuple[DType, DType]:
    """The types of ``a`` and of ``b`` that the tensor cores multiply: equal ones but for 8-bit types."""
    precision = problem.kernel.attrs["precision"]
    if precision == INT8:
        return problem.a.expr.dtype, problem.b.expr.dtype
    if precision in FLOAT8:
        return FLOAT8[precision]
    return ELEMENTS[precision], ELEMENTS[precision]


def element_of(problem: Problem) -> DType:
    """The type of ``a`` that the tensor cores multiply."""
    return elements_of(problem)[0]


def float8_computes(source: str, arch: str) -> str:
    """The type in which a kernel of products of 8-bit floats multiplies on ``arch``; empty for their own types.

    ``mma.sync`` widens them to f16 on sm_80 and sm_86, which lack the instruction, and on sm_90 and sm_100, where
    ptxas makes that of it. So do kernels of few rows everywhere; those without tensor cores widen them to f32.
    """
    if "wgmma" in source:
        return ""
    if "multiply_piece" in source:  # of few rows
        return DType.F16.value
    if "multiply_stage" not in source:
        return DType.F32.value
    parsed = parse_arch(arch)
    assert parsed is not None, f"{arch} is an architecture of the engine"
    return "" if parsed[0] >= FLOAT8_ARCH and parsed[0] // 10 not in WIDENING else DType.F16.value


def instructions_of(source: str) -> str:
    """The instructions by which a kernel of a product or a convolution multiplies."""
    if "wgmma" in source:
        return "wgmma"
    return "mma.sync" if "multiply_piece" in source or "multiply_stage" in source else "fma"


def tactics(problem: Problem, arch: str) -> tuple[ContractTactic, ...]:
    """The tiles that fit into shared memory, by estimated time; then variants of the best."""
    size = element_of(problem).size

    ranked = []
    for bm, bn, wm, wn, efficiency in TILES:
        bk = (STAGE_BYTES if bm + bn <= 128 else STAGE_BYTES // 2) // size
        plain = ContractTactic("mma", bm, bn, bk, wm, wn, stages=4)
        for t in splits(problem, plain, 32 * plain.workers):
            if shared_bytes(t, size) <= SHARED_LIMIT:
                ranked.append((estimated_time(problem, t, arch, efficiency, t.workers), t))
    ranked.sort(key=lambda r: r[0])
    best = ranked[0][1]
    variants = (replace(best, stages=3), replace(best, early=False))
    return (*(t for _, t in ranked[: CANDIDATES - 2]), *variants)


def tensor_operand(operand: Operand, element: DType) -> Operand:
    """The operand as this implementation reads it: copied as it is only if it is stored as ``element``."""
    width = min(operand.width, 16 // element.size)
    return replace(operand, width=width, copyable=operand.copyable and operand.storage is element)


def shared_bytes(t: ContractTactic, size: int) -> int:
    """Bytes of shared memory: the k-groups' pipelines, or the epilogue's and the exchange's scratch if that is more.

    ``size``: bytes of an element.
    """
    scratch = max(t.workers * 16 * (t.tn + 8), (t.split - 1) * t.bm * t.bn) * 4
    return max(t.split * t.stages * (t.bm + t.bn) * t.bk * size, scratch)


def operand_hook(hooks: Hooks, problem: Problem, name: str, operand: Operand) -> str:
    """The text of ``address_<name>`` for an operand that is copied as it is, of ``load_<name>`` for any other."""
    if not operand.copyable:
        return load_hook(hooks, problem, f"load_{name}", operand)
    args = [("b", problem.batch.sym), ("row", operand.row.sym), ("k", problem.k.sym)]
    lane = problem.k.sym if operand.along_k else operand.row.sym
    return address_hook(hooks, f"address_{name}", operand, args, lane)


def tile_type(name: str, operand: Operand, element: str) -> str:
    """The C type of an operand's tile in shared memory (contract.cuh), whose elements are of type ``element``."""
    if not operand.copyable:
        return f"LoadedTile<Operand{name}, Group, {element}, BK>"
    if operand.fill:
        return f"FilledTile<Operand{name}, Group, {element}, BK, 0x{operand.fill % 256:02x}u * 0x01010101u>"
    return f"CopiedTile<Operand{name}, Group, {element}, BK>"


def element_context(problem: Problem, elements: tuple[DType, DType]) -> dict[str, Any]:
    """What the templates print of the types of operands and sums."""
    whole, own = problem.acc is DType.I32, elements[0].size == 1
    return {
        "element": " x ".join(e.cuda for e in elements) if own else elements[0].cuda, "whole": whole,
        "types": tuple(e.cuda for e in elements) if own else ("T", "T"), "acc": "i32" if whole else "float",
    }  # fmt: skip


def render_problem(problem: Problem, t: ContractTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    kernel, hooks = problem.kernel, Hooks(problem.kernel)
    elements = elements_of(problem)
    element = elements[0]
    a, b = tensor_operand(problem.a, element), tensor_operand(problem.b, elements[1])
    if problem.zero is not None and a.fill:  # pieces past the edges would count in the sums of rows
        a = replace(a, copyable=False)
    context = element_context(problem, elements)
    paired = (element.size == 1 and not a.along_k, element.size == 1 and not b.along_k)
    scalar, width = hooks.params.scalar, problem.store_width()
    return render(
        "contract/mma.cu.j2", kernel, hooks.params, arch=ARCH, grid=(tile_count(problem, t.bm, t.bn), 1, 1),
        block=(32 * t.workers * t.split, 1, 1), shared_bytes=shared_bytes(t, element.size),
        tiled=tiled(problem, t), t=t, a=a, b=b,
        tiling=product_tiling(
            problem, "mma", (t.bm, t.bn, t.bk), (t.tm, t.tn), t.stages, tile_count(problem, t.bm, t.bn),
            groups=t.split,
        ),
        width=width, itype=problem.itype, paired=paired if any(paired) else (),
        tile_a=tile_type("A", a, context["types"][0]), tile_b=tile_type("B", b, context["types"][1]),
        products=3 if kernel.attrs["precision"] == "tf32x3" else 1,
        load_a=operand_hook(hooks, problem, "a", a), load_b=operand_hook(hooks, problem, "b", b),
        zero_points=zero_hook(hooks, problem), store=store_hook(hooks, problem, width),
        together=problem.rows_together(t.tn, width),
        b_is_weight=bool(kernel.attrs.get("b_is_weight")),
        **tile_context(hooks, problem, t.bm, t.bn),
        m_extent=scalar("rows", problem.m.extent), n_extent=scalar("columns", problem.n.extent),
        k_extent=scalar("depth", problem.k.extent), depth=extent(hooks, "depth", problem.k.extent), **context,
    )  # fmt: skip
