"""Imported movement, indexing and scatter operators against eager torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from outside import ordered
from torch_oracle import Functions, check, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.importer import import_module


def test_views() -> None:
    functions = {
        "view": lambda x: x.view(6, -1),
        "reshape": lambda x: x.transpose(0, 1).reshape(-1),
        "flatten": lambda x: x.flatten(1),
        "unsqueeze": lambda x: x.unsqueeze(-1),
        "squeeze": lambda x: x[:, :1].squeeze(1),
        "permute": lambda x: x.permute(2, 0, 1),
        "t": lambda x: x[0].t(),
        "transpose": lambda x: x.transpose(-1, 0),
        "expand": lambda x: x[:1].expand(5, 2, -1, -1),
        "movedim": lambda x: x.movedim(0, 2),
        "unflatten": lambda x: x.unflatten(2, (2, 2)),
        "mT": lambda x: x.mT,
        "broadcast": lambda x: torch.broadcast_to(x, (2, 2, 3, 4)),
    }
    check(functions, rand(2, 3, 4))


def test_slicing() -> None:
    functions = {
        "plain": lambda x: x[1:, :4],
        "step": lambda x: x[:, ::2],
        "negative": lambda x: x[:, -3:-1],
        "select": lambda x: x[-1, 2],
        "beyond": lambda x: x[:, 2:100],
        "narrow": lambda x: torch.narrow(x, 1, 2, 3),
        "flip": lambda x: x.flip(0, 2),
        "split": lambda x: x.split(3, 1)[1],
        "sizes": lambda x: x.split([2, 5], 1),
        "chunk": lambda x: x.chunk(3, 1),
        "unbind": lambda x: x.unbind(0),
        "roll": lambda x: x.roll((1, -2), (0, 1)),
        "flat": lambda x: x.roll(3),
        "rot": lambda x: torch.rot90(x, 1, (0, 1)),
    }
    check(functions, rand(3, 7, 4))


def test_joining_and_repeating() -> None:
    functions = {
        "cat": lambda x, y: torch.cat([x, y, x], 1),
        "cat0": lambda x, y: torch.cat([x, x]),
        "empty": lambda x, y: torch.cat([torch.zeros(0), x], -1),
        "stack": lambda x, y: torch.stack([x, x + 1], -1),
        "repeat": lambda x, y: x.repeat(2, 3),
        "ranks": lambda x, y: x.repeat(2, 1, 1),
        "ones": lambda x, y: y[:, :1].repeat(1, 4),
        "interleave": lambda x, y: x.repeat_interleave(3, 1),
        "interleave0": lambda x, y: x.repeat_interleave(2),
        "meshgrid": lambda x, y: torch.meshgrid(x[0], y[0], indexing="ij"),
        "hstack": lambda x, y: torch.hstack([x, y]),
        "tile": lambda x, y: x.tile(2, 2),
        "outer": lambda x, y: torch.outer(x[0], y[0]),
    }
    check(functions, rand(2, 3), rand(2, 5))


def test_padding() -> None:
    functions = {
        "constant": lambda x: F.pad(x, (1, 2, 0, 3), value=1.5),
        "crop": lambda x: F.pad(x, (-1, 2, 1, -1)),
        "reflect": lambda x: F.pad(x, (1, 2, 2, 0), mode="reflect"),
        "edge": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
        "circular": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
        "last": lambda x: F.pad(x, (3, 0)),
        "crop_reflect": lambda x: F.pad(x, (-2, 2, 2, -1), mode="reflect"),
        "crop_edge": lambda x: F.pad(x, (-4, 3, 2, -3), mode="replicate"),
        "crop_all": lambda x: F.pad(x, (-5, 6, 0, 0), mode="replicate"),
        "crop_all_behind": lambda x: F.pad(x, (6, -6, 1, -4), mode="replicate"),
    }
    check(functions, rand(2, 3, 4, 5))


def test_space_and_depth() -> None:
    functions = {
        "shuffle": lambda x: F.pixel_shuffle(x, 2),
        "unshuffle": lambda x: F.pixel_unshuffle(x, 2),
        "channels": lambda x: F.channel_shuffle(x, 4),
        "tril": lambda x: x.tril(1),
        "triu": lambda x: x.triu(-1),
        "tril0": lambda x: torch.tril(torch.ones(5, 5, dtype=torch.bool)),
    }
    check(functions, rand(2, 8, 4, 6))


def test_tensors_made_from_nothing() -> None:
    functions = {
        "zeros": lambda x: torch.zeros(2, 3) + x[0, 0],
        "like": lambda x: torch.ones_like(x),
        "full": lambda x: torch.full((2,), 7),
        "arange": lambda x: torch.arange(2, 11, 3),
        "float": lambda x: torch.arange(0, 1, 0.1),
        "down": lambda x: torch.arange(5, 0, -2),
        "eye": lambda x: torch.eye(3, 4),
        "linspace": lambda x: torch.linspace(-1, 1, 7),
        "new": lambda x: x.new_full((3,), 2.5),
        "farange": lambda x: torch.arange(4.0),
        "constant": lambda x: x[0, :3] + torch.tensor([1.0, 2.0, 3.0]),
    }
    check(functions, rand(2, 3))


def test_gathers() -> None:
    index = torch.tensor([[0, 2, 1], [1, 1, 0]])
    functions = {
        "embedding": lambda x, i: F.embedding(i, x),
        "select": lambda x, i: x.index_select(1, i[0]),
        "gather": lambda x, i: x.gather(1, i),
        "index": lambda x, i: x[i],
        "second": lambda x, i: x[:, i],
        "pair": lambda x, i: x[i[:, 0], i[:, 1]],
        "broadcast": lambda x, i: x[i[:, :1], i[0]],
        "take": lambda x, i: x.take(i),
        "along": lambda x, i: torch.take_along_dim(x, i[:1], 1),
        "onehot": lambda x, i: F.one_hot(i, 4),
        "negative": lambda x, i: x[i - 1],
        "int32": lambda x, i: x[i.int()],
    }
    check(functions, rand(3, 4), index)


def test_indexing_inner_axes() -> None:
    functions = {
        "inner": lambda x, i: x[:, i, i],
        "apart": lambda x, i: x[i, :, i],
        "last": lambda x, i: x[..., i],
        "none": lambda x, i: x[:, None, i],
        "put": lambda x, i: torch.index_put(x, (i,), x[i] * 2),
        "add": lambda x, i: torch.index_put(x, (i, i), torch.ones(3, 4), accumulate=True),
        "inner_put": lambda x, i: _assign_inner(x, i),
    }
    check(functions, rand(3, 3, 4), torch.tensor([2, 0, 1]))


def test_scatters() -> None:
    index = torch.tensor([[0, 2, 1], [1, 0, 2]])
    functions = {
        "src": lambda x, i, s: x.scatter(1, i, s),
        "value": lambda x, i, s: x.scatter(1, i, 9.0),
        "add": lambda x, i, s: x.scatter_add(0, i % 2, s),
        "amax": lambda x, i, s: x.scatter_reduce(1, i, s, "amax"),
        "prod": lambda x, i, s: x.scatter_reduce(1, i, s, "prod"),
        "rows": lambda x, i, s: x.index_add(0, i[0] % 2, s.new_ones(3, 3), alpha=2),
        "copy": lambda x, i, s: x.index_copy(1, i[0], s[:, :3]),
        "slice": lambda x, i, s: torch.slice_scatter(x, s[:, :1], 1, 1, 2),
        "select": lambda x, i, s: torch.select_scatter(x, s[:, 0], 1, -1),
        "mask": lambda x, i, s: x.masked_fill(x > 0, 2),
        "inplace": lambda x, i, s: _assign(x, s),
        "masked": lambda x, i, s: _assign_mask(x),
    }
    check(functions, rand(2, 3), index, rand(2, 4, seed=7))


def _assign(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:] = s[:, :2]
    y[0] += 1
    return y


def _assign_inner(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, i[:2]] = torch.ones(3, 2, 4)
    return y


def _assign_mask(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y > 0] = -1.0
    return y


def test_dynamic_sizes() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            n = x.shape[0]
            return (
                x.reshape(n // 2, 2, -1),
                x[: n - 1] * n,
                torch.cat([x, x[:1]]),
                x.view(-1),
                torch.arange(n) + n,
                x[-2:],
                x.unsqueeze(0).expand(3, n, 4).flatten(1),
                torch.zeros(n, n) + x[:, :1],
            )

    from torch_oracle import compare

    dims = ({0: 2 * torch.export.Dim("half", min=1, max=20)},)
    graph = import_module(Model().eval(), (rand(6, 4),), dynamic_shapes=dims)
    assert [s.name for s in graph.symbols()] == ["half"]
    assert graph.symbols()[0].hi == 20
    for n in (2, 6, 20):
        compare(graph, Model(), (rand(n, 4),))


def test_sizes_that_depend_on_data_are_refused() -> None:
    functions = {"mask": lambda x: x[x > 0], "sort": lambda x: ordered(x), "ok": lambda x: x + 1}
    with pytest.raises(UnsupportedError) as caught:
        import_module(Functions(functions).eval(), (rand(4),))
    text = str(caught.value)
    assert "outside.ordered.default (1 x)" in text
    assert "depends on data" in text or "depends on the data" in text
    assert "2 nodes" in text
