"""Inputs and buffers that a compiled function writes: as in eager, and where they are, without a copy."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from outside import NAME, ordered
from torch import nn
from torch_oracle import rand

import arcweld
from arcweld.compiler.errors import AccuracyError, InputError
from arcweld.compiler.ir import Graph
from arcweld.torch import backend
from arcweld.torch.options import parse_options
from arcweld.torch.partition import Verdict, partition
from arcweld.torch.report import torch_report
from arcweld.torch.state import LATE, OVERTAKEN

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


Engines = list[arcweld.Engine]


def compiled(fn: Callable[..., Any], dynamic: bool = False, **options: Any) -> tuple[Callable[..., Any], Engines]:
    """``torch.compile`` on the simulator, and the engines that it builds."""
    chosen, engines = parse_options({"min_block_size": 1, **options}), Engines()

    def build(graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> arcweld.Engine:
        engines.append(backend._engine(chosen, "sim", graph, feeds=feeds))
        return engines[-1]

    def compiler(module: Any, inputs: Any) -> Any:
        return backend.compile_with(module, inputs, chosen, "sim", build)

    return torch.compile(fn, backend=compiler, dynamic=dynamic), engines


def same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_stride=True)


def check(
    fn: Callable[..., Any], make: Callable[[], tuple[Any, ...]], tolerance: float = 1e-5, **options: Any
) -> Engines:
    """Three calls on the same arguments: results and arguments are those of eager."""
    run, engines = compiled(fn, **options)
    mine, theirs = make(), make()
    for _ in range(3):
        same(run(*mine), fn(*theirs), tolerance)
        same(mine, theirs, tolerance)
    return engines


def in_place(engine: arcweld.Engine) -> int:
    """How many of the engine's inputs its launches change where they are."""
    state = {s.input for s in engine.program.state}
    return sum(a.of in state for a in engine.program.aliases)


def nothing_left_but(*operators: str) -> None:
    assert {op for r in torch_report() for op, _ in r.left} == set(operators)
    assert {b.fallback for r in torch_report() for b in r.blocks} <= {None}


# ---------------------------------------------------------------------------------------------- forms of writing


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]] = {
    "index_copy": lambda c, at, new: c.index_copy_(1, at, new),
    "index_put": lambda c, at, new: c.__setitem__((slice(None), at), new),
    "index_add": lambda c, at, new: c.index_add_(1, at, new),
    "scatter": lambda c, at, new: c.scatter_(1, at.reshape(1, -1, 1).expand_as(new), new),
    "slice": lambda c, at, new: c.__setitem__((slice(None), slice(1, 3)), new),
    "arithmetic": lambda c, at, new: c.mul_(0.9).add_(new.sum()),
    "copy": lambda c, at, new: c.copy_(c.roll(-2, 1) + new.sum(1, keepdim=True)),
    "twice": lambda c, at, new: c.index_copy_(1, at, new).index_copy_(1, at + 2, 2 * new),
}
COPIED = ("slice", "copy", "twice")  # the new values need old ones at other places, or are made in two steps


