"""Handlers of convolutions and pools, with auto_pad and output_shape resolved to explicit pads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.remedies import fix_dimensions

_AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True, slots=True)
class Window:
    """The spatial attributes of a convolution or pool; pads list the begins of all axes, then the ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[Dim, ...]

    @property
    def is_static(self) -> bool:
        """False where auto_pad left pads that depend on symbolic dimensions."""
        return all(isinstance(p, int) for p in self.pads)

    def padded(self, c: NodeContext, x: Value, value: float) -> tuple[Value, tuple[int, ...]]:
        """The operand and the pads that the operator still has to apply; symbolic ones become a Pad node."""
        if self.is_static:
            return x, tuple(int(p) for p in self.pads)  # type: ignore[arg-type]
        n = len(self.kernel)
        full = (0, 0, *self.pads[:n], 0, 0, *self.pads[n:])
        return c.emit("Pad", x, pads=full, mode="constant", value=value), (0,) * (2 * n)


def window(c: NodeContext, spatial: Sequence[Dim], kernel: Sequence[int], transposed: bool = False) -> Window:
    """Reads strides, dilations and pads, and resolves auto_pad for the input's spatial dimensions."""
    n = len(spatial)
    strides = positive(c, "strides", n)
    dilations = positive(c, "dilations", n)
    if len(kernel) != n or any(k < 1 for k in kernel):
        c.broken(f"the kernel is {list(kernel)} for {n} spatial dimensions")
    pads: Sequence[Dim] = c.ints_attr("pads") or (0,) * (2 * n)
    auto = c.choice_attr("auto_pad", "NOTSET", _AUTO_PAD)
    if len(pads) != 2 * n:
        c.broken(f"{len(pads)} pads are given for {n} spatial dimensions")
    if auto == "VALID":
        pads = (0,) * (2 * n)
    elif auto != "NOTSET" and not transposed:
        totals = [_same_total(d, k, s, e) for d, k, s, e in zip(spatial, kernel, strides, dilations)]
        pads = split_pads(totals, auto == "SAME_UPPER")
    if any(isinstance(p, int) and abs(p) > 2**31 for p in pads):
        c.broken(f"the pads are {list(pads)}")
    for i, d in enumerate(spatial if not transposed else ()):
        # a model that can run has room for the window, or with ceil_mode for a part of it
        part = strides[i] - 1 if c.int_attr("ceil_mode") else 0
        c.has_room(d + pads[i] + pads[n + i] + part, (kernel[i] - 1) * dilations[i] + 1)
    return Window(tuple(kernel), strides, dilations, tuple(pads))


def positive(c: NodeContext, name: str, n: int) -> tuple[int, ...]:
    """An attribute of ``n`` positive integers, all 1 where it is left out."""
    values = c.ints_attr(name) or (1,) * n
    if len(values) != n or any(not 1 <= v < 2**31 for v in values):
        c.broken(f"{name} are {list(values)} for {n} spatial dimensions")
    return values


def _same_total(d: Dim, kernel: int, stride: int, dilation: int) -> Dim:
    """The padding along one axis that makes the output ``ceil(d / stride)``."""
    reach = (kernel - 1) * dilation + 1
    return dims.maximum((dims.ceildiv(d, stride) - 1) * stride + reach - d, 0)


def split_pads(totals: Sequence[Dim], upper: bool) -> tuple[Dim, ...]:
    """Begins and ends from totals; ``upper`` puts the odd element at the end."""
    small = [dims.floordiv(t, 2) for t in totals]
    large = [t - s for t, s in zip(totals, small)]
    return (*small, *large) if upper else (*large, *small)


def _weight_kernel(c: NodeContext, w: Value) -> tuple[int, ...]:
    kernel = tuple(c.concrete(d, "the kernel's shape") for d in w.shape[2:])
    given = c.ints_attr("kernel_shape")
    if given is not None and given != kernel:
        c.broken(f"kernel_shape is {list(given)}, the weights have {list(kernel)}")
    return kernel


@handles("Conv")
def _conv(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 5)
    c.needs_rank(1, rank, rank)
    return conv(c, c.value(0), c.value(1), c.optional(2))


def conv(c: NodeContext, x: Value, w: Value, bias: Value | None) -> Value:
    """A convolution with the node's attributes."""
    win, group = _conv_window(c, x, w)
    x, pads = win.padded(c, x, 0.0)
    return c.emit(
        "Conv", x, w, bias, strides=win.strides, dilations=win.dilations, pads=pads, group=group, layout="NCHW"
    )


