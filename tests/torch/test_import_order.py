"""ATen's operators of order, scatters, embeddings and distances against eager torch: odd shapes, ties, other types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_oracle import compiled, same
from torch_oracle import check, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.torch.report import torch_report

INTS = torch.int32


def test_sorting() -> None:
    functions = {
        "first axis": lambda x: torch.sort(x, 0, descending=True),
        "middle": lambda x: torch.sort(x, stable=True, dim=1),
        "arguments": lambda x: torch.argsort(x, stable=True, dim=-1),
        "kth": lambda x: torch.kthvalue(x, 2, 1, keepdim=True),
        "median": lambda x: torch.median(x, 2),
        "nanmedian": lambda x: torch.nanmedian(x, 1, keepdim=True),
        "all": lambda x: (torch.median(x), torch.nanmedian(x)),
        "quantile": lambda x: torch.quantile(x, 0.3, 1),
    }
    check(functions, rand(3, 5, 4))
    check({"scalar": lambda x: (torch.sort(x), torch.median(x, 0), torch.mode(x), torch.kthvalue(x, 1))}, rand())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.uint8], ids=str)
def test_ties_keep_their_order(dtype: torch.dtype) -> None:
    x = torch.randint(0, 3, (4, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    functions = {
        "up": lambda x: torch.sort(x, stable=True, dim=1),
        "down": lambda x: torch.sort(x, stable=True, dim=1, descending=True),
        "mode": lambda x: torch.mode(x, 1),
        "mode of columns": lambda x: torch.mode(x, 0, keepdim=True),
        "cummax": lambda x: torch.cummax(x, 1),
        "cummin": lambda x: torch.cummin(x, 0),
    }
    check(functions, x)


def test_long_rows_on_the_kernels_path() -> None:
    x = torch.randint(-40, 40, (2, 5000), generator=torch.Generator().manual_seed(0)).float()
    x[0, ::700], x[1, 5::900] = float("nan"), float("inf")
    check({"up": lambda x: torch.sort(x, stable=True, dim=1), "top": lambda x: torch.kthvalue(x, 3000, 1)[0]}, x)


def test_sorting_of_very_long_rows() -> None:
    """Which blocks do together; the reference on the host says the places here."""
    x = torch.randint(-900, 900, (90000,), generator=torch.Generator().manual_seed(1)).float()
    functions = {
        "sort": lambda x: torch.sort(x, stable=True), "top": lambda x: torch.topk(x, 2000)[0],
        "median": lambda x: torch.median(x),
    }  # fmt: skip
    check(functions, x)


def test_searches_and_counts() -> None:
    edges = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.7, 2.0])
    rows = torch.sort(rand(3, 6), -1)[0]
    functions = {
        "left": lambda x, e, r: torch.searchsorted(e, x),
        "right": lambda x, e, r: torch.searchsorted(e, x, right=True, out_int32=True),
        "rows": lambda x, e, r: torch.searchsorted(r, x[:3]),
        "number": lambda x, e, r: torch.searchsorted(e, 0.0, side="right"),
        "buckets": lambda x, e, r: torch.bucketize(x, e),
        "histogram": lambda x, e, r: torch.histc(x, 5, -1, 1),
        "its own range": lambda x, e, r: torch.histc(x, 4),
        "all equal": lambda x, e, r: torch.histc(x * 0 + 3, 4),
        "isin": lambda x, e, r: torch.isin(x, e),
    }
    x = rand(5, 4)
    x[0, 0], x[1, 1] = 0.0, 0.7
    check(functions, x, edges, rows)


def test_running_sums_of_exponentials() -> None:
    x = rand(3, 7, scale=3)
    x[0, 2], x[1, :3], x[2, 4] = float("inf"), float("-inf"), -2000.0
    functions = {"rows": lambda x: torch.logcumsumexp(x, 1), "columns": lambda x: torch.logcumsumexp(x, 0)}
    check(functions, x)
    check({"small first": lambda x: torch.logcumsumexp(x, 0)}, torch.tensor([-1000.0, 0.0, 5.0, 1e4]))
    check({"products": lambda x: torch.cumprod(x, 1)}, rand(2, 5, dtype=INTS))


def test_masked_scatter_put_and_static_nonzero() -> None:
    x, mask, source = rand(4, 3), rand(4, 3) > 0, rand(20)
    functions = {
        "masked": lambda x, m, s: x.masked_scatter(m, s),
        "broadcast": lambda x, m, s: x.masked_scatter(m[0], s),
        "put": lambda x, m, s: x.put(torch.tensor([0, -1, 5]), s[:3]),
        "accumulated": lambda x, m, s: x.put(torch.tensor([[0, 0], [5, 0]]), s[:4].view(2, 2), accumulate=True),
        "diagonal": lambda x, m, s: torch.diagonal_scatter(x, s[:3]),
        "below": lambda x, m, s: torch.diagonal_scatter(x, s[:2], -2),
        "nonzero": lambda x, m, s: torch.nonzero_static(m, size=5),
        "more than there are": lambda x, m, s: torch.nonzero_static(m, size=40, fill_value=-7),
    }
    check(functions, x, mask, source)


def test_index_put_apart_and_by_masks() -> None:
    x, rows, columns, v = rand(4, 3, 5), torch.tensor([0, 3]), torch.tensor([[1], [4]]), rand(2, 2, 3)
    mask = rand(4, 3) > 0

    def put(x: torch.Tensor, at: Any, v: torch.Tensor, add: bool = False) -> torch.Tensor:
        return torch.ops.aten.index_put(x, at, v, add)

    functions = {
        "apart": lambda x, r, c, v: put(x, [r, None, c], v),
        "added": lambda x, r, c, v: put(x, [r, None, c], v, True),
        "broadcast": lambda x, r, c, v: put(x, [r, None, c], v[0, 0]),
        "together": lambda x, r, c, v: put(x, [None, r - 2, c], v[:1, :, :2].expand(4, 2, 2)),
        "mask": lambda x, r, c, v: put(x, [mask], v[0, 0, 0]),
        "mask added": lambda x, r, c, v: put(x, [mask], v[:1, :1, 0].view(1, 1), True),
    }
    check(functions, x, rows, columns, v)


def test_grouped_products() -> None:
    a, b = rand(7, 16, dtype=torch.bfloat16), rand(3, 16, 8, dtype=torch.bfloat16, scale=0.3)
    offs = torch.tensor([2, 2, 7], dtype=torch.int32)
    graph = check({"groups": lambda a, b, o: torch._grouped_mm(a, b, o)}, a, b, offs, rtol=1e-2, atol=1e-2)
    assert "GroupedMatMul" not in {n.op for n in graph.nodes}  # few rows


@pytest.mark.parametrize("ends", [(30, 30, 72), (0, 0, 72), (1, 2, 72)], ids=str)
def test_grouped_products_of_many_rows(ends: tuple[int, ...]) -> None:
    a, b = rand(72, 16, dtype=torch.bfloat16), rand(3, 16, 8, dtype=torch.bfloat16, scale=0.3)
    offs = torch.tensor(ends, dtype=torch.int32)
    functions = {
        "rows": lambda a, b, o: torch._grouped_mm(a, b, o),
        "columns": lambda a, b, o: torch._grouped_mm(b.transpose(1, 2).contiguous(), a.t().contiguous(), o),
        "transposed": lambda a, b, o: torch._grouped_mm(a, b.transpose(1, 2).contiguous().transpose(1, 2), o),
        "batch": lambda a, b, o: torch._grouped_mm(b.transpose(1, 2).contiguous(), b),
    }
    graph = check(functions, a, b, offs, rtol=1e-2, atol=1e-2)
    assert [n.op for n in graph.nodes].count("GroupedMatMul") == 3


def test_a_grouped_product_over_groups_of_sums_is_refused() -> None:
    a, b = rand(8, 72, dtype=torch.bfloat16), rand(72, 8, dtype=torch.bfloat16)
    offs = torch.tensor([8, 72], dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="share out the sums"):
        check({"sums": lambda a, b, o: torch._grouped_mm(a, b, o)}, a, b, offs)


def test_grouped_products_of_transformers() -> None:
    pytest.importorskip("transformers.integrations.moe")
    a, b = rand(7, 16), rand(3, 16, 8, scale=0.3)
    fallback = torch.ops.transformers.grouped_mm_fallback
    check({"all rows": fallback}, a, b, torch.tensor([2, 2, 7], dtype=torch.int32))
    check({"fewer rows": fallback}, a, b, torch.tensor([0, 4, 5], dtype=torch.int32))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("how", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_scatter_with_and_without_old_values(how: str, include: bool, dtype: torch.dtype) -> None:
    x, src = rand(5, 3, dtype=dtype), rand(4, 3, dtype=dtype, seed=1)
    at = torch.tensor([[0, 4, 2], [0, 1, 2], [0, 4, 2], [3, 4, 0]])
    rows = torch.tensor([2, 0, 2, 2])
    functions: dict[str, Any] = {
        "elements": lambda x, s: x.scatter_reduce(0, at, s, how, include_self=include),
        "scalar": lambda x, s: x[0, 0].scatter_reduce(0, at[0, 0] * 0, s[0, 0], how, include_self=include),
    }
    if how != "sum":
        functions["slices"] = lambda x, s: x.index_reduce(0, rows, s, how, include_self=include)
    check(functions, x, src)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags(mode: str) -> None:
    table, at = rand(7, 3), torch.tensor([1, 2, 4, 5, 4, 3, 2, 6])
    functions = {
        "offsets": lambda t, i, o: F.embedding_bag(i, t, o, mode=mode),
        "padding": lambda t, i, o: F.embedding_bag(i, t, o, mode=mode, padding_idx=4),
        "last offset": lambda t, i, o: F.embedding_bag(i, t, o, mode=mode, include_last_offset=True),
        "matrix": lambda t, i, o: F.embedding_bag(i.view(2, 4), t, mode=mode),
    }
    check(functions, table, at, torch.tensor([0, 3, 3, 8]))
    if mode == "sum":
        check({"weights": lambda t, i, w: F.embedding_bag(i.view(2, 4), t, per_sample_weights=w, mode=mode)},
              table, at, rand(2, 4))  # fmt: skip


def test_norms_and_distances() -> None:
    functions: dict[str, Any] = {
        f"norm {p}": lambda x, p=p: torch.linalg.vector_norm(x, p, 1) for p in (0, 0.5, 1, 2, 3.5, -1, float("inf"))
    }
    functions |= {
        "least": lambda x: torch.linalg.vector_norm(x, float("-inf"), (0, 1), keepdim=True),
        "scalar": lambda x: torch.linalg.vector_norm(x[0, 0]),
        "distance": lambda x: torch.dist(x, x * 2, 3),
        "all pairs": lambda x: torch.cdist(x, x[:2] + 1, 1.5),
        "euclidean": lambda x: torch.cdist(x[None], x[None, :3] + 1, compute_mode="donot_use_mm_for_euclid_dist"),
        "later rows": lambda x: F.pdist(x, 1),
        "trilinear": lambda x: F.bilinear(x, x * 2, torch.ones(2, 4, 4)),
        "batches": lambda x: torch.addbmm(x[:4], x[None, :4], x[None, :4].mT @ x[None, :4], beta=0.5),
    }
    check(functions, rand(5, 4), atol=1e-4)


def test_blocks_that_read_nothing_and_only_move(fresh_dynamo: None) -> None:
    def fn(x: torch.Tensor) -> Any:
        return torch.arange(5, dtype=torch.float32) * 2, x.flip(0), torch.as_strided_copy(x, (2, 2), (1, 2), 1)

    same(compiled(fn, movement=True, min_block_size=1)(rand(4, 3)), fn(rand(4, 3)))
    (report,) = torch_report()
    assert report.left == {}
    assert report.compiled == report.nodes
    same(compiled(lambda: torch.ones(3).cumsum(0), min_block_size=1)(), torch.arange(1.0, 4.0))
    assert torch_report()[1].compiled == 2
