"""Complex tensors: operators that do the same to either part, by the handlers of real tensors; parts and views."""

from __future__ import annotations

from typing import Any

import torch

from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import (
    HANDLERS,
    AtenContext,
    Handler,
    Pair,
    Result,
    aten,
    complex_aten,
    full_name,
    joined,
    parted,
)
from arcweld.compiler.torch.handlers.movement import RESHAPES, SPLITS, ZEROS
from arcweld.compiler.torch.handlers.pointwise import COPIES

# operator -> its arguments that have parts; a real one among them has zeros as its imaginary part
_SELF = (
    *RESHAPES, "permute", "permute_copy", "t", "numpy_T", "mT", "t_copy", "transpose.int", "transpose_copy.int",
    "expand", "broadcast_to", "expand_as", "expand_copy", "slice.Tensor", "slice_copy.Tensor", "narrow", "narrow_copy",
    "select.int", "select_copy.int", *SPLITS, "split_with_sizes_copy", "split_copy.Tensor", "unsafe_chunk",
    "unbind.int", "unbind_copy.int", "unfold", "unfold_copy", "flip", "roll", "repeat",
    "repeat_interleave.self_int", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "_pad_circular", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "tril", "triu", "index.Tensor", "_unsafe_index.Tensor", "index_select", "gather", "take",
    "sum", "sum.dim_IntList", "mean", "mean.dim", "cumsum", "neg", *COPIES, "_to_copy", "to.dtype", "to.dtype_layout",
    "to.device", "to.other", "type_as", *ZEROS, "new_empty_strided", "empty_permuted",
)  # fmt: skip
BY_PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(_SELF, ("self",)) | {
    "cat": ("tensors",),
    "stack": ("tensors",),
    "constant_pad_nd": ("self", "value"),
    "slice_scatter": ("self", "src"),
    "select_scatter": ("self", "src"),
    "diagonal_scatter": ("self", "src"),
    "full": ("fill_value",),
    "new_full": ("self", "fill_value"),
    "full_like": ("self", "fill_value"),
    "fill.Scalar": ("self", "value"),
    "fill.Tensor": ("self", "value"),
    "scalar_tensor": ("s",),
    "copy": ("self", "src"),
    "embedding": ("weight",),
    "masked_fill.Scalar": ("self", "value"),
    "masked_fill.Tensor": ("self", "value"),
    "masked_scatter": ("self", "source"),
    "index_put": ("self", "values"),
    "_unsafe_index_put": ("self", "values"),
    "index_add": ("self", "source"),
    "index_copy": ("self", "source"),
    "put": ("self", "source"),
    "scatter.src": ("self", "src"),
    "scatter.value": ("self", "value"),
    "scatter_add": ("self", "src"),
    "prims.convert_element_type.default": ("a",),
    **{f"where.{form}": ("self", "other") for form in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
}


def _part_of(c: AtenContext, x: Any, k: int) -> Any:
    """Part ``k`` (0 real, 1 imaginary) of an argument that has parts."""
    if isinstance(x, Pair):
        return (x.re, x.im)[k]
    if isinstance(x, list | tuple):
        return [_part_of(c, i, k) for i in x]
    if isinstance(x, complex):
        return (x.real, x.imag)[k]
    if k == 0 or x is None:
        return x
    return c.full(0, x.shape, x.dtype) if isinstance(x, Value) else 0


def _real_type(x: Any) -> Any:
    return x.to_real() if isinstance(x, torch.dtype) and x.is_complex else x


def _pair(re: Any, im: Any) -> Pair | None:
    return None if re is None or im is None else Pair(re, im)


def _by_parts(name: str, data: tuple[str, ...]) -> Handler:
    def part(c: AtenContext, k: int) -> Result:
        args = {key: _part_of(c, x, k) if key in data else _real_type(x) for key, x in c.args.items()}
        return HANDLERS[full_name(name)](c.derived(args))

    def both(c: AtenContext) -> Result:
        if not any(c.complex_outs):  # a cast to a real type drops the imaginary part, as torch does
            return part(c, 0)
        re, im = part(c, 0), part(c, 1)
        if isinstance(re, tuple) and isinstance(im, tuple):  # a list of results, be it of one
            return tuple(_pair(a, b) for a, b in zip(re, im, strict=True))
        return _pair(re, im)  # type: ignore[return-value]

    return both


for _name, _data in BY_PARTS.items():
    complex_aten(_name)(_by_parts(_name, _data))


# ------------------------------------------------------------------------------------------------- parts and views


@complex_aten("view_as_real", "view_as_real_copy")
def view_as_real(c: AtenContext) -> Result:
    return joined(c, c["self"])


@complex_aten("view_as_complex", "view_as_complex_copy")
def view_as_complex(c: AtenContext) -> Result:
    return parted(c, c["self"])


@complex_aten("complex")
def complex_of_parts(c: AtenContext) -> Result:
    return pair(c, c["real"], c["imag"])


@complex_aten("polar")
def polar(c: AtenContext) -> Result:
    size, angle = c["abs"], c["angle"]
    return pair(c, c.emit("Mul", size, c.emit("Cos", angle)), c.emit("Mul", size, c.emit("Sin", angle)))


@complex_aten("_conj", "_conj_copy", "_conj_physical", "conj_physical")
def conj(c: AtenContext) -> Result:
    return Pair(c["self"].re, c.emit("Neg", c["self"].im))


@aten("_neg_view")
def neg_view(c: AtenContext) -> Result:
    """What the imaginary part of a conjugated tensor is."""
    return c.emit("Neg", c["self"])


@complex_aten("ones", "ones_like", "new_ones")
def ones(c: AtenContext) -> Result:
    return Pair(c.full(1, c.out.shape, c.out.dtype), c.full(0, c.out.shape, c.out.dtype))


@complex_aten("eye", "eye.m")
def eye(c: AtenContext) -> Result:
    return Pair(c.call("eye", c.out, **c.args), c.full(0, c.out.shape, c.out.dtype))


def pair(c: AtenContext, re: Value, im: Value) -> Pair:
    """A result of these parts, in the result's shape and type."""
    return Pair(*(c.expand(c.result(v), c.out.shape) for v in (re, im)))
