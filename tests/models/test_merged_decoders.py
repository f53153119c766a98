"""Decoders of T5 and Whisper whose two forms, with a cache and without, are branches of one model, as optimum has it.

One engine holds both. The first call has no cache; later ones take what the call before gave.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto as T
from onnx import helper as h
from torch import nn

import arcweld
from arcweld.driver.summary import host_text

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

PAST = [f"past.{i}.{side}.{part}" for i in range(2) for side in ("decoder", "encoder") for part in ("key", "value")]
PRESENT = [n.replace("past", "present") for n in PAST]
WIDTH = 32


def network(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=97, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
        config._attn_implementation = "eager"
        made = transformers.T5ForConditionalGeneration(config)
    else:
        config = transformers.WhisperConfig(
            vocab_size=97, d_model=WIDTH, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20,
            max_target_positions=32, num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=3,
        )  # fmt: skip
        config._attn_implementation = "eager"
        made = transformers.WhisperForConditionalGeneration(config)
    for p in made.parameters():
        if p.dim() > 1:
            p.data = torch.randn_like(p) / 5
    return made.eval()


class Decoder(nn.Module):
    """Logits and the caches of both layers: of the tokens so far, and of the encoder's states."""

    def __init__(self, network: Any, kind: str, cached: bool) -> None:
        super().__init__()
        self.network, self.kind, self.cached = network, kind, cached

    def forward(self, ids: torch.Tensor, states: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own, other = transformers.DynamicCache(), transformers.DynamicCache()
        cache = transformers.EncoderDecoderCache(own, other)
        for i in range(2) if self.cached else ():
            own.update(past[4 * i], past[4 * i + 1], i)
            other.update(past[4 * i + 2], past[4 * i + 3], i)
            cache.is_updated[i] = True
        options = {}
        if self.kind == "whisper":
            first = past[0].shape[2] if self.cached else 0
            options["position_ids"] = (torch.arange(ids.shape[1]) + first)[None]
        body = self.network.decoder if self.kind == "t5" else self.network.model.decoder
        head = self.network.lm_head if self.kind == "t5" else self.network.proj_out
        x = body(input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True, **options)
        caches = [t for i in range(2) for c in (own, other) for t in (c.layers[i].keys, c.layers[i].values)]
        return (head(x.last_hidden_state), *caches)


def export(module: nn.Module, args: Sequence[torch.Tensor], path: Path, names: Sequence[str]) -> onnx.GraphProto:
    axes: dict[str, Any] = {"ids": {1: "s"}, "states": {1: "e"}}
    axes |= {n: {2: "p" if "decoder" in n else "e"} for n in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(args), str(path), dynamo=False, opset_version=17, input_names=["ids", "states", *names],
            output_names=["logits", *PRESENT], dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load(path).graph


def branch(graph: onnx.GraphProto, tag: str, shared: dict[Any, onnx.TensorProto]) -> onnx.GraphProto:
    """The graph as a branch: its weights are outside, equal ones of both branches once."""
    renamed = {i.name: i.name for i in graph.input}
    for t in graph.initializer:
        key = (t.data_type, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes())
        if key not in shared:
            shared[key] = onnx.TensorProto()
            shared[key].CopyFrom(t)
            shared[key].name = f"weight{len(shared)}"
        renamed[t.name] = shared[key].name

    def new(name: str) -> str:
        return renamed.get(name, tag + name) if name else ""

    def rename(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        out = []
        for n in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(n)
            copy.name = tag + n.name
            for field in ("input", "output"):
                values = [new(v) for v in getattr(n, field)]
                del getattr(copy, field)[:]
                getattr(copy, field).extend(values)
            for attr in copy.attribute:
                if attr.HasField("g"):
                    inner = rename(attr.g.node)
                    del attr.g.node[:]
                    attr.g.node.extend(inner)
                    for o in attr.g.output:
                        o.name = new(o.name)
            out.append(copy)
        return out

    nodes, outputs = rename(graph.node), []
    for o in graph.output:
        name = new(o.name)
        if o.name in {i.name for i in graph.input}:  # a cache that is passed on
            nodes.append(h.make_node("Identity", [name], [tag + o.name]))
            name = tag + o.name
        outputs.append(h.make_tensor_value_info(name, T.FLOAT, None))
    return h.make_graph(nodes, tag, [], outputs)


def merged(kind: str, folder: Path) -> Path:
    """Writes the merged decoder."""
    whole = network(kind)
    ids, states = torch.tensor([[3, 5, 7]]), torch.randn(1, 6, WIDTH)
    first = Decoder(whole, kind, cached=False)
    with torch.no_grad():
        _, *caches = first(ids, states)
    shared: dict[Any, onnx.TensorProto] = {}
    without = branch(export(first, (ids, states), folder / "first.onnx", []), "without_", shared)
    later = Decoder(whole, kind, cached=True)
    cached = branch(export(later, (ids[:, :1], states, *caches), folder / "later.onnx", PAST), "cached_", shared)
    choice = h.make_node("If", ["use_cache_branch"], ["logits", *PRESENT], then_branch=cached, else_branch=without)
    info = h.make_tensor_value_info
    inputs = [info("ids", T.INT64, [1, "s"]), info("states", T.FLOAT, [1, "e", WIDTH])]
    inputs += [info(n, T.FLOAT, [1, 2, "p" if "decoder" in n else "pe", 16]) for n in PAST]
    inputs.append(info("use_cache_branch", T.BOOL, [1]))
    graph = h.make_graph([choice], "merged", inputs, [info(n, T.FLOAT, None) for n in ("logits", *PRESENT)])
    graph.initializer.extend(shared.values())
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), folder / "merged.onnx")
    return folder / "merged.onnx"


@pytest.mark.parametrize("kind", ["t5", "whisper"])
def test_one_engine_for_the_first_token_and_all_others(kind: str, tmp_path: Path) -> None:
    path = merged(kind, tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    engine = arcweld.compile(str(path), device="sim")
    assert host_text(engine.data) == "0 fallbacks, 2 stages, 1 host branch"
    assert {k["status"] for k in (engine.data.verify or {})["kernels"]} == {"verified"}
    in_file = sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(path).graph.initializer)
    assert sum(w.nbytes for w in engine.data.weights.values()) <= 1.25 * in_file, "not each branch its own weights"

    def step(**feeds: np.ndarray) -> dict[str, np.ndarray]:
        want = dict(zip(["logits", *PRESENT], session.run(None, feeds)))
        got = engine.run(feeds)
        for name, w in want.items():
            assert got[name].shape == w.shape
            np.testing.assert_allclose(got[name], w, rtol=1e-3, atol=1e-4)
        return want

    states = np.random.default_rng(1).standard_normal((1, 6, WIDTH)).astype(np.float32)
    nothing = {n: np.zeros((1, 2, 1, 16), np.float32) for n in PAST}
    found = step(ids=np.array([[3, 5, 7]]), states=states, use_cache_branch=np.array([False]), **nothing)
    for length in (4, 5, 6):
        token = found["logits"][:, -1:].argmax(-1)
        past = {n: found[p] for n, p in zip(PAST, PRESENT)}
        found = step(ids=token, states=states, use_cache_branch=np.array([True]), **past)
        assert found["present.0.decoder.key"].shape == (1, 2, length, 16)
