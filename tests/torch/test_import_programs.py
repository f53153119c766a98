"""Exported programs of every shape: structured arguments and results, sub-graphs, symbolic sizes, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch_oracle import Functions, compare, rand, run_graph

from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.compiler.torch.importer import import_exported, import_fx, import_module, kept_composites
from arcweld.compiler.torch.table import handled, more_decompositions


class Structured(nn.Module):
    def forward(self, x: torch.Tensor, pair: tuple[torch.Tensor, dict[str, torch.Tensor]], scale: float = 2.0) -> Any:
        a, rest = pair
        return {"sum": x + a * scale, "list": [rest["b"] - x, None, 3], "same": x}


def test_structured_arguments_and_results() -> None:
    args = (rand(2, 3), (rand(2, 3, seed=1), {"b": rand(2, 3, seed=2)}), 3.0)
    graph = import_module(Structured().eval(), args)
    assert [v.name for v in graph.inputs] == ["x", "pair_0", "pair_1_b"]
    assert graph.labels() == ("sum", "list.0", "same")
    compare(graph, Structured(), args)


def test_keyword_arguments() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
            return x if mask is None else x.masked_fill(mask, 0)

    x, mask = rand(4), rand(4, seed=1) > 0
    graph = import_module(Model().eval(), (x,), {"mask": mask})
    found = run_graph(graph, (x, mask))
    torch.testing.assert_close(torch.from_numpy(found[0]), x.masked_fill(mask, 0))


def test_sub_graphs_of_grad_modes_and_autocast() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            with torch.no_grad():
                y = x.sin() + 1
            with torch.autocast("cpu", dtype=torch.bfloat16):
                z = self.fc(y)
            with torch.set_grad_enabled(False):
                return z.float() * y, y

    model, x = Model().eval(), rand(3, 4)
    program = torch.export.export(model, (x,), strict=False)
    with torch.no_grad():
        compare(import_exported(program), model, (x,), rtol=2e-2, atol=1e-2)


def test_in_place_code_is_functional_after_import() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(3, 4)
        y[1:] = x[:2]
        y[:, 0].add_(5)
        y.clamp_(max=4).mul_(x)
        return y

    module = Functions({"y": fn}).eval()
    compare(import_module(module, (rand(3, 4),)), module, (rand(3, 4),))


def test_fx_graphs_from_make_fx() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.nn.functional.gelu(x @ y), (x * 2).sum(1)

    x, y = rand(3, 4), rand(4, 5)
    module = make_fx(fn, tracing_mode="fake")(x, y)
    graph = import_fx(module, name="pair")
    found = run_graph(graph, (x, y))
    for a, e in zip(found, fn(x, y)):
        torch.testing.assert_close(torch.from_numpy(a), e)


def test_fx_borders_in_another_order() -> None:
    x = rand(2, 3, 4)
    module = make_fx(lambda x: x.sin() * 2, tracing_mode="fake")(x)
    name = next(n.name for n in module.graph.nodes if n.op == "placeholder")
    graph = import_fx(module, input_orders={name: (2, 0, 1)}, output_orders={0: (1, 2, 0)})
    assert graph.inputs[0].shape == (4, 2, 3)
    (found,) = run_graph(graph, (x.permute(2, 0, 1).contiguous(),))
    torch.testing.assert_close(torch.from_numpy(found), (x.sin() * 2).permute(1, 2, 0).contiguous())


def test_symbolic_image_sizes() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Upsample(scale_factor=2),
    ).eval()
    h, w = torch.export.Dim("h", min=8, max=64), torch.export.Dim("w", min=8, max=64)
    graph = import_module(model, (rand(1, 3, 16, 20),), dynamic_shapes=({2: h, 3: w},))
    assert {s.name for s in graph.symbols()} == {"h", "w"}
    for shape in ((1, 3, 16, 20), (1, 3, 33, 47), (1, 3, 9, 64)):
        compare(graph, model, (rand(*shape),), atol=1e-4)


def test_automatic_dimensions_and_integer_arguments() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, y]) / x.shape[0] + torch.ones(x.shape[0] + y.shape[0], 1)

    auto = torch.export.Dim.AUTO
    graph = import_module(Model().eval(), (rand(3, 4), rand(5, 4)), dynamic_shapes=({0: auto}, {0: auto}))
    assert len(graph.symbols()) == 2
    compare(graph, Model(), (rand(6, 4), rand(2, 4)))


def test_a_triangle_with_a_symbolic_diagonal() -> None:
    """As causal masks are made where some rows are cached."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            k = y.shape[0]
            return x.tril(k), x.triu(k), x.triu(-k), x.long().tril(k - 4)

    n = torch.export.Dim("n", min=0, max=9)
    graph = import_module(Model().eval(), (rand(4, 6), rand(3)), dynamic_shapes=(None, {0: n}))
    for size in (0, 1, 3, 9):
        compare(graph, Model(), (rand(4, 6) * 9, rand(size)))


