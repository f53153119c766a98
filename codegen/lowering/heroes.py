"""Lowers the hero of a region: its axes, operand loads and result, in the roles that its template documents.

There is one function for each template; ``HEROES`` lists them by the template's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arcweld.codegen.kernel import Axis, Stage, axis
from arcweld.codegen.lowering.reading import Hero, RegionReader, delinearize, precision_of
from arcweld.codegen.lowering.recurrence import lower_recurrence
from arcweld.codegen.lowering.scatter import identity, lower_search
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import opdef, statistic_type

ACC = "acc"
ELEMENT = "x"  # of a row, in the expressions of its statistics and of what becomes of it


def _operand(node: Node, i: int) -> Value:
    v = node.inputs[i]
    assert v is not None, f"{node.op}: operand {i} is missing"
    return v


def _accumulator(node: Node) -> Callable[[Coords], Expr]:
    acc = expr.variable(ACC, node.output.dtype)
    return lambda _: acc


# ------------------------------------------------------------------------------------------------------------- reduce


def lower_reduce(reader: RegionReader, node: Node) -> Hero:
    """Reductions over ``axes``, or over one ``axis``: axes ``out`` and ``reduce``, one load ``x``."""
    x = _operand(node, 0)
    reduced = (node.attrs["axis"],) if "axis" in node.attrs else tuple(node.attrs["axes"])
    every = [axis(f"{'r' if k in reduced else 'o'}{k}", d) for k, d in enumerate(x.shape)]
    kept = [a for k, a in enumerate(every) if k not in reduced]
    coords = tuple(a.index for a in kept)
    if node.attrs["keepdims"]:
        coords = tuple(0 if k in reduced else a.index for k, a in enumerate(every))
    attrs = {"combine": opdef(node.op).combine, "select_last": bool(node.attrs.get("select_last_index", 0))}
    loads = {"x": reader.read(x, [a.index for a in every])}
    axes = {"out": tuple(kept), "reduce": tuple(every[k] for k in sorted(reduced))}
    return Hero(axes, loads, coords, _accumulator(node), attrs, x.type.numel)


# ------------------------------------------------------------------------------------------------------------ rowwise


def row_stages(node: Node, element: Expr) -> tuple[tuple[Stage, ...], dict[str, Expr]]:
    """The statistics of the rows of a row-wise operator, and the variables that stand for them, by name.

    ``element``: the row's element, of which the statistics are made.
    """
    row = opdef(node.op).row
    assert row is not None, f"{node.op} has no row program"
    scalars: dict[str, Expr] = {}
    stages = []
    for s in row(node).stages:
        value = s.value(element, scalars)
        scalars[s.name] = expr.variable(s.name, statistic_type(_operand(node, 0)))
        finish = s.finish(scalars[s.name], dict(scalars)) if s.finish else None
        stages.append(Stage(s.name, s.combine, value, finish))
    return tuple(stages), scalars


def lower_rowwise(reader: RegionReader, node: Node) -> Hero:
    """Softmax and the normalisations: axes ``row`` and ``col``, load ``x``, stages as expressions over ``x``.

    The row's axes are the last ones of the operand, flattened to ``col``; those before them are ``row``. Outputs of one
    element for each row are stored over ``row`` alone.
    """
    row = opdef(node.op).row
    assert row is not None, f"{node.op} has no row program"
    program = row(node)
    x = _operand(node, 0)
    split = x.type.rank - program.axes
    rows = tuple(axis(f"r{k}", d) for k, d in enumerate(x.shape[:split]))
    col = axis("c", dims.product(x.shape[split:]))
    coords = tuple(a.index for a in rows) + delinearize(col.index, x.shape[split:])
    element = expr.variable(ELEMENT, x.dtype)
    stages, scalars = row_stages(node, element)
    loaded = reader.read(x, coords)
    hero = Hero(
        {"row": rows, "col": (col,)}, {"x": loaded}, coords[:split] if program.per_row else coords,
        lambda at: program.result(reader, node, element, scalars, at), {"stages": stages}, x.type.numel * 8,
    )  # fmt: skip
    # the operand may be stored too (a residual sum that other kernels read): its elements are in registers anyway
    hero.visited[x.name] = (coords, element)
    for v, e in zip(node.outputs[1:], program.of_row(scalars)):
        hero.visited[v.name] = (coords[:split], e)
    reader.override.update(hero.visited)
    return hero


# --------------------------------------------------------------------------------------------------------------- scan


def lower_scan(reader: RegionReader, node: Node) -> Hero:
    """CumSum and the like: axes ``row`` and ``col``, the one along which they combine; load ``x`` over both.

    The factors of a LinearScan are the load ``a``. ``reverse`` counts columns from the end. ``exclusive`` reads the
    element before each column; before the first one that is the combiner's identity.
    """
    x, k = _operand(node, len(node.inputs) - 1), node.attrs["axis"]
    every = [axis("c" if i == k else f"r{i}", d) for i, d in enumerate(x.shape)]
    col = every[k]

    def place(column: Dim) -> Coords:
        at = x.shape[k] - 1 - column if node.attrs.get("reverse") else column
        return tuple(at if i == k else a.index for i, a in enumerate(every))

    source: Dim = col.index - 1 if node.attrs.get("exclusive") else col.index
    combine, there = opdef(node.op).combine, _within(None, source, x.shape[k])
    element = reader.read(x, place(source), there)
    if there is not None and combine == "prod":
        element = expr.where(there, element, expr.const(1, element.dtype))
    loads = {"x": element}
    if len(node.inputs) == 2:
        loads["a"] = reader.read(_operand(node, 0), place(source))
    axes = {"row": tuple(a for a in every if a is not col), "col": (col,)}
    attrs = {"combine": combine}
    return Hero(axes, loads, place(col.index), _accumulator(node), attrs, x.type.numel)


# --------------------------------------------------------------------------------------------------- sort, suppress


def lower_sort(reader: RegionReader, node: Node) -> Hero:
    """SortIndices: axes ``row`` and ``col``, the last; load ``x`` over both."""
    x = _operand(node, 0)
    *rows, col = (axis(f"r{k}" if k < x.type.rank - 1 else "c", d) for k, d in enumerate(x.shape))
    coords = (*(a.index for a in rows), col.index)
    axes, attrs = {"row": tuple(rows), "col": (col,)}, {"largest": bool(node.attrs["largest"])}
    return Hero(axes, {"x": reader.read(x, coords)}, coords, _accumulator(node), attrs, x.type.numel * 16)


def lower_select(reader: RegionReader, node: Node) -> Hero:
    """SelectIndices: axes ``row``, ``col`` (the last) and ``out``; load ``x`` over row and col.

    The elements at the places are the variable ``x``.
    """
    x = _operand(node, 0)
    *rows, col = (axis(f"r{k}" if k < x.type.rank - 1 else "c", d) for k, d in enumerate(x.shape))
    out = axis("k", node.output.shape[-1])
    lead = tuple(a.index for a in rows)
    axes, attrs = {"row": tuple(rows), "col": (col,), "out": (out,)}, {"largest": bool(node.attrs["largest"])}
    hero = Hero(
        axes, {"x": reader.read(x, (*lead, col.index))}, (*lead, out.index), _accumulator(node), attrs, x.type.numel * 4
    )
    if len(node.outputs) > 1:
        hero.visited[node.outputs[1].name] = ((*lead, out.index), expr.variable(ELEMENT, x.dtype))
    reader.override.update(hero.visited)
    return hero


def lower_runs(reader: RegionReader, node: Node) -> Hero:
    """EqualRuns: axes ``col`` and ``run``; loads ``x`` and ``order`` over col; a variable for each result."""
    x, order = _operand(node, 0), _operand(node, 1)
    col, run = axis("c", x.shape[0]), axis("g", x.shape[0])
    loads = {"x": reader.read(x, (col.index,)), "order": reader.read(order, (col.index,))}
    at: dict[str, Coords] = {
        "value": (run.index,), "first": (run.index,), "kind": (col.index,), "counts": (run.index,), "number": (0,),
    }  # fmt: skip
    found = {name: expr.variable(name, v.dtype) for name, v in zip(at, node.outputs, strict=True)}
    hero = Hero(
        {"col": (col,), "run": (run,)}, loads, at["value"], lambda _: found["value"],
        {"by_place": bool(node.attrs["by_place"])}, x.type.numel * 16,
    )  # fmt: skip
    for name, v in zip(at, node.outputs, strict=True):
        if name != "value":
            hero.visited[v.name] = (at[name], found[name])
    return hero


def lower_suppress(reader: RegionReader, node: Node) -> Hero:
    """SuppressOverlaps: axes ``row`` and ``col``; loads of corners and ``open`` over both; ``overlap`` and ``most``."""
    boxes, valid, overlap, most = (_operand(node, k) for k in range(4))
    rows, col = tuple(axis(f"r{k}", d) for k, d in enumerate(valid.shape[:-1])), axis("c", valid.shape[-1])
    coords = (*(a.index for a in rows), col.index)
    loads = {name: reader.read(boxes, (*coords, k)) for k, name in enumerate(("y0", "x0", "y1", "x1"))}
    loads |= {"open": reader.read(valid, coords), "overlap": reader.read(overlap, ()), "most": reader.read(most, ())}
    return Hero({"row": rows, "col": (col,)}, loads, coords, _accumulator(node), {}, valid.type.numel * 64)


# ----------------------------------------------------------------------------------------------------------- contract


def lower_contract(reader: RegionReader, node: Node) -> Hero:
    """Products: axes ``batch``, ``m``, ``n``, ``k``; loads ``a`` over batch, m, k and ``b`` over batch, k, n.

    The zero point of a MatMulInteger is the load ``zero`` over batch and n. Where the right operand has no batch axes,
    those of the left one are part of ``m``.
    """
    if node.op == "GroupedMatMul":
        return lower_grouped(reader, node)
    a, b = _operand(node, 0), _operand(node, 1)
    out = node.output
    k = axis("k", a.shape[-1])
    n = axis("n", out.shape[-1])
    own = out.type.rank - 2
    if all(d == 1 for d in b.shape[:-2]):
        m = axis("m", dims.product(out.shape[:-1]))
        lead = delinearize(m.index, out.shape[:-1])
        batch: tuple[Axis, ...] = ()
        outer, row = lead[:-1], lead[-1]
    else:
        m = axis("m", out.shape[-2])
        batch = tuple(axis(f"b{i}", d) for i, d in enumerate(out.shape[:-2]))
        outer, row = tuple(x.index for x in batch), m.index
    loads = {
        "a": reader.read(a, (*_broadcast(outer, a.shape[:-2], own), row, k.index)),
        "b": reader.read(b, (*_broadcast(outer, b.shape[:-2], own), k.index, n.index)),
    }
    attrs = {"precision": precision_of((a, b)), "b_is_weight": reader.of_weights(loads["b"])}
    zero = _optional(node, 2)
    if zero is not None:
        loads["zero"] = reader.read(zero, _broadcast((*outer, 0, n.index), zero.shape, own + 2))
    flops = dims.product(out.shape) * a.shape[-1] * 2
    axes = {"batch": tuple(x for x in batch if x.extent != 1), "m": (m,), "n": (n,), "k": (k,)}
    return Hero(axes, loads, (*outer, row, n.index), _accumulator(node), attrs, flops)


def lower_grouped(reader: RegionReader, node: Node) -> Hero:
    """GroupedMatMul: axes ``batch`` (the groups), ``m``, ``n``, ``k``; loads ``a`` over m, k, ``b``, and ``ends``."""
    a, b, ends = (_operand(node, i) for i in range(3))
    g, m, n, k = (axis(name, d) for name, d in zip("gmnk", (b.shape[0], *node.output.shape, a.shape[1]), strict=True))
    loads = {
        "a": reader.read(a, (m.index, k.index)),
        "b": reader.read(b, (g.index, k.index, n.index)),
        "ends": reader.read(ends, (g.index,)),
    }
    axes: dict[str, tuple[Axis, ...]] = {"batch": (g,), "m": (m,), "n": (n,), "k": (k,)}
    flops = m.extent * n.extent * k.extent * 2
    attrs = {"precision": precision_of((a, b)), "b_is_weight": reader.of_weights(loads["b"])}
    return Hero(axes, loads, (m.index, n.index), _accumulator(node), attrs, flops)


def _broadcast(coords: Coords, shape: Sequence[Dim], rank: int) -> Coords:
    tail = coords[rank - len(shape) :]
    return tuple(0 if d == 1 else c for c, d in zip(tail, shape))


# --------------------------------------------------------------------------------------------------------------- conv


def lower_conv(reader: RegionReader, node: Node) -> Hero:
    """Conv, ConvInteger and ConvTranspose: axes ``n``, ``out``, ``g``, ``co``, ``tap``, ``ci``; loads ``a`` and ``w``.

    ``co`` and ``ci`` are the channels of one group. Where a tap lies in the padding, ``a`` is 0, or what pads a
    ConvInteger, whose filters' zero points are the load ``zero`` over g and co.
    """
    x, w, y = _operand(node, 0), _operand(node, 1), node.output
    transposed = node.op == "ConvTranspose"
    spatial = x.type.rank - 2
    last = node.attrs["layout"] == "NHWC"
    groups = node.attrs["group"]
    cin, size = (x.shape[-1], x.shape[1:-1]) if last else (x.shape[1], x.shape[2:])
    cout, out_size = (y.shape[-1], y.shape[1:-1]) if last else (y.shape[1], y.shape[2:])

    def place(batch: Dim, channel: Dim, pixel: Coords) -> Coords:
        return (batch, *pixel, channel) if last else (batch, channel, *pixel)

    n = axis("n", x.shape[0])
    outs = tuple(axis(f"o{i}", d) for i, d in enumerate(out_size))
    g, co, ci = axis("g", groups), axis("co", dims.floordiv(cout, groups)), axis("ci", dims.floordiv(cin, groups))
    taps = tuple(axis(f"t{i}", d) for i, d in enumerate(w.shape[2:]))
    position = _transposed_position if transposed else _position
    at, mask = position(node, outs, taps, size, spatial)
    channel = g.index * ci.extent + ci.index
    a = reader.read(x, place(n.index, channel, at), mask)
    fill, zero = (_optional(node, i) if node.op == "ConvInteger" else None for i in (2, 3))
    if fill is not None and mask is not None:
        a = expr.where(mask, a, reader.read(fill, (0,) * fill.type.rank))
    if transposed:
        wc = (channel, co.index)
    else:
        wc = (g.index * co.extent + co.index, ci.index)
    loads = {"a": a, "w": reader.read(w, (*wc, *(t.index for t in taps)))}
    if zero is not None:
        loads["zero"] = reader.read(zero, tuple(0 if d == 1 else wc[0] for d in zero.shape))
    attrs = {
        "precision": precision_of((x, w)), "strides": tuple(node.attrs["strides"]), "transposed": transposed,
        "dilations": tuple(node.attrs["dilations"]), "pads": tuple(node.attrs["pads"]),
        "b_is_weight": reader.of_weights(loads["w"]),
    }  # fmt: skip
    axes = {"n": (n,), "out": outs, "g": (g,), "co": (co,), "tap": taps, "ci": (ci,)}
    coords = place(n.index, g.index * co.extent + co.index, tuple(o.index for o in outs))
    flops = dims.product(y.shape) * dims.product(w.shape[2:]) * ci.extent * 2
    return Hero(axes, loads, coords, _conv_result(reader, node, coords, last), attrs, flops)


def _optional(node: Node, i: int) -> Value | None:
    """An optional operand: the bias of Conv and ConvTranspose, what pads a ConvInteger, zero points."""
    return node.inputs[i] if len(node.inputs) > i else None


def _conv_result(reader: RegionReader, node: Node, coords: Coords, last: bool) -> Callable[[Coords], Expr]:
    acc = expr.variable(ACC, node.output.dtype)
    bias = _optional(node, 2)
    if bias is None or node.op == "ConvInteger":
        return lambda _: acc
    channel = coords[-1] if last else coords[1]
    return lambda _: acc + reader.read(bias, (channel,))


def _position(
    node: Node, outs: Sequence[Axis], taps: Sequence[Axis], size: Sequence[Dim], spatial: int
) -> tuple[Coords, Expr | None]:
    """The input pixel ``o*stride + k*dilation - pad`` that output o reads through tap k, and whether it exists."""
    at: list[Dim] = []
    mask: Expr | None = None
    for i in range(spatial):
        stride, dilation, pad = (node.attrs[name][i] for name in ("strides", "dilations", "pads"))
        p: Dim = outs[i].index * stride + taps[i].index * dilation - pad
        at.append(p)
        mask = _within(mask, p, size[i])
    return tuple(at), mask


def _transposed_position(
    node: Node, outs: Sequence[Axis], taps: Sequence[Axis], size: Sequence[Dim], spatial: int
) -> tuple[Coords, Expr | None]:
    """The input pixel i that output o of a ConvTranspose reads through tap k, and whether it exists.

    ONNX defines the inverse: input i adds to output ``i*stride + k*dilation - pad``. So i exists only where
    ``o + pad - k*dilation`` is a multiple of the stride.
    """
    at: list[Dim] = []
    mask: Expr | None = None
    for i in range(spatial):
        stride = node.attrs["strides"][i]
        p: Dim = outs[i].index + node.attrs["pads"][i] - taps[i].index * node.attrs["dilations"][i]
        if stride > 1:
            rest = dims.mod(p, stride)
            if not (isinstance(rest, int) and rest == 0):
                mask = expr.all_of([mask, expr.binary("eq", expr.index(rest), expr.const(0, DType.I64))])
            p = dims.floordiv(p, stride)
        at.append(p)
        mask = _within(mask, p, size[i])
    return tuple(at), mask


def _within(mask: Expr | None, p: Dim, size: Dim) -> Expr | None:
    """``mask`` and the test that ``p`` lies in ``[0, size)``, of which only what isn't proved is tested."""
    low = None if dims.is_nonneg(p) else expr.binary("ge", expr.index(p), expr.const(0, DType.I64))
    high = None if dims.is_nonneg(size - 1 - p) else expr.binary("lt", expr.index(p), expr.index(size))
    return expr.all_of([mask, low, high])


