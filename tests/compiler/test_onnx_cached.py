"""Attention over cached keys and values, attribute by attribute, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import Array, evaluate, model, runtime
from onnx_models import floats as F

from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx

B, HEADS, GROUPS, HEAD, ROOM = 2, 4, 2, 16, 12
GQA = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache",
       "sin_cache", "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight",
       "k_norm_weight", "query_seqlens")  # fmt: skip
MHA = ("query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value",
       "past_sequence_length", "cache_indirection")  # fmt: skip
PLAIN = {"num_heads": HEADS, "kv_num_heads": GROUPS}


def node(
    op: str, slots: tuple[str, ...], given: Mapping[str, Array], attrs: Mapping[str, Any],
    constant: Collection[str] = (),
) -> Any:  # fmt: skip
    """A model of one operator with its caches as outputs; inputs in ``constant`` are initializers."""
    names = [n if n in given else "" for n in slots]
    while not names[-1]:
        names.pop()
    outputs = ["y", "present_key", "present_value"]
    made = helper.make_node(op, names, outputs, domain="com.microsoft", **attrs)
    inputs = {n: (a.dtype, a.shape) for n, a in given.items() if n not in constant}
    opsets = [helper.make_opsetid("com.microsoft", 1)]
    return model([made], inputs, outputs, {n: given[n] for n in constant}, opsets=opsets)


def operands(new: int, lengths: list[int], packed: bool = False, seed: int = 0) -> dict[str, Array]:
    """Query, key, value and lengths of one step with ``new`` tokens of each batch."""
    batch, total = len(lengths), np.array(max(lengths), np.int32)
    given = {"query": F(batch, new, (HEADS + 2 * GROUPS * packed) * HEAD, seed=seed)}
    if not packed:
        given |= {n: F(batch, new, GROUPS * HEAD, seed=seed + k) for k, n in enumerate(("key", "value"), 1)}
    return given | {"seqlens_k": np.array(lengths, np.int32) - 1, "total_sequence_length": total}


def cache(length: int, batch: int = B, groups: int = GROUPS) -> dict[str, Array]:
    return {"past_key": F(batch, groups, length, HEAD, seed=8), "past_value": F(batch, groups, length, HEAD, seed=9)}


def tables(width: int = HEAD // 2) -> dict[str, Array]:
    angles = np.outer(np.arange(ROOM + 4), 0.7 ** np.arange(width)).astype(np.float32)
    return {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}


def same_as_runtime(
    given: Mapping[str, Array], attrs: Mapping[str, Any], *, new: int, lengths: list[int], shared: Collection[str] = (),
    valid: list[int] | None = None,
) -> Graph:  # fmt: skip
    """Compares what the operator defines: valid rows of the output, and the rows of the caches that are in use."""
    proto = node("GroupQueryAttention", GQA, given, {**PLAIN, **attrs}, ["total_sequence_length"])
    graph = import_onnx(proto, shared=shared)
    ours, theirs = evaluate(graph, given), runtime(proto, {i.name: given[i.name] for i in proto.graph.input})
    counts = valid or [min(new, n) for n in lengths]
    for b, (count, length) in enumerate(zip(counts, lengths)):
        np.testing.assert_allclose(ours[0][b, :count], theirs[0][b, :count], rtol=2e-5, atol=2e-5)
        for a, e in zip(ours[1:], theirs[1:]):
            assert a.shape == e.shape
            np.testing.assert_allclose(a[b, :, :length], e[b, :, :length], rtol=1e-6, atol=1e-6)
    return graph


STEPS = {  # new tokens of each batch, lengths after the step, rows of the cache
    "prompt": (5, [5, 5], 0),
    "prompt padded on the right": (5, [5, 3], 0),
    "one token": (1, [7, 7], 6),
    "one token, unequal lengths": (1, [7, 4], 6),
    "one token, a long cache": (1, [7, 4], ROOM),
    "several tokens": (3, [9], 6),
    "several tokens, a long cache": (3, [9], ROOM),
    "the last place": (1, [ROOM, 2], ROOM),
    "prompt into a long cache": (5, [5, 3], ROOM),
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Array]]] = {
    "plain": ({}, {}),
    "scale": ({"scale": 0.3}, {}),
    "softcap": ({"softcap": 1.5}, {}),
    "window": ({"local_window_size": 3}, {}),
    "window of one": ({"local_window_size": 1}, {}),
    "window and softcap": ({"local_window_size": 4, "softcap": 2.0}, {}),
    "rotary": ({"do_rotary": 1}, tables()),
    "rotary, interleaved": ({"do_rotary": 1, "rotary_interleaved": 1}, tables()),
    "smooth": ({"smooth_softmax": 1}, {}),
    "sink": ({}, {"head_sink": F(HEADS, seed=4)}),
    "both directions": ({"causal": 0}, {}),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
def test_steps(step: str, packed: bool) -> None:
    new, lengths, past = STEPS[step]
    given = operands(new, lengths, packed) | (cache(past, len(lengths)) if past else {}) | tables()
    same_as_runtime(given, {"do_rotary": 1}, new=new, lengths=lengths)
    if past == ROOM:
        shared = same_as_runtime(
            given, {"do_rotary": 1}, new=new, lengths=lengths, shared=["past_key", "past_value"]
        )  # fmt: skip
        scatters = [n for n in shared.nodes if n.op == "ScatterElements"]
        assert [n.inputs[0].name for n in scatters if n.inputs[0]] == ["past_key", "past_value"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("step", ["prompt", "one token, a long cache", "several tokens"])
def test_options(option: str, step: str) -> None:
    attrs, extra = OPTIONS[option]
    new, lengths, past = STEPS[step]
    given = operands(new, lengths) | (cache(past, len(lengths)) if past else {}) | extra
    same_as_runtime(given, attrs, new=new, lengths=lengths)


def test_partial_rotary() -> None:
    """Caches for 8 of 32 features, which the operator tells from the tables alone."""
    given = {"query": F(1, 1, 2 * 32), "key": F(1, 1, 32, seed=1), "value": F(1, 1, 32, seed=2)} | tables(8)
    given |= {"past_key": F(1, 1, 4, 32, seed=3), "past_value": F(1, 1, 4, 32, seed=4)}
    given |= {"seqlens_k": np.array([4], np.int32), "total_sequence_length": np.array(5, np.int32)}
    same_as_runtime(given, {"do_rotary": 1, "num_heads": 2, "kv_num_heads": 1}, new=1, lengths=[5])


def test_given_positions() -> None:
    positions = {"position_ids": np.array([[9], [4]])}
    given = operands(1, [7, 4]) | cache(6) | tables() | positions
    same_as_runtime(given, {"do_rotary": 1}, new=1, lengths=[7, 4])


@pytest.mark.parametrize("heads", [1, HEADS])
def test_a_bias_of_scores(heads: int) -> None:
    given = operands(1, [7, 4]) | cache(6) | {"attention_bias": F(B, heads, 1, 7, seed=5)}
    same_as_runtime(given, {}, new=1, lengths=[7, 4])
    given = operands(5, [5, 5]) | {"attention_bias": F(1, heads, 5, 5, seed=5)}
    same_as_runtime(given, {"local_window_size": 3}, new=5, lengths=[5, 5])


def test_a_bias_is_shorter_than_a_shared_cache() -> None:
    """Where the host does not know the longest length, attention is over the whole cache."""
    given = operands(1, [7, 4]) | cache(ROOM) | {"attention_bias": F(B, 1, 1, 7, seed=5)}
    proto = node("GroupQueryAttention", GQA, given, PLAIN)
    ours = evaluate(import_onnx(proto, shared=["past_key", "past_value"]), given)
    np.testing.assert_allclose(ours[0], runtime(proto, given)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("option", ["softcap", "smooth", "sink", "rotary", "window"])
def test_half_precision(option: str) -> None:
    """ONNX Runtime rounds in other places: two units of f16 at the size of the outputs."""
    attrs, extra = OPTIONS[option]
    full = operands(1, [7, 4]) | cache(ROOM) | extra | {"attention_bias": F(B, 1, 1, 7, seed=5)}
    given = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in full.items()}
    proto = node("GroupQueryAttention", GQA, given, {**PLAIN, **attrs}, ["total_sequence_length"])
    theirs = runtime(proto, {i.name: given[i.name] for i in proto.graph.input})
    ours = evaluate(import_onnx(proto), given)
    assert [a.dtype for a in ours] == [np.float16] * 3
    np.testing.assert_allclose(ours[0].astype(np.float32), theirs[0].astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("counts", [[4, 2], [1, 4], [0, 3]])
def test_chunks_of_unequal_lengths(counts: list[int]) -> None:
    before = [5, 3]
    lengths = [p + n for p, n in zip(before, counts)]
    given = operands(4, lengths) | cache(ROOM) | tables() | {"query_seqlens": np.array(counts, np.int32)}
    same_as_runtime(given, {"do_rotary": 1}, new=4, lengths=lengths, valid=counts)


def test_normalised_queries_and_keys() -> None:
    """ONNX Runtime's CPU kernels lack this; the definition is a norm of each head before the rotation."""
    given = operands(1, [7, 4]) | cache(6) | tables()
    weights = {"q_norm_weight": F(HEAD, seed=6), "k_norm_weight": F(HEAD, seed=7)}
    proto = node("GroupQueryAttention", GQA, given | weights, {**PLAIN, "do_rotary": 1}, ["total_sequence_length"])
    y, *_ = evaluate(import_onnx(proto), given | weights)

    def normed(x: Array, weight: Array) -> Array:
        heads = x.reshape(*x.shape[:2], -1, HEAD)
        scale = 1 / np.sqrt((heads.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
        return (heads * scale * weight).astype(np.float32).reshape(x.shape)

    before = given | {n: normed(given[n], weights[f"{n[0]}_norm_weight"]) for n in ("query", "key")}
    expected, *_ = runtime(node("GroupQueryAttention", GQA, before, {**PLAIN, "do_rotary": 1}), before)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


def test_a_longest_length_that_only_the_device_sees() -> None:
    """Then a cache that is not shared grows by the new rows, which are right up to the lengths."""
    given = operands(1, [7, 4]) | cache(6)
    proto = node("GroupQueryAttention", GQA, given, PLAIN)
    for ours, theirs in zip(evaluate(import_onnx(proto), given), runtime(proto, given)):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-5, atol=2e-5)
    given = operands(1, [7, 4]) | cache(ROOM)
    proto = node("GroupQueryAttention", GQA, given, PLAIN)
    graph = import_onnx(proto, shared=["past_key", "past_value"])
    assert [o.shape[2] for o in graph.outputs[1:]] == [ROOM, ROOM]
    np.testing.assert_allclose(evaluate(graph, given)[0], runtime(proto, given)[0], rtol=2e-5, atol=2e-5)


def test_a_cache_that_is_too_short_for_a_known_length() -> None:
    given = operands(1, [ROOM + 1, 4]) | cache(ROOM)
    proto = node("GroupQueryAttention", GQA, given, PLAIN, ["total_sequence_length"])
    with pytest.raises(ModelError, match=f"a cache of {ROOM} positions for {ROOM + 1} keys"):
        import_onnx(proto, shared=["past_key", "past_value"])


def test_what_group_query_attention_refuses() -> None:
    given = operands(1, [7, 7]) | cache(6)
    for attrs, extra, said in (
        ({"k_quant_type": "PER_TENSOR"}, {}, "a quantised cache"),
        ({"sliding_window_cache": 1, "local_window_size": 6}, {}, "sliding_window_cache"),
        ({"kv_num_heads": 3}, {}, "num_heads is 4, kv_num_heads 3"),
        ({"causal": 0, "local_window_size": 2}, {}, "a window needs causal=1"),
        ({}, {"q_norm_weight": F(HEAD)}, "belong together"),
    ):
        proto = node("GroupQueryAttention", GQA, given | extra, {**PLAIN, **attrs}, ["total_sequence_length"])
        with pytest.raises((UnsupportedError, ModelError), match=said):
            import_onnx(proto)


# ---------------------------------------------------------------------------------------------- MultiHeadAttention

WIDE = HEADS * HEAD


def heads_of(length: int, seed: int) -> Array:
    return F(B, HEADS, length, HEAD, seed=seed)


THREE = {"query": F(B, 3, WIDE), "key": F(B, 3, WIDE, seed=1), "value": F(B, 3, WIDE, seed=2)}
ONE = {"query": F(B, 1, WIDE), "key": F(B, 1, WIDE, seed=1), "value": F(B, 1, WIDE, seed=2)}
PAST = {"past_key": heads_of(6, 3), "past_value": heads_of(6, 4)}
CROSS = {"query": F(B, 3, WIDE), "key": heads_of(5, 1), "value": heads_of(5, 2)}
KINDS: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "separate": (THREE, {}),
    "causal": (THREE, {"unidirectional": 1}),
    "bias": (THREE | {"bias": F(3 * WIDE, seed=5)}, {"scale": 0.2}),
    "an encoder's keys": (CROSS, {}),
    "an encoder's keys, bias": (CROSS | {"bias": F(3 * WIDE, seed=5)}, {}),
    "one token": (ONE | PAST, {}),
    "one token, causal": (ONE | PAST, {"unidirectional": 1}),
    "several tokens, causal": (THREE | PAST, {"unidirectional": 1}),
    "past and bias": (THREE | PAST | {"bias": F(3 * WIDE, seed=5)}, {}),
    "lengths": (THREE | {"key_padding_mask": np.array([2, 3], np.int32)}, {}),
    "padding": (THREE | {"key_padding_mask": np.array([[1, 1, 0], [1, 0, 1]], np.int32)}, {}),
    "padding, other filter": (
        THREE | {"key_padding_mask": np.array([[1, 1, 0], [1, 0, 1]], np.int32)},
        {"mask_filter_value": -2.0},
    ),
    "padding of past and new": (ONE | PAST | {"key_padding_mask": np.eye(2, 7, 3, dtype=np.int32)}, {}),
    "padding of each query": (
        THREE | {"key_padding_mask": np.tril(np.ones((B, 3, 3), np.int32))},
        {"unidirectional": 1},
    ),
    "score bias": (THREE | {"attention_bias": F(1, HEADS, 3, 3, seed=6)}, {}),
    "score bias of past": (THREE | PAST | {"attention_bias": F(B, 1, 3, 9, seed=6)}, {"unidirectional": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_multi_head_attention(kind: str) -> None:
    given, attrs = KINDS[kind]
    proto = node("MultiHeadAttention", MHA, given, {"num_heads": HEADS, **attrs})
    for ours, theirs in zip(evaluate(import_onnx(proto), given), runtime(proto, given), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_packed_forms(bias: bool) -> None:
    """Equal to the separate form, since ONNX Runtime's CPU kernels lack them."""
    separate = THREE | ({"bias": F(3 * WIDE, seed=5)} if bias else {})
    expected = runtime(node("MultiHeadAttention", MHA, separate, {"num_heads": HEADS}), separate)
    split = {n: separate[n].reshape(B, 3, HEADS, HEAD) for n in ("query", "key", "value")}
    for parts in (("query", "key", "value"), ("key", "value")):
        packed = {parts[0]: np.stack([split[n] for n in parts], axis=3)}
        given = {n: a for n, a in separate.items() if n not in parts} | packed
        ours = evaluate(import_onnx(node("MultiHeadAttention", MHA, given, {"num_heads": HEADS})), given)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("filled", [0, 4, ROOM - 3])
def test_multi_head_attention_with_a_shared_cache(filled: int, causal: int) -> None:
    """Equal to the operator with a cache that is just as long as what is in it."""
    full = {"past_key": heads_of(ROOM, 3), "past_value": heads_of(ROOM, 4)}
    given = THREE | full | {"past_sequence_length": np.array([filled], np.int32)}
    attrs = {"num_heads": HEADS, "unidirectional": causal}
    y, *present = evaluate(import_onnx(node("MultiHeadAttention", MHA, given, attrs)), given)
    short = THREE | {n: np.ascontiguousarray(a[:, :, :filled]) for n, a in full.items()}
    expected, *grown = runtime(node("MultiHeadAttention", MHA, short, attrs), short)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
    for now, then, old in zip(present, grown, full.values()):
        np.testing.assert_array_equal(now, np.concatenate([then, old[:, :, filled + 3 :]], axis=2))


@pytest.mark.parametrize("masked", [False, True])
def test_one_query_with_a_shared_cache(masked: bool) -> None:
    slots = ("query", "key", "value", "mask_index", "attention_bias", "past_key", "past_value", "past_sequence_length")
    given = ONE | {"past_key": heads_of(ROOM, 3), "past_value": heads_of(ROOM, 4)}
    given |= {"past_sequence_length": np.array([6], np.int32)}
    if masked:
        given |= {"mask_index": np.array([[1, 1, 0, 1, 1, 1, 1], [1] * 7], np.int32)}
    attrs = {"num_heads": HEADS, "past_present_share_buffer": 1}
    proto = node("DecoderMaskedMultiHeadAttention", slots, given, attrs)
    ours, theirs = evaluate(import_onnx(proto), given), runtime(proto, given)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-5, atol=2e-5)
    for a, b in zip(ours[1:], theirs[1:]):  # ONNX Runtime leaves the unused rows of a new array as they are
        assert a.shape == b.shape
        np.testing.assert_array_equal(a[:, :, :7], b[:, :, :7])
    with pytest.raises(ModelError, match="a shared cache needs past_sequence_length"):
        import_onnx(node("DecoderMaskedMultiHeadAttention", slots[:7], given, attrs))
    short = given | PAST  # a cache that is not shared grows, as that of MultiHeadAttention does
    del short["past_sequence_length"]
    mask = {"key_padding_mask": short.pop("mask_index")} if masked else {}
    expected = runtime(node("MultiHeadAttention", MHA, short | mask, {"num_heads": HEADS}), short | mask)
    again = short | ({"mask_index": mask["key_padding_mask"]} if masked else {})
    one = node("DecoderMaskedMultiHeadAttention", slots, again, {"num_heads": HEADS})
    for a, b in zip(evaluate(import_onnx(one), again), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_what_multi_head_attention_refuses() -> None:
    for given, said in (
        (THREE | {"cache_indirection": np.zeros((1, 1, 8), np.int32)}, "cache_indirection"),
        (CROSS | PAST, "query, key and value of ranks 3, 4, 4"),
        (THREE | {"past_key": heads_of(6, 3)}, "belong together"),
        (THREE | {"key_padding_mask": np.zeros(3 * B + 2, np.int32)}, "cumulated lengths"),
    ):
        with pytest.raises(ArcweldError, match=said):
            import_onnx(node("MultiHeadAttention", MHA, given, {"num_heads": HEADS}))
