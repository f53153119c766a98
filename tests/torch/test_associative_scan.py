"""torch's associative_scan against steps in eager torch: which combining functions are scans, and which are left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backend_oracle import ReferenceEngine, compiled
from torch_oracle import rand
from transformers import AutoConfig, AutoModelForCausalLM

from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.torch.report import clear_report, torch_report


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    clear_report()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def scan(combine: Callable[..., Any], *xs: torch.Tensor) -> Any:
    """The operator itself, which torch's function refuses to call for tensors on CPUs."""
    return torch.ops.higher_order.associative_scan(combine, xs, ())


def steps(combine: Callable[..., Any], *xs: torch.Tensor) -> list[torch.Tensor]:
    """The same step by step."""
    last = [x[0] for x in xs]
    found = [last]
    for t in range(1, len(xs[0])):
        last = list(combine(*last, *(x[t] for x in xs)))
        found.append(last)
    return [torch.stack(column) for column in zip(*found)]


def recurrence(a: Any, x: Any, b: Any, y: Any) -> Any:
    return a * b, b * x + y


def swapped(x: Any, a: Any, y: Any, b: Any) -> Any:
    return y + x * b, b * a


COMBINED: dict[str, tuple[Callable[..., Any], int, tuple[str, ...]]] = {
    "sum": (lambda x, y: (x + y,), 1, ("CumSum",)),
    "product": (lambda x, y: (y * x,), 1, ("CumProd",)),
    "largest": (lambda x, y: (torch.maximum(x, y),), 1, ("CumMax",)),
    "smallest": (lambda x, y: (torch.minimum(y, x),), 1, ("CumMin",)),
    "recurrence": (recurrence, 2, ("CumProd", "LinearScan")),
    "recurrence, swapped": (swapped, 2, ("CumProd", "LinearScan")),
    "beside each other": (lambda x, p, y, q: (x + y, torch.maximum(p, q)), 2, ("CumMax", "CumSum")),
    "two with the same factors": (
        lambda a, x, p, b, y, q: (a * b, x * b + y, p * b + q), 3, ("CumProd", "LinearScan", "LinearScan"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMBINED)
def test_known_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    combine, count, want = COMBINED[name]
    found: list[str] = []
    made = ReferenceEngine.__init__

    def noted(self: ReferenceEngine, graph: Any, feeds: Any) -> None:
        found.extend(n.op for n in graph.nodes if n.op.startswith("Cum") or n.op == "LinearScan")
        made(self, graph, feeds)

    monkeypatch.setattr(ReferenceEngine, "__init__", noted)
    xs = [rand(19, 3, 4, seed=k, scale=0.7) for k in range(count)]
    got = compiled(lambda *xs: scan(combine, *xs), min_block_size=1)(*xs)
    for g, e in zip(got, steps(combine, *xs), strict=True):
        torch.testing.assert_close(g, e, rtol=2e-5, atol=2e-5)
    assert tuple(sorted(found)) == want
    (report,) = torch_report()
    assert report.left == {}


@pytest.mark.parametrize("name", ["difference", "weighted"])
def test_other_functions_are_left_with_a_reason(name: str) -> None:
    combine = {"difference": lambda x, y: (x + y - x * y,), "weighted": lambda x, y: (x + y + x + y,)}[name]
    x = rand(6, 5, scale=0.3)
    compiled(lambda x: scan(combine, x)[0] * 2)(x)
    (report,) = torch_report()
    (reason,) = (why for (op, why) in report.left if op == "associative_scan")
    assert "linear recurrence" in reason


def test_a_result_that_nothing_reads_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    made = ReferenceEngine.__init__

    def noted(self: ReferenceEngine, graph: Any, feeds: Any) -> None:
        found.extend(n.op for n in graph.nodes)
        made(self, graph, feeds)

    monkeypatch.setattr(ReferenceEngine, "__init__", noted)
    a, x = rand(9, 4), rand(9, 4, seed=1)
    got = compiled(lambda a, x: scan(recurrence, torch.exp(-a * a), x)[1] * 2)(a, x)
    torch.testing.assert_close(got, steps(recurrence, torch.exp(-a * a), x)[1] * 2, rtol=2e-5, atol=2e-5)
    assert "LinearScan" in found
    assert "CumProd" not in found


def test_the_discretisation_of_a_state_space_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba's states: the factors and terms of all steps are computed in the kernel that scans them."""
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")

    def states(a: torch.Tensor, b: torch.Tensor, u: torch.Tensor, dt: torch.Tensor) -> Any:
        factors = torch.exp(a[None, :, None, :] * dt[:, :, :, None])
        terms = dt[:, :, :, None] * b[:, None, :, :] * u[:, :, :, None]
        return factors.movedim(2, 0), terms.movedim(2, 0)

    given = [-rand(6, 4).abs(), rand(2, 21, 4), rand(2, 6, 21), rand(2, 6, 21, seed=1).abs()]
    run = torch.compile(lambda *args: scan(recurrence, *states(*args))[1].movedim(0, 2), backend="arcweld")
    want = steps(recurrence, *states(*given))[1].movedim(0, 2)
    torch.testing.assert_close(run(*given), want, rtol=2e-5, atol=2e-5)
    (report,) = torch_report()
    assert [b.kernels for b in report.blocks] == [1]


def as_on_gpus(combine: Callable[..., Any], xs: Any, dim: int, **_: Any) -> Any:
    """What torch's function does for tensors on GPUs."""
    moved = tuple(x.movedim(dim, 0) for x in xs)
    flat = lambda a, x, b, y: tuple(combine((a, x), (b, y)))
    return tuple(y.movedim(0, dim) for y in scan(flat, *moved))


@pytest.mark.slow
@pytest.mark.parametrize("steps_of_time", [9, 33])
def test_mamba_takes_one_scan_a_layer(steps_of_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch._higher_order_ops.associative_scan"], "associative_scan", as_on_gpus)
    found: list[str] = []
    made = ReferenceEngine.__init__

    def noted(self: ReferenceEngine, graph: Any, feeds: Any) -> None:
        found.extend(n.op for n in graph.nodes if opdef(n.op).kind is Kind.SCAN)
        made(self, graph, feeds)

    monkeypatch.setattr(ReferenceEngine, "__init__", noted)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(3, 60, (2, steps_of_time))
    got = compiled(lambda x: model(x, use_cache=False).logits)(tokens)
    torch.testing.assert_close(got, model(tokens, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    (report,) = torch_report()
    assert report.nodes == report.compiled
    assert found == ["LinearScan"] * 2
