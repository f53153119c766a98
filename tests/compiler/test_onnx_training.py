"""Optimizers of ai.onnx.preview.training, against the ONNX standard's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import Array, evaluate, model
from onnx_models import floats as F

from arcweld.compiler.errors import ModelError
from arcweld.compiler.onnx.importer import import_onnx

DOMAIN = "ai.onnx.preview.training"
STEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Adagrad": ("Adagrad", 3, {"decay_factor": 0.1, "epsilon": 1e-4, "norm_coefficient": 0.01}),
    "Momentum": ("Momentum", 3, {"alpha": 0.9, "beta": 0.3, "mode": "standard", "norm_coefficient": 0.01}),
    "Nesterov": ("Momentum", 3, {"alpha": 0.9, "beta": 0.3, "mode": "nesterov", "norm_coefficient": 0.0}),
    "Adam": ("Adam", 4, {"alpha": 0.8, "beta": 0.95, "epsilon": 1e-4, "norm_coefficient": 0.02,
                         "norm_coefficient_post": 0.03}),
}  # fmt: skip


def step(name: str, count: int, number: int) -> tuple[Any, dict[str, Array]]:
    """One step for ``count`` parameters of different shapes."""
    op, kinds, attrs = STEPS[name]
    names = [f"{kind}{i}" for kind in "xgvh"[:kinds] for i in range(count)]
    given: dict[str, Array] = {"rate": np.float32(0.1), "step": np.int64(number)}
    given |= {n: np.abs(F(2, 3 + int(n[1]), seed=k)) for k, n in enumerate(names)}
    outputs = [f"new_{n}" for n in names if n[0] != "g"]
    node = helper.make_node(op, ["rate", "step", *names], outputs, domain=DOMAIN, **attrs)
    inputs = {n: (np.asarray(a).dtype, np.shape(a)) for n, a in given.items()}
    return model([node], inputs, outputs, opsets=[helper.make_opsetid(DOMAIN, 1)]), given


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", list(STEPS))
def test_a_step(name: str, count: int, number: int) -> None:
    proto, given = step(name, count, number)
    want = ReferenceEvaluator(proto).run(None, given)
    for ours, theirs in zip(evaluate(import_onnx(proto), given), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    proto, _ = step("Adam", 2, 0)
    del proto.graph.node[0].input[-1]
    with pytest.raises(ModelError, match="7 tensors are not 4 for each parameter"):
        import_onnx(proto)
