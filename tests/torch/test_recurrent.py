"""torch's LSTM, GRU and RNN: imported whole, and compiled with torch.compile, compared with PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backend_oracle import compiled, same
from torch import nn
from torch_oracle import compare, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.torch.importer import import_exported, import_module
from arcweld.torch.report import clear_report, torch_report

LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm_two_ways": (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "lstm_no_bias": (nn.LSTM, {"bias": False, "num_layers": 2}),
    "gru": (nn.GRU, {}),
    "gru_two_ways": (nn.GRU, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "gru_no_bias": (nn.GRU, {"bias": False}),
    "rnn": (nn.RNN, {"num_layers": 2}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.fixture(autouse=True)
def _anew() -> None:
    torch._dynamo.reset()
    clear_report()


class Layer(nn.Module):
    """A recurrent layer, all of whose results are used."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind, options = LAYERS[name]
        self.layer = kind(4, 5, **options)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y, last = self.layer(x)
        return [torch.relu(y), *(last if isinstance(last, tuple) else [last])]


class Stateful(nn.Module):
    """An LSTM that goes on from given states."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 5, num_layers=2)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        return self.layer(x, (h, c))


def kinds(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op in ("MatMul", "Recurrence", "Tanh", "Sigmoid")]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_arrive_whole(name: str) -> None:
    module = Layer(name).eval()
    args = (rand(7, 3, 4),)
    graph = import_module(module, args)
    compare(graph, module, args)
    assert kinds(graph) == ["MatMul", "Recurrence"] * module.layer.num_layers


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_programs_exported_elsewhere_arrive_whole(name: str) -> None:
    module = Layer(name).eval()
    args = (rand(7, 3, 4),)
    with torch.no_grad():
        graph = import_exported(torch.export.export(module, args))
    compare(graph, module, args)
    assert kinds(graph) == ["MatMul", "Recurrence"] * module.layer.num_layers


@pytest.mark.parametrize("name", ["lstm_two_ways", "gru"])
def test_open_numbers_of_steps_and_rows(name: str) -> None:
    module = Layer(name).eval()
    shapes = ({0: torch.export.Dim("a", min=1, max=99), 1: torch.export.Dim("b", min=1, max=99)},)
    graph = import_module(module, (rand(7, 3, 4),), dynamic_shapes=shapes)
    for a, b in ((1, 1), (30, 2), (2, 5)):
        compare(graph, module, (rand(a, b, 4),))


def test_states_are_inputs_and_results() -> None:
    module = Stateful().eval()
    args = (rand(6, 2, 4), rand(2, 2, 5), rand(2, 2, 5, seed=1))
    compare(import_module(module, args), module, args)


def test_a_layer_without_a_batch_and_one_in_half_precision() -> None:
    module = Layer("gru").eval()
    compare(import_module(module, (rand(7, 4),)), module, (rand(7, 4),))
    half = Layer("lstm").eval().half()
    args = (rand(7, 2, 4, dtype=torch.float16),)
    compare(import_module(half, args), half, args, rtol=4e-3, atol=4e-3)


def test_projections_are_steps_of_their_own() -> None:
    module = nn.LSTM(4, 5, proj_size=3).eval()
    args = (rand(3, 2, 4),)
    graph = import_module(module, args)
    compare(graph, module, args)
    assert "Recurrence" not in kinds(graph)


def test_dropout_between_layers_is_refused_in_training() -> None:
    module = nn.LSTM(4, 5, num_layers=2, dropout=0.5).train()
    with pytest.raises(UnsupportedError, match="dropout between the layers"):
        import_module(module, (rand(3, 2, 4),))


# ---------------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("name", ["lstm", "lstm_two_ways", "gru", "rnn_relu"])
def test_torch_compile_takes_layers_whole(name: str) -> None:
    module = Layer(name).eval()
    fn = compiled(module, require_full_compilation=True)
    with torch.no_grad():
        same(fn(rand(7, 3, 4)), module(rand(7, 3, 4)))
    (report,) = torch_report()
    (block,) = report.blocks
    assert report.left == {}
    assert block.nodes < 12  # no step by step


def test_one_compiled_layer_serves_sequences_of_any_length() -> None:
    module = Layer("lstm").eval()
    fn = compiled(module, dynamic=True, require_full_compilation=True)
    with torch.no_grad():
        for steps in (7, 4, 300):
            same(fn(rand(steps, 3, 4)), module(rand(steps, 3, 4)))
    assert len(torch_report()) == 1


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_layers_with_gradients_are_traced_step_by_step(name: str) -> None:
    """Eager's gradients, of oneDNN's layers where PyTorch takes those."""
    module = Layer(name)
    x = rand(7, 3, 4)
    module(x)[0].square().sum().backward()
    want = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    fn = compiled(module)
    fn(x)[0].square().sum().backward()
    assert want
    for n, p in module.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, want[n], rtol=1e-4, atol=1e-5)