# ------------------------------------------------------------------------------------------------------------- window


def lower_window(reader: RegionReader, node: Node) -> Hero:
    """MaxPool and AveragePool: axes ``out`` (all of the result's) and ``reduce`` (the taps); load ``x`` over both.

    A tap in the padding loads the combiner's identity.
    """
    x, y = _operand(node, 0), node.output
    spatial = x.type.rank - 2
    last = node.attrs["layout"] == "NHWC"
    first = 1 if last else 2
    size = x.shape[first : first + spatial]
    every = tuple(axis(f"o{i}", d) for i, d in enumerate(y.shape))
    outs = every[first : first + spatial]
    taps = tuple(axis(f"t{i}", d) for i, d in enumerate(node.attrs["kernel_shape"]))
    at, mask = _position(node, outs, taps, size, spatial)
    coords = tuple(a.index for a in every)
    source = (*coords[:first], *at, *coords[first + spatial :])
    element = reader.read(x, source, mask)
    is_max = node.op == "MaxPool"
    if is_max and mask is not None:
        element = expr.where(mask, element, expr.const(identity("max", x.dtype), x.dtype))
    acc = expr.variable(ACC, y.dtype)
    count = None if is_max else _pool_count(node, outs, size, spatial)
    result = (lambda _: acc) if count is None else (lambda _: expr.binary("div", acc, count))
    axes = {"out": every, "reduce": taps}
    attrs = {"combine": "max" if is_max else "sum", "select_last": False}
    flops = dims.product(y.shape) * dims.product(node.attrs["kernel_shape"])
    return Hero(axes, {"x": element}, coords, result, attrs, flops)


