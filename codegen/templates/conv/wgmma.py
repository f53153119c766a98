"""Convolutions on Hopper's tensor cores: for each filter tap, TMA copies a shifted box of the input to shared memory.

A box is a patch of pixels x 128 bytes of channels; TMA fills what lies outside of the input, the padding, with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, plain_load
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.contract.ffma import store_hook
from arcweld.codegen.templates.contract.mma import elements_of
from arcweld.codegen.templates.contract.problem import Problem, conv_problem, extent, likely, zero_hook
from arcweld.codegen.templates.contract.wgmma import (
    ContractWgmmaTactic,
    by_time,
    fitted,
    instructions,
    line_of,
    tiled,
    type_refusal,
    with_variants,
)
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.parameters import TensorMap

ARCH = "sm_90a"
TILES = ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128), (128, 256), (192, 128), (256, 64), (256, 128))
PATCH_ROWS = 64  # output pixels, at most, of a patch: the rows of a warpgroup
# the most elements that a TMA box spans in a dimension, and the largest element stride (cuTensorMapEncodeTiled)
MAX_BOX, MAX_STEP = 256, 8


@dataclass(frozen=True, slots=True)
class ConvWgmmaTactic(ContractWgmmaTactic):
    """As ``ContractWgmmaTactic``. ``patch``: images, rows and columns of output pixels in 64 rows of a tile."""

    patch: tuple[int, int, int] = (1, 8, 8)
    early: bool = False
    implementation: str = "conv_wgmma"

    @property
    def rows(self) -> int:
        """Pixels of a patch, which may be fewer than 64."""
        return math.prod(self.patch)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution whose input TMA can fetch.

    Spatial tuples are (height, width); with one spatial axis the height is 1. ``pads`` are those in front of each axis;
    ``ci`` are the input channels of a group.
    """

    spatial: int
    images: Dim
    out: tuple[Dim, Dim]
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    ci: int
    groups: Dim


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this implementation can't render the kernel, or None."""
    problem = conv_problem(kernel)
    return (
        type_refusal(problem) or _shape_refusal(kernel, line_of(problem)) or _load_refusal(kernel, problem)
        or _weight_refusal(kernel, problem)
    )  # fmt: skip


