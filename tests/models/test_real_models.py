"""Published models compile, run on the simulator and agree with ONNX Runtime, in a bounded number of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.driver import api
from arcweld.driver.build import Build
from arcweld.models.catalogue import MODELS, OCR_TEXT, Feeds, ctc_text, planes, speech, text_image
from arcweld.models.fetch import fetch
from arcweld.runtime.engine import Engine

pytestmark = pytest.mark.models

FP32 = 1e-3
# The largest allowed count of kernels: what the compiler reaches today, so that a lost fusion is noticed.
KERNELS = {
    "ppocr_det": 81,
    "ppocr_rec": 61,
    "ppocr_cls": 75,
    "magika": 15,
    "minilm_l6_int8": 44,
    "yolox": 101,
    "open_nsfw": 57,
    "mtcnn_pnet": 8,
    "mtcnn_rnet": 9,
    "mtcnn_onet": 12,
    "basic_pitch": 57,
    "dnsmos": 17,
    "dnsmos_p808": 12,
    "dnsmos_sig": 14,
    "dnsmos_bak": 14,
    "minilm_l3": 28,
    "crnn": 24,
    "crnn_int8": 54,
    "silero_vad": 11,
    "plcmos": 24,
    "aecmos_16k": 17,
    "terrain_unet": 500,
}
SLOW = {"dnsmos", "dnsmos_sig", "dnsmos_bak", "yolox", "terrain_unet"}


@dataclass(frozen=True)
class Compiled:
    """A catalogue model as an engine for the simulator, and the session that tells what is right."""

    build: Build
    engine: Engine
    session: ort.InferenceSession


def _compile(name: str, precision: str = "fp32", shapes: Mapping[str, Sequence[int | str]] | None = None) -> Compiled:
    try:
        path = str(fetch(name))
    except EnvironmentError_ as error:
        pytest.skip(f"{name} cannot be fetched: {error}")
    model = MODELS[name]
    graph = import_onnx(path, shapes=dict(model.shapes if shapes is None else shapes), values=dict(model.values))
    build, engine = api.build_engine(graph, precision=precision, device="sim", verify="off")
    assert engine.device.name == "sim"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return Compiled(build, engine, ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


# engines that serve several tests
_shared = cache(_compile)


def _errors(compiled: Compiled, feeds: Feeds) -> dict[str, float]:
    """Relative (Frobenius) error of each output against ONNX Runtime; classes and flags must be equal."""
    outputs = [o.name for o in compiled.session.get_outputs()]
    known = {i.name for i in compiled.session.get_inputs()}
    wanted = dict(zip(outputs, compiled.session.run(outputs, {k: v for k, v in feeds.items() if k in known})))
    taken = {t.name for t in compiled.engine.inputs}
    results = compiled.engine.run({k: v for k, v in feeds.items() if k in taken})
    assert list(results) == outputs
    found = {}
    for label, want in wanted.items():
        got = results[label]
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        norm = np.linalg.norm(want.astype(np.float64))
        assert np.abs(want).max() > 0.05, f"{label} is nearly zero: the input makes no test"
        found[label] = float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)) / norm)
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in KERNELS])
def test_agrees_with_onnxruntime(name: str) -> None:
    compiled = _shared(name)
    errors = _errors(compiled, MODELS[name].feeds())
    assert max(errors.values()) <= FP32, errors
    kernels = len(compiled.build.planned)
    assert kernels <= KERNELS[name]


@pytest.mark.parametrize(
    ("name", "kernels", "share"),
    # the first one's weights are bytes, which stay bytes
    [("minilm_l6_int8", 44, 1.0), ("open_nsfw", 57, 0.6), ("ppocr_rec", 61, 0.6)],
)
def test_half_precision(name: str, kernels: int, share: float) -> None:
    compiled = _compile(name, "fp16")
    errors = _errors(compiled, MODELS[name].feeds())
    assert max(errors.values()) <= 2e-2, errors
    found = len(compiled.build.planned)
    assert found <= kernels
    wide = sum(w.nbytes for w in _shared(name).build.data.weights.values())
    assert sum(w.nbytes for w in compiled.build.data.weights.values()) < share * wide


@pytest.mark.parametrize(("batch", "length"), [(1, 5), (3, 16), (2, 33)])
def test_a_sentence_encoder_takes_any_batch_and_length(batch: int, length: int) -> None:
    compiled = _shared("minilm_l6_int8")
    random = np.random.default_rng(batch)
    ids = random.integers(1000, 20000, (batch, length))
    mask = (np.arange(length) < random.integers(2, length + 1, (batch, 1))).astype(np.int64)
    feeds = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    assert max(_errors(compiled, feeds).values()) <= FP32


@pytest.mark.parametrize(("text", "width"), [(OCR_TEXT, 320), ("Total 81.50", 200), ("Go", 64)])
def test_the_recogniser_reads_text_of_any_width(text: str, width: int) -> None:
    compiled = _shared("ppocr_rec")
    feeds = {"x": planes(text_image(text, 48, width), (0.5,) * 3, (0.5,) * 3)}
    assert max(_errors(compiled, feeds).values()) <= FP32
    characters = compiled.session.get_modelmeta().custom_metadata_map["character"].splitlines() + [" "]
    (probabilities,) = compiled.engine.run(feeds).values()
    assert ctc_text(probabilities[0], characters).rstrip() == text


@pytest.mark.parametrize(("batch", "width"), [(1, 160), (2, 96)])
def test_the_detector_takes_images_of_any_size(batch: int, width: int) -> None:
    compiled = _shared("ppocr_det")
    image = np.full((64, width, 3), 255, np.uint8)
    image[8:56] = text_image("Sample text", 48, width)
    one = planes(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    feeds = {"x": np.concatenate([one, one[:, :, ::-1]][:batch])}
    assert max(_errors(compiled, feeds).values()) <= FP32


def test_a_voice_detector_carries_its_state_over_frames() -> None:
    """Errors must not build up when outputs become inputs."""
    compiled = _shared("silero_vad")
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    signal = speech(6 * 512 + 64)
    for i in range(6):
        frame = signal[None, i * 512 : i * 512 + 576]
        probability, ours = compiled.engine.run({"input": frame, "state": ours}).values()
        wanted, theirs = compiled.session.run(None, {"input": frame, "state": theirs, "sr": np.array(16000)})
        np.testing.assert_allclose(probability, wanted, atol=1e-4)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
