"""The torch.compile backend: eager's meaning kept, with blocks evaluated by the references in place of engines."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_oracle import compiled, same
from outside import NAME, ordered
from torch import nn
from torch_oracle import rand

from arcweld.compiler.errors import AccuracyError, UnsupportedError, UsageError
from arcweld.models.builders import build
from arcweld.torch import backend
from arcweld.torch.options import BackendOptions, parse_options
from arcweld.torch.report import torch_report

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.gelu(self.a(x))).softmax(-1)


def test_a_whole_model_is_one_block() -> None:
    net, x = Net().eval(), rand(3, 8)
    same(compiled(net)(x), net(x))
    (report,) = torch_report()
    assert [b.name.split(".")[1] for b in report.blocks] == ["block_0"]
    assert report.compiled == report.nodes
    assert not report.left
    assert "0 left to PyTorch" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "bert", "llama"])
def test_models(name: str) -> None:
    from test_import_models import SMALL

    built = build(name, **SMALL[name])
    same(compiled(built.module)(*built.args), built.module(*built.args))
    (report,) = torch_report()
    assert not report.left
    assert len(report.blocks) == 1


def test_unsupported_nodes_stay_in_the_same_callable(caplog: pytest.LogCaptureFixture) -> None:
    def fn(x: torch.Tensor) -> Any:
        y = F.silu(x * 2 + 1) + x.sin()
        order = ordered(y, -1)
        return (order * 3).exp() + order.mean(-1, keepdim=True) - y

    x = rand(4, 6)
    same(compiled(fn)(x), fn(x))
    (report,) = torch_report()
    assert len(report.blocks) == 2
    assert report.left == {(NAME, "no such operator in Arcweld"): 1}
    assert "1 left to PyTorch: outside.ordered.default x1 (no such operator in Arcweld)" in caplog.text


def test_small_blocks_are_given_back() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return ordered(x + 1) * 2

    x = rand(7)
    same(compiled(fn)(x), fn(x))
    assert torch_report()[0].compiled == 0
    same(compiled(fn, min_block_size=1)(x), fn(x))
    assert torch_report()[1].compiled == 2


def test_torch_executed_ops_and_full_compilation() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x.exp() + 1).tanh() * x.sigmoid() * 2

    x = rand(5)
    for op in ("aten.tanh", "torch.ops.aten.tanh.default", torch.ops.aten.tanh.default, torch.ops.aten.tanh):
        same(compiled(fn, torch_executed_ops=[op], min_block_size=1)(x), fn(x))
        assert torch_report()[-1].left == {("aten.tanh.default", "listed in torch_executed_ops"): 1}
        torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="listed in torch_executed_ops") as caught:
        compiled(fn, torch_executed_ops=["aten.tanh"], require_full_compilation=True)(x)
    assert isinstance(caught.value.inner_exception, UnsupportedError)
    same(compiled(fn, require_full_compilation=True)(x), fn(x))


def test_mutation_of_inputs_and_buffers() -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(4, 6))

        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            self.cache[k] = x.sin() * 2 + 1
            x.mul_(2).add_(1)
            return (self.cache.cos() * 3 + x).sum(0)

    eager = Cache()
    fast = copy.deepcopy(eager)
    run = compiled(fast)
    for k in range(3):
        x, y = rand(6, seed=k), rand(6, seed=k)
        same(run(x, k), eager(y, k))
        same(x, y)
        same(fast.cache, eager.cache)


def test_views_none_and_aliases() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> Any:
        z = (x @ y).relu() + 1
        return {"t": z.t(), "none": None, "same": x, "view": x[1:], "twice": (z, z), "number": 3, "row": z[0]}

    x, y = rand(3, 4), rand(4, 5)
    found, expected = compiled(fn)(x, y), fn(x, y)
    same(found, expected)
    assert found["same"] is x
    assert found["view"].data_ptr() == x[1:].data_ptr()


def test_strides_of_inputs_and_results() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).eval().to(memory_format=torch.channels_last)

    def fn(x: torch.Tensor) -> Any:
        y = F.relu(conv(x)) * 2 + 1
        return y, y.permute(2, 0, 1, 3), y.transpose(1, 3)

    x = rand(2, 3, 6, 5).to(memory_format=torch.channels_last)
    same(compiled(fn)(x), fn(x))

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2 + x

    for v in (
        rand(4, 6).t(),
        rand(4, 6)[:, ::2],
        rand(3, 1, 5).expand(3, 4, 5),
        rand(8)[3:],
        rand(2, 3, 4).permute(2, 0, 1),
    ):
        same(compiled(scaled)(v), scaled(v))


def test_as_strided_after_a_block_sees_the_strides_it_expects() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = (x.t().sin() * 2 + 1).cos()
        return torch.as_strided(y, (6,), (2,), 1)

    x = rand(4, 3)
    same(compiled(fn)(x), fn(x))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 5), ()])
def test_empty_and_unit_sizes(shape: tuple[int, ...]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).exp() + x.sin() - 1

    x = rand(*shape)
    same(compiled(fn)(x), fn(x))


def test_dynamic_sizes_compile_once() -> None:
    net = Net().eval()
    run = compiled(net, dynamic=True)
    for n in (2, 5, 17):
        same(run(rand(n, 8)), net(rand(n, 8)))
    (report,) = torch_report()
    assert report.blocks[0].builds == 1

    def reshaped(x: torch.Tensor) -> torch.Tensor:
        n, k = x.shape
        return (x.reshape(k, n) * n + torch.arange(n)).flatten()[: n * k - 1].sin()

    run = compiled(reshaped, dynamic=True)
    for n, k in ((3, 4), (5, 2), (7, 9)):
        same(run(rand(n, k)), reshaped(rand(n, k)))
    assert len(torch_report()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoders_of_any_batch_and_length(name: str) -> None:
    from test_import_models import SMALL

    built = build(name, **SMALL[name])
    run = compiled(built.module, dynamic=True)
    for batch, length in ((2, 9), (3, 7), (5, 12)):
        ids = torch.randint(0, 99, (batch, length), generator=torch.Generator().manual_seed(length))
        same(run(ids), built.module(ids))
    (report,) = torch_report()
    assert not report.left
    assert [b.builds for b in report.blocks] == [1]


def test_parameters_that_change_are_seen() -> None:
    net = Net().eval()
    run, x = compiled(net), rand(3, 8)
    same(run(x), net(x))
    net.a.weight.mul_(0.5)
    same(run(x), net(x))
    net.load_state_dict({k: v + 0.1 for k, v in net.state_dict().items()})
    same(run(x), net(x))
    net.b = nn.Linear(16, 4)
    same(run(x), net(x))
    for _ in range(4):
        net.b.bias.add_(1)
        same(run(x), net(x))
    assert max(b.builds for r in torch_report() for b in r.blocks) <= 4


def test_two_threads_with_parameters_of_their_own() -> None:
    nets = [Net().eval() for _ in range(2)]
    run, x = compiled(lambda net, x: net(x)), rand(3, 8)
    expected = [net(x) for net in nets]
    failures: list[Exception] = []

    def work(net: nn.Module, want: torch.Tensor) -> None:
        try:
            with torch.no_grad():
                for _ in range(5):
                    same(run(net, x), want)
        except Exception as error:
            failures.append(error)

    run(nets[0], x)
    threads = [threading.Thread(target=work, args=pair) for pair in zip(nets * 2, expected * 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_a_size_that_no_tensor_has() -> None:
    def fn(x: torch.Tensor, k: int) -> torch.Tensor:
        return (x.exp() * k + 1).sin() * (k + 2)

    run = compiled(fn, dynamic=True)
    for k in (3, 4, 7):  # PyTorch guards that it stays positive, so that a shape can bring it along
        same(run(rand(2, 7), k), fn(rand(2, 7), k))
    (report,) = torch_report()
    assert [(b.builds, b.fallback) for b in report.blocks] == [(1, None)]
    for k in (-5, 0, -1):  # no shape brings a negative one along
        same(run(rand(2, 7), k), fn(rand(2, 7), k))
    reasons = {b.fallback for r in torch_report() for b in r.blocks}
    assert any(reason is not None and "does not follow from any input's shape" in reason for reason in reasons)
    assert any(reason is not None and "a Python number among the arguments" in reason for reason in reasons)


def test_blocks_that_only_move_are_called_so() -> None:
    """Between two sorts, which are PyTorch's, there is only a concatenation: nothing is smaller than one node."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        first = ordered(x)
        return ordered(torch.cat([first, first], 1))

    same(compiled(fn, min_block_size=1)(rand(3, 4)), fn(rand(3, 4)))
    (report,) = torch_report()
    reasons = {why for (_, why) in report.left}
    assert reasons == {"no such operator in Arcweld", "part of a block that only moves elements"}


