"""ATen's matrix products, convolutions, pools, interpolation and attention.

Products keep their operands' precision; attention stays one node, whatever variant torch chose for its device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from arcweld.compiler.dims import Dim, divides_exactly
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.grouped import grouped_product
from arcweld.compiler.ops.resampling import resample
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.pointwise import scaled

# ---------------------------------------------------------------------------------------------- matrix products


@aten("linear")
def linear(c: AtenContext) -> Result:
    """``x @ weight.T + bias``."""
    x, weight = c["input"], c["weight"]
    if len(weight.shape) == 1:
        y = product(c, x, weight)
    else:
        y = product(c, x, c.transpose(weight, (1, 0)))
    return y if c["bias"] is None else c.emit("Add", y, c["bias"])


def product(c: AtenContext, a: Value, b: Value) -> Value:
    """Numpy's matrix product; vectors become one row or one column and lose it again."""
    row, column = len(a.shape) == 1, len(b.shape) == 1
    wide_a = c.reshape(a, (1, *a.shape)) if row else a
    wide_b = c.reshape(b, (*b.shape, 1)) if column else b
    y = c.emit("MatMul", wide_a, wide_b)
    shape = list(y.shape)
    if column:
        shape.pop()
    if row:
        shape.pop(-1 if column else -2)
    return c.reshape(y, shape)


@aten("mm", "bmm")
def mm(c: AtenContext) -> Result:
    return product(c, c["self"], c["mat2"])


@aten("_grouped_mm")
def grouped_mm(c: AtenContext) -> Result:
    """Rows (or columns) of one matrix, in groups that end at ``offs``, each times the matrix of its group.

    What torch computes of rows that belong to no group is not defined.
    """
    a, b, offs = c["self"], c["mat2"], c["offs"]
    if c["bias"] is not None:
        raise c.fail("a grouped product with a bias")
    if offs is None:
        return c.result(product(c, a, b))
    if len(a.shape) == 2 and len(b.shape) == 2:
        raise c.fail("a grouped product of two matrices, whose groups share out the sums (a gradient of weights)")
    if len(a.shape) == 2:
        return c.result(grouped_product(c, a, b, offs))
    return c.result(c.transpose(grouped_product(c, c.transpose(b, (1, 0)), c.transpose(a, (0, 2, 1)), offs), (1, 0)))


@aten("transformers.grouped_mm_fallback.default")
def grouped_mm_fallback(c: AtenContext) -> Result:
    """What transformers' mixtures of experts call in place of ``_grouped_mm`` while compiling other types than bf16."""
    return c.result(grouped_product(c, c["input"], c["weight"], c["offs"]))


@aten("_scaled_mm")
def scaled_mm(c: AtenContext) -> Result:
    """``a @ b * scale_a * scale_b + bias`` of 8-bit floats, with a scale for each tensor, or each row and column."""
    a, b, bias = c["self"], c["mat2"], c["bias"]
    if c["scale_result"] is not None or c.out.dtype not in (DType.F32, DType.F16, DType.BF16):
        raise c.fail(f"a result of {c.out.dtype.value} or with a scale; use an out_dtype of 16 or 32 bits")
    y = c.emit("MatMulFloat8", a, b)
    for scale, each in ((c["scale_a"], (a.shape[0], 1)), (c["scale_b"], (1, b.shape[1]))):
        if scale.dtype is not DType.F32 or (scale.type.numel != 1 and scale.shape != each):
            raise c.fail(f"scales {scale.type} that are not for tensors, or for rows and columns")
        y = c.emit("Mul", y, c.reshape(scale, ()) if scale.type.numel == 1 else scale)
    return c.result(y if bias is None else c.emit("Add", y, c.cast(bias, DType.F32)))


@aten("matmul")
def matmul(c: AtenContext) -> Result:
    return product(c, c["self"], c["other"])


@aten("dot")
def dot(c: AtenContext) -> Result:
    return product(c, c["self"], c["tensor"])


@aten("vdot")
def vdot(c: AtenContext) -> Result:
    return product(c, c["self"], c["other"])


