"""ATen's whole layer of a transformer's encoder, in the operators that a written-out layer has."""

from __future__ import annotations

import math

from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.nn import product

_OF_SCORES, _OF_KEYS = 0, 1  # torch's numbers of the types of masks


@aten("_transformer_encoder_layer_fwd")
def transformer_encoder_layer(c: AtenContext) -> Result:
    x: Value = c["src"]
    if len(x.shape) != 3:
        raise c.fail("a layer of an encoder without a batch")
    if c["norm_first"]:
        x = c.emit("Add", x, _attention(c, _normalised(c, x, 1)))
        return c.emit("Add", x, _feed_forward(c, _normalised(c, x, 2)))
    x = _normalised(c, c.emit("Add", x, _attention(c, x)), 1)
    return _normalised(c, c.emit("Add", x, _feed_forward(c, x)), 2)


def _normalised(c: AtenContext, x: Value, which: int) -> Value:
    scale, bias = c[f"norm_weight_{which}"], c[f"norm_bias_{which}"]
    return c.emit("LayerNormalization", x, scale, bias, axis=2, epsilon=float(c["eps"]))


def _linear(c: AtenContext, x: Value, name: str, which: str = "") -> Value:
    weight, bias = c[f"{name}_weight{which}"], c[f"{name}_bias{which}"]
    return c.emit("Add", product(c, x, c.transpose(weight, (1, 0))), bias)


def _feed_forward(c: AtenContext, x: Value) -> Value:
    y = _linear(c, x, "ffn", "_1")
    return _linear(c, c.emit("Gelu", y, approximate="none") if c["use_gelu"] else c.emit("Relu", y), "ffn", "_2")


def _attention(c: AtenContext, x: Value) -> Value:
    batch, length, width = x.shape
    heads, size = c["num_heads"], c["embed_dim"] // c["num_heads"]
    joint = c.reshape(_linear(c, x, "qkv"), (batch, length, 3, heads, size))
    q, k, v = (
        c.transpose(c.reshape(c.slice(joint, 2, i, 1), (batch, length, heads, size)), (0, 2, 1, 3)) for i in range(3)
    )
    y = c.emit("Attention", q, k, v, _allowed(c), scale=1 / math.sqrt(size), is_causal=0)
    return _linear(c, c.reshape(c.transpose(y, (0, 2, 1, 3)), (batch, length, width)), "proj")


def _allowed(c: AtenContext) -> Value | None:
    """The keys that a query sees: torch's mask is true for the others."""
    mask, kind = c["mask"], c["mask_type"]
    if mask is None:
        return None
    seen = c.emit("Not", mask)
    if len(mask.shape) == 4:
        return seen
    if kind == _OF_KEYS:
        return c.reshape(seen, (mask.shape[0], 1, 1, mask.shape[1]))
    if kind == _OF_SCORES and len(mask.shape) == 2:
        return c.reshape(seen, (1, 1, *mask.shape))
    raise c.fail(f"a mask {mask.type} of the type {kind}")