def test_sizes_that_only_occur_in_products() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        y = ordered((x * 2 + 1).exp().view(b * s, 4), 0)
        return ((y @ w).relu() + s).view(b, s, -1).softmax(1)

    run, w = compiled(fn, dynamic=True, min_block_size=1), rand(4, 3)
    for b, s in ((2, 3), (3, 5), (4, 2)):
        same(run(rand(b, s, 4), w), fn(rand(b, s, 4), w))
    assert {b.fallback for r in torch_report() for b in r.blocks} == {None}


def test_a_block_that_fails_verification_is_left_to_pytorch() -> None:
    def build_engine(graph: Any, *, feeds: Any) -> Any:
        raise AccuracyError("output y has relative error 2e-02, above 1e-03")

    def compiler(module: Any, inputs: Any) -> Any:
        return backend.compile_with(module, inputs, chosen, "sim", build_engine)

    x = rand(3, 8)
    for whole in (False, True):
        torch._dynamo.reset()
        chosen = parse_options({"require_full_compilation": whole})
        run = torch.compile(lambda x: (x.exp() * 2 + 1).sin().sum(), backend=compiler)
        if whole:
            with pytest.raises(AccuracyError):
                run(x)
        else:
            same(run(x), (x.exp() * 2 + 1).sin().sum())
            (block,) = torch_report()[-1].blocks
            assert block.fallback is not None
            assert "relative error" in block.fallback


