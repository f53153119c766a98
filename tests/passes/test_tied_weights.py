"""Tied weights: one array for an embedding and the last layer, and for a layer that is applied twice."""

from __future__ import annotations

import pytest
import torch
from pass_tools import build, same_results

from arcweld.compiler.options import Options
from arcweld.driver.api import build_data, import_model
from arcweld.passes.pipeline import run_passes

TIED = """input %i: i64[3]
input %x: {t}[3, 96]
weight %w: f32[128, 96] source='w'
{cast}
%e = Gather(%{w}, %i, axis=0)
%wt = Transpose(%{w}, perm=(1, 0))
%h = Add(%e, %x)
%y = MatMul(%h, %wt)
output %y
"""


@pytest.mark.parametrize("half", [False, True])
def test_an_embedding_is_also_the_last_layer(half: bool) -> None:
    cast = "%wh = Cast(%w, to=dtype(f16))" if half else ""
    before = build(TIED.format(t="f16" if half else "f32", cast=cast, w="wh" if half else "w"))
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    read = {v.name for n in after.nodes for v in n.operands()} & set(after.weights)
    assert len(read) == 1
    same_results(before, after, rtol=2e-2 if half else 2e-5, atol=2e-2 if half else 2e-5)


def test_weights_of_other_records_stay() -> None:
    before = build("""input %x: f32[2, 96]
weight %a: f32[96, 96] source='a'
weight %b: f32[96, 96] source='b'
%p = MatMul(%x, %a)
%q = MatMul(%p, %b)
output %q
""")
    after = run_passes(before, Options(arch=("sm_80",)), verify_each=True)
    assert len(after.weights) == 2


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(200, 64)
        self.out = torch.nn.Linear(64, 200, bias=False)
        self.out.weight = self.words.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(i).relu())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_holds_it_once(precision: str) -> None:
    module, i = Tied().eval(), torch.tensor([[3, 199, 0]])
    data, _, engine = build_data(import_model(module, i), precision=precision, device="sim", arch=("sm_80",))
    assert sum(w.nbytes for w in data.data.weights.values()) == 200 * 64 * (4 if precision == "fp32" else 2)
    assert engine is not None
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(engine(i.numpy())).float(), module(i), rtol=1e-2, atol=1e-2)
