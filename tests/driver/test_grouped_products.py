"""Products of rows in groups from the graph to the checked simulator: one launch for any number of rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.text import parse_graph
from arcweld.driver import api
from arcweld.driver.build import Build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

GROUPS, DEPTH, COLUMNS = 5, 24, 40
TOLERANCE = {"fp32": 2e-6, "fp16": 4e-3, "bf16": 3e-2}


def matrices() -> np.ndarray:
    return np.random.default_rng(0).normal(0, DEPTH**-0.5, (GROUPS, DEPTH, COLUMNS)).astype(np.float32)


def experts(dtype: str) -> Graph:
    """``silu(x @ w[group]) * scale[row]``, of an open number of rows."""
    graph = parse_graph(f"""graph 'experts'
symbol S(lo=1, hi=512)
input %x: {dtype}[S, {DEPTH}]
input %ends: i32[{GROUPS}]
input %scale: {dtype}[S, 1]
weight %w: {dtype}[{GROUPS}, {DEPTH}, {COLUMNS}] source='w'
%g = GroupedMatMul(%x, %w, %ends)
%a = Silu(%g)
%y = Mul(%a, %scale)
output %y
""")
    return graph.replace(weights={"w": Weight(matrices().astype(DType(dtype).numpy), "w")})


@cache
def built(precision: str, dtype: str, arch: str) -> Build:
    return api.build_engine(experts(dtype), precision=precision, device=SimDevice(arch=arch), arch=[arch])[0]


@pytest.mark.parametrize("ends", [(3, 3, 40, 41, 70), (0, 0, 0, 0, 70), (70, 70, 70, 70, 70), (1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize(
    ("precision", "dtype", "arch"),
    [("fp32", "f32", "sm_80"), ("fp16", "f32", "sm_80"), ("bf16", "f32", "sm_80"), ("fp32", "f16", "sm_90a")],
)
def test_rows_of_groups_take_one_launch(precision: str, dtype: str, arch: str, ends: tuple[int, ...]) -> None:
    build = built(precision, dtype, arch)
    (planned,) = build.planned
    assert planned.bound.kernel.template == "contract"
    assert {s.arch for s in planned.sources} == {"sm_80", arch}
    rng = np.random.default_rng(1)
    x, scale = (rng.normal(size=(70, n)).astype(DType(dtype).numpy) for n in (DEPTH, 1))
    feed = {"x": x, "ends": np.array(ends, np.int32), "scale": scale}
    (got,) = Engine(build.data, SimDevice(arch=arch, checked=True)).run(feed).values()
    want = np.zeros((70, COLUMNS))
    for first, end, w in zip((0, *ends), ends, matrices()):
        z = x[first:end].astype(np.float64) @ w
        want[first:end] = z / (1 + np.exp(-z)) * scale[first:end].astype(np.float64)
    tolerance = TOLERANCE["fp16" if dtype == "f16" else precision]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance)