@aten("mv")
def mv(c: AtenContext) -> Result:
    return product(c, c["self"], c["vec"])


@aten("addmm")
def addmm(c: AtenContext) -> Result:
    return _plus(c, product(c, c["mat1"], c["mat2"]))


@aten("baddbmm")
def baddbmm(c: AtenContext) -> Result:
    return _plus(c, product(c, c["batch1"], c["batch2"]))


@aten("addmv")
def addmv(c: AtenContext) -> Result:
    return _plus(c, product(c, c["mat"], c["vec"]))


@aten("addbmm")
def addbmm(c: AtenContext) -> Result:
    """The sum of all products of a batch is one product of the factors side by side."""
    a, b = c["batch1"], c["batch2"]
    side = c.reshape(c.transpose(a, (1, 0, 2)), (a.shape[1], a.shape[0] * a.shape[2]))
    return _plus(c, product(c, side, c.reshape(b, (b.shape[0] * b.shape[1], b.shape[2]))))


def _plus(c: AtenContext, y: Value) -> Value:
    """``beta * self + alpha * y``; for ``beta`` 0 torch does not read ``self``, not even a NaN."""
    y = _tensor(scaled(c, y, c["alpha"]))
    if c["beta"] == 0:
        return y
    return c.emit("Add", y, _tensor(scaled(c, c["self"], c["beta"])))


def _tensor(x: Any) -> Value:
    assert isinstance(x, Value)
    return x


# ------------------------------------------------------------------------------------------------- convolutions


def repeated(x: Any, rank: int) -> tuple[Any, ...]:
    """An int or a list of one or of ``rank`` entries as ``rank`` entries."""
    listed = tuple(x) if isinstance(x, Sequence) else (x,)
    return listed * rank if len(listed) == 1 else listed


@aten("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(c: AtenContext) -> Result:
    x, weight, bias = c.get("input", c.get("self")), c["weight"], c.get("bias")
    rank = len(weight.shape) - 2
    batched = len(x.shape) == rank + 2
    x = x if batched else c.reshape(x, (1, *x.shape))
    pads = repeated(c["padding"], rank)
    attrs: dict[str, Any] = {
        "strides": repeated(c["stride"], rank),
        "dilations": repeated(c["dilation"], rank),
        "pads": (*pads, *pads),
        "group": c["groups"],
        "layout": "NCHW",
    }
    if c.get("transposed", False):
        attrs["output_padding"] = repeated(c["output_padding"], rank)
        y = c.emit("ConvTranspose", x, weight, bias, **attrs)
    else:
        y = c.emit("Conv", x, weight, bias, **attrs)
    return y if batched else c.reshape(y, y.shape[1:])


# ------------------------------------------------------------------------------------------------ interpolation

NEAREST = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
NEAREST_EXACT = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def _resize(mode: str, rank: int, fixed: dict[str, str] | None = None) -> Any:
    def handler(c: AtenContext) -> Result:
        attrs: dict[str, Any] = dict(fixed or {})
        if mode != "nearest" and not c.out.dtype.is_float:
            raise c.fail(f"interpolation of {c.out.dtype.value}, which eager rounds in its own way")
        if fixed is None:
            aligned = c["align_corners"]
            attrs["coordinate_transformation_mode"] = "align_corners" if aligned else "half_pixel"
        return c.emit(
            "Resize", c["self"] if "self" in c.args else c["input"], sizes=c.out.shape, mode=mode,
            scales=scale_factors(c, rank), **attrs,
        )  # fmt: skip

    return handler


def scale_factors(c: AtenContext, rank: int) -> tuple[float, ...] | None:
    """The scale factors where torch uses them instead of the ratio of sizes: where the user gave them."""
    given = c.get("scale_factors")
    if given is None:
        names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}[rank]
        given = [c.get(n) for n in names]
    if any(s is None for s in given):
        return None
    return (1.0, 1.0, *(float(s) for s in given))


