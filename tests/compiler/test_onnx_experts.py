"""com.microsoft's MoE against ONNX Runtime, and where that has no kernel against its documented formula."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import Array, compare, evaluate, floats, one_node, runtime

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.driver import api
from arcweld.driver.build import Build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

EXPERTS, WIDTH, INNER = 5, 16, 12


def mixture(
    tokens: tuple[int, ...], fused: bool = False, beside: bool = False, bias: bool = True, dtype: Any = np.float32,
    open_dims: bool = False, **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
    wide = INNER * (2 if fused else 1)
    shapes = {2: (EXPERTS, wide, WIDTH), 3: (EXPERTS, wide), 4: (EXPERTS, WIDTH, INNER), 5: (EXPERTS, WIDTH)}
    if beside:
        shapes |= {6: (EXPERTS, INNER, WIDTH), 7: (EXPERTS, INNER)}
    weights = {i: floats(*s, seed=i) * np.float32(0.4) for i, s in shapes.items() if bias or i % 2 == 0}
    feeds = [floats(*tokens, WIDTH, seed=8), floats(math.prod(tokens), EXPERTS, seed=9)]
    return one_node(
        "MoE", 18, [f.astype(dtype) for f in feeds], attrs, {i: w.astype(dtype) for i, w in weights.items()},
        domain="com.microsoft", open_dims=open_dims,
    )  # fmt: skip


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("normalised", [0, 1])
@pytest.mark.parametrize("kind", ["relu", "gelu", "silu", "identity"])
def test_activations(kind: str, normalised: int, k: int) -> None:
    compare(*mixture((23,), k=k, activation_type=kind, normalize_routing_weights=normalised))


@pytest.mark.parametrize("attrs", [{}, {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 0.7}])
def test_gates_between_what_they_scale(attrs: dict[str, Any]) -> None:
    compare(*mixture((2, 20), fused=True, activation_type="swiglu", swiglu_fusion=1, k=2, **attrs))


def test_default_attributes_and_no_bias() -> None:
    compare(*mixture((9,), bias=False))


def test_half_precision() -> None:
    compare(*mixture((23,), dtype=np.float16, k=2, activation_type="silu"), tolerance=4e-3)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def by_formula(feeds: dict[str, Array], w: list[Array], k: int, gate: Any) -> Array:
    """What each token's k experts give, in f64; ``gate(FC1's result, expert, token)`` is what FC2 reads."""
    x, logits = (feeds[n].astype(np.float64) for n in ("x0", "x1"))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.zeros_like(x)
    for t, row in enumerate(x):
        for e in np.argsort(-shares[t], kind="stable")[:k]:
            hidden = gate(w[0][e] @ row + w[1][e], e, row)
            y[t] += shares[t][e] * (w[2][e] @ hidden + w[3][e])
    return y


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FORMULAS: dict[str, tuple[dict[str, Any], Any]] = {
    "swiglu apart": (
        {"fused": True, "activation_type": "swiglu", "swiglu_fusion": 2, "activation_beta": 0.5},
        lambda w: lambda z, e, row: z[:INNER] * sigmoid(z[:INNER]) * (z[INNER:] + 0.5),
    ),
    "swiglu of two products": (
        {"beside": True, "activation_type": "swiglu", "activation_alpha": 1.5},
        lambda w: lambda z, e, row: z * sigmoid(1.5 * z) * (w[4][e] @ row + w[5][e]),
    ),
    "silu of two products": (
        {"beside": True, "activation_type": "silu"},
        lambda w: lambda z, e, row: z * sigmoid(z) * (w[4][e] @ row + w[5][e]),
    ),
    "geglu": (
        {"fused": True, "activation_type": "geglu", "swiglu_fusion": 1},
        lambda w: lambda z, e, row: gelu(z[::2]) * z[1::2],
    ),
    "relu2": ({"activation_type": "relu2"}, lambda w: lambda z, e, row: np.maximum(z, 0) ** 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_documented_formulas(name: str) -> None:
    attrs, gate = FORMULAS[name]
    proto, feeds = mixture((21,), k=2, **attrs)
    w = [onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer]
    (found,) = evaluate(import_onnx(proto), feeds)
    np.testing.assert_allclose(found, by_formula(feeds, w, 2, gate(w)), rtol=2e-5, atol=2e-5)


@cache
def open_tokens() -> tuple[onnx.ModelProto, Build]:
    proto, _ = mixture((3,), k=2, activation_type="silu", normalize_routing_weights=1)
    for v in proto.graph.input:
        v.type.tensor_type.shape.dim[0].dim_param = "tokens"
    return proto, api.build_engine(import_onnx(proto), device="sim", arch=["sm_80"])[0]


@pytest.mark.parametrize("tokens", [1, 33, 70])
def test_open_tokens_on_the_simulator(tokens: int) -> None:
    proto, build = open_tokens()
    feeds = {"x0": floats(tokens, WIDTH, seed=1), "x1": floats(tokens, EXPERTS, seed=2)}
    (got,) = Engine(build.data, SimDevice(checked=True)).run(feeds).values()
    np.testing.assert_allclose(got, runtime(proto, feeds)[0], rtol=2e-5, atol=2e-5)
    assert [p.bound.kernel.template for p in build.planned].count("contract") == 2


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="sparse mixer"):
        import_onnx(mixture((4,), use_sparse_mixer=1)[0])
    with pytest.raises(UnsupportedError, match="beside FC3"):
        import_onnx(mixture((4,), beside=True)[0])
    with pytest.raises(UnsupportedError, match="limit behind"):
        import_onnx(mixture((4,), fused=True, activation_type="swiglu", swiglu_fusion=1,
                            swiglu_limit_after_activation=1)[0])  # fmt: skip
    with pytest.raises(ModelError, match="without FC3"):
        import_onnx(mixture((4,), activation_type="swiglu")[0])