@pytest.mark.parametrize("write", WRITES)
def test_a_cache_among_the_inputs(write: str) -> None:
    def fn(cache: torch.Tensor, at: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        WRITES[write](cache, at, x.sin() * 2)
        return (cache.cos() * x.mean()).mean(1)

    (engine,) = check(fn, lambda: (rand(2, 8, 4), torch.tensor([3, 5]), rand(2, 2, 4)))
    assert len(engine.program.state) == 1
    assert in_place(engine) == (write not in COPIED)
    nothing_left_but()


class Decoder(nn.Module):
    """A step with caches, a counter of rank 0 and a parameter that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.decay = nn.Linear(8, 8), nn.Parameter(rand(8))
        self.register_buffer("cache", torch.zeros(2, 16, 8))
        self.register_buffer("steps", torch.tensor(0))
        self.plain = [torch.zeros(2, 16, 8)]  # held by the module, but no buffer
        self.cache: torch.Tensor
        self.steps: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at, new = self.steps + torch.arange(1), self.project(x)
        self.steps.add_(1)
        self.cache.index_copy_(1, at, new * self.decay)
        self.plain[0][:, at] = new
        with torch.no_grad():
            self.decay.mul_(0.5).add_(1)
        return torch.softmax(self.cache + self.plain[0], 1).sum(1) * self.decay


@pytest.mark.parametrize("dynamic", [False, True])
def test_state_of_a_module(dynamic: bool) -> None:
    eager = Decoder().eval()
    fast = copy.deepcopy(eager)
    run, engines = compiled(fast, dynamic)
    for k in range(4):
        same(run(rand(2, 1, 8, seed=k)), eager(rand(2, 1, 8, seed=k)))
        same(list(fast.state_dict().values()), list(eager.state_dict().values()))
        same(fast.plain, eager.plain)
    (engine,) = engines  # what it changes is no constant that would have to be packed again
    assert len(engine.program.state) == in_place(engine) == 4
    assert [(b.builds, b.updates) for r in torch_report() for b in r.blocks] == [(1, 0)]
    nothing_left_but()


def test_a_parameter_that_one_function_changes_and_another_reads() -> None:
    net = nn.Linear(6, 6)

    def write(x: torch.Tensor) -> torch.Tensor:
        net.weight.mul_(0.5).add_(x)
        return net.weight.sum(0)

    reader, writer = compiled(lambda x: net(x).relu() * 2)[0], compiled(write)[0]
    x = rand(6, 6)
    for _ in range(3):
        same(reader(x), net(x).relu() * 2)
        weight = net.weight.clone()
        writer(x)
        same(net.weight.detach(), weight * 0.5 + x)
    same(reader(x), net(x).relu() * 2)


# ------------------------------------------------------------------------------------------ results and their memory


def test_what_is_written_is_returned_too() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> Any:
        x.mul_(2).add_(y)
        return x, x[1:], x.view(-1), x.sin() + y

    check(fn, lambda: (rand(4, 4), rand(4, 4, seed=1)))
    run, x = compiled(fn)[0], rand(4, 4)
    found = run(x, x.clone())
    assert found[0] is x
    assert [f.data_ptr() for f in found[1:3]] == [x[1:].data_ptr(), x.data_ptr()]


def test_a_result_that_is_also_copied_into_an_input_has_memory_of_its_own() -> None:
    def fn(x: torch.Tensor, z: torch.Tensor) -> Any:
        y = x.sin() * 2 + 1
        x.copy_(y)
        z.copy_(y)
        return y, y.view(-1)

    check(fn, lambda: (rand(4, 4), rand(4, 4, seed=1)))
    run, x, z = compiled(fn)[0], rand(4, 4), rand(4, 4)
    found = run(x, z)
    kept = found[0].clone()
    x.zero_()
    z.zero_()
    same(found, (kept, kept.view(-1)))


def test_nothing_is_returned() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> None:
        x.add_(y.sin())

    (engine,) = check(fn, lambda: (rand(4, 4), rand(4, 4, seed=1)))
    assert in_place(engine) == 1


def test_inputs_are_copied_into_each_other() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        old = x.clone()
        x.copy_(y)
        y.copy_(old)
        z.copy_(old * 2 + y)
        return old + x

    check(fn, lambda: tuple(rand(4, 4, seed=k) for k in range(3)))


# --------------------------------------------------------------------------------------------- memory of the inputs


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: rand(6, 4).t(),
    "a column of two": lambda: rand(4, 12)[:, ::2],
    "a part": lambda: rand(8, 8)[2:6, 1:7],
    "unaligned": lambda: rand(25)[1:].view(4, 6),
    "inference tensor": lambda: _inference(rand(4, 6)),
    "needs a gradient": lambda: rand(4, 6).requires_grad_(),
    "a parameter": lambda: nn.Parameter(rand(4, 6)),
}


def _inference(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5).add_(y.sin())
        return x.cos() * 2

    with torch.inference_mode() if layout == "inference tensor" else torch.no_grad():
        (engine,) = check(fn, lambda: (LAYOUTS[layout](), rand(1, 6)), verify="off")
    assert in_place(engine) == 1


def test_a_transposed_cache() -> None:
    def fn(x: torch.Tensor, at: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.index_copy_(1, at, y.sin())
        return (x.t() @ y[:, :1]).cos() * 2

    check(fn, lambda: (rand(8, 4).t(), torch.tensor([2, 5]), rand(4, 2)))


def test_channels_last_state() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5).add_(y.sin()).cos()

    check(fn, lambda: tuple(rand(2, 3, 4, 5, seed=k).to(memory_format=torch.channels_last) for k in range(2)))


def test_an_expanded_input_is_refused_as_in_eager() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1).sin() * 2

    for call in (fn, compiled(fn)[0]):
        with pytest.raises(RuntimeError, match="single memory location"):
            call(rand(4, 1).expand(4, 6))


OVERLAPS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "one tensor twice": lambda: (lambda x: (x, x))(rand(24)),
    "a view of the other": lambda: (lambda x: (x, x.view(4, 6).view(-1)))(rand(24)),
    "overlapping parts": lambda: (lambda x: (x[:24], x[8:32]))(rand(40)),
    "disjoint parts": lambda: (lambda x: (x[:24], x[24:]))(rand(48)),
    "interleaved": lambda: (lambda x: (x[::2], x[1::2]))(rand(48)),
}


@pytest.mark.parametrize(("overlap", "both"), [*((k, False) for k in OVERLAPS), ("overlapping parts", True)])
def test_inputs_that_share_memory(overlap: str, both: bool) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(2).add_(1)
        if both:
            y.sub_(x.mean())
        return (x + y).sin()

    check(fn, OVERLAPS[overlap], verify="off")


def test_inputs_that_share_memory_only_later_are_refused() -> None:
    """PyTorch compiles nothing anew for them, so that the engine has to say it."""

    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(2).add_(1)
        return (x + y).sin()

    run = compiled(fn)[0]
    same(run(rand(24), rand(24)), fn(rand(24), rand(24)))
    with pytest.raises(InputError, match="overlap"):
        run(*OVERLAPS["overlapping parts"]())


# -------------------------------------------------------------------------------------------- blocks and PyTorch


def test_pytorch_reads_old_and_new_values() -> None:
    def fn(x: torch.Tensor, cache: torch.Tensor) -> Any:
        first = ordered(cache.view(-1)).view(cache.shape)  # old values, by a view
        cache.mul_(0.5).add_(x.sin() + first)
        second = ordered(cache)
        cache.add_(second * 2)
        return first + second, ordered(cache, 0) * 2

    check(fn, lambda: (rand(4, 6), rand(4, 6, seed=1)))
    nothing_left_but(NAME)


def test_pytorch_reads_old_values_after_the_new_ones_are_computed() -> None:
    def fn(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        new = x.sin() * 2
        larger = torch.maximum(new.view(-1), cache.view(-1))
        cache.copy_(new + 1)
        return larger.view(cache.shape) + cache

    check(fn, lambda: (rand(4, 6), rand(4, 6, seed=1)), torch_executed_ops=["aten.maximum"])
    assert ("aten.copy_.default", LATE) in torch_report()[0].left


def test_what_reads_an_input_after_a_copy_into_it_waits_for_the_copy() -> None:
    """AOTAutograd makes no such graphs."""
    graph, aten = torch.fx.Graph(), torch.ops.aten
    x = graph.placeholder("x")
    view = graph.call_function(aten.view.default, (x, [-1]))
    new = graph.call_function(aten.sin.default, (x,))
    first = graph.call_function(aten.cos.default, (view,))
    copy_ = graph.call_function(aten.copy_.default, (x, new))
    last = graph.call_function(aten.cos.default, (view,))
    graph.output((first, last))
    for node in graph.nodes:
        node.meta["val"] = rand(4)
    parts = partition(graph, lambda node: Verdict(None, True), 1)
    assert parts.left == {copy_: OVERTAKEN}
    assert parts.stages[first] < parts.stages[copy_] < parts.stages[last]


def test_pytorch_computes_the_new_value() -> None:
    def fn(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.copy_(ordered(x.sin() * 2 + cache))
        return x.cos() * 2

    check(fn, lambda: (rand(4, 6), rand(4, 6, seed=1)))
    nothing_left_but(NAME, "aten.copy.default", "aten.copy_.default")


def test_pytorch_reads_a_cache_where_the_engine_keeps_it() -> None:
    def fn(cache: torch.Tensor, at: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, at, x.sin() * 2)
        return ordered(cache).sum() + x

    first, _ = check(fn, lambda: (rand(8, 4), torch.tensor([3]), rand(1, 4)))
    assert [t.name for t in first.outputs] == [s.output for s in first.program.state]
    assert in_place(first) == 1


def test_a_block_that_pytorch_runs_writes_once() -> None:
    def fn(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.mul_(0.5).add_(x)
        return cache.sin() * 2

    def build(graph: Graph, *, feeds: Mapping[str, np.ndarray]) -> Any:
        raise AccuracyError("output y has relative error 2e-02, above 1e-03")

    chosen = parse_options({})
    run = torch.compile(fn, backend=lambda m, i: backend.compile_with(m, i, chosen, "sim", build))
    mine, theirs = rand(4, 6), rand(4, 6)
    for k in range(3):
        same(run(rand(4, 6, seed=k), mine), fn(rand(4, 6, seed=k), theirs))
        same(mine, theirs)


# ------------------------------------------------------------------------------------------------- types and calls


def test_types_and_precision() -> None:
    def fn(x: torch.Tensor, count: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5).add_(count)
        count.add_(3)
        seen.logical_or_(x > 0.5)
        return x * seen

    def make(dtype: torch.dtype) -> Callable[[], tuple[torch.Tensor, ...]]:
        return lambda: (rand(4, 6, dtype=dtype), torch.arange(6), torch.zeros(4, 6, dtype=torch.bool))

    check(fn, make(torch.bfloat16), 2e-2)
    check(fn, make(torch.float64), 1e-12)
    (engine,) = check(fn, make(torch.float64), 1e-5, truncate_double=True)
    assert [t.dtype for t in engine.inputs][:1] == ["f32"]
    check(fn, make(torch.float32), 1e-2, precision="fp16")


def test_open_sizes() -> None:
    def fn(cache: torch.Tensor, at: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(1, at, x.sin())
        return cache.cos().sum(1) + x.sum(1)

    run, engines = compiled(fn, dynamic=True)
    for n, length in ((2, 8), (3, 5), (4, 12)):
        mine, theirs = rand(n, length, 4), rand(n, length, 4)
        for at in ([1, 3], [0, 2]):
            x = rand(n, 2, 4, seed=n)
            same(run(mine, torch.tensor(at), x), fn(theirs, torch.tensor(at), x))
            same(mine, theirs)
    assert [in_place(e) for e in engines] == [1]


def test_threads_with_caches_and_parameters_of_their_own() -> None:
    class Step(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.weight, self.cache = nn.Parameter(rand(6, 6, seed=seed)), torch.zeros(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cache.mul_(0.5).add_((x @ self.weight).sum(0))
            return self.cache.sin() * 2

    nets, x = [Step(k) for k in range(2)], rand(3, 6)
    run, failures = compiled(lambda net, x: net(x))[0], list[Exception]()

    def work(net: Step) -> None:
        other = copy.deepcopy(net)
        try:
            with torch.no_grad():
                for _ in range(6):
                    same(run(net, x), other(x))
        except Exception as error:
            failures.append(error)

    run(nets[0], x)
    threads = [threading.Thread(target=work, args=(n,)) for n in nets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


class Scaled(nn.Module):
    """A layer, a counter and a scale, which others change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x) * self.scale + self.count
        return result


def test_a_counter_of_rank_0_that_others_change_causes_one_build() -> None:
    module, x = Scaled().eval(), rand(3, 8)
    run, engines = compiled(module)
    with torch.no_grad():
        for k in range(5):
            module.count.fill_(k)
            same(run(x), module(x))
    assert len(engines) == 1


def test_a_scalar_that_changes_becomes_an_input() -> None:
    module, x = Scaled().eval(), rand(3, 8)
    run, engines = compiled(module)
    with torch.no_grad():
        for k in range(5):
            module.scale.fill_(1.0 + k)
            same(run(x), module(x))
    assert len(engines) == 2


def test_a_second_derivative_is_refused_by_name() -> None:
    """PyTorch's own limit of compiled functions, whatever the backend."""
    options = {"device": "sim", "min_block_size": 1}
    run = torch.compile(lambda x: (x**3).sum(), backend="arcweld", options=options)
    x = rand(4).requires_grad_()
    with torch.enable_grad():
        (first,) = torch.autograd.grad(run(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(first.sum(), x)
