"""Handlers of ``ai.onnx.ml``: Binarizer, ArrayFeatureExtractor, LabelEncoder of numbers, TreeEnsemble.

LabelEncoder of strings is in ``strings.py``, which reads the table with the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import product
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles

DOMAIN = "ai.onnx.ml"


@handles("Binarizer", domain=DOMAIN)
def _binarizer(c: NodeContext) -> Result:
    x = c.value(0)
    return c.cast(c.emit("Greater", x, c.const(c.float_attr("threshold", 0.0), x.dtype)), x.dtype)


@handles("ArrayFeatureExtractor", domain=DOMAIN)
def _extractor(c: NodeContext) -> Result:
    """Columns of the last axis; a vector is one row."""
    x, places = c.value(0), c.value(1)
    rank = c.needs_rank(0, 1)
    count = product(places.shape)
    y = c.emit("Gather", x, c.reshape(places, (count,)), axis=rank - 1)
    return c.reshape(y, (1, count)) if rank == 1 else y


# ---------------------------------------------------------------------------------------------------- LabelEncoder

_MOST_KEYS = 1 << 16


@handles("LabelEncoder", domain=DOMAIN)
def _label_encoder(c: NodeContext) -> Result:
    """The last key that equals an element says which value it becomes, by the largest number of such a key."""
    x = c.value(0)
    keys, values = table_of(c, "keys"), table_of(c, "values")
    if len(keys) != len(values):
        c.broken(f"{len(keys)} keys and {len(values)} values")
    if keys.dtype != x.dtype.numpy:
        c.broken(f"the keys are {keys.dtype}, the elements {x.dtype.value}")
    if len(keys) > _MOST_KEYS:
        c.unsupported(f"a table of {len(keys)} keys (up to {_MOST_KEYS})")
    kind = kind_of(values)
    wide = c.reshape(x, (*x.shape, 1))
    hit = c.emit("Equal", wide, c.const(keys, x.dtype))
    if x.dtype.is_float and np.isnan(keys).any():
        nothing = c.emit("And", c.emit("IsNaN", wide), c.const(np.isnan(keys), DType.BOOL))
        hit = c.emit("Or", hit, nothing)
    numbers = c.const(np.arange(1, len(keys) + 1), DType.I64)
    found = c.emit("Mul", c.cast(hit, DType.I64), numbers)
    found = c.emit("ReduceMax", found, axes=(x.type.rank,), keepdims=0)  # 0: none
    table = np.concatenate([np.full(1, default_of(c, kind), values.dtype), values])
    return c.emit("Gather", c.const(table, kind), c.emit("Max", found, c.const(0, DType.I64)), axis=0)


def table_of(c: NodeContext, what: str) -> np.ndarray:
    """The elements of an attribute ``keys_*`` or ``values_*``, of the one that is given; strings as objects."""
    given = [k for k in ("strings", "int64s", "floats", "tensor") if c.has_attr(f"{what}_{k}")]
    if len(given) != 1:
        c.broken(f"{len(given)} lists of {what} are given")
    name = f"{what}_{given[0]}"
    if given[0] == "tensor":
        return _array(c, name).reshape(-1)
    if given[0] == "strings":
        return texts_attr(c, name)
    if given[0] == "int64s":
        return np.array(c.ints_attr(name), np.int64)
    return np.array(c.floats_attr(name), np.float32)


def texts_attr(c: NodeContext, name: str) -> np.ndarray:
    """An attribute that is a list of strings, as objects. Raises ModelError for any other."""
    return np.array(c.strings_attr(name) or (), object)


def kind_of(table: np.ndarray) -> DType:
    """The element type of what ``table_of`` gives."""
    return DType.STR if table.dtype == object else from_numpy(table.dtype)


def default_of(c: NodeContext, kind: DType) -> Any:
    """The element for keys that are not in the table, of the type ``kind``."""
    if c.has_attr("default_tensor"):
        given = _array(c, "default_tensor").reshape(-1)
        if given.size != 1 or kind_of(given) is not kind:
            c.broken(f"the default values are {given.size} elements of {given.dtype}, not one of {kind.value}")
        return given[0]
    if kind.is_string:
        return c.str_attr("default_string", "_Unused")
    return c.float_attr("default_float", -0.0) if kind.is_float else c.int_attr("default_int64", -1)


def _array(c: NodeContext, name: str) -> np.ndarray:
    found = c.tensor_attr(name)
    if found is None:
        c.broken(f"it lacks its attribute {name}")
    return found[0]


def _numbers(c: NodeContext, name: str, kinds: str = "fiu") -> np.ndarray:
    """A tensor of numbers as one row. Raises ModelError for elements of other kinds than numpy's ``kinds``."""
    found = _array(c, name).reshape(-1)
    if found.dtype.kind not in kinds:
        c.broken(f"attribute {name} has elements of the wrong type, {found.dtype}")
    return found