def _shape_refusal(kernel: Kernel, line: int) -> str | None:
    if len(kernel.axes["out"]) > 2:
        return "three spatial axes"
    ci = kernel.axes["ci"][0].extent
    if not isinstance(ci, int) or ci % (line // 8):
        return f"{ci} input channels are not a multiple of {line // 8}"
    if kernel.axes["g"][0].extent != 1 and ci % line:
        return f"groups of {ci} channels"
    if not all(isinstance(t.extent, int) for t in kernel.axes["tap"]):
        return "the filter's size is not constant"
    if not all(isinstance(p, int) for p in kernel.attrs["pads"]):
        return "the padding is not constant"
    if any(s > MAX_STEP for s in kernel.attrs["strides"]):
        return f"a stride above {MAX_STEP}"
    return "transposed" if kernel.attrs.get("transposed") else None


def _load_refusal(kernel: Kernel, problem: Problem) -> str | None:
    """The reason why TMA can't fetch the activation, or None.

    It must be the input at ``out * stride + tap * dilation - pad``, with no other mask than the input's bounds.
    """
    a = kernel.loads["a"]
    if a.op != "load":
        return "the activation is not a plain load"
    name, dtype, coords = a.attr
    buffer, axes, rank = kernel.buffer(name), kernel.axes, len(kernel.axes["out"])
    if dtype is not elements_of(problem)[0]:
        return f"the activation is stored as {dtype.value}"
    ci, g = axes["ci"][0], axes["g"][0]
    expected: list[Dim] = [axes["n"][0].index]
    for i in range(rank):
        step = axes["out"][i].index * kernel.attrs["strides"][i] + axes["tap"][i].index * kernel.attrs["dilations"][i]
        expected.append(step - kernel.attrs["pads"][i])
    expected.append(g.index * ci.extent + ci.index)
    if tuple(coords) != tuple(expected) or buffer.shape[-1] != g.extent * ci.extent:
        return "the activation is not read channels-last from its own tensor"
    known = [*_bound_checks(coords, buffer.shape)]
    if not all(any(leaf is k for k in known) for mask in a.args for leaf in _conjuncts(mask)):
        return "the activation is masked by more than its padding"
    return None


def _conjuncts(mask: Expr) -> Iterator[Expr]:
    stack = [mask]
    while stack:
        part = stack.pop()
        if part.op == "and":
            stack += reversed(part.args)
        else:
            yield part


def _bound_checks(coords: tuple[Dim, ...], shape: tuple[Dim, ...]) -> Iterator[Expr]:
    """The comparisons that are superfluous where reads out of bounds give zeros."""
    from arcweld.compiler.expr import binary, const, index

    for c, size in zip(coords, shape, strict=True):
        yield binary("ge", index(c), const(0, DType.I64))
        yield binary("lt", index(c), index(size))


def _weight_refusal(kernel: Kernel, problem: Problem) -> str | None:
    symbols = [problem.batch.sym, problem.n.sym, problem.k.sym]
    plain = plain_load(kernel, problem.b.expr, symbols)
    if plain is None or plain.offset != 0:
        return "the weights are not a plain load"
    if plain.buffer.dtype is not elements_of(problem)[1]:
        return f"the weights are stored as {plain.buffer.dtype.value}"
    k, n = problem.k.extent, problem.n.extent
    strides = (plain.strides[problem.batch.sym], plain.strides[problem.n.sym], plain.strides[problem.k.sym])
    wanted = (0 if problem.batch.extent == 1 else n * k, 0 if n == 1 else k, 0 if k == 1 else 1)
    return None if strides == wanted else "the weights are not packed [out channel, taps, in channel]"


def geometry(kernel: Kernel) -> Geometry:
    """The geometry of a supported convolution."""
    axes, attrs = kernel.axes, kernel.attrs
    two = len(axes["out"]) == 2

    def pair(values: Any) -> Any:
        return tuple(values) if two else (1, values[0])

    rank = len(axes["out"])
    pads = tuple(attrs["pads"])[:rank]
    return Geometry(
        rank, axes["n"][0].extent, pair([a.extent for a in axes["out"]]), pair([a.extent for a in axes["tap"]]),
        pair(attrs["strides"]), pair(attrs["dilations"]), pads if two else (0, *pads),
        int(str(axes["ci"][0].extent)), axes["g"][0].extent,
    )  # fmt: skip


def patches(shape: Geometry, patch: tuple[int, int, int]) -> tuple[Dim, Dim, Dim]:
    """The numbers of patches along images, rows and columns that cover the output."""
    return tuple(dims.ceildiv(d, p) for d, p in zip((shape.images, *shape.out), patch))  # type: ignore[return-value]


def best_patch(shape: Geometry) -> tuple[int, int, int]:
    """The patch (images, rows, columns) of at most 64 pixels that covers the output with the fewest patches.

    Its box must be one that TMA can copy. A default where the output's size is symbolic.
    """
    if not all(isinstance(d, int) for d in shape.out):
        return (1, 8, 8) if shape.spatial == 2 else (1, 1, min(PATCH_ROWS, MAX_BOX // shape.strides[1]))
    n, h, w = (likely(d) for d in (shape.images, *shape.out))
    best: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    for tw in range(1, min(w, PATCH_ROWS, MAX_BOX // shape.strides[1]) + 1):
        for th in range(1, min(h, PATCH_ROWS // tw, MAX_BOX // shape.strides[0]) + 1):
            nb = min(n, PATCH_ROWS // (tw * th))
            count = -(-w // tw) * -(-h // th) * -(-n // nb)
            if best is None or (count, -tw, -th) < best[0]:
                best = (count, -tw, -th), (nb, th, tw)
    assert best is not None
    return best[1]


def tactics(kernel: Kernel, arch: str) -> tuple[ConvWgmmaTactic, ...]:
    """The tiles by modelled time, each with as many stages as fit; then variants of the best."""
    return with_variants(by_modelled_time(kernel, arch))


def by_modelled_time(kernel: Kernel, arch: str) -> list[ConvWgmmaTactic]:
    """All tactics by modelled time, with the patch that covers the output best."""
    problem, shape, patch = conv_problem(kernel), geometry(kernel), best_patch(geometry(kernel))
    rows = likely(dims.product(patches(shape, patch)))
    columns = likely(kernel.axes["co"][0].extent)
    steps = shape.taps[0] * shape.taps[1] * -(-shape.ci // line_of(problem))
    found = [
        t
        for bm, bn in TILES
        if bn <= max(32, 2 * columns)
        for t in fitted(ConvWgmmaTactic(bm, bn, 2, patch=patch), steps, arch)
    ]
    groups = likely(shape.groups)
    return by_time(found, lambda t: -(-rows * PATCH_ROWS // t.bm) * -(-columns // t.bn) * groups, steps, problem, arch)


def render_conv_wgmma(kernel: Kernel, t: ConvWgmmaTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, for sm_90a."""
    hooks, problem, shape = Hooks(kernel), conv_problem(kernel), geometry(kernel)
    hooks.params.tensor_map(activation_map(kernel, shape, t, line_of(problem)))
    hooks.params.tensor_map(weight_map(problem, shape, t))
    count = patches(shape, t.patch)
    tiles_m = dims.ceildiv(dims.product(count), t.bm // PATCH_ROWS)
    tiles_n = dims.ceildiv(problem.n.extent, t.bn)
    tiles = problem.batch.extent * tiles_m * tiles_n
    width, scalar = problem.store_width(), hooks.params.scalar
    return render(
        "contract/wgmma.cu.j2", kernel, hooks.params, arch=ARCH, block=(t.threads, 1, 1), t=t, itype=problem.itype,
        grid=((dims.minimum(tiles, t.blocks) if t.blocks else tiles) * t.split, 1, 1), cluster=t.split,
        shared_bytes=t.shared_bytes, tiled=tiled(problem, t, tiles), patches=count,
        tiling=product_tiling(
            problem, "wgmma", (t.bm, t.bn, line_of(problem)), (64, t.bn), t.stages, tiles,
            shape.taps[0] * shape.taps[1] * dims.ceildiv(shape.ci, line_of(problem)), t.split, persistent=t.blocks > 0,
        ),
        chunk=t.chunk, width=width, store=store_hook(hooks, problem, width), b={"along_k": True},
        zero_points=zero_hook(hooks, problem),
        together=t.together(problem, width), **instructions(problem, t),
        b_is_weight=bool(kernel.attrs.get("b_is_weight")),
        tiles=scalar("tiles", tiles), spatial=shape.spatial,
        tiles_m=extent(hooks, "tiles_m", tiles_m), tiles_n=extent(hooks, "tiles_n", tiles_n),
        n_extent=scalar("columns", problem.n.extent), images=scalar("images", shape.images), groups=shape.groups,
        out_h=scalar("out_h", shape.out[0]), out_w=scalar("out_w", shape.out[1]), ci=shape.ci, taps=shape.taps,
        patches_h=scalar("patches_h", count[1]), patches_w=scalar("patches_w", count[2]), strides=shape.strides,
        dilations=shape.dilations, pads=shape.pads,
    )  # fmt: skip


def activation_map(kernel: Kernel, shape: Geometry, t: ConvWgmmaTactic, line: int) -> TensorMap[Dim]:
    """The descriptor of the input [images, rows, columns, channels]; a box has a patch's pixels and ``line`` channels.

    Of each spatial axis it takes every stride-th element.
    """
    name, dtype, _ = kernel.loads["a"].attr
    buffer = kernel.buffer(name)
    sizes, steps = tuple(reversed(buffer.shape)), tuple(reversed(buffer.strides()))
    nb, th, tw = t.patch
    strides = (1, *reversed(shape.strides[2 - shape.spatial :]), 1)
    pixels = (tw, th)[: shape.spatial]
    box = (line, *(p * s for p, s in zip(pixels, strides[1:])), nb)
    return TensorMap(
        "map_a", name, 0, dims=sizes, strides=tuple(s * dtype.size for s in steps[1:]), box=box,
        element_strides=strides,
    )  # fmt: skip


def weight_map(problem: Problem, shape: Geometry, t: ConvWgmmaTactic) -> TensorMap[Dim]:
    """The descriptor of the weights [out channels, taps, in channels]; a box is one tap of a tile's columns."""
    name, dtype, _ = problem.b.expr.attr
    taps = shape.taps[0] * shape.taps[1]
    columns = problem.n.extent * problem.batch.extent
    return TensorMap(
        "map_b", name, 0, dims=(shape.ci, taps, columns), box=(line_of(problem), 1, t.bn), element_strides=(1, 1, 1),
        strides=(shape.ci * dtype.size, shape.ci * taps * dtype.size),
    )  # fmt: skip
