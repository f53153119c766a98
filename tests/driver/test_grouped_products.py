"""Products of rows in groups from the graph to the checked simulator: one launch for any number of rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.text import parse_graph
from arcweld.driver import api
from arcweld.driver.build import Build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

GROUPS, DEPTH, COLUMNS = 5, 24, 20
TOLERANCE = {"fp32": 2e-6, "fp16": 4e-3, "bf16": 3e-2}


def matrices() -> np.ndarray:
    return np.random.default_rng(0).normal(0, DEPTH**-0.5, (GROUPS, DEPTH, COLUMNS)).astype(np.float32)


def experts() -> Graph:
    """``silu(x @ w[group]) * scale[row]``, of an open number of rows."""
    graph = parse_graph(f"""graph 'experts'
symbol S(lo=1, hi=512)
input %x: f32[S, {DEPTH}]
input %ends: i32[{GROUPS}]
input %scale: f32[S, 1]
weight %w: f32[{GROUPS}, {DEPTH}, {COLUMNS}] source='w'
%g = GroupedMatMul(%x, %w, %ends)
%a = Silu(%g)
%y = Mul(%a, %scale)
output %y
""")
    return graph.replace(weights={"w": Weight(matrices(), "w")})


@cache
def built(precision: str) -> Build:
    return api.build_engine(experts(), precision=precision, device="sim", arch=["sm_80"])[0]


@pytest.mark.parametrize("ends", [(3, 3, 40, 41, 70), (0, 0, 0, 0, 70), (70, 70, 70, 70, 70), (1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_rows_of_groups_take_one_launch(precision: str, ends: tuple[int, ...]) -> None:
    build = built(precision)
    assert [p.bound.kernel.template for p in build.planned] == ["contract"]
    rng = np.random.default_rng(1)
    x, scale = rng.normal(size=(70, DEPTH)).astype(np.float32), rng.normal(size=(70, 1)).astype(np.float32)
    feed = {"x": x, "ends": np.array(ends, np.int32), "scale": scale}
    (got,) = Engine(build.data, SimDevice(checked=True)).run(feed).values()
    want = np.zeros((70, COLUMNS))
    for first, end, w in zip((0, *ends), ends, matrices()):
        z = x[first:end].astype(np.float64) @ w
        want[first:end] = z / (1 + np.exp(-z)) * scale[first:end]
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
