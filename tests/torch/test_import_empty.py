"""Tensors without elements: what eager torch makes of them, the kernels do too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_runs import built, on_simulator
from torch_oracle import Functions

from arcweld.compiler.torch.importer import import_module
from arcweld.compiler.torch.types import as_array

ANY: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "roll": lambda x: torch.roll(x, (0, 2), (0, 1)),
    "repeat": lambda x: x.repeat(2, 3),
    "tile": lambda x: x.tile(2, 3, 2),
    "flip": lambda x: x.flip(0, 1),
    "pad": lambda x: F.pad(x, (1, 2, 1, 1), value=2.0),
    "cat": lambda x: torch.cat([x, torch.ones(2, x.shape[1])]),
    "stack": lambda x: torch.stack([x, x * 2]),
    "transpose": lambda x: x.T.contiguous(),
    "expand": lambda x: x[None].expand(3, *x.shape),
    "where": lambda x: torch.where(x > 0, x, -x),
    "cast": lambda x: x.long(),
    "triu": lambda x: x.triu(),
    "sum": lambda x: x.sum(),
    "sum_rows": lambda x: x.sum(0),
    "prod": lambda x: x.prod(1),
    "all": lambda x: (x > 0).all(),
    "any": lambda x: (x > 0).any(0),
    "norm": lambda x: x.norm(),
    "mean": lambda x: x.mean(0),
    "cumsum": lambda x: x.cumsum(0),
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "product": lambda x: x @ x.T,
    "inner": lambda x: F.gelu(x.T @ x),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3),
    "embedding": lambda x: F.embedding(x.long(), torch.ones(3, 5)),
    "index_add": lambda x: torch.zeros(4, x.shape[1]).index_add(0, torch.zeros(x.shape[0], dtype=torch.long), x),
}
ROWS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {  # of four columns
    "linear": lambda x: F.linear(x, torch.ones(5, 4), torch.ones(5)),
    "convolution": lambda x: F.conv2d(x[:, :, None, None].expand(-1, -1, 5, 5), torch.ones(6, 4, 3, 3)),
    "max_pool": lambda x: F.max_pool2d(x.reshape(-1, 1, 2, 2), 2),
    "interpolate": lambda x: F.interpolate(x[:, None], scale_factor=2),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "argmax": lambda x: x.argmax(1),
    "topk": lambda x: x.topk(2, 1)[0],
}


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_in(shape: tuple[int, int]) -> None:
    functions = {**ANY, **(ROWS if shape[1] == 4 else {})}
    x = torch.zeros(shape)
    module = Functions(functions).eval()
    graph = import_module(module, (x,))
    found = on_simulator(built(graph), {v.name: x.numpy() for v in graph.inputs})
    with torch.no_grad():
        wanted = module(x)
    assert len(found) == len(wanted)
    for (name, want), got in zip(wanted.items(), found.values()):
        assert got.dtype == as_array(want).dtype, name
        np.testing.assert_array_equal(got, want.numpy(), err_msg=name)