def test_control_flow_is_refused_by_name() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))

    with pytest.raises(UnsupportedError, match="cond"):
        import_module(Model().eval(), (rand(3),))


def test_what_cannot_be_exported_is_a_model_error() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"torch\.export refused Model"):
        import_module(Model().eval(), (rand(3),))


def test_the_violated_guard_is_shown() -> None:
    """Torch says in later lines which argument violates which guard, and how to mend it."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with pytest.raises(ModelError) as caught:
        import_module(nn.Linear(4, 4).eval(), (rand(3, 4),), dynamic_shapes=({1: batch},))
    text = str(caught.value)
    assert text.startswith("torch.export refused Linear: UserError: Constraints violated (batch)!")
    assert "L['input'].size()[1]" in text or "batch" in text.split("\n", 1)[1]
    assert "Suggested fixes:" in text
    assert 'torch.compile(model, backend="arcweld") needs no export' in text


def test_a_place_is_said_once() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.qr(x)[0]

    with pytest.raises(UnsupportedError) as caught:
        import_module(Model().eval(), (rand(3, 3),))
    assert str(caught.value).count("[first at test_import_programs.py:") == 1
    assert "[at " not in str(caught.value)
    assert str(caught.value.node).startswith("test_import_programs.py:")


def test_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"module\.eval\(\)"):
        import_module(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), (rand(1, 2),))
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)).train()
    compare(import_module(model, (rand(1, 2),)), model, (rand(1, 2),))


def test_strided_and_tied_and_bf16_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(rand(4, 3).t())
            self.b = nn.Parameter(rand(3, dtype=torch.bfloat16))
            self.tied = self.b
            self.register_buffer("steps", torch.arange(3), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.a + 1).sum(1) * (self.b + self.tied)[: x.shape[0]] + self.steps[: x.shape[0]]

    model = Model().eval()
    graph = import_module(model, (rand(2, 3),))
    assert len([w for w in graph.weights.values() if w.source in ("a", "b", "tied", "steps")]) == 3
    compare(graph, model, (rand(2, 3),), rtol=1e-2)


@pytest.mark.parametrize("depth", [500, 5000])
def test_deeply_nested_modules_are_refused_by_name(depth: int) -> None:
    module: torch.nn.Module = torch.nn.ReLU()
    for _ in range(depth):
        module = torch.nn.Sequential(module)
    with pytest.raises(ModelError, match=r"torch\.export refused Sequential: RecursionError"):
        import_module(module, (torch.ones(2),))


def test_decompositions_are_kept_until_torch_knows_more_operators() -> None:
    kept_composites().clear()  # a copy
    again = kept_composites()
    assert again == kept_composites()
    assert not {str(op) for op in again} & handled() - {str(op) for op in more_decompositions()}
    library = torch.library.Library("arcweld_decompositions", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    twice = torch.ops.arcweld_decompositions.twice.default
    assert twice not in again
    assert twice in kept_composites()
    assert again.keys() < kept_composites().keys()
