"""Imported reductions, norms, products, convolutions, pools, interpolation and attention against eager torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from outside import ordered
from torch import nn
from torch_oracle import Functions, check, rand

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.torch.importer import import_module

# parameters of the functions below, made outside them: inside, they would be traced as random numbers
SHAPES = ((3,), (4, 1, 3, 3), (4, 2, 3), (4, 3, 3, 3), (5,), (5, 4, 1, 3, 3), (5, 4, 3), (5, 5), (8, 2, 3, 3))
R = {s if len(s) > 1 else s[0]: rand(*s) for s in SHAPES}


def test_reductions() -> None:
    functions = {
        "sum": lambda x: x.sum(),
        "sum1": lambda x: x.sum(1),
        "sums": lambda x: x.sum((0, -1), keepdim=True),
        "mean": lambda x: x.mean(),
        "mean2": lambda x: x.mean((1, 2)),
        "amax": lambda x: x.amax(1),
        "amin": lambda x: x.amin((0, 2), keepdim=True),
        "max": lambda x: x.max(),
        "min": lambda x: x.min(),
        "prod": lambda x: x.prod(1),
        "maxdim": lambda x: x.max(1)[0],
        "maxboth": lambda x: torch.max(x, 2, keepdim=True),
        "mindim": lambda x: x.min(0)[1],
        "argmax": lambda x: x.argmax(1),
        "argmaxall": lambda x: x.argmax(),
        "argmin": lambda x: x.argmin(2, keepdim=True),
        "any": lambda x: (x > 1).any(1),
        "all": lambda x: (x > -1).all(),
        "count": lambda x: (x > 0).sum(1),
        "norm": lambda x: x.norm(dim=1),
        "norm1": lambda x: torch.linalg.vector_norm(x, 1, dim=(0, 1)),
        "normalize": lambda x: F.normalize(x, dim=-1),
        "lse": lambda x: torch.logsumexp(x, 1),
        "cumsum": lambda x: x.cumsum(1),
        "icumsum": lambda x: (x > 0).cumsum(-1),
        "half": lambda x: x.sum(1, dtype=torch.float64),
        "cosine": lambda x: F.cosine_similarity(x, x.flip(0), dim=1),
    }
    check(functions, rand(3, 4, 5))


def test_spread() -> None:
    functions = {
        "var": lambda x: x.var(1),
        "var0": lambda x: x.var((0, 2), unbiased=False, keepdim=True),
        "std": lambda x: x.std(),
        "std2": lambda x: x.std(2, correction=2),
        "both": lambda x: torch.var_mean(x, 1),
    }
    check(functions, rand(3, 6, 5))


def test_softmax() -> None:
    functions = {
        "last": lambda x: x.softmax(-1),
        "first": lambda x: x.softmax(0),
        "log": lambda x: x.log_softmax(1),
        "min": lambda x: F.softmin(x, dim=1),
        "double": lambda x: F.softmax(x, -1, dtype=torch.float64),
        "loss": lambda x: F.cross_entropy(x[:, :, 0], torch.tensor([1, 0, 2])),
    }
    check(functions, rand(3, 4, 5, scale=4))


def test_normalisations() -> None:
    w, b = rand(6, seed=1), rand(6, seed=2)
    functions = {
        "layer": lambda x: F.layer_norm(x, (5,), R[5], R[5]),
        "layer2": lambda x: F.layer_norm(x, (4, 5)),
        "bias": lambda x: F.layer_norm(x, (5,), None, R[5]),
        "rms": lambda x: F.rms_norm(x, (5,), R[5], 1e-3),
        "rms0": lambda x: F.rms_norm(x, (5,)),
        "group": lambda x: F.group_norm(x, 3, w, b),
        "group1": lambda x: F.group_norm(x, 2),
        "instance": lambda x: F.instance_norm(x, weight=w, bias=b),
        "batch": lambda x: F.batch_norm(x, w, b.abs() + 0.1, w, b),
        "plain": lambda x: F.batch_norm(x, w, b.abs() + 0.1),
        "batch without statistics": lambda x: F.batch_norm(x, None, None, w, b, training=True),
        "standardised": lambda x: F.batch_norm(x.reshape(1, 6, -1), None, None, w, training=True, eps=1e-3),
    }
    check(functions, rand(2, 6, 4, 5))


def test_batch_norm_of_half_data_with_f32_statistics() -> None:
    module = nn.BatchNorm2d(4).eval()
    module.running_mean, module.running_var = rand(4), rand(4).abs() + 0.2
    check({"norm": lambda x: module(x)}, rand(2, 4, 3, 3, dtype=torch.bfloat16), rtol=1e-2)


def test_products() -> None:
    functions = {
        "mm": lambda x, y, v: x[0] @ y[0],
        "bmm": lambda x, y, v: torch.bmm(x, y),
        "vec": lambda x, y, v: x @ v,
        "vecmat": lambda x, y, v: v @ y,
        "dot": lambda x, y, v: torch.dot(v, v),
        "broadcast": lambda x, y, v: torch.matmul(x.unsqueeze(1), y),
        "linear": lambda x, y, v: F.linear(x, y[0].t(), y[0, 0]),
        "addmm": lambda x, y, v: torch.addmm(y[0, :1], x[0], y[0], beta=0.5, alpha=2),
        "baddbmm": lambda x, y, v: torch.baddbmm(x[:, :, :1], x, y, beta=0),
        "einsum": lambda x, y, v: torch.einsum("bij,bjk->bki", x, y),
        "kron": lambda x, y, v: torch.einsum("bij,j->bi", x, v),
        "mv": lambda x, y, v: torch.mv(x[0], v),
        "tensordot": lambda x, y, v: torch.tensordot(x, y, dims=([2], [1])),
    }
    check(functions, rand(2, 3, 4), rand(2, 4, 5), rand(4))


def test_convolutions() -> None:
    w, b = rand(6, 4, 3, 3), rand(6)
    functions = {
        "plain": lambda x: F.conv2d(x, w, b),
        "strided": lambda x: F.conv2d(x, w, stride=2, padding=(1, 2), dilation=(1, 2)),
        "same": lambda x: F.conv2d(x, w, b, padding="same"),
        "groups": lambda x: F.conv2d(x, R[8, 2, 3, 3], groups=2),
        "depthwise": lambda x: F.conv2d(x, R[4, 1, 3, 3], groups=4, padding=1),
        "unbatched": lambda x: F.conv2d(x[0], w),
        "transposed": lambda x: F.conv_transpose2d(x, R[4, 3, 3, 3], R[3], stride=2, padding=1, output_padding=1),
        "conv1d": lambda x: F.conv1d(x[:, :, 0], R[5, 4, 3], padding=1),
        "transposed1d": lambda x: F.conv_transpose1d(x[:, :, 0], R[4, 2, 3], groups=2),
        "conv3d": lambda x: F.conv3d(x.unsqueeze(2), R[5, 4, 1, 3, 3], padding=(0, 1, 1)),
    }
    check(functions, rand(2, 4, 7, 8), atol=1e-4)


def test_pools() -> None:
    functions = {
        "max": lambda x: F.max_pool2d(x, 3, 2, 1),
        "ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        "dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
        "max1d": lambda x: F.max_pool1d(x[0], 2),
        "max3d": lambda x: F.max_pool3d(x.unsqueeze(0), (1, 2, 2)),
        "avg": lambda x: F.avg_pool2d(x, 3, 2, 1),
        "exclude": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        "avgceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        "avg1d": lambda x: F.avg_pool1d(x[0], 2, padding=1),
        "global": lambda x: F.adaptive_avg_pool2d(x, 1),
        "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        "adaptivemax": lambda x: F.adaptive_max_pool2d(x, (4, 1)),
        "unequal": lambda x: F.adaptive_avg_pool2d(x, (3, 7)),
        "larger": lambda x: F.adaptive_avg_pool2d(x[0], (11, 9)),
        "adaptive1d": lambda x: F.adaptive_avg_pool1d(x[0], 3),
        "unbatched": lambda x: F.max_pool2d(x[0], 2),
    }
    check(functions, rand(2, 3, 8, 9))


def test_interpolation() -> None:
    functions = {
        "nearest": lambda x: F.interpolate(x, scale_factor=2),
        "size": lambda x: F.interpolate(x, size=(7, 5)),
        "exact": lambda x: F.interpolate(x, size=(7, 5), mode="nearest-exact"),
        "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "corners": lambda x: F.interpolate(x, size=(9, 4), mode="bilinear", align_corners=True),
        "factor": lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"),
        "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
        "smooth": lambda x: F.interpolate(x, size=(3, 9), mode="bilinear", antialias=True),
        "smooth_factor": lambda x: F.interpolate(x, scale_factor=(0.7, 0.6), mode="bilinear", antialias=True),
        "smooth_bicubic": lambda x: F.interpolate(x, size=(3, 2), mode="bicubic", antialias=True),
        "linear": lambda x: F.interpolate(x[:, :, 0], scale_factor=3, mode="linear"),
        "trilinear": lambda x: F.interpolate(x.unsqueeze(2), size=(2, 8, 9), mode="trilinear"),
    }
    check(functions, rand(2, 3, 5, 6), atol=1e-4)
    smooth_bytes = {"smooth": lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True)}
    with pytest.raises(UnsupportedError, match="antialiased resizing of u8"):
        check(smooth_bytes, rand(2, 3, 5, 6, dtype=torch.uint8))


def test_attention() -> None:
    sdpa = F.scaled_dot_product_attention
    bools = rand(5, 5, seed=9) > 0
    functions = {
        "plain": lambda q: sdpa(q, q, q),
        "causal": lambda q: sdpa(q, q * 2, q, is_causal=True),
        "additive": lambda q: sdpa(q, q, q, R[5, 5]),
        "bool": lambda q: sdpa(q, q, q, bools | torch.eye(5, dtype=torch.bool), scale=0.3),
        "three": lambda q: sdpa(q[0], q[0], q[0]),
        "cross": lambda q: sdpa(q, q[:, :, :3], q[:, :, :3, :6]),
        "gqa": lambda q: sdpa(q, q[:, :2], q[:, :2], enable_gqa=True),
        "two": lambda q: sdpa(q[0, 0], q[0, 1], q[0, 2]),
    }
    graph = check(functions, rand(2, 4, 5, 8))
    assert sum(n.op == "Attention" for n in graph.nodes) == len(functions)


def test_modules() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    check({"encoder": lambda x: layer(x)}, rand(2, 5, 16), atol=1e-4)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    check({"mha": lambda x: attention(x, x, x)}, rand(2, 5, 16), atol=1e-4)


def test_refusals_name_every_operator() -> None:
    functions = {
        "long": lambda x: x.new_zeros(1).expand(90000).mode()[0],
        "sorted": lambda x: ordered(x),
        "matrix": lambda x: torch.linalg.matrix_exp(x),
    }
    with pytest.raises(UnsupportedError) as caught:
        import_module(Functions(functions).eval(), (rand(1, 2, 4, 4),))
    for text in ("the mode of 90000", "outside.ordered", "linalg_matrix_exp"):
        assert text in str(caught.value)
    assert caught.value.exit_code == 3
