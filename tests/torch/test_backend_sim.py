"""``torch.compile(backend="arcweld")`` through the entry point, with generated kernels on the sim device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from outside import ordered
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch_oracle import rand

from arcweld.models.builders import build
from arcweld.torch.report import clear_report, torch_report


@pytest.fixture(autouse=True)
def _sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    torch._dynamo.reset()
    clear_report()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_stride=True)


class Mixed(nn.Module):
    """A convolution, a normalisation, a product, a sort that only PyTorch has, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
        y = self.fc(F.silu(self.norm(y)))
        return (ordered(y, -1) * 2 + y).softmax(-1)


def test_a_mode_of_torch_compile() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1)).eval(), rand(2, 4)
    close(torch.compile(model, backend="arcweld", mode="reduce-overhead")(x), model(x))
    assert torch_report()[0].blocks[0].builds == 1


def test_a_model_with_a_hole() -> None:
    model, x = Mixed().eval(), rand(2, 3, 8, 8)
    run = torch.compile(model, backend="arcweld")
    close(run(x), model(x))
    (report,) = torch_report()
    assert len(report.blocks) == 2
    assert all(b.kernels and b.builds == 1 for b in report.blocks)
    for _ in range(4):  # new values go into the same engine
        model.fc.weight.mul_(-1)
        model.norm.load_state_dict({"weight": rand(8), "bias": rand(8)})
        close(run(x), model(x))
        run(x)
    assert all(b.builds == 1 and b.updates for b in report.blocks[:1])


def test_dynamic_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).eval()
    run = torch.compile(model, backend="arcweld", dynamic=True)
    for n in (3, 7, 20):
        close(run(rand(n, 8)), model(rand(n, 8)))
    assert torch_report()[0].blocks[0].builds == 1


def test_half_precision_by_option() -> None:
    model, x = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).eval(), rand(4, 32)
    run = torch.compile(model, backend="arcweld", options={"precision": "fp16"})
    found = run(x)
    assert found.dtype is torch.float32
    close(found, model(x), 1e-2)
    assert (found - model(x)).abs().max() > 1e-6  # it did compute in half precision


def test_channels_last_and_bfloat16() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    x = rand(1, 4, 6, 6)
    model, x = (t.to(torch.bfloat16).to(memory_format=torch.channels_last) for t in (model, x))
    close(torch.compile(model, backend="arcweld")(x), model(x), 3e-2)


def test_gradients() -> None:
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4)), rand(5, 8)
    run = torch.compile(model, backend="arcweld")
    gradients = []
    for call in (run, model):
        model.zero_grad()
        with torch.enable_grad():
            call(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    close(*gradients)
    assert [r.compiled == r.nodes for r in torch_report()] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "bert", "gpt2", "llama"])
def test_models(name: str) -> None:
    from test_import_models import SMALL

    built = build(name, **SMALL[name])
    run = torch.compile(built.module, backend="arcweld", dynamic=False)
    close(run(*built.args), built.module(*built.args), 1e-3)
    (report,) = torch_report()
    assert not report.left
    assert report.blocks[0].kernels