# ---------------------------------------------------------------------------------------------------- TreeEnsemble

_MOST_DEPTH = 64
_LEQ, _LT, _GTE, _GT, _EQ, _NEQ, _MEMBER = range(7)
_COMPARISONS = {_LEQ: "LessOrEqual", _LT: "Less", _GTE: "GreaterOrEqual", _GT: "Greater", _EQ: "Equal"}
_AVERAGE, _SUM, _MIN, _MAX = range(4)


@handles("TreeEnsemble", domain=DOMAIN)
def _tree_ensemble(c: NodeContext) -> Result:
    """A walk from the roots to leaves: at every step, each row is at one node of each tree.

    Tables of nodes list the leaves behind the inner nodes; a leaf leads to itself, so that all walks take the steps of
    the deepest tree.
    """
    c.needs_rank(0, 2, 2)
    x = c.value(0)
    nodes = _nodes(c)
    roots = _checked(c, "tree_roots", None, len(nodes["modes"]))
    count = c.int_attr("n_targets")
    if count > _MOST_KEYS:
        c.unsupported(f"{count} targets (up to {_MOST_KEYS})")
    targets = _checked(c, "leaf_targetids", None, count)
    weights = _numbers(c, "leaf_weights")
    if len(targets) != len(weights) or not len(weights) or not len(roots):
        c.broken(f"{len(roots)} trees of {len(weights)} leaves with {len(targets)} targets")
    at: Value = c.const(roots, DType.I64)
    at = c.expand(c.reshape(at, (1, len(roots))), (x.shape[0], len(roots)))
    for _ in range(_depth(c, nodes, roots)):
        at = _step(c, x, at, nodes)
    inner = len(nodes["modes"])
    weight = _look_up(c, np.concatenate([np.zeros(inner), weights]), at, x.dtype)
    target = _look_up(c, np.concatenate([np.zeros(inner), targets]), at, DType.I64)
    return _transformed(c, _aggregated(c, weight, target, count, len(roots)))


def _nodes(c: NodeContext) -> dict[str, np.ndarray]:
    """The attributes of the inner nodes by name, checked; a leaf's number is counted behind those of the nodes."""
    modes, splits = _numbers(c, "nodes_modes", "iu").astype(np.int64), _numbers(c, "nodes_splits")
    n, leaves = len(modes), len(_numbers(c, "leaf_weights"))
    if len(splits) != n or modes.min(initial=0) < _LEQ or modes.max(initial=0) > _MEMBER:
        c.broken(f"{len(splits)} splits of {n} nodes with the modes {sorted(set(modes.tolist()))}")
    table = {"modes": modes, "splits": splits}
    width = c.concrete(c.shape(0)[1], "the number of features")
    table["features"] = _checked(c, "nodes_featureids", n, width)
    table["missing"] = np.zeros(n, np.int64)
    if c.has_attr("nodes_missing_value_tracks_true"):
        table["missing"] = _checked(c, "nodes_missing_value_tracks_true", n, 2)
    for side in ("true", "false"):
        is_leaf = _checked(c, f"nodes_{side}leafs", n, 2).astype(bool)
        to = _checked(c, f"nodes_{side}nodeids", n, max(n, leaves))
        if (to >= np.where(is_leaf, leaves, n)).any():
            c.broken(f"a {side} branch leads to a node that does not exist")
        table[side] = np.where(is_leaf, to + n, to)
    table["members"] = _members(c, modes)
    return table


def _members(c: NodeContext, modes: np.ndarray) -> np.ndarray:
    """The sets of the nodes that test membership, one row for each node, filled with NaN."""
    sets: list[list[float]] = [[]]
    if c.has_attr("membership_values"):
        for v in _numbers(c, "membership_values").tolist():
            if np.isnan(v):
                sets.append([])
            else:
                sets[-1].append(v)
    wanted = int((modes == _MEMBER).sum())
    if wanted > len(sets):
        c.broken(f"{len(sets)} sets for {wanted} nodes that test membership")
    rows = np.full((len(modes), max(1, *(len(s) for s in sets))), np.nan)
    for row, members in zip(np.flatnonzero(modes == _MEMBER), sets):
        rows[row, : len(members)] = members
    return rows


def _checked(c: NodeContext, name: str, count: int | None, limit: int) -> np.ndarray:
    """A list of ``count`` (None: any number of) integers in ``[0, limit)``."""
    values = c.ints_attr(name) or ()
    if (count is not None and len(values) != count) or any(not 0 <= v < limit for v in values):
        c.broken(f"{name} should be {'' if count is None else count} numbers below {limit}")
    return np.array(values, np.int64)


