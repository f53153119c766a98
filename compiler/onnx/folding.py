"""Computes the elements of a device value that depends on constants only, with the registry's references.

Handlers need them where an operand must be known, such as a shape, and shapes.py does not evaluate its operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.onnx.operands import MAX_HOST_ELEMENTS, Builder
from arcweld.compiler.onnx.remedies import Action, Remedy
from arcweld.compiler.ops import registry

MAX_NODES = 1000
MAX_STEERING = 64  # elements of an integer input that a user may know beforehand


def fold_value(builder: Builder, value: Value, refuse: Callable[[str, Remedy | None], NoReturn]) -> np.ndarray:
    """The elements of ``value``.

    Where they depend on inputs or on symbolic dimensions, calls ``refuse``, which raises, with the reason and a remedy.
    """
    order, pending, remedy = _ancestors(builder, value)
    if pending:
        refuse(pending, remedy)
    done: dict[str, np.ndarray] = {}
    for node in order:
        if any(_too_large(o) for o in node.outputs):
            refuse(f"computing {node.outputs[0].name} while importing would take too much memory", None)
        args = [None if v is None else _input(builder, v, done) for v in node.inputs]
        results = registry.opdef(node.op).reference(args, node.attrs)
        done.update((o.name, r) for o, r in zip(node.outputs, results))
    return _input(builder, value, done)


def _too_large(value: Value) -> bool:
    n = value.type.numel
    return not isinstance(n, int) or n > MAX_HOST_ELEMENTS


def _steers(value: Value) -> bool:
    """Whether an input looks like a mode, a size or a shape, which a user may know beforehand, and not like data."""
    n = value.type.numel
    return isinstance(n, int) and n <= (MAX_STEERING if not value.dtype.is_float else 1)


def _input(builder: Builder, value: Value, done: dict[str, np.ndarray]) -> np.ndarray:
    return done[value.name] if value.name in done else builder.rw.weights[value.name].data


def _ancestors(builder: Builder, value: Value) -> tuple[list[Node], str, Remedy | None]:
    """The nodes that compute ``value``, in order; the reason why they cannot be evaluated, or ""; and a remedy."""
    order: list[Node] = []
    state: dict[str, bool] = {}
    stack: list[tuple[Value, bool]] = [(value, False)]
    while stack:
        v, leaving = stack.pop()
        node = builder.producer(v)
        if leaving:
            if node is not None and node not in order:
                order.append(node)
            continue
        if v.name in state:
            continue
        state[v.name] = True
        if v.name in builder.unknown:
            why = builder.unknown[v.name]
            return [], why.reason, Remedy(Action.FIX_DIMENSIONS, why.symbols)
        if node is None:
            if v.name not in builder.rw.weights:
                remedy = Remedy(Action.FIX_INPUT, subject=v.name) if _steers(v) else None
                return [], f"the values of {value.name} depend on the data of input {v.name}", remedy
            continue
        if any(isinstance(d, IntExpr) for a in node.attrs.values() if isinstance(a, tuple) for d in a):
            return [], f"the values of {value.name} depend on symbolic dimensions", Remedy(Action.FIX_DIMENSIONS)
        if len(state) > MAX_NODES:
            return [], f"the values of {value.name} are computed by more than {MAX_NODES} nodes", None
        stack.append((v, True))
        stack.extend((x, False) for x in node.operands())
    return order, "", None
