"""Empty parts of concatenations and dense ``as_strided`` do not part a graph, and mean what they mean in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_oracle import compiled, same
from torch_oracle import rand

from arcweld.torch.report import clear_report, torch_report

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def whole(fn: Callable[..., Any], *args: torch.Tensor, dynamic: bool = False) -> None:
    """Asserts that one block computes all of ``fn``, as eager torch does."""
    same(compiled(fn, min_block_size=1, dynamic=dynamic)(*args), fn(*args))
    (report,) = torch_report()
    assert not report.left
    assert len(report.blocks) == 1


def test_a_cache_that_begins_empty() -> None:
    def fn(x: torch.Tensor) -> Any:
        keys = torch.cat([torch.tensor([]), (x * 2).transpose(1, 2)], dim=-2)
        values = torch.cat([x.new_zeros(2, 0, 4), x.exp(), x[:, :0], x + 1], dim=1)
        return keys.softmax(-1) @ values[:, :3], keys, values

    whole(fn, rand(2, 3, 4))


def test_an_empty_part_that_decides_the_element_type() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([torch.tensor([], dtype=torch.float64), x.exp() + 1])
        return y * 2 + y.sin()

    x = rand(5)
    found = compiled(fn)(x)
    assert found.dtype is torch.float64
    same(found, fn(x))


def test_nothing_but_empty_parts() -> None:
    def fn(x: torch.Tensor) -> Any:
        return torch.cat([x[:0], x[:0]]), x.exp() * 2 + 1

    x = rand(5)
    same(compiled(fn)(x), fn(x))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pooling_to_one_element(memory_format: torch.memory_format, dynamic: bool) -> None:
    whole(
        lambda x: F.adaptive_avg_pool2d(x.relu(), 1).flatten(1).exp() * 2,
        rand(4, 3, 8, 6).to(memory_format=memory_format), dynamic=dynamic,
    )  # fmt: skip


def test_strided_views_of_all_elements() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = torch.as_strided(x * 2, (3, 4), (1, 3)).exp()
        b = torch.as_strided(x.t() + 1, (2, 1, 2, 3), (2, 7, 1, 4)).sin()
        return a.sum(0) * b.sum() + torch.as_strided(x + 3, (12,), (1,)).amax()

    whole(fn, rand(4, 3))


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((2, 3), (3, 1), 3), ((4, 4), (2, 1), 0), ((3, 3), (0, 1), 2), ((2, 0), (1, 1), 0)]
)
def test_strided_views_of_some_elements(size: Any, stride: Any, offset: int) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = torch.as_strided((x * 2 + 1).exp(), size, stride, offset).sin() * 3 + 1
        return a + torch.as_strided((x + 1).t().relu(), size, stride, offset) * 2

    x = rand(4, 3)
    same(compiled(fn)(x), fn(x))
    assert bool(torch_report()[0].left) == (0 in size)


def test_strided_views_of_strided_views() -> None:
    whole(lambda x: x.exp().unfold(2, 3, 1).unfold(3, 2, 2) * 2 + x.diagonal(1, 2, 3).sum(), rand(2, 3, 6, 6))
    torch._dynamo.reset()
    clear_report()
    whole(lambda x: (x * 2).trace() + x.sin().diagonal(-1).cos().sum(), rand(4, 5))


def test_inputs_that_begin_inside_their_memory() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.as_strided(x, (2, 2), (3, 1)).exp() * 2 + torch.as_strided(x, (2, 2), (1, 2), 4).sin()

    x = rand(5, 3)[1:]
    same(compiled(fn, min_block_size=1)(x), fn(x))


def test_views_beyond_a_tensor_and_complex_numbers_stay_with_pytorch() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = torch.as_strided(x[1:], (3,), (1,), 0)
        z = torch.view_as_real(torch.as_strided(torch.view_as_complex(x), (2,), (1,)) * 2)
        return y.exp() * 2 + 1, z.sin() + 1

    x = rand(4, 2)
    same(compiled(fn)(x), fn(x))


def test_keys_and_values_of_two_caches_are_equally_long() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (torch.cat([t, q], 2) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v) * 2

    run = compiled(fn, dynamic=True, min_block_size=1)
    for batch, length in ((2, 5), (2, 6), (3, 9)):
        q, k, v = rand(batch, 4, 1, 8), rand(batch, 4, length, 8), rand(batch, 4, length, 8, seed=1)
        for t in (q, k, v):
            torch._dynamo.maybe_mark_dynamic(t, 2)
            torch._dynamo.mark_static(t, 3)
        same(run(q, k, v), fn(q, k, v))
    assert not any(r.left for r in torch_report())
