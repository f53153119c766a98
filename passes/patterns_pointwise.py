"""The formulas of activations: Clip, Sigmoid, SiLU, hard sigmoid and swish, GELU, Mish and their like."""

from __future__ import annotations

import math
from typing import Any

from arcweld.compiler.ir import Graph, Value
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker
from arcweld.passes.patterns import Build, Match, Pattern, apply_patterns, at_least

_R2 = 1 / math.sqrt(2)
_RPI = math.sqrt(2 / math.pi)
_ERF = f"Erf(x * {_R2})"
_CUBIC = f"Tanh({_RPI} * (x + 0.044715 * x ** 3))"
_CUBIC_FACTORED = f"Tanh({_RPI} * x * (1 + 0.044715 * x ** 2))"
_CUBIC_EXPANDED = f"Tanh({_RPI} * x + {_RPI * 0.044715} * x ** 3)"
_CUBIC_SIGMOID = f"Sigmoid({2 * _RPI} * (x + 0.044715 * x ** 3))"


def _x(rw: Tracker, m: Match) -> Value:
    return at_least(rw, rw.get(m.values["x"]), m)


def _unary(op: str, **attrs: Any) -> Build:
    """Replaces the match by ``op`` of x."""
    return lambda rw, m: rw.make(op, [_x(rw, m)], m.origin, m.name, **attrs)


def _clip(rw: Tracker, m: Match) -> Value | None:
    low, high = m.scalars.get("A"), m.scalars.get("B")
    if low is not None and high is not None and low > high:
        return None
    x = _x(rw, m)
    if not x.dtype.is_float:
        return None
    if low == 0.0 and high is None:
        return rw.make("Relu", [x], m.origin, m.name)
    return rw.make("Clip", [x], m.origin, m.name, min=low, max=high)


def _clip_of_relu(rw: Tracker, m: Match) -> Value | None:
    low, high = m.scalars["A"], m.scalars["B"]
    if high is None or high < 0 or (low is not None and low > 0):
        return None
    return rw.make("Clip", [_x(rw, m)], m.origin, m.name, min=0.0, max=high)


def _hard_sigmoid(rw: Tracker, m: Match) -> Value | None:
    alpha, beta = m.scalars["K"], m.scalars["B"]
    if not alpha or (alpha, beta) == (1.0, 0.0):  # nothing scaled, nothing added: it is a Clip
        return None
    return rw.make("HardSigmoid", [_x(rw, m)], m.origin, m.name, alpha=alpha, beta=beta)


def _silu(rw: Tracker, m: Match) -> Value | None:
    return rw.make("Silu", [_x(rw, m)], m.origin, m.name, alpha=m.scalars["K"])


CLIPS = (
    Pattern("clip", ("Min(Max(x, A), B)", "Max(Min(x, B), A)", "Max(x, A)", "Min(x, B)"), _clip),
    Pattern("relu", ("Clip(x, min=0, max=None)",), _unary("Relu")),
    Pattern("clip-of-relu", ("Clip(Relu(x), min=A, max=B)",), _clip_of_relu),
)

ACTIVATIONS = (
    Pattern("softplus", ("Log(1 + Exp(x))",), _unary("Softplus")),
    Pattern("sigmoid", ("1 / (1 + Exp(-x))",), _unary("Sigmoid")),
    Pattern("softsign", ("x / (1 + Abs(x))",), _unary("Softsign")),
    Pattern("mish", ("x * Tanh(Softplus(x))",), _unary("Mish")),
    Pattern("gelu-erf", (f"0.5 * x * (1 + {_ERF})", f"x * (0.5 + 0.5 * {_ERF})"), _unary("Gelu", approximate="none")),
    Pattern(
        "gelu-tanh",
        (
            f"0.5 * x * (1 + {_CUBIC})",
            f"0.5 * x * (1 + {_CUBIC_FACTORED})",
            f"0.5 * x * (1 + {_CUBIC_EXPANDED})",
            f"x * {_CUBIC_SIGMOID}",
        ),
        _unary("Gelu", approximate="tanh"),
    ),
    Pattern(
        "hardswish",
        (
            "x * Clip(x + 3, min=0, max=6) / 6",
            "x * HardSigmoid(x, alpha=1/6, beta=0.5)",
            "x * Clip(x / 6 + 0.5, min=0, max=1)",
        ),
        _unary("HardSwish"),
    ),
    Pattern("hardsigmoid-6", ("Clip(x + 3, min=0, max=6) / 6",), _unary("HardSigmoid", alpha=1 / 6, beta=0.5)),
    Pattern("hardsigmoid", ("Clip((x * K) + B, min=0, max=1)",), _hard_sigmoid),
    Pattern("silu", ("x * Sigmoid(x * K)",), _silu),
)


def clips(graph: Graph, options: Options) -> Graph:
    """Writes Max and Min with constants as Clip or Relu, so that other formulas need only these."""
    return apply_patterns(graph, CLIPS)


def activations(graph: Graph, options: Options) -> Graph:
    """Recovers activation functions."""
    return apply_patterns(graph, ACTIVATIONS)