def test_parameters_as_inputs() -> None:
    net, x = Net().eval(), rand(3, 8)
    run = compiled(net, freeze=False)
    same(run(x), net(x))
    net.a.weight.data.mul_(0.5)  # invisible to version counters
    same(run(x), net(x))
    assert torch_report()[0].blocks[0].builds == 1


def test_inference_tensors() -> None:
    with torch.inference_mode():
        net, x = Net().eval(), rand(3, 8)
        run = compiled(net)
        same(run(x), net(x))
        net.a.weight.mul_(0.5)
        same(run(x), net(x))


def test_random_numbers_come_in_eager_order() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = torch.rand_like(x)
        y = (x.sin() * 2 + a).exp()
        b = torch.rand_like(x)
        return y * b + torch.rand_like(x)

    x = rand(5)
    torch.manual_seed(3)
    expected = fn(x)
    torch.manual_seed(3)
    same(compiled(fn)(x), expected)


def test_dropout_in_training_mode_draws_as_pytorch_does() -> None:
    """PyTorch draws the mask, and the engine applies it, forwards and backwards."""
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh()).train()
    x = rand(4, 8)
    torch.manual_seed(1)
    expected = net(x)
    torch.manual_seed(1)
    same(compiled(net, min_block_size=1)(x), expected)
    assert [op for report in torch_report() for op, _ in report.left] == ["aten.bernoulli.p"]


def test_double_is_truncated_only_when_asked() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return ((x + 1e-9) - x) * 1e9 + x.sin()

    x = rand(4, dtype=torch.float64)
    same(compiled(fn)(x), fn(x), atol=1e-6)
    found = compiled(fn, truncate_double=True)(x)
    assert found.dtype is torch.float64
    same(found, x.sin(), atol=1e-5)


def test_integer_and_half_inputs() -> None:
    def fn(i: torch.Tensor, h: torch.Tensor) -> Any:
        return i * 2 + 1, (h * 0.5).relu() + i, i > 2

    i, h = torch.arange(6), rand(6, dtype=torch.bfloat16)
    same(compiled(fn)(i, h), fn(i, h))


def _gradients(net: nn.Module, run: Callable[..., Any], args: Any) -> list[torch.Tensor]:
    net.zero_grad()
    with torch.enable_grad():
        run(*args).square().mean().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


