"""Transformers as torch's older exporter writes them (TorchScript, open batch and length), against ONNX Runtime.

Most published ONNX files come from it: shapes are computed by subgraphs, attention and its masks by primitives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from arcweld.compiler.onnx.importer import import_onnx
from arcweld.driver import api

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TINY: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 200,
    "max_position_embeddings": 64,
}  # fmt: skip
SEQ2SEQ: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 200, "max_position_embeddings": 64,
}  # fmt: skip
GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, "n_positions": 64}
T5: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 200}

# class, its configuration, attentions, the most kernels
MODELS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "bert": ("Bert", TINY, 2, 16),
    "bert_eager": ("Bert", {**TINY, "attn_implementation": "eager"}, 2, 16),
    "gpt2": ("GPT2", GPT2, 2, 17),
    "gpt2_eager": ("GPT2", {**GPT2, "attn_implementation": "eager"}, 2, 17),
    "llama": ("Llama", {**TINY, "num_key_value_heads": 2}, 2, 25),
    "qwen2": ("Qwen2", {**TINY, "num_key_value_heads": 2}, 2, 25),
    "bart": ("Bart", SEQ2SEQ, 6, 41),
    "t5": ("T5", T5, 6, 41),
    "mpnet": ("MPNet", TINY, 2, 17),
    "deberta": ("DebertaV2", {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 2, 24),
}


class Model(torch.nn.Module):
    """The first output for token numbers and a mask of those that count."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        more: dict[str, Any] = {"decoder_input_ids": ids} if self.inner.config.is_encoder_decoder else {}
        if hasattr(self.inner.config, "use_cache"):
            more["use_cache"] = False
        first: torch.Tensor = self.inner(input_ids=ids, attention_mask=mask, **more)[0]
        return first


def _tokens(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(batch).integers(3, 190, (batch, length))
    mask = np.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return ids, mask


def _export(name: str, path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family, options, _, _ = MODELS[name]
    build: Callable[..., Any] = getattr(transformers, f"{family}Model")
    torch.manual_seed(0)
    model = Model(build(getattr(transformers, f"{family}Config")(**options))).eval()
    axes = {k: {0: "batch", 1: "length"} for k in ("ids", "mask", "out")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(map(torch.from_numpy, _tokens(2, 16))), str(path), dynamo=False, opset_version=17,
            input_names=["ids", "mask"], output_names=["out"], dynamic_axes=axes,
        )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_any_batch_and_length(name: str, tmp_path: Path) -> None:
    _export(name, tmp_path / "m.onnx")
    build, engine = api.build_engine(import_onnx(tmp_path / "m.onnx"), device="sim", verify="off")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for batch, length in ((2, 16), (1, 7), (3, 20)):
        ids, mask = _tokens(batch, length)
        (got,) = engine.run({"ids": ids, "mask": mask}).values()
        (want,) = session.run(None, {"ids": ids, "mask": mask})
        seen = mask.astype(bool)  # what stands where nothing counts is nobody's business
        assert np.linalg.norm(got[seen] - want[seen]) <= 1e-5 * np.linalg.norm(want[seen])
    ops = [n.op for n in build.fused.graph.nodes]
    assert "Softmax" not in ops
    assert ops.count("Attention") == MODELS[name][2]
    assert len(build.planned) <= MODELS[name][3]
