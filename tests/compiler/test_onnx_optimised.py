"""What ONNX Runtime's transformers optimizer writes, embeddings and attention with masks, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_models import Array, evaluate, model, runtime
from onnx_models import floats as F
from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

import arcweld
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.onnx.importer import import_onnx

B, S, HEADS, HEAD, PAST = 2, 5, 2, 4, 3
WIDTH = HEADS * HEAD
ATTENTION = ("input", "weights", "bias", "mask_index", "past", "attention_bias")
I32 = lambda *values: np.array(values, np.int32)


def contrib(op: str, slots: tuple[str, ...], given: Mapping[str, Array], outputs: list[str], **attrs: Any) -> Any:
    """A model of one operator of com.microsoft; ``slots`` are its inputs in order."""
    names = [n if n in given else "" for n in slots]
    while not names[-1]:
        names.pop()
    node = helper.make_node(op, names, outputs, domain="com.microsoft", **attrs)
    inputs = {n: (a.dtype, a.shape) for n, a in given.items()}
    opsets = [helper.make_opsetid("com.microsoft", 1)]
    return model([node], inputs, [o for o in outputs if o], opsets=opsets)


def compare(proto: Any, given: Mapping[str, Array]) -> None:
    for ours, theirs in zip(evaluate(import_onnx(proto), given), runtime(proto, dict(given)), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def attention(keys: int = S, **more: Array) -> dict[str, Array]:
    operands = {"input": F(B, S, WIDTH), "weights": F(WIDTH, 3 * WIDTH, seed=1), "bias": F(3 * WIDTH, seed=2)}
    return {**operands, **more}


def _bits(*shape: int) -> Array:
    bits = np.random.default_rng(4).integers(0, 2, shape).astype(np.int32)
    bits[..., 0] = 1
    return bits


MASKS: dict[str, Array] = {
    "lengths": I32(2, 5), "ends and starts": I32(5, 4, 1, 2), "keys": _bits(B, S), "pairs": _bits(B, S, S),
    "nothing but padding": I32(0, 3),
}  # fmt: skip


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", list(MASKS))
def test_attention_with_a_mask(mask: str, causal: int) -> None:
    given = attention(mask_index=MASKS[mask])
    compare(contrib("Attention", ATTENTION, given, ["y"], num_heads=HEADS, unidirectional=causal), given)


@pytest.mark.parametrize("form", ["lengths", "keys", "none"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_a_cache(form: str, causal: int) -> None:
    given = attention(past=F(2, B, HEADS, PAST, HEAD, seed=5))
    if form != "none":
        given["mask_index"] = I32(6, 8) if form == "lengths" else _bits(B, PAST + S)
    compare(contrib("Attention", ATTENTION, given, ["y", "present"], num_heads=HEADS, unidirectional=causal), given)


def test_attention_with_a_bias_of_scores_another_fill_and_scale() -> None:
    given = attention(mask_index=_bits(B, S), attention_bias=F(1, HEADS, S, S, seed=7))
    attrs = {"num_heads": HEADS, "mask_filter_value": -3.0, "scale": 0.3}
    compare(contrib("Attention", ATTENTION, given, ["y"], **attrs), given)


def test_attention_with_values_of_another_width() -> None:
    given = {"input": F(B, S, WIDTH), "weights": F(WIDTH, 2 * WIDTH + 12, seed=1), "bias": F(2 * WIDTH + 12, seed=2)}
    attrs = {"num_heads": HEADS, "qkv_hidden_sizes": [WIDTH, WIDTH, 12]}
    compare(contrib("Attention", ATTENTION, given, ["y"], **attrs), given)


@pytest.mark.parametrize(("attrs", "more", "reason"), [
    ({"do_rotary": 1}, {}, "rotary positions inside"),
    ({"qkv_hidden_sizes": [8, 8, 9]}, {}, "qkv_hidden_sizes is"),
    ({}, {"mask_index": np.zeros(3 * B + 2, np.int32)}, "cumulated lengths"),
    ({}, {"mask_index": np.zeros((B, 1, S, S), np.int32)}, "rank"),
])  # fmt: skip
def test_forms_of_attention_that_are_refused(attrs: dict[str, Any], more: dict[str, Array], reason: str) -> None:
    given = attention(**more)
    with pytest.raises(ArcweldError, match=reason):
        import_onnx(contrib("Attention", ATTENTION, given, ["y"], num_heads=HEADS, **attrs))


QATTENTION = (
    "input", "weights", "bias", "input_scale", "weight_scale", "mask_index", "input_zero", "weight_zero", "past"
)  # fmt: skip


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("more", ["nothing", "mask", "cache"])
def test_quantised_attention(more: str, signed: bool) -> None:
    rng = np.random.default_rng(6)
    given: dict[str, Array] = {
        "input": rng.integers(0, 256, (B, S, WIDTH), np.uint8), "bias": F(3 * WIDTH),
        "weights": rng.integers(-128, 128, (WIDTH, 3 * WIDTH)).astype(np.int8),
        "input_scale": np.float32([0.02]), "weight_scale": np.float32([0.015]), "input_zero": np.uint8([120]),
    }  # fmt: skip
    if not signed:
        given |= {"weights": (given["weights"].astype(int) + 128).astype(np.uint8), "weight_zero": np.uint8([128])}
    if more == "mask":
        given["mask_index"] = I32(2, 4)
    if more == "cache":
        given["past"] = F(2, B, HEADS, PAST, HEAD, seed=5)
    outputs = ["y", "present"] if more == "cache" else ["y"]
    compare(contrib("QAttention", QATTENTION, given, outputs, num_heads=HEADS), given)


def test_a_gated_gelu() -> None:
    x, b = F(2, 3, 8), F(8, seed=1)
    (found,) = evaluate(import_onnx(contrib("BiasSplitGelu", ("x", "b"), {"x": x, "b": b}, ["y"])), {"x": x, "b": b})
    left, right = torch.from_numpy(x + b).chunk(2, -1)
    np.testing.assert_allclose(found, left * torch.nn.functional.gelu(right), atol=1e-6)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("activation", [0, 1])
def test_a_group_norm_of_diffusion_models(last: int, activation: int) -> None:
    x, g, b = F(2, 6, 3, 4), F(6, seed=1), F(6, seed=2)
    given = {"x": np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x, "g": g, "b": b}
    attrs = {"groups": 3, "channels_last": last, "activation": activation, "epsilon": 1e-4}
    (found,) = evaluate(import_onnx(contrib("GroupNorm", tuple("xgb"), given, ["y"], **attrs)), given)
    want = torch.nn.functional.group_norm(*(torch.from_numpy(a) for a in (x,)), 3, *map(torch.from_numpy, (g, b)), 1e-4)
    want = torch.nn.functional.silu(want) if activation else want
    np.testing.assert_allclose(found, want.movedim(1, -1) if last else want, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_of_a_table_in_blocks(bits: int, zeros: bool) -> None:
    rng, rows, width, block = np.random.default_rng(2), 7, 64, 16
    given: dict[str, Array] = {"indices": np.array([[3, 0], [6, 3]]), "scales": F(rows, width // block) ** 2}
    given["data"] = rng.integers(0, 256, (rows, width * bits // 8), np.uint8)
    if zeros:
        given["zeros"] = rng.integers(0, 256, (rows, width // block * bits // 8), np.uint8)
    slots = ("data", "indices", "scales", "zeros")
    attrs = {"bits": bits, "block_size": block, "quantize_axis": 1, "gather_axis": 0}
    proto = contrib("GatherBlockQuantized", slots, given, ["y"], **attrs)
    constant = {n: a for n, a in given.items() if n != "indices"}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constant.items())
    kept = [i for i in proto.graph.input if i.name == "indices"]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    compare(proto, {"indices": given["indices"]})


EMBEDDING = ("ids", "segments", "words", "places", "kinds", "gamma", "beta", "mask", "positions")


@pytest.mark.parametrize("masked", [False, True])
def test_embeddings_with_the_number_of_unmasked_tokens(masked: bool) -> None:
    given: dict[str, Array] = {
        "ids": _bits(B, S) + 3, "segments": _bits(B, S), "words": F(9, WIDTH), "places": F(7, WIDTH, seed=1),
        "kinds": F(2, WIDTH, seed=2), "gamma": F(WIDTH, seed=3), "beta": F(WIDTH, seed=4),
    }  # fmt: skip
    if masked:
        given["mask"] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    compare(contrib("EmbedLayerNormalization", EMBEDDING, given, ["y", "count", "sum"], epsilon=1e-5), given)


def test_the_statistics_of_a_skip_normalisation() -> None:
    """ONNX Runtime's CPU kernel leaves them out: they are those of numpy."""
    x, s, g, b = F(2, 3, 8), F(2, 3, 8, seed=1), F(8, seed=2), F(8, seed=3)
    given = {"x": x, "s": s, "g": g, "b": b}
    proto = contrib("SkipLayerNormalization", tuple("xsgb"), given, ["y", "mean", "deviation"], epsilon=1e-5)
    _, mean, deviation = evaluate(import_onnx(proto), given)
    total = (x + s).astype(np.float64)
    np.testing.assert_allclose(mean, total.mean(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(deviation, 1 / np.sqrt(total.var(-1, keepdims=True) + 1e-5), rtol=1e-5)


class Encoder(torch.nn.Module):
    """The hidden states of a BERT."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        out = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, as torch.onnx.export writes it, with open sizes and an attention mask."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    module = Encoder(config).eval()
    path = tmp_path_factory.mktemp("bert") / "bert.onnx"
    ids = torch.ones(2, 6, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    sizes = {n: {0: "batch", 1: "length"} for n in (*names, "y")}
    torch.onnx.export(
        module, (ids, ids, torch.zeros_like(ids)), str(path), input_names=names, output_names=["y"],
        dynamic_axes=sizes, dynamo=False, opset_version=17,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("level", [0, 1, 2, 99])
@pytest.mark.parametrize(
    ("form", "more"), [(AttentionMaskFormat.AttentionMask, 0), (AttentionMaskFormat.MaskIndexEnd, 1)]
)
def test_an_optimised_bert(exported: Path, level: int, form: Any, more: int) -> None:
    """No more kernels than of the plain export, but for one that counts tokens where their number is the mask."""
    options = FusionOptions("bert")
    options.attention_mask_format = form
    plain = onnx.load(exported)
    optimised = optimize_model(
        str(exported), "bert", num_heads=4, hidden_size=32, optimization_options=options, opt_level=level
    ).model
    assert {n.op_type for n in optimised.graph.node} & {"Attention", "SkipLayerNormalization"}
    rng = np.random.default_rng(1)
    engines = [arcweld.compile(m, device="sim", verify="off") for m in (optimised, plain)]
    assert len(engines[0].program.launches) <= len(engines[1].program.launches) + more
    for batch, length in ((2, 6), (1, 9)):
        ids = rng.integers(0, 50, (batch, length))
        mask = np.ones((batch, length), np.int64)
        mask[0, length - 2 :] = 0
        kinds = rng.integers(0, 2, (batch, length))
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
        given = {i.name: feeds[i.name] for i in optimised.graph.input}
        (want,) = runtime(plain, feeds)
        types = {i.name: i.type.tensor_type.elem_type for i in optimised.graph.input}
        given = {n: a.astype(helper.tensor_dtype_to_np_dtype(types[n])) for n, a in given.items()}
        found = engines[0](*given.values())
        np.testing.assert_allclose(found[mask == 1], want[mask == 1], rtol=1e-3, atol=1e-4)


class Hidden(torch.nn.Module):
    """The hidden states of a model of transformers, by its inputs in order."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(**dict(zip(self.names, inputs))).last_hidden_state
        return hidden


TEXT, IMAGE = ("input_ids", "attention_mask"), ("pixel_values",)
OTHERS: dict[str, Any] = {
    "gpt2": (TEXT, lambda: GPT2Model(GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0, use_cache=False,
        attn_implementation="eager"))),
    "vit": (IMAGE, lambda: ViTModel(ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        attn_implementation="eager"), add_pooling_layer=False)),
    "t5": (TEXT, lambda: T5EncoderModel(T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OTHERS))
def test_other_optimised_transformers(name: str, tmp_path: Path) -> None:
    """At every level that depends on no CPU: right, with no more kernels than the plain export."""
    names, make = OTHERS[name]
    torch.manual_seed(0)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    args = (torch.randint(0, 50, (2, 6)), mask) if names is TEXT else (torch.randn(1, 3, 32, 32),)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(
        Hidden(make(), names).eval(), args, path, input_names=list(names), output_names=["y"], dynamo=False,
        dynamic_axes={n: {0: "batch", 1: "length"} for n in names} if names is TEXT else None, opset_version=17,
    )  # fmt: skip
    plain, feeds = onnx.load(path), {n: a.numpy() for n, a in zip(names, args)}
    (want,) = runtime(plain, feeds)
    valid = mask.numpy() == 1 if names is TEXT else np.ones(want.shape[:2], bool)
    most = len(arcweld.compile(plain, device="sim", verify="off").program.launches)
    for level in (0, 1, 2):
        proto = optimize_model(path, name, num_heads=4, hidden_size=32, opt_level=level).model
        engine = arcweld.compile(proto, device="sim", verify="off")
        assert len(engine.program.launches) <= most
        types = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in proto.graph.input}
        found = engine(*(feeds[n].astype(t) for n, t in types.items()))
        np.testing.assert_allclose(found[valid], want[valid], rtol=1e-3, atol=1e-4)
