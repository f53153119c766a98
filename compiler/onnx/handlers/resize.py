"""Handlers of Resize and its older form Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.operands import elements
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.onnx.scalars import Scalar
from arcweld.compiler.ops.resampling import resample
from arcweld.compiler.ops.resize import ratio

_TRANSFORMS = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)  # fmt: skip


@handles("Upsample")
def _upsample(c: NodeContext) -> Result:
    if c.opset >= 9:
        scales = list(elements(c.known(1)).flat)
    else:
        scales = list(c.floats_attr("scales") or ())
    return _emit(c, _all_axes(c, scales, None, 1.0), None, "asymmetric", "floor")


@handles("Resize")
def _resize(c: NodeContext) -> Result:
    if c.opset < 11:
        return _emit(c, _all_axes(c, list(elements(c.known(1)).flat), None, 1.0), None, "asymmetric", "floor")
    axes = c.ints_attr("axes")
    listed = None if axes is None else c.axes(axes, c.operand(0).rank)
    transform = c.choice_attr("coordinate_transformation_mode", "half_pixel", _TRANSFORMS)
    if transform == "tf_half_pixel_for_nn":
        c.unsupported("coordinate_transformation_mode tf_half_pixel_for_nn")
    nearest = c.str_attr("nearest_mode", "round_prefer_floor")
    has_scales = c.has(2) and c.operand(2).shape != (0,)
    has_sizes = c.has(3) and c.operand(3).shape != (0,)
    if has_scales == has_sizes:
        c.broken("either scales or sizes should be given")
    if has_scales:
        scales = _all_axes(c, list(elements(c.known(2)).flat), listed, 1.0)
        return _emit(c, scales, None, transform, nearest)
    sizes = _all_axes(c, list(c.dims(3)), listed, None)
    sizes = [x if s is None else s for s, x in zip(sizes, c.shape(0))]
    return _sized(c, sizes, listed, transform, nearest)


def _region(c: NodeContext, axes: Sequence[int] | None) -> tuple[list[float], list[float]]:
    """The begins and the ends of tf_crop_and_resize's region, of all axes; those that it does not list are whole."""
    given = [float(v) for v in elements(c.known(1)).flat]
    rank = c.operand(0).rank
    where = list(range(rank)) if axes is None else list(axes)
    if len(given) != 2 * len(where) or not all(abs(v) < 2**20 for v in given):
        c.broken(f"the region {given} of {len(where)} axes")
    begins, ends = [0.0] * rank, [1.0] * rank
    for i, a in enumerate(where):
        # as of scales: 0.4 in f32 is meant to be 2 / 5
        begins[a], ends[a] = (float(Fraction(*ratio(v))) for v in (given[i], given[len(where) + i]))
    return begins, ends


def _all_axes(c: NodeContext, given: Sequence[Scalar], axes: Sequence[int] | None, rest: float | None) -> list[Scalar]:
    rank = c.operand(0).rank
    where = range(rank) if axes is None else axes
    if len(given) != len(where):
        c.broken(f"{len(given)} scales or sizes are given for {len(where)} axes")
    full: list[Scalar] = [rest] * rank  # type: ignore[list-item]
    for a, g in zip(where, given):
        full[a] = g
    return full


def _sized(c: NodeContext, sizes: Sequence[Scalar], axes: Sequence[int] | None, transform: str, nearest: str) -> Result:
    policy = c.choice_attr("keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller"))
    shape = c.shape(0)
    if policy == "stretch":
        return _emit(c, None, [scalars.as_dim(s) for s in sizes], transform, nearest)
    where = list(range(len(shape))) if axes is None else list(axes)
    if not all(isinstance(shape[a], int) and isinstance(sizes[a], int) for a in where):
        c.unsupported(f"keep_aspect_ratio_policy {policy} with symbolic dimensions", fix_dimensions())
    if any(shape[a] == 0 for a in where):
        c.broken("an axis without elements has no aspect ratio to keep")
    pick = min if policy == "not_larger" else max
    scale = pick(Fraction(sizes[a], shape[a]) for a in where)  # type: ignore[arg-type]
    scaled = [int(scale * shape[a] + Fraction(1, 2)) if a in where else shape[a] for a in range(len(shape))]  # type: ignore[operator]
    return _emit(c, [float(scale) if a in where else 1.0 for a in range(len(shape))], scaled, transform, nearest)