for _rank, _linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    aten(f"upsample_nearest{_rank}d", f"upsample_nearest{_rank}d.vec")(_resize("nearest", _rank, NEAREST))
    aten(f"_upsample_nearest_exact{_rank}d", f"_upsample_nearest_exact{_rank}d.vec")(
        _resize("nearest", _rank, NEAREST_EXACT)
    )
    aten(f"upsample_{_linear}{_rank}d", f"upsample_{_linear}{_rank}d.vec")(_resize("linear", _rank))
aten("upsample_bicubic2d", "upsample_bicubic2d.vec")(_resize("cubic", 2))


def _antialiased(mode: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x = c["self"] if "self" in c.args else c["input"]
        scales = scale_factors(c, 2)
        if c["align_corners"]:  # the corners decide the factors, but pixels are where they always are
            pairs = list(zip(x.shape[2:], c.out.shape[2:]))
            if not all(isinstance(n, int) and isinstance(m, int) and n > 1 and m > 1 for n, m in pairs):
                raise c.fail("antialiased resizing of one pixel with align_corners")
            scales = (1.0, 1.0, *((m - 1) / (n - 1) for n, m in pairs))
        return resample(
            c.rw, x, c.out.shape, scales, c.origin, c.hint, mode=mode, transform="half_pixel",
            coefficient=-0.5, clipped=True,
        )  # fmt: skip

    return handler


aten("_upsample_bilinear2d_aa", "_upsample_bilinear2d_aa.vec")(_antialiased("linear"))
aten("_upsample_bicubic2d_aa", "_upsample_bicubic2d_aa.vec")(_antialiased("cubic"))


# ---------------------------------------------------------------------------------------------------- attention

_ATTENTION = (
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
)  # fmt: skip


@aten(*_ATTENTION)
def attention(c: AtenContext) -> Result:
    """[..., H, S, D] queries against [..., G, T, D] keys and [..., G, T, Dv] values."""
    if c["dropout_p"] != 0:
        raise c.fail("random numbers (attention with dropout)")
    c.require_unused(*range(1, len(c.outs)))
    q, k, v = c["query"], c["key"], c["value"]
    mask = c.get("attn_mask", c.get("attn_bias"))
    scale = c.get("scale")
    q4, k4, v4 = (_four_axes(c, t) for t in (q, k, v))
    _check_heads(c, q4, k4)
    if scale is None:
        depth = q.shape[-1]
        if not isinstance(depth, int):
            raise c.fail(f"attention over a symbolic head size {depth}")
        scale = 1 / math.sqrt(max(depth, 1))
    y = c.emit("Attention", q4, k4, v4, _mask(c, mask, q4, k4), scale=float(scale), is_causal=int(c["is_causal"]))
    y = c.reshape(y, c.outs[0].shape) if c.outs[0] is not None else y
    return y if len(c.outs) == 1 else (y, *[None] * (len(c.outs) - 1))


def _check_heads(c: AtenContext, q: Value, k: Value) -> None:
    heads, groups = q.shape[1], k.shape[1]
    if heads != groups and not c.get("enable_gqa", False) and divides_exactly(heads, groups) is None:
        raise c.fail(f"attention of {heads} query heads over {groups} key heads")
    if q.shape[0] != k.shape[0]:
        raise c.fail(f"attention with query batch {q.shape[0]} and key batch {k.shape[0]}")


def _four_axes(c: AtenContext, t: Value) -> Value:
    if len(t.shape) == 4:
        return t
    lead: Dim = 1
    for d in t.shape[:-3]:
        lead = lead * d
    heads = t.shape[-3] if len(t.shape) >= 3 else 1
    return c.reshape(t, (lead, heads, *t.shape[-2:]))


def _mask(c: AtenContext, mask: Value | None, q: Value, k: Value) -> Value | None:
    if mask is None:
        return None
    mask = mask if mask.dtype is DType.BOOL else c.cast(mask, q.dtype)
    if len(mask.shape) <= 4:
        return mask
    full = (*c["query"].shape[:-1], k.shape[2])
    return c.reshape(c.expand(mask, full), (*q.shape[:3], k.shape[2]))
