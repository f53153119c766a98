"""Training graphs: the gradients of convolutions, pools and interpolation, compiled and compared with eager's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from backend_oracle import compiled
from torch_oracle import rand

from arcweld.torch.report import torch_report

Fn = Callable[..., torch.Tensor]

CONVOLUTIONS: Mapping[str, tuple[Fn, tuple[tuple[int, ...], ...]]] = {
    "plain": (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 7, 6), (4, 3, 3, 2), (4,))),
    "strided": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), ((2, 3, 8, 7), (4, 3, 3, 3), (4,))),
    "dilated": (lambda x, w, b: F.conv2d(x, w, b, 1, 2, 2), ((1, 2, 7, 9), (3, 2, 3, 3), (3,))),
    "grouped": (lambda x, w, b: F.conv2d(x, w, b, (1, 2), 1, 1, 2), ((2, 4, 6, 7), (6, 2, 3, 3), (6,))),
    "depthwise": (lambda x, w, b: F.conv2d(x, w, b, 1, 1, 1, 4), ((2, 4, 5, 5), (4, 1, 3, 3), (4,))),
    "one axis": (lambda x, w, b: F.conv1d(x, w, b, 3, 2), ((2, 3, 11), (4, 3, 4), (4,))),
    "three axes": (lambda x, w, b: F.conv3d(x, w, b, 2), ((1, 2, 5, 4, 6), (3, 2, 2, 2, 3), (3,))),
    "transposed": (lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1), ((2, 4, 5, 4), (4, 3, 3, 3), (3,))),
    "transposed groups": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 0, 0, 2, 1), ((1, 4, 4, 4), (4, 2, 3, 3), (4,)),
    ),
}  # fmt: skip
WINDOWS: Mapping[str, tuple[Fn, tuple[int, ...]]] = {
    "max": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 3, 7, 8)),
    "max 1": (lambda x: F.max_pool1d(x, 3, 2, 1), (2, 3, 9)),
    "max 3": (lambda x: F.max_pool3d(x, 2), (1, 2, 4, 6, 4)),
    "max dilated": (lambda x: F.max_pool2d(x, 2, 1, 0, 2), (1, 2, 6, 6)),
    "max unbatched": (lambda x: F.max_pool2d(x, 2), (3, 6, 6)),
    "max ceil": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), (2, 3, 7, 5)),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (2, 3, 7, 5)),
    "mean": (lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 3, 7, 8)),
    "mean of what is inside": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 3, 8, 8)),
    "mean ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 3, 8, 6)),
    "mean ceil inside": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (1, 2, 8, 6)),
    "mean with a divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 3, 6, 5)),
    "mean 3": (lambda x: F.avg_pool3d(x, 2), (1, 2, 4, 5, 4)),
    "mean 1": (lambda x: F.avg_pool1d(x, 3, 2), (2, 3, 8)),
    "adaptive mean": (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (2, 3, 7, 6)),
    "nearest": (lambda x: F.interpolate(x, size=(5, 9)), (2, 3, 4, 3)),
    "nearest 1": (lambda x: F.interpolate(x, scale_factor=1.7), (2, 3, 7)),
    "nearest exact": (lambda x: F.interpolate(x, size=(5, 3), mode="nearest-exact"), (1, 2, 4, 6)),
    "linear": (lambda x: F.interpolate(x, size=9, mode="linear"), (2, 3, 4)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=(1.5, 2), mode="bilinear"), (2, 3, 4, 3)),
    "bilinear corners": (lambda x: F.interpolate(x, size=(7, 3), mode="bilinear", align_corners=True), (1, 2, 4, 5)),
    "bilinear antialias": (lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True), (1, 2, 7, 9)),
    "bicubic": (lambda x: F.interpolate(x, size=(7, 5), mode="bicubic"), (1, 2, 4, 6)),
    "bicubic antialias": (lambda x: F.interpolate(x, size=(3, 4), mode="bicubic", antialias=True), (1, 2, 7, 9)),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (1, 2, 3, 2, 3)),
}


def gradients(fn: Fn, args: list[torch.Tensor]) -> list[torch.Tensor]:
    given = [a.detach().clone().requires_grad_() for a in args]
    y = fn(*given)
    return list(torch.autograd.grad(y, given, rand(*y.shape, seed=7)))


def check(fn: Fn, args: list[torch.Tensor]) -> None:
    torch._dynamo.reset()
    before = len(torch_report())
    found = gradients(compiled(fn, min_block_size=1, movement=True), args)
    for got, want in zip(found, gradients(fn, args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    left = {op for report in torch_report()[before:] for op, _ in report.left}
    assert left == set()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    fn, shapes = CONVOLUTIONS[name]
    check(fn, [rand(*s, seed=k) for k, s in enumerate(shapes)])


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str) -> None:
    fn, shape = WINDOWS[name]
    check(fn, [rand(*shape)])


def test_only_what_is_wanted_is_computed() -> None:
    x, w = rand(1, 2, 5, 5), rand(3, 2, 3, 3).requires_grad_()
    run = compiled(lambda x, w: F.conv2d(x, w), min_block_size=1)
    run(x, w).sum().backward()
    assert w.grad is not None
    want = torch.autograd.grad(F.conv2d(x, w).sum(), w)[0]
    torch.testing.assert_close(w.grad, want, rtol=1e-4, atol=1e-5)