def _emit(
    c: NodeContext, scales: Sequence[Scalar] | None, sizes: Sequence[Dim] | None, transform: str, nearest: str
) -> Result:
    mode = c.choice_attr("mode", "nearest", ("nearest", "linear", "bilinear", "cubic"))
    shape = c.shape(0)
    if sizes is None:
        assert scales is not None
        sizes = [_scaled(c, d, s) for d, s in zip(shape, scales)]
        if any(scalars.is_symbolic(s) for s in scales):
            scales = None  # symbolic ratios divide exactly (checked in _scaled): the sizes say it all
    cropped = transform == "tf_crop_and_resize"
    if tuple(sizes) == shape and not cropped and (scales is None or all(s == 1 for s in scales)):
        return c.operand(0)
    if any(isinstance(s, int) and s < 1 for s in sizes):
        c.broken(f"the result would have the shape {list(sizes)}")
    x = c.value(0)
    if mode != "nearest" and c.int_attr("antialias"):
        if cropped:
            c.unsupported("antialiasing of tf_crop_and_resize")
        return _antialiased(c, x, sizes, scales, transform)
    if mode != "nearest" and not x.dtype.is_float:
        # integers are interpolated in f32 and cut off, as ONNX Runtime does
        return c.cast(_resized(c, c.cast(x, DType.F32), sizes, scales, transform, nearest), x.dtype)
    return _resized(c, x, sizes, scales, transform, nearest)


def _resized(
    c: NodeContext, x: Value, sizes: Sequence[Dim], scales: Sequence[Scalar] | None, transform: str, nearest: str
) -> Value:
    mode = c.str_attr("mode", "nearest")
    return c.emit(
        "Resize",
        x,
        sizes=tuple(sizes),
        # a scale of 0.1 in f32 is meant to be 1 / 10: along 10^5 rows the difference is a part of a row
        scales=None if scales is None else tuple(float(Fraction(*ratio(float(s)))) for s in scales),  # type: ignore[arg-type]
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode=transform,
        nearest_mode=nearest,
        cubic_coeff_a=c.float_attr("cubic_coeff_a", -0.75),
        exclude_outside=c.int_attr("exclude_outside"),
        extrapolation_value=c.float_attr("extrapolation_value", 0.0),
        roi=_roi(c) if transform == "tf_crop_and_resize" else None,
    )


def _roi(c: NodeContext) -> tuple[float, ...]:
    axes = c.ints_attr("axes")
    begins, ends = _region(c, None if axes is None else c.axes(axes, c.operand(0).rank))
    return (*begins, *ends)


def _antialiased(
    c: NodeContext, x: Value, sizes: Sequence[Dim], scales: Sequence[Scalar] | None, transform: str
) -> Value:
    return resample(
        c.rw, x, sizes, None if scales is None else [float(s) for s in scales],  # type: ignore[arg-type]
        c.origin, c.hint, mode="cubic" if c.str_attr("mode", "") == "cubic" else "linear", transform=transform,
        coefficient=c.float_attr("cubic_coeff_a", -0.75), clipped=bool(c.int_attr("exclude_outside")),
    )  # fmt: skip


def _scaled(c: NodeContext, d: Dim, scale: Scalar) -> Dim:
    """The output size along an axis: ``floor(d * scale)``."""
    if not scalars.is_symbolic(scale):
        if not 0 < scale < 2**20:  # type: ignore[operator]
            c.broken(f"a scale is {scale}")
        f = Fraction(float(scale))  # type: ignore[arg-type]
        return dims.floordiv(d * f.numerator, f.denominator)
    num, den = scalars.as_ratio(scale)
    exact = dims.divides_exactly(d * num, den)
    if exact is None:
        why = f"the scale ({num}) / ({den}) of a dimension {d} does not divide evenly"
        c.unsupported(why, fix_dimensions(num, den, d))
    return exact