def conv_attrs(c: NodeContext, x: Value, w: Value) -> dict[str, Any]:
    """The attributes that a convolution of the node has in IR."""
    win, group = _conv_window(c, x, w)
    return {
        "strides": win.strides, "dilations": win.dilations, "pads": win.pads, "group": group, "layout": "NCHW",
    }  # fmt: skip


def _conv_window(c: NodeContext, x: Value, w: Value) -> tuple[Window, int]:
    """The window of the node's convolution, and its groups."""
    win = window(c, x.shape[2:], _weight_kernel(c, w))
    group = c.int_attr("group", 1)
    if group < 1:
        c.broken(f"group is {group}")
    return win, group


@handles("ConvTranspose")
def _conv_transpose(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 5)
    c.needs_rank(1, rank, rank)
    x, n = c.value(0), rank - 2
    win = window(c, x.shape[2:], _weight_kernel(c, c.value(1)), transposed=True)
    extra = c.ints_attr("output_padding") or (0,) * n
    group = c.int_attr("group", 1)
    if len(extra) != n or any(not 0 <= e < 2**31 for e in extra) or group < 1:
        c.broken(f"output_padding is {list(extra)} and group {group}")
    auto = c.str_attr("auto_pad", "NOTSET")
    wanted = c.ints_attr("output_shape")
    pads = win.pads
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [_transposed_total(c, win, i, x.shape[2 + i], wanted, extra[i]) for i in range(n)]
        # a negative total means that the outputs grow beyond what the kernel covers
        grow = [max(0, -t) for t in totals]
        extra = tuple(e + g for e, g in zip(extra, grow))
        pads = split_pads([max(0, t) for t in totals], auto == "SAME_UPPER")
    return c.emit(
        "ConvTranspose", x, c.value(1), c.optional(2),
        strides=win.strides, dilations=win.dilations, pads=pads, output_padding=extra, group=group, layout="NCHW",
    )  # fmt: skip


def _transposed_total(c: NodeContext, win: Window, i: int, d: Dim, wanted: Sequence[int] | None, extra: int) -> int:
    if wanted is not None and len(wanted) not in (len(win.kernel), len(win.kernel) + 2):
        c.broken(f"output_shape is {list(wanted)}")
    size: Dim = d * win.strides[i] if wanted is None else wanted[i - len(win.kernel)]
    total = (d - 1) * win.strides[i] + extra + (win.kernel[i] - 1) * win.dilations[i] + 1 - size
    if not isinstance(total, int):
        c.unsupported(f"the pads for output_shape depend on the dimension {d}", fix_dimensions(d))
    return total


def pool_window(c: NodeContext) -> Window:
    """The window of a pool."""
    c.needs_rank(0, 3, 5)
    kernel = c.ints_attr("kernel_shape")
    if kernel is None:
        c.broken("kernel_shape is missing")
    return window(c, c.shape(0)[2:], kernel)


def pool(c: NodeContext, op: str, x: Value, filler: float, **attrs: int) -> Value:
    """A pool over ``x`` with the node's window; ``filler`` stands outside the tensor."""
    win = pool_window(c)
    x, pads = win.padded(c, x, filler)
    return c.emit(
        op, x, kernel_shape=win.kernel, strides=win.strides, dilations=win.dilations, pads=pads,
        ceil_mode=int(bool(c.int_attr("ceil_mode"))), layout="NCHW", **attrs,
    )  # fmt: skip


@handles("AveragePool")
def _average_pool(c: NodeContext) -> Result:
    return average_pool(c, c.value(0))


def average_pool(c: NodeContext, x: Value) -> Value:
    """The mean over ``x`` with the node's window."""
    include = int(bool(c.int_attr("count_include_pad")))
    if not include and not pool_window(c).is_static:
        c.unsupported("auto_pad of AveragePool depends on a dimension", fix_dimensions())
    return pool(c, "AveragePool", x, 0.0, count_include_pad=include)


@handles("LpPool")
def _lp_pool(c: NodeContext) -> Result:
    p = c.int_attr("p", 2)
    if not 1 <= p <= 16:
        c.broken(f"p is {p}")
    if c.int_attr("ceil_mode"):
        c.unsupported("LpPool with ceil_mode")
    x = c.value(0)
    powers = c.emit("Abs", x) if p != 2 else c.emit("Mul", x, x)
    if p > 2:
        powers = c.emit("Pow", powers, c.const(float(p), x.dtype))
    mean = pool(c, "AveragePool", powers, 0.0, count_include_pad=1)
    total = c.scale(mean, float(math.prod(pool_window(c).kernel)))
    if p > 2:
        return c.emit("Pow", total, c.const(1.0 / p, x.dtype))
    return total if p == 1 else c.emit("Sqrt", total)