class Scaled(nn.Module):
    """A product with a scaled weight, a normalisation that counts its calls, and a bias of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(rand(6, 4)), nn.Parameter(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.tensor([0.25]))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (x @ (self.weight * self.scale.exp()) + self.shift).relu()
        self.calls.add_(1)
        return y * self.scale, self.calls * 2


def test_parameters_of_every_rank_that_change() -> None:
    eager = Scaled()
    fast = copy.deepcopy(eager)
    run, x = torch.compile(fast, backend="arcweld"), rand(3, 6)
    changes = (
        lambda m: None, lambda m: None, lambda m: m.scale.mul_(2), lambda m: m.weight.add_(1), lambda m: None,
        lambda m: m.shift.zero_(), lambda m: m.scale.fill_(-1.0), lambda m: setattr(m, "scale", nn.Parameter(x[0, 0])),
    )  # fmt: skip
    for change in changes:
        for m in (eager, fast):
            change(m)
        close(run(x), eager(x))
        assert fast.calls == eager.calls


def test_changed_weights_are_packed_into_the_same_engine() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).eval(), rand(3, 6)
    run = torch.compile(model, backend="arcweld")
    for _ in range(2):
        close(run(x), model(x))
        close(run(x), model(x))
        model[0].weight.mul_(0.5)
        model[2].bias.add_(1.0)
    close(run(x), model(x))
    (report,) = torch_report()
    assert [(b.builds, b.updates) for b in report.blocks] == [(1, 2)]


def swapped_twice(model: nn.Sequential) -> None:
    """New memory twice: the second time that of the parameter at the last call, unless somebody keeps it."""
    for _ in range(2):
        model[0].weight.data = model[0].weight.data * 2


CHANGES = {
    "data": lambda m: setattr(m[0].weight, "data", rand(8, 8)),
    "data twice": swapped_twice,
    "data transposed": lambda m: setattr(m[0].weight, "data", m[0].weight.data.t()),
    "vector": lambda m: vector_to_parameters(0.5 * parameters_to_vector(m.parameters()), m.parameters()),
    "parameter": lambda m: setattr(m[0], "weight", nn.Parameter(rand(8, 8))),
    "parameter of the same memory": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data.mul_(3))),
    "in place": lambda m: m[0].weight.mul_(2),
    "copy": lambda m: m[0].weight.copy_(rand(8, 8)),
    "state": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "state assigned": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_no_weight_is_stale(change: Callable[[nn.Sequential], object]) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).eval(), rand(3, 8)
    run = torch.compile(model, backend="arcweld")
    close(run(x), model(x))
    before = model(x)
    change(model)
    assert not torch.allclose(model(x), before)
    close(run(x), model(x))
    close(run(x), model(x))


def test_results_named_like_other_values() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            mul = (x @ y).softmax(-1)
            return {"mul": mul @ y, "softmax": mul, "add": mul + 1, "x": x @ x, "matmul": mul.sum(-1)}

    import arcweld

    x, y = rand(4, 4), rand(4, 4, seed=1)
    found = arcweld.compile(Model().eval(), x, y, device="sim").run({"x": x, "y": y})
    expected = Model()(x, y)
    assert set(found) == {"mul", "softmax", "add", "x_out", "matmul"}
    for name, value in expected.items():
        close(found[name if name != "x" else "x_out"], value)


INDEXED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "index": lambda a, i: (a * 2)[i],
    "two indices": lambda a, i: (a.reshape(2, 3) * 2)[i % 2, i],
    "index of the middle": lambda a, i: (a.reshape(1, 6, 1) * 2)[:, i + 1],
    "embedding": lambda a, i: F.embedding(i, a.reshape(6, 1)) * 2,
    "index_select": lambda a, i: a.index_select(0, i) + 1,
    "gather": lambda a, i: a.gather(0, i) + 1,
    "take": lambda a, i: a.reshape(2, 3).take(i) + 1,
    "scatter": lambda a, i: a.scatter(0, i, 1.5) + 1,
    "scatter_add": lambda a, i: a.scatter_add(0, i, a[:3]) + 1,
    "index_add": lambda a, i: a.index_add(0, i, a[:3]) + 1,
    "index_put": lambda a, i: torch.index_put(a, (i,), i.float()) + 1,
    "under a mask": lambda a, i: F.pad((a * 2)[i + 3], (2, 3)) @ a.expand(8, 6)[:, :2],
}


@pytest.mark.parametrize("fn", INDEXED.values(), ids=INDEXED.keys())
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_index_out_of_range_raises_as_in_eager(fn: Any, dynamic: bool) -> None:
    a, good, options = torch.arange(6.0), torch.tensor([0, 2, 1]), {"min_block_size": 1}
    for bad in ([0, 1, 6], [-10, 0, 1], [0, 1 << 40, 1]):
        torch._dynamo.reset()
        clear_report()
        run = torch.compile(fn, backend="arcweld", dynamic=dynamic, options=options)
        with pytest.raises((IndexError, RuntimeError)) as expected:
            fn(a, torch.tensor(bad))
        with pytest.raises(type(expected.value)):  # while it is built
            run(a, torch.tensor(bad))
        close(run(a, good), fn(a, good))
        with pytest.raises(type(expected.value)):
            run(a, torch.tensor(bad))
        close(run(a, good), fn(a, good))
        assert not any(r.left for r in torch_report())
        assert {b.fallback for r in torch_report() for b in r.blocks} == {None}


DIVIDED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "floor": lambda a, b: a // b + 1,
    "trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc") + 1,
    "remainder": lambda a, b: a % (b * 1) + 1,
    "fmod": lambda a, b: torch.fmod(a, b) + 1,
    "one divisor": lambda a, b: (a + 1) // b[0] + b.sum(),
    "in a sum": lambda a, b: (a.expand(5, 3) // b).sum(0),
    "under a mask": lambda a, b: F.pad(a // b, (2, 3)) * 2,
}


@pytest.mark.parametrize("fn", DIVIDED.values(), ids=DIVIDED.keys())
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_an_integer_division_by_zero_raises_as_in_eager(fn: Any, dtype: torch.dtype) -> None:
    a, good, bad = (torch.tensor(v, dtype=dtype) for v in ([7, -7, 5], [2, 3, -4], [0, 2, 0]))
    run = torch.compile(fn, backend="arcweld", options={"min_block_size": 1})
    with pytest.raises(RuntimeError) as expected:
        fn(a, bad)
    with pytest.raises(type(expected.value), match="ZeroDivisionError"):  # while it is built
        run(a, bad)
    close(run(a, good), fn(a, good))
    with pytest.raises(type(expected.value), match="ZeroDivisionError"):
        run(a, bad)
    close(run(a, good), fn(a, good))
    assert not any(r.left for r in torch_report())
    assert {b.fallback for r in torch_report() for b in r.blocks} == {None}