def _depth(c: NodeContext, nodes: dict[str, np.ndarray], roots: np.ndarray) -> int:
    """The steps from a root to the farthest leaf."""
    inner, here, steps = len(nodes["modes"]), np.unique(roots), 0
    while len(here):
        ahead = np.unique(np.concatenate([nodes["true"][here], nodes["false"][here]]))
        here, steps = ahead[ahead < inner], steps + 1
        if steps > inner:
            c.broken("a branch leads back to a node before it")
    if steps > _MOST_DEPTH:
        c.unsupported(f"trees of {steps} levels (up to {_MOST_DEPTH})")
    return steps


def _look_up(c: NodeContext, table: np.ndarray, at: Value, dtype: DType) -> Value:
    return c.emit("Gather", c.const(table, dtype), at, axis=0)


def _step(c: NodeContext, x: Value, at: Value, nodes: dict[str, np.ndarray]) -> Value:
    """The nodes behind those at ``at`` [rows, trees]."""
    leaves = len(_numbers(c, "leaf_weights"))
    itself = np.arange(len(nodes["modes"]), len(nodes["modes"]) + leaves)

    def own(name: str, dtype: DType, of_leaf: Any = 0) -> Value:
        ends = np.broadcast_to(of_leaf, (leaves,))
        return _look_up(c, np.concatenate([nodes[name], ends]), at, dtype)

    feature = c.emit("GatherElements", x, own("features", DType.I64), axis=1)
    passes = _passes(c, feature, own, at, nodes)
    if nodes["missing"].any():
        missing = c.emit("And", c.emit("IsNaN", feature), own("missing", DType.BOOL))
        passes = c.emit("Or", passes, missing)
    return c.emit("Where", passes, own("true", DType.I64, itself), own("false", DType.I64, itself))


def _passes(c: NodeContext, feature: Value, own: Any, at: Value, nodes: dict[str, np.ndarray]) -> Value:
    """Whether each row's feature passes its node's test."""
    split, kinds = own("splits", feature.dtype), sorted(set(nodes["modes"].tolist()))
    passes: Value | None = None
    for kind in kinds:
        if kind == _MEMBER:
            blank = np.full((len(_numbers(c, "leaf_weights")), nodes["members"].shape[1]), np.nan)
            members = _look_up(c, np.concatenate([nodes["members"], blank]), at, feature.dtype)
            equal = c.emit("Equal", c.reshape(feature, (*feature.shape, 1)), members)
            found = c.emit("ReduceMax", equal, axes=(2,), keepdims=0)
        elif kind == _NEQ:
            found = c.emit("Not", c.emit("Equal", feature, split))
        else:
            found = c.emit(_COMPARISONS[kind], feature, split)
        if passes is None:
            passes = found
        else:
            passes = c.emit("Where", c.emit("Equal", own("modes", DType.I64), c.const(kind, DType.I64)), found, passes)
    assert passes is not None
    return passes


def _aggregated(c: NodeContext, weight: Value, target: Value, count: int, trees: int) -> Value:
    """Sums, means or extremes over the trees that reach a target: [rows, targets]."""
    how = c.int_attr("aggregate_function", _SUM)
    if how not in (_AVERAGE, _SUM, _MIN, _MAX):
        c.broken(f"aggregate_function is {how}")
    hit = c.emit("Equal", c.reshape(target, (*target.shape, 1)), c.const(np.arange(count), DType.I64))
    filler = {_MIN: np.inf, _MAX: -np.inf}.get(how, 0.0)
    term = c.emit("Where", hit, c.reshape(weight, (*weight.shape, 1)), c.const(filler, weight.dtype))
    if how in (_SUM, _AVERAGE):
        total = c.emit("ReduceSum", term, axes=(1,), keepdims=0)
        return c.scale(total, 1.0 / trees) if how == _AVERAGE else total
    extreme = c.emit("ReduceMin" if how == _MIN else "ReduceMax", term, axes=(1,), keepdims=0)
    reached = c.emit("ReduceMax", hit, axes=(1,), keepdims=0)
    return c.emit("Where", reached, extreme, c.const(0.0, weight.dtype))


def _transformed(c: NodeContext, score: Value) -> Value:
    kinds: Sequence[str] = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    how = c.int_attr("post_transform")
    if not 0 <= how < len(kinds):
        c.broken(f"post_transform is {how}")
    if how > 2:
        c.unsupported(f"post_transform {kinds[how]}")
    if how == 1:
        return c.emit("Softmax", score, axis=1)
    return c.emit("Sigmoid", score) if how == 2 else score