def _pool_count(node: Node, outs: Sequence[Axis], size: Sequence[Dim], spatial: int) -> Expr:
    """How many elements an average covers: the kernel's, or only those inside the (padded) input."""
    total: Dim = 1
    padded = bool(node.attrs["count_include_pad"])
    for i in range(spatial):
        k, d, stride = node.attrs["kernel_shape"][i], node.attrs["dilations"][i], node.attrs["strides"][i]
        begin, end = node.attrs["pads"][i], node.attrs["pads"][i + spatial]
        start = outs[i].index * stride - begin
        low, high = (-begin, size[i] + end) if padded else (0, size[i])
        skipped = dims.maximum(dims.ceildiv(low - start, d), 0)
        reach = dims.minimum(dims.ceildiv(high - start, d), k)
        total = total * (reach - skipped)
    return expr.cast(expr.index(total), node.output.dtype)


# ---------------------------------------------------------------------------------------------------------- attention


def lower_attention(reader: RegionReader, node: Node) -> Hero:
    """Attention: axes ``b h s t d dv``; loads ``q``, ``k``, ``v``, and ``mask`` and ``sink`` where there are such.

    With grouped-query attention, head h reads the keys and values of head ``h // (query heads / key heads)``.
    """
    q, k, v = (_operand(node, i) for i in range(3))
    mask, sink = [*node.inputs, None, None][3:5]
    b, h, s, d = (axis(name, e) for name, e in zip("bhsd", q.shape))
    t, dv = axis("t", k.shape[2]), axis("dv", v.shape[3])
    group = dims.floordiv(h.index, dims.floordiv(q.shape[1], k.shape[1]))
    kb = 0 if k.shape[0] == 1 else b.index
    loads = {
        "q": reader.read(q, (b.index, h.index, s.index, d.index)),
        "k": reader.read(k, (kb, group, t.index, d.index)),
        "v": reader.read(v, (kb, group, t.index, dv.index)),
    }
    if mask is not None:
        full = (b.index, h.index, s.index, t.index)
        at = tuple(0 if e == 1 else c for c, e in zip(full[4 - mask.type.rank :], mask.shape))
        loads["mask"] = reader.read(mask, at)
    if sink is not None:
        loads["sink"] = reader.read(sink, (h.index,))
    causal = bool(node.attrs["is_causal"])
    attrs = {"scale": float(node.attrs["scale"]), "causal": causal, "precision": precision_of((q, k, v))}
    if mask is not None and mask.dtype is DType.BOOL and np.isfinite(node.attrs["fill"]):
        attrs["fill"] = float(node.attrs["fill"])
    if node.attrs["softcap"]:
        attrs["softcap"] = float(node.attrs["softcap"])
    axes: dict[str, tuple[Axis, ...]] = {"b": (b,), "h": (h,), "s": (s,), "t": (t,), "d": (d,), "dv": (dv,)}
    flops = dims.product(q.shape[:3]) * k.shape[2] * (d.extent + dv.extent) * 2
    return Hero(axes, loads, (b.index, h.index, s.index, dv.index), _accumulator(node), attrs, flops)


HEROES: dict[str, Callable[[RegionReader, Node], Hero]] = {
    "reduce": lower_reduce,
    "rowwise": lower_rowwise,
    "scan": lower_scan,
    "contract": lower_contract,
    "conv": lower_conv,
    "window": lower_window,
    "attention": lower_attention,
    "recurrence": lower_recurrence,
    "sort": lower_sort,
    "select": lower_select,
    "runs": lower_runs,
    "suppress": lower_suppress,
    "search": lower_search,
}
