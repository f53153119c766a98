"""What a lowered kernel means, by numpy: loop axes become array axes, expressions are evaluated at all points at once.

This stands between the graph's reference and the templates: it tests lowering without printing or running CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arcweld.codegen.kernel import Axis, Kernel, axis
from arcweld.compiler.dims import evaluate
from arcweld.compiler.expr import Expr, index, walk
from arcweld.compiler.interpret import interpret

Arrays = Mapping[str, np.ndarray]
FOLD = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


class Points:
    """The iteration space of some axes: index arrays that broadcast together, and expressions evaluated over them."""

    def __init__(self, axes: Sequence[Axis], buffers: Arrays, env: Mapping[str, int]) -> None:
        self.shape = tuple(evaluate(a.extent, env) for a in axes)
        self.buffers = buffers
        self.at: dict[str, Any] = {k: np.asarray(v) for k, v in env.items()}
        for k, (a, n) in enumerate(zip(axes, self.shape)):
            self.at[a.sym.name] = np.arange(n).reshape([n if j == k else 1 for j in range(len(axes))])

    def value(self, e: Expr, variables: Arrays | None = None) -> np.ndarray:
        """``e`` at every point, as an array of the space's shape."""
        if 0 in self.shape:  # no point: loads would have constant coordinates, of buffers that may be empty
            return np.empty(self.shape, e.dtype.numpy)
        return np.broadcast_to(interpret(e, self.buffers, self.at, variables), self.shape)


