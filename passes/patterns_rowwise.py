"""The formulas of row programs: Softmax, LayerNormalization and RMSNormalization.

The normalised axes are the last ones, or a single one anywhere, such as a channel axis, which is then moved to the end
and back.
"""

from __future__ import annotations

from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Value
from arcweld.compiler.ops.shapes import broadcast
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker
from arcweld.passes.patterns import Match, Pattern, apply_patterns, at_least, cast_to

_CENTRED = "(x - (mean := ReduceMean(x)))"
_LAYER_NORM = f"{_CENTRED} * ((power := ReduceMean({_CENTRED} ** 2)) + E) ** -0.5"
_RMS_NORM = "x * ((power := ReduceMean(x ** 2)) + E) ** -0.5"
_SHIFTED = "Exp(x - (top := ReduceMax(x)))"


def _norm(rw: Tracker, m: Match) -> Value | None:
    """LayerNormalization where a mean is subtracted, else RMSNormalization."""
    reduces = [m.node(n) for n in ("mean", "power") if n in m.values]
    x = at_least(rw, rw.get(m.values["x"]), m)
    axes = reduces[0].attrs["axes"]
    if any(r.attrs["axes"] != axes or not r.attrs["keepdims"] for r in reduces) or not axes:
        return None
    affine = [cast_to(rw, rw.get(m.values[n]), x.dtype, m.origin) for n in "sb" if n in m.values]
    if not all(_varies_along_only(v, x, axes) for v in affine):
        return None
    op = "LayerNormalization" if len(reduces) == 2 else "RMSNormalization"
    epsilon = m.scalars["E"]
    rank = x.type.rank
    if tuple(axes) == tuple(range(axes[0], rank)):
        return rw.make(op, [x, *affine], m.origin, m.name, axis=axes[0], epsilon=epsilon)
    if len(axes) != 1:
        return None
    perm = tuple(k for k in range(rank) if k != axes[0]) + (axes[0],)
    x = rw.make("Transpose", [x], m.origin, perm=perm)
    flat = [rw.make("Reshape", [v], m.origin, shape=(v.type.numel,)) for v in affine]
    y = rw.make(op, [x, *flat], m.origin, axis=rank - 1, epsilon=epsilon)
    return rw.make("Transpose", [y], m.origin, m.name, perm=tuple(perm.index(k) for k in range(rank)))


def _varies_along_only(v: Value, x: Value, axes: tuple[int, ...]) -> bool:
    """True if a scale or bias broadcasts to x, and has extent 1 along every axis that is not normalised."""
    first = x.type.rank - v.type.rank
    try:
        fits = broadcast("norm", [v.shape, x.shape]) == x.shape
    except ModelError:
        return False
    return fits and all(d == 1 or first + k in axes for k, d in enumerate(v.shape))


def _softmax(rw: Tracker, m: Match) -> Value | None:
    top, total = m.node("top"), m.node("total")
    axes = top.attrs["axes"]
    if len(axes) != 1 or total.attrs["axes"] != axes or not (top.attrs["keepdims"] and total.attrs["keepdims"]):
        return None
    return rw.make("Softmax", [at_least(rw, rw.get(m.values["x"]), m)], m.origin, m.name, axis=axes[0])


def _log_softmax(rw: Tracker, m: Match) -> Value | None:
    axis = m.node("p").attrs["axis"]
    return rw.make("LogSoftmax", [at_least(rw, rw.get(m.values["x"]), m)], m.origin, m.name, axis=axis)


ROWWISE = (
    Pattern("layer-norm", (f"{_LAYER_NORM} * s + b", f"{_LAYER_NORM} * s"), _norm),
    Pattern("layer-norm-plain", (_LAYER_NORM,), _norm),
    Pattern("rms-norm", (f"{_RMS_NORM} * s",), _norm),
    Pattern("rms-norm-plain", (_RMS_NORM,), _norm),
    Pattern("softmax", (f"{_SHIFTED} / (total := ReduceSum({_SHIFTED}))",), _softmax),
    Pattern("log-softmax", ("Log((p := Softmax(x)))",), _log_softmax),
)


def rowwise(graph: Graph, options: Options) -> Graph:
    """Recovers normalisations and Softmax."""
    return apply_patterns(graph, ROWWISE)
