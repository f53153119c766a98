"""torch._scaled_mm against eager torch, imported and as engines on the simulator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_oracle import Functions, check, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.importer import import_module
from arcweld.passes.common import count_ops
from arcweld.torch.report import clear_report, torch_report

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def operands(left: torch.dtype = E4M3, right: torch.dtype = E4M3) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows times rows, as torch wants the right operand: its columns are contiguous."""
    return rand(33, 48).to(left), rand(32, 48, seed=1).to(right)


@pytest.mark.parametrize(("left", "right"), [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)])
@pytest.mark.parametrize("out", ROUNDING)
def test_scales_of_tensors(left: torch.dtype, right: torch.dtype, out: torch.dtype) -> None:
    scales, bias = (torch.tensor(0.5), torch.tensor(0.25)), rand(32, seed=2)
    graph = check(
        {
            "plain": lambda a, b, s, t, c: torch._scaled_mm(a, b.t(), s, t, out_dtype=out),
            "bias": lambda a, b, s, t, c: torch._scaled_mm(a, b.t(), s, t, bias=c, out_dtype=out),
        },
        *operands(left, right), *scales, bias, rtol=ROUNDING[out], atol=ROUNDING[out],
    )  # fmt: skip
    assert count_ops(graph, "MatMulFloat8") == 2


def test_scales_of_rows_and_columns() -> None:
    scales = rand(33, 1, seed=3).abs(), rand(1, 32, seed=4).abs()
    check(
        {"rows": lambda a, b, s, t: torch._scaled_mm(a, b.t(), s, t, out_dtype=torch.bfloat16, use_fast_accum=True)},
        *operands(), *scales, rtol=1.6e-2, atol=1.6e-2,
    )  # fmt: skip


def test_results_of_8_bits_are_left_to_torch() -> None:
    fn = lambda a, b, s: torch._scaled_mm(a, b.t(), s, s, out_dtype=E4M3)
    with pytest.raises(UnsupportedError, match="a result of f8e4m3fn"):
        import_module(Functions({"y": fn}), (*operands(), torch.tensor(1.0)))


class Float8Linear(nn.Module):
    """A linear layer by an 8-bit weight; a scale for each token is computed from its values."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = rand(outputs, inputs, seed=outputs)
        scale = weight.abs().amax(-1, keepdim=True) / 448
        self.register_buffer("weight", (weight / scale).to(E4M3))
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", rand(outputs, seed=7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 448
        y = torch._scaled_mm((x / scale).to(E4M3), self.weight.t(), scale, self.scale, out_dtype=torch.float32)
        return y + self.bias


def test_a_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    torch._dynamo.reset()
    clear_report()
    model, x = nn.Sequential(Float8Linear(48, 64), nn.ReLU(), Float8Linear(64, 32)).eval(), rand(24, 48, seed=9)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="arcweld")(x)
    # a value between two 8-bit floats may be rounded to the other one: 1/16 of an element, among 64 terms
    torch.testing.assert_close(got, want, rtol=0, atol=0.02 * float(want.abs().max()))
    assert float((got - want).abs().mean()) < 1e-4 * float(want.abs().max())
    (report,) = torch_report()
    assert report.compiled == report.nodes
