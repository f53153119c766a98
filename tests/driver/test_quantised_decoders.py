"""A decode step of 4-bit weights in f16: the kernels of few rows read them packed, and ONNX Runtime gives the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import test_onnx_decoders as decoders
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import arcweld
from arcweld import Input


@pytest.mark.parametrize(("arch", "how"), [("sm_90a", "copies"), ("sm_80", "loads")])
@pytest.mark.parametrize(("block", "symmetric"), [(32, True), (128, False)])
def test_a_step_streams_packed_weights(
    block: int, symmetric: bool, arch: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HIDDEN", 256), ("HEAD", 64), ("WORDS", 512)):
        monkeypatch.setattr(decoders, name, value)
    quantizer = MatMulNBitsQuantizer(decoders.genai(packed=False), block_size=block, is_symmetric=symmetric)
    quantizer.process()
    model = quantizer.model.model
    inputs = [Input("input_ids", (1, 1)), Input("attention_mask", (1, None))]
    shape = (1, decoders.GROUPS, decoders.ROOM, decoders.HEAD)
    caches = [Input(n, shape, inout=True) for n in decoders.CACHES]
    engine = arcweld.compile(model, inputs=[*inputs, *caches], device="sim", precision="fp16", arch=(arch,))

    variants = [v for x in engine.program.launches if x.template in ("chain", "contract") for v in x.variants]
    texts = [engine.data.sources[v.kernel] for v in variants if v.arch == arch]
    assert len(texts) == 4 * 2 + 1
    assert all('#include "stored.cuh"' in text and f"Each warp {how} pieces" in text for text in texts)

    session = decoders.opened(model)
    ours = {n: decoders.zeros(1) for n in decoders.CACHES}
    theirs = {n: ort.OrtValue.ortvalue_from_numpy(decoders.zeros(1)) for n in decoders.CACHES}
    rng = np.random.default_rng(1)
    for step in range(4):
        feeds = {"input_ids": rng.integers(0, 512, (1, 1)), "attention_mask": np.ones((1, step + 1), np.int64)}
        want = decoders.runtime_in_place(session, feeds, theirs)
        got = engine.run({**feeds, **ours})["logits"]
        assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()  # f16 between kernels: two layers, about 2**-9
