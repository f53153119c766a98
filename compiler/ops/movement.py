"""Movement operators: each output element is an input element at other coordinates, or a constant.

The lowering of one is an index map, with a mask where an output element has no input element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly, flat_index, floordiv, mod
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, const, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, Lower, OpDef, Reader, Reference, register
from arcweld.compiler.ops.shapes import (
    below,
    broadcast,
    check_axis,
    check_equal,
    check_length,
    check_numel,
    check_rank,
    inside,
    present,
    read,
    same_dtype,
    show,
)

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray | None]
Types = Sequence[TensorType | None]
ANY_TYPE = ("f32", "f16", "i64", "bool")


def movement(
    name: str, inputs: str, infer: Infer, reference: Reference, lower: Lower, attrs: Mapping[str, Attr],
    cases: Sequence[Case], doc: str = "", *, cost: int = 1, fan_out: Callable[[Node], int] | None = None,
    needs: Callable[[Node], Sequence[Dim]] | None = None,
) -> OpDef:  # fmt: skip
    """Registers a movement operator."""
    return register(
        OpDef(
            name, Kind.MOVEMENT, tuple(inputs.split()), infer, reference, attrs, lower, cases=tuple(cases), doc=doc,
            cost=cost, fan_out=fan_out, needs=needs,
        )
    )  # fmt: skip


def operand(arrays: Arrays, k: int = 0) -> np.ndarray:
    """Operand ``k`` of a reference, which must be present."""
    a = arrays[k]
    assert a is not None
    return a


# ----------------------------------------------------------------------------------------------------- Reshape


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Reshape", types, 1)
    check_numel("Reshape", x.shape, attrs["shape"])
    return (x.with_shape(attrs["shape"]),)


def _prefix_products(axes: Sequence[int], shape: Sequence[Dim]) -> list[Dim]:
    out: list[Dim] = []
    for k in axes:
        out.append((out[-1] if out else 1) * shape[k])
    return out


def reshape_coords(coords: Sequence[Dim], shape: Sequence[Dim], source: Sequence[Dim]) -> tuple[Dim, ...]:
    """The coordinates in shape ``source`` of the element at ``coords`` in ``shape``, both row-major.

    Axes are first divided into the smallest groups with equal numbers of elements in both shapes, so that only axes
    that were split or merged need arithmetic.
    """
    ins = [k for k, d in enumerate(source) if d != 1]
    outs = [k for k, d in enumerate(shape) if d != 1]
    in_prefix, out_prefix = _prefix_products(ins, source), _prefix_products(outs, shape)
    result: list[Dim] = [0] * len(source)
    i = j = 0
    for a, extent in enumerate(in_prefix):
        last = a == len(ins) - 1
        b = len(outs) - 1 if last else next((k for k in range(j, len(outs)) if out_prefix[k] == extent), -1)
        if b < j:
            continue
        group = outs[j : b + 1]
        _regroup(result, ins[i : a + 1], source, [coords[k] for k in group], [shape[k] for k in group])
        i, j = a + 1, b + 1
    return tuple(result)


def _regroup(
    result: list[Dim], axes: Sequence[int], source: Sequence[Dim], coords: Sequence[Dim], shape: Sequence[Dim]
) -> None:
    """Sets the source coordinates of one group of axes, by way of a linear index."""
    linear = flat_index(coords, shape)
    for axis in reversed(axes[1:]):
        if source[axis] == 0:  # there is no element, and nothing to divide by
            return
        result[axis] = mod(linear, source[axis])
        linear = floordiv(linear, source[axis])
    result[axes[0]] = linear


def _lower_reshape(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    return reader.read(x, reshape_coords(coords, node.output.shape, x.shape))


movement(
    "Reshape", "x", _infer_reshape, lambda a, p: (operand(a).reshape(p["shape"]),), _lower_reshape,
    {"shape": Attr("dims", required=True)},
    [
        Case(((2, 3, 8),), {"shape": (2, 3, 2, 4)}, ANY_TYPE),
        Case(((2, 3, 2, 4),), {"shape": (6, 8)}, ANY_TYPE),
        Case(((4, 6),), {"shape": (3, 8)}, ("f32",)),
        Case(((2, 1, 6, 5),), {"shape": (4, 1, 3, 5, 1)}, ("f32",)),
        Case(((1, 1),), {"shape": ()}, ("f32",)),
        Case(((),), {"shape": (1, 1)}, ("f32",)),
        Case(((0, 4),), {"shape": (2, 0, 2)}, ("f32",)),
        Case(((2, 0, 3),), {"shape": (0,)}, ("f32",)),
    ],
    doc="shape is the whole output shape: no -1, no 0 that means `copy`",
)  # fmt: skip

# ------------------------------------------------------------------------------------- Transpose, Expand, Tile


def _infer_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Transpose", types, 1)
    if sorted(attrs["perm"]) != list(range(x.rank)):
        raise ModelError(f"Transpose: {attrs['perm']} is not a permutation of the axes of {x}")
    return (x.with_shape([x.shape[k] for k in attrs["perm"]]),)


def _lower_transpose(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    at: list[Dim] = [0] * len(coords)
    for c, axis in zip(coords, node.attrs["perm"]):
        at[axis] = c
    return reader.read(node.operands()[0], at)


movement(
    "Transpose", "x", _infer_transpose, lambda a, p: (operand(a).transpose(p["perm"]),), _lower_transpose,
    {"perm": Attr("ints", required=True)},
    [Case(((2, 3, 4),), {"perm": p}, ANY_TYPE) for p in ((2, 0, 1), (0, 2, 1))] + [Case(((),), {"perm": ()})],
)  # fmt: skip


def _infer_expand(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Expand", types, 1)
    return (x.with_shape(broadcast("Expand", [x.shape, attrs["shape"]])),)


def _expand(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    return (np.broadcast_to(x, np.broadcast_shapes(x.shape, attrs["shape"])),)


def _lower_expand(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    return read(reader, node.operands()[0], coords)


movement(
    "Expand", "x", _infer_expand, _expand, _lower_expand, {"shape": Attr("dims", required=True)},
    [
        Case(((3, 1),), {"shape": (2, 3, 4)}, ANY_TYPE),
        Case(((3, 4),), {"shape": (3, 1)}, ("f32",)),
        Case(((),), {"shape": (2, 2)}, ("f32",)),
    ],
    doc="numpy broadcasting against ``shape``",
)  # fmt: skip


def _infer_tile(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Tile", types, 1)
    check_length("Tile", "repeats", attrs["repeats"], x.rank)
    return (x.with_shape([d * r for d, r in zip(x.shape, attrs["repeats"])]),)


def _lower_tile(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    at = [c if r == 1 or d == 0 else mod(c, d) for c, d, r in zip(coords, x.shape, node.attrs["repeats"])]
    return reader.read(x, at)


movement(
    "Tile", "x", _infer_tile, lambda a, p: (np.tile(operand(a), p["repeats"]),), _lower_tile,
    {"repeats": Attr("dims", required=True)}, [Case(((2, 1, 3),), {"repeats": (1, 4, 2)}, ANY_TYPE)],
)  # fmt: skip

# --------------------------------------------------------------------------------------------------- Slice, Concat


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Slice", types, 1)
    for what in ("starts", "sizes", "steps"):
        check_length("Slice", what, attrs[what], x.rank)
    for axis, (start, size, step) in enumerate(zip(attrs["starts"], attrs["sizes"], attrs["steps"])):
        if not isinstance(step, int) or step == 0:
            raise ModelError(f"Slice: step {step} along axis {axis}")
        ints = [d for d in (start, size, x.shape[axis]) if isinstance(d, int)]
        if len(ints) < 3 or size == 0:
            continue
        end = start + (size - 1) * step
        if not (0 <= start < x.shape[axis] and 0 <= end < x.shape[axis]):
            raise ModelError(f"Slice: elements {start} to {end} of axis {axis} of {x}")
    return (x.with_shape(attrs["sizes"]),)


def _slice(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    index = []
    for start, size, step in zip(attrs["starts"], attrs["sizes"], attrs["steps"]):
        end = start + size * step
        index.append(slice(start, end if end >= 0 else None, step) if size else slice(0, 0))
    return (operand(arrays)[tuple(index)],)


def _lower_slice(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    at = [start + c * step for c, start, step in zip(coords, node.attrs["starts"], node.attrs["steps"])]
    return reader.read(node.operands()[0], at)


movement(
    "Slice", "x", _infer_slice, _slice, _lower_slice,
    {
        "starts": Attr("dims", required=True),
        "sizes": Attr("dims", required=True),
        "steps": Attr("ints", required=True),
    },
    [
        Case(((5, 8),), {"starts": (1, 0), "sizes": (3, 8), "steps": (1, 1)}, ANY_TYPE),
        Case(((5, 8),), {"starts": (4, 7), "sizes": (5, 4), "steps": (-1, -2)}, ("f32",)),
        Case(((5, 8),), {"starts": (0, 1), "sizes": (0, 4), "steps": (1, 2)}, ("f32",)),
    ],
    doc="out[i] = x[start + i * step] along every axis; sizes is the output shape",
)  # fmt: skip


def _infer_concat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    given = present("Concat", types)
    same_dtype("Concat", given)
    axis = check_axis("Concat", attrs["axis"], given[0].rank)
    shape = list(given[0].shape)
    for t in given[1:]:
        check_rank("Concat", t, given[0].rank, given[0].rank)
        for k, (a, b) in enumerate(zip(given[0].shape, t.shape)):
            if k != axis:
                check_equal("Concat", f"axis {k} of {show(given[0].shape)} and {show(t.shape)}", a, b)
        shape[axis] = shape[axis] + t.shape[axis]
    return (given[0].with_shape(shape),)


def _lower_concat(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    axis = node.attrs["axis"]
    parts: list[tuple[Expr, Expr]] = []
    start: Dim = 0
    for x in node.operands():
        if x.shape[axis] == 0:
            continue
        end = start + x.shape[axis]
        at = [*coords[:axis], coords[axis] - start, *coords[axis + 1 :]]
        mine = inside(coords[axis], start, end) if parts else below(coords[axis], end)
        parts.append((below(coords[axis], end), reader.read(x, at, mine)))
        start = end
    if not parts:
        return const(0, node.output.dtype)
    out = parts[-1][1]
    for chosen, element in reversed(parts[:-1]):
        out = where(chosen, element, out)
    return out


movement(
    "Concat", "x*", _infer_concat, lambda a, p: (np.concatenate([x for x in a if x is not None], p["axis"]),),
    _lower_concat, {"axis": Attr("int", required=True)},
    [
        Case(((2, 3), (2, 1), (2, 4)), {"axis": 1}, ANY_TYPE),
        Case(((2, 3), (0, 3), (1, 3)), {"axis": 0}, ("f32",)),
        Case(((2, 3),), {"axis": 0}, ("f32",)),
    ],
)  # fmt: skip

# ----------------------------------------------------------------------------------------- depth and space, Trilu


def _check_block(op: str, x: TensorType, blocksize: int) -> None:
    check_rank(op, x, 4, 4)
    if blocksize < 1:
        raise ModelError(f"{op}: blocksize {blocksize}")


def _exact(op: str, d: Dim, by: int) -> Dim:
    q = divides_exactly(d, by)
    if q is None:
        raise ModelError(f"{op}: {d} is not divisible by {by}")
    return q


def _infer_depth_to_space(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("DepthToSpace", types, 1)
    bs = attrs["blocksize"]
    _check_block("DepthToSpace", x, bs)
    if attrs["mode"] not in ("DCR", "CRD"):
        raise ModelError(f"DepthToSpace: unknown mode {attrs['mode']}")
    n, c, h, w = x.shape
    return (x.with_shape((n, _exact("DepthToSpace", c, bs * bs), h * bs, w * bs)),)


def _depth_to_space(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, bs = operand(arrays), attrs["blocksize"]
    n, c, h, w = x.shape
    if attrs["mode"] == "DCR":
        y = x.reshape(n, bs, bs, c // bs**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // bs**2, bs, bs, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (y.reshape(n, c // bs**2, h * bs, w * bs),)


def _lower_depth_to_space(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    bs = node.attrs["blocksize"]
    n, c, y, x = coords
    block = mod(y, bs) * bs + mod(x, bs)
    channel = block * node.output.shape[1] + c if node.attrs["mode"] == "DCR" else c * bs * bs + block
    return reader.read(node.operands()[0], (n, channel, floordiv(y, bs), floordiv(x, bs)))


movement(
    "DepthToSpace", "x", _infer_depth_to_space, _depth_to_space, _lower_depth_to_space,
    {"blocksize": Attr("int", required=True), "mode": Attr("str", "DCR")},
    [Case(((2, 12, 2, 3),), {"blocksize": 2, "mode": m}, ("f32", "f16")) for m in ("DCR", "CRD")],
)  # fmt: skip


def _infer_space_to_depth(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("SpaceToDepth", types, 1)
    bs = attrs["blocksize"]
    _check_block("SpaceToDepth", x, bs)
    n, c, h, w = x.shape
    return (x.with_shape((n, c * bs * bs, _exact("SpaceToDepth", h, bs), _exact("SpaceToDepth", w, bs))),)


def _space_to_depth(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, bs = operand(arrays), attrs["blocksize"]
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // bs, bs, w // bs, bs).transpose(0, 3, 5, 1, 2, 4)
    return (y.reshape(n, c * bs * bs, h // bs, w // bs),)


def _lower_space_to_depth(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (value,), bs = node.operands(), node.attrs["blocksize"]
    n, c, y, x = coords
    channels = 1 if value.shape[1] == 0 else value.shape[1]  # of none nothing is read
    block = floordiv(c, channels)
    at = (n, mod(c, channels), y * bs + floordiv(block, bs), x * bs + mod(block, bs))
    return reader.read(value, at)


movement(
    "SpaceToDepth", "x", _infer_space_to_depth, _space_to_depth, _lower_space_to_depth,
    {"blocksize": Attr("int", required=True)},
    [Case(((2, 3, 4, 6),), {"blocksize": 2}, ("f32", "f16")), Case(((2, 0, 4, 6),), {"blocksize": 2}, ("f32",))],
)  # fmt: skip


def _infer_trilu(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("Trilu", types, 1)
    check_rank("Trilu", x, 2)
    return (x,)


def _trilu(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, k = operand(arrays), attrs["k"]
    return (np.triu(x, k) if attrs["upper"] else np.tril(x, k),)


def _lower_trilu(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    i, j, k = coords[-2], coords[-1], node.attrs["k"]
    keep = below(i + k - 1, j) if node.attrs["upper"] else below(j, i + k + 1)
    # the mask gives 0 elsewhere
    return reader.read(node.operands()[0], coords, keep)


movement(
    "Trilu", "x", _infer_trilu, _trilu, _lower_trilu, {"upper": Attr("int", 1), "k": Attr("int", 0)},
    [
        Case(((2, 4, 5),), {"upper": u, "k": k}, ("f32", "f16", "i64", "bool"))
        for u, k in ((1, 0), (0, 0), (1, -2), (0, 2))
    ],
)  # fmt: skip