SLOW_MODELS = [pytest.param(n, marks=pytest.mark.slow) for n in ("resnet18", "vit_tiny", "bert")]


@pytest.mark.parametrize("name", ["net", *SLOW_MODELS])
def test_gradients(name: str) -> None:
    # in f64: in f32, rounding alone flips activations whose gradient then differs
    from test_import_models import SMALL

    net, args = Net(), (rand(3, 8),)
    if name != "net":
        built = build(name, **SMALL[name])
        net, args = built.module, built.args
    net = net.double()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    found = _gradients(net, compiled(net), args)
    expected = _gradients(net, net, args)
    assert len(found) == len(expected) > 0
    for f, e in zip(found, expected):
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-12)
    forward, backward = torch_report()
    assert forward.compiled > 0.9 * forward.nodes
    assert backward.compiled > 0.9 * backward.nodes


def test_training_steps_follow_eager() -> None:
    eager = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).double()
    fast = copy.deepcopy(eager)
    run = compiled(fast)
    for net, call in ((eager, eager), (fast, run)):
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(4):
            with torch.enable_grad():
                F.cross_entropy(call(rand(6, 8, seed=step).double()), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
            optimiser.step()
            optimiser.zero_grad()
    for a, b in zip(fast.parameters(), eager.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert all(b.builds == 1 for r in torch_report() for b in r.blocks)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.RMSNorm([8, 4, 4])]
)
def test_normalisations_in_training(norm: nn.Module) -> None:
    eager = nn.Sequential(norm, nn.SiLU(), nn.Flatten(), nn.Linear(128, 3)).double()
    fast = copy.deepcopy(eager)
    run, x = compiled(fast), rand(2, 8, 4, 4).double()
    for _ in range(2):
        expected, found = (_gradients(net, call, (x,)) for net, call in ((eager, eager), (fast, run)))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    for a, b in zip(fast.buffers(), eager.buffers()):
        torch.testing.assert_close(a, b)
    assert not any(r.left for r in torch_report())


def test_training_can_be_left_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    net, x = Net(), (rand(3, 8),)
    same(_gradients(net, compiled(net, training=False), x), _gradients(net, net, x))
    assert "torch.no_grad()" in caplog.text


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="'min_blocksize'"):
        parse_options({"min_blocksize": 1})
    with pytest.raises(UsageError, match="min_block_size must be of type int"):
        parse_options({"min_block_size": "3"})
    with pytest.raises(UsageError, match="unknown precision"):
        parse_options({"precision": "fp8"})
    with pytest.raises(UsageError, match="'max-autotune-no-cudagraphs' is not a mode of this backend"):
        parse_options({}, "max-autotune-no-cudagraphs")
    with pytest.raises(UsageError, match="collection"):
        parse_options({"torch_executed_ops": "aten.add"})
    assert parse_options({"tolerance": 1e-2, "disable": ["cse"]}) == BackendOptions(
        tolerance=1e-2, disable=frozenset(["cse"])
    )


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_modes_of_torch_compile_are_accepted(mode: str) -> None:
    assert parse_options({}, mode) == parse_options({}) == BackendOptions()


def test_dryrun_reports_and_runs_eagerly() -> None:
    net, x = Net().eval(), rand(3, 8)
    same(compiled(net, dryrun=True)(x), net(x))
    (report,) = torch_report()
    assert report.eager == "dryrun"
    assert report.compiled > 3


def test_without_a_gpu_it_warns_once_and_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCWELD_DEVICE", raising=False)
    monkeypatch.setattr(backend, "gpu_count", lambda: 0)
    backend._warn_once.cache_clear()
    net, x = Net().eval(), rand(3, 8)
    with pytest.warns(RuntimeWarning, match="ARCWELD_DEVICE=sim"):
        same(torch.compile(net, backend="arcweld")(x), net(x))
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.compile(net, backend="arcweld")(x)
    torch_itself = "Guards may run slower on Python 3.13.0"
    assert not [w for w in seen if issubclass(w.category, RuntimeWarning) and torch_itself not in str(w.message)]


def test_unknown_options_reach_the_user() -> None:
    with pytest.raises(Exception, match="no option 'fast'"):
        torch.compile(Net().eval(), backend="arcweld", options={"fast": True})(rand(3, 8))
