"""What tiled kernels tell of themselves, for models of their time: the ``Tiling`` of products and of attention."""

from __future__ import annotations

from arcweld.codegen.templates.attention.parts import Attention
from arcweld.codegen.templates.contract.problem import Problem
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import UNARY_FAST, UNARY_FLOAT, walk
from arcweld.compiler.tiling import Tiling

SPECIAL = {*UNARY_FLOAT, *UNARY_FAST} - {"sqrt", "rsqrt", "recip"}
# the model's types by a kernel's precision, and how often tensor cores multiply for one product
TYPES = {"f16": "f16", "bf16": "f16", "tf32": "tf32", "tf32x3": "tf32", "int8": "i8"}
TIMES = {"tf32x3": 3}


def product_tiling(
    problem: Problem, engine: str, tile: tuple[int, int, int], warp: tuple[int, int], stages: int, tiles: Dim,
    steps: Dim | None = None, split: int = 1, groups: int = 1, persistent: bool = False,
) -> Tiling[Dim]:  # fmt: skip
    """The tiling of a product, or of a convolution as one.

    tile    rows and columns of a block's tile, and the k of a step
    warp    rows and columns of the part that one warp, warpgroup or thread multiplies
    steps   steps of a tile; None: of the problem's k
    split   blocks that share out the steps
    groups  parts of a block that do so, which together take as many steps at once
    """
    (bm, bn, bk), (tm, tn) = tile, warp
    precision = str(problem.kernel.attrs.get("precision", problem.acc.value))
    dtype = TYPES.get(precision, "f8" if precision.startswith("f8") else problem.acc.value)
    size = {"f16": 2, "tf32": 4, "i8": 1, "f8": 1}.get(dtype, problem.acc.size)
    workers = max(1, bm // tm) * max(1, bn // tn)
    walked = walk([s.value for s in problem.stores])
    return Tiling(
        engine, dtype, tiles, dims.ceildiv(problem.k.extent, bk * groups) if steps is None else steps, stages,
        macs=bm * bn * bk * groups * TIMES.get(precision, 1), loaded=(bm + bn) * bk * groups * size,
        read=workers * (tm + tn) * bk * groups * size, elements=bm * bn, split=split, persistent=persistent,
        activation=any(e.op in SPECIAL for e in walked), residual=problem.epilogue_reads() > 0,
    )  # fmt: skip


def attention_tiling(
    a: Attention, engine: str, rows: int, keys: int, stages: int, tiles: Dim, warp_rows: int, persistent: bool = False
) -> Tiling[Dim]:
    """The tiling of attention: a block takes ``rows`` queries of a head, and ``keys`` keys in a step.

    Causal attention leaves out keys behind its last query. Where there are as many keys as queries, a mean tile takes
    half of the steps, and the last one takes all.
    """
    precision = str(a.kernel.attrs.get("precision", "f32"))
    dtype = TYPES.get(precision, a.ctype.value)
    size = 2 if dtype == "f16" else DType(a.ctype).size
    depth = a.size + a.value_size
    steps = dims.ceildiv(a.t.extent, keys)
    uneven = a.causal and a.s.extent == a.t.extent
    return Tiling(
        engine, dtype, tiles, dims.add(dims.floordiv(steps, 2), 1) if uneven else steps, stages,
        macs=rows * keys * depth, loaded=keys * depth * size, read=max(1, rows // warp_rows) * keys * depth * size,
        elements=rows * a.value_size, exponents=rows * keys, persistent=persistent,
        longest=steps if uneven else None,
    )  # fmt: skip