def run_numpy(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """Writes the kernel's outputs into ``buffers`` (by canonical name), which holds every buffer at its full shape."""
    KINDS[kernel.template](kernel, buffers, env)


def _store(kernel: Kernel, points: Points, buffers: dict[str, np.ndarray], variables: Arrays | None = None) -> None:
    for s in kernel.stores:
        target = buffers[s.buffer].reshape(-1)
        value = points.value(s.value, variables).astype(target.dtype)
        at = points.value(index(kernel.buffer(s.buffer).offset(s.coords)), variables)
        keep = np.ones(points.shape, bool) if s.mask is None else points.value(s.mask, variables)
        if s.reduction == "none":
            target[at[keep]] = value[keep]
        else:
            {"add": np.add, "max": np.maximum, "min": np.minimum}[s.reduction].at(target, at[keep], value[keep])


def _pointwise(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    _store(kernel, Points(kernel.axes["out"], buffers, env), buffers)


def _reduce(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    outs, steps = kernel.axes["out"], kernel.axes["reduce"]
    x = Points((*outs, *steps), buffers, env).value(kernel.loads["x"])
    small = Points(outs, buffers, env)
    x = x.reshape(*small.shape, math.prod(x.shape[len(small.shape) :]))
    combine = kernel.attrs["combine"]
    if combine in FOLD:
        start = _identity(combine, x.dtype)
        acc = FOLD[combine].reduce(x, axis=-1, initial=start, dtype=np.float64 if x.dtype == np.float32 else x.dtype)
        variables = {"acc": acc.astype(x.dtype)}
    else:
        pick = np.argmax if combine == "argmax" else np.argmin
        last = bool(kernel.attrs.get("select_last"))
        where = x.shape[-1] - 1 - pick(x[..., ::-1], axis=-1) if last else pick(x, axis=-1)
        variables = {"acc": where.astype(np.int64)}
    _store(kernel, small, buffers, variables)


def _identity(combine: str, dtype: np.dtype) -> Any:
    if combine in ("sum", "prod"):
        return int(combine == "prod")
    if dtype.kind == "f":
        return -np.inf if combine == "max" else np.inf
    if dtype.kind == "b":
        return combine == "min"
    return np.iinfo(dtype).min if combine == "max" else np.iinfo(dtype).max


def _rowwise(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    points = Points((*kernel.axes["row"], *kernel.axes["col"]), buffers, env)
    variables: dict[str, np.ndarray] = {"x": points.value(kernel.loads["x"])}
    for s in kernel.attrs["stages"]:
        full = points.value(s.value, variables)
        wide = np.float64 if full.dtype == np.float32 and s.combine == "sum" else full.dtype
        start = _identity(s.combine, full.dtype)
        folded = FOLD[s.combine].reduce(full, axis=-1, keepdims=True, initial=start, dtype=wide)
        variables[s.name] = folded.astype(full.dtype)
        if s.finish is not None:
            variables[s.name] = interpret(s.finish, buffers, points.at, variables)
    _store(kernel, points, buffers, variables)


def _scan(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    points = Points((*kernel.axes["row"], *kernel.axes["col"]), buffers, env)
    x = points.value(kernel.loads["x"])
    wide = np.float64 if x.dtype == np.float32 else x.dtype
    if "a" in kernel.loads:
        a, y = points.value(kernel.loads["a"]).astype(wide), x.astype(wide)
        for k in range(1, y.shape[-1]):
            y[..., k] += a[..., k] * y[..., k - 1]
        return _store(kernel, points, buffers, {"acc": y.astype(x.dtype)})
    acc = FOLD[kernel.attrs["combine"]].accumulate(x, axis=-1, dtype=wide)
    _store(kernel, points, buffers, {"acc": acc.astype(x.dtype)})


def _grouped(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """Each row times all matrices, of which the one of its group is kept."""
    (g,), (m,), (n,), (k,) = (kernel.axes[r] for r in ("batch", "m", "n", "k"))
    points = Points((g, m, n, k), buffers, env)
    a, b = (points.value(kernel.loads[r]).astype(np.float64) for r in "ab")
    behind = points.value(kernel.loads["ends"]) > points.at[m.sym.name]
    first = behind & (np.cumsum(behind, axis=0) == 1)
    acc = np.where(first, a * b, 0).sum(axis=(0, 3))
    _store(kernel, Points((m, n), buffers, env), buffers, {"acc": acc.astype(kernel.loads["a"].dtype.numpy)})


def _contract(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    if "ends" in kernel.loads:
        return _grouped(kernel, buffers, env)
    outs = (*kernel.axes["batch"], *kernel.axes["m"], *kernel.axes["n"])
    _products(kernel, outs, kernel.axes["k"], ("a", "b"), buffers, env)


def _conv(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    outs = tuple(a for role in ("n", "out", "g", "co") for a in kernel.axes[role])
    _products(kernel, outs, (*kernel.axes["tap"], *kernel.axes["ci"]), ("a", "w"), buffers, env)


def _products(
    kernel: Kernel, outs: tuple[Axis, ...], steps: tuple[Axis, ...], roles: tuple[str, str],
    buffers: dict[str, np.ndarray], env: Mapping[str, int],
) -> None:  # fmt: skip
    points = Points((*outs, *steps), buffers, env)
    a, b = (points.value(kernel.loads[r]) for r in roles)
    last = tuple(range(len(outs), len(outs) + len(steps)))
    wide = np.float64 if a.dtype.kind == "f" else np.int64
    if "zero" in kernel.loads:
        b = b.astype(wide) - points.value(kernel.loads["zero"])
    acc = (a.astype(wide) * b.astype(wide)).sum(axis=last)
    sums = np.int32 if kernel.attrs["precision"] == "int8" else a.dtype
    _store(kernel, Points(outs, buffers, env), buffers, {"acc": acc.astype(sums)})


def _attention(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    b, h, s, t, d, dv = (kernel.axes[r] for r in ("b", "h", "s", "t", "d", "dv"))
    q, k = (Points((*b, *h, *s, *t, *d), buffers, env).value(kernel.loads[r]).astype(np.float64) for r in "qk")
    score = (q * k).sum(-1) * kernel.attrs["scale"]
    if cap := kernel.attrs.get("softcap"):
        score = cap * np.tanh(score / cap)
    at = Points((*b, *h, *s, *t), buffers, env)
    if kernel.attrs["causal"]:
        score = np.where(at.at[t[0].sym.name] > at.at[s[0].sym.name], -np.inf, score)
    if "mask" in kernel.loads:
        mask = at.value(kernel.loads["mask"])
        score = np.where(mask, score, kernel.attrs.get("fill", -np.inf)) if mask.dtype == np.bool_ else score + mask
    top = score.max(-1, keepdims=True, initial=-np.inf)
    if "sink" in kernel.loads:
        extra = Points((*b, *h, *s), buffers, env).value(kernel.loads["sink"]).astype(np.float64)[..., None]
        top = np.maximum(top, extra)
    weight = np.exp(score - np.where(np.isfinite(top), top, 0))
    total = weight.sum(-1, keepdims=True)
    if "sink" in kernel.loads:
        total = total + np.exp(extra - top)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total != 0)
    v = Points((*b, *h, *s, *t, *dv), buffers, env).value(kernel.loads["v"]).astype(np.float64)
    acc = (share[..., None] * v).sum(3).astype(np.float32)
    _store(kernel, Points((*b, *h, *s, *dv), buffers, env), buffers, {"acc": acc})


def _chain(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    (m,), (n,), (k,) = (kernel.axes[r] for r in "mnk")
    memory = dict(buffers)
    for b in kernel.scratch:
        memory[b.name] = np.empty([evaluate(d, env) for d in b.shape], b.dtype.numpy)
    if kernel.attrs["stages"]:
        points = Points((m, k), memory, env)
        variables = {"x": points.value(kernel.loads["x"])}
        _statistics(kernel.attrs["stages"], points, variables, points.shape[1])
        memory["left"][...] = points.value(kernel.loads["row"], variables)
    points = Points((m, n, k), memory, env)
    left, right = (points.value(kernel.loads[r]).astype(np.float64) for r in "ab")
    memory["tile"][...] = (left * right).sum(-1)
    members, _ = kernel.attrs["unit"]
    for j in range(kernel.attrs["heads"]):
        axes = kernel.axes[f"head{j}"]
        points, variables = Points((m, *axes), memory, env), {}
        _statistics(kernel.attrs[f"head{j}_stages"], points, variables, members)
        start, strides = kernel.attrs[f"head{j}"]
        column = start + sum(s * points.at[x.sym.name] for s, x in zip(strides, axes))
        for name, found in variables.items():
            units = np.broadcast_to(column, points.shape) // members
            memory[f"head{j}_{name}"][np.broadcast_to(points.at[m.sym.name], points.shape), units] = found
    for i, s in enumerate(kernel.stores):
        _store(replace(kernel, stores=(s,)), Points((m, *kernel.axes[f"part{i}"]), memory, env), memory)


def _statistics(stages: Any, points: Points, variables: dict[str, np.ndarray], length: int) -> None:
    """Adds the statistics of rows of ``length`` elements along the last axis, each at all elements of its row."""
    for s in stages:
        full = points.value(s.value, variables)
        rows = full.reshape(*full.shape[:-1], -1, length)
        wide = np.float64 if full.dtype == np.float32 and s.combine == "sum" else full.dtype
        start = _identity(s.combine, full.dtype)
        folded = FOLD[s.combine].reduce(rows, axis=-1, keepdims=True, initial=start, dtype=wide)
        variables[s.name] = np.broadcast_to(folded.astype(full.dtype), rows.shape).reshape(full.shape)
        if s.finish is not None:
            variables[s.name] = np.broadcast_to(interpret(s.finish, points.buffers, points.at, variables), full.shape)


def _recurrence(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    t, d, b, g, u, k = (kernel.axes[r][0] for r in ("step", "direction", "row", "gate", "unit", "k"))
    x = Points((t, d, b, u, g), buffers, env).value(kernel.loads["x"])
    r = Points((d, u, k, g), buffers, env).value(kernel.loads["r"]).astype(np.float64)
    points = Points((d, b, u), buffers, env)
    length = points.value(kernel.loads["length"]) if "length" in kernel.loads else np.full(points.shape, len(x))
    state = {n.removeprefix("first_"): points.value(e) for n, e in kernel.loads.items() if n.startswith("first_")}
    backwards = np.array(kernel.attrs["backwards"])[:, None, None]
    where = np.indices(points.shape)
    y = np.empty((len(x), *points.shape), x.dtype)
    for s in range(len(x)):
        runs = s < length
        at = np.where(backwards & runs, length - 1 - s, s)
        now = {f"x{n}": x[(at, *where, n)] for n in range(x.shape[-1])}
        for p in kernel.attrs["passes"]:
            source = state[p.source]
            if "rounded" in kernel.loads:
                low = np.minimum(source.min(axis=(1, 2), keepdims=True), 0)
                high = np.maximum(source.max(axis=(1, 2), keepdims=True), 0)
                source = points.value(kernel.loads["rounded"], {"h": source, "low": low, "high": high})
            sums = np.einsum("dukg,dbk->dbug", r, source.astype(np.float64)).astype(x.dtype)
            now |= {f"s{n}": sums[..., n] for n in range(p.first, p.end)}
            for name in p.updates:
                found = points.value(kernel.loads[f"next_{name}"], {**now, **state})
                state[name] = np.where(runs, found, state.get(name, 0)).astype(x.dtype)
        y[(at, *where)] = np.where(runs, state["h"], 0)
    for store in kernel.stores:
        one = replace(kernel, stores=(store,))
        if any(e.op == "var" and e.attr.startswith("last_") for e in walk([store.value])):
            _store(one, points, buffers, {f"last_{name}": value for name, value in state.items()})
        else:
            _store(one, Points((t, d, b, u), buffers, env), buffers, {"h": y})


def _sort(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """By numpy's stable sort: of (is NaN, value), or, for the largest first, of the reversed row, read backwards."""
    points = Points((*kernel.axes["row"], *kernel.axes["col"]), buffers, env)
    _store(kernel, points, buffers, {"acc": _order(points.value(kernel.loads["x"]), kernel.attrs["largest"])})


def _order(x: np.ndarray, largest: bool) -> np.ndarray:
    x = x[..., ::-1] if largest else x
    order = np.lexsort((x, np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)), axis=-1)
    return x.shape[-1] - 1 - order[..., ::-1] if largest else order


def _select(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """The beginning of the whole order, and the elements there."""
    (out,) = kernel.axes["out"]
    x = Points((*kernel.axes["row"], *kernel.axes["col"]), buffers, env).value(kernel.loads["x"])
    points = Points((*kernel.axes["row"], out), buffers, env)
    first = _order(x, kernel.attrs["largest"])[..., : points.shape[-1]]
    _store(kernel, points, buffers, {"acc": first, "x": np.take_along_axis(x, first, -1)})


def _runs(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """Runs by numpy's unique, each store with what it holds."""
    (col,), (run,) = kernel.axes["col"], kernel.axes["run"]
    points = Points((col,), buffers, env)
    x = points.value(kernel.loads["x"])
    _, first, kinds, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    moved = np.argsort(first) if kernel.attrs["by_place"] else np.arange(len(first))
    rest = (0, len(x) - len(first))
    found = {
        "value": np.pad(x[first[moved]], rest), "first": np.pad(first[moved], rest),
        "counts": np.pad(counts[moved], rest), "kind": np.argsort(moved)[kinds.reshape(-1)],
        "number": np.array([len(first)]),
    }  # fmt: skip
    for store in kernel.stores:
        (name,) = {str(e.attr) for e in walk([store.value]) if e.op == "var"}
        at = {"kind": points, "number": Points((axis("one", 1),), buffers, env)}.get(name, Points((run,), buffers, env))
        _store(replace(kernel, stores=(store,)), at, buffers, {name: found[name]})


def _suppress(kernel: Kernel, buffers: dict[str, np.ndarray], env: Mapping[str, int]) -> None:
    """Each box against those before it that stay, pair by pair."""
    points = Points((*kernel.axes["row"], *kernel.axes["col"]), buffers, env)
    y0, x0, y1, x1, counts, limit, most = (
        points.value(kernel.loads[n]) for n in ("y0", "x0", "y1", "x1", "open", "overlap", "most")
    )
    stays = np.zeros(points.shape, bool)
    for row in np.ndindex(points.shape[:-1]):
        for k in np.flatnonzero(counts[row]):
            before = [(*row, j) for j in np.flatnonzero(stays[row])]
            at = (*row, k)
            if len(before) < most[at]:
                stays[at] = not any(_common_part(*(v[p] for v in (y0, x0, y1, x1) for p in (at, b))) > limit[at]
                                    for b in before)  # fmt: skip
    _store(kernel, points, buffers, {"acc": stays})


def _common_part(
    ay0: float, by0: float, ax0: float, bx0: float, ay1: float, by1: float, ax1: float, bx1: float
) -> float:
    """The part of what two boxes cover that is common to both; 0 for two empty ones."""
    common = max(0, min(ay1, by1) - max(ay0, by0)) * max(0, min(ax1, bx1) - max(ax0, bx0))
    covered = (ay1 - ay0) * (ax1 - ax0) + (by1 - by0) * (bx1 - bx0) - common
    return common / covered if covered else 0.0


KINDS = {
    "pointwise": _pointwise, "scatter": _pointwise, "reduce": _reduce, "window": _reduce, "rowwise": _rowwise,
    "scan": _scan, "contract": _contract, "chain": _chain, "conv": _conv, "attention": _attention,
    "recurrence": _recurrence, "suppress": _suppress, "sort": _sort, "select": _select,
    "runs": _runs,
}  # fmt: skip
