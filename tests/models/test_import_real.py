"""Published models import, and the numpy references agree with ONNX Runtime on them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from arcweld.compiler.errors import EnvironmentError_, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx, support_report
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify
from arcweld.models.catalogue import MODELS, OCR_TEXT, RealModel, ctc_text
from arcweld.models.fetch import fetch

pytestmark = pytest.mark.models

SLOW = {
    "yolox", "dnsmos_sig", "dnsmos_bak", "dnsmos_personal", "silero_vad_openvino", "aecmos_16k_leaky", "terrain_unet",
}  # fmt: skip


def _path(name: str) -> str:
    try:
        return str(fetch(name))
    except EnvironmentError_ as error:
        pytest.skip(str(error))


def _session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _runtime(path: str, model: RealModel) -> dict[str, np.ndarray]:
    session = _session(path)
    feeds = model.feeds()
    wanted = {i.name for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {k: v for k, v in feeds.items() if k in wanted})))


def _evaluate(path: str, model: RealModel) -> dict[str, np.ndarray]:
    graph = import_onnx(path, **model.import_options())
    verify(graph, after="import")
    assert all(n.origin for n in graph.nodes)
    feeds = {k: v for k, v in model.feeds().items() if k not in model.values}
    assert [v.name for v in graph.inputs] == list(feeds)
    results = run_reference(graph, feeds)
    return {label: results[o.name] for label, o in zip(graph.labels(), graph.outputs)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODELS])
def test_matches_onnxruntime(name: str) -> None:
    model, path = MODELS[name], _path(name)
    ours, theirs = _evaluate(path, model), _runtime(path, model)
    assert list(ours) == list(theirs)
    for label, expected in theirs.items():
        assert ours[label].dtype == expected.dtype
        assert ours[label].shape == expected.shape
        assert np.isfinite(expected.astype(np.float64)).all()
        error = np.abs(ours[label].astype(np.float64) - expected).max()
        assert error <= model.tolerance * np.abs(expected).max(), label


def test_the_recogniser_reads_rendered_text() -> None:
    """An end-to-end check that no tolerance can hide: the text comes out."""
    path = _path("ppocr_rec")
    characters = _session(path).get_modelmeta().custom_metadata_map["character"].splitlines() + [" "]
    (probabilities,) = _evaluate(path, MODELS["ppocr_rec"]).values()
    assert ctc_text(probabilities[0], characters).rstrip() == OCR_TEXT  # the empty right margin reads as a space


def test_one_import_serves_several_sizes() -> None:
    path = _path("ppocr_det")
    graph = import_onnx(path, **MODELS["ppocr_det"].import_options())
    session, random = _session(path), np.random.default_rng(3)
    for batch, height, width in ((1, 32, 64), (2, 64, 32)):
        x = random.standard_normal((batch, 3, height, width)).astype(np.float32)
        (ours,) = run_reference(graph, {"x": x}).values()
        (theirs,) = session.run(None, {"x": x})
        assert ours.shape == theirs.shape == (batch, 1, height, width)
        # random images hold no text, so that the largest probability is tiny: compare on the scale of a probability
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_position_tables_bound_the_sequence() -> None:
    graph = import_onnx(_path("minilm_l3"))
    symbols = {s.name: s for s in graph.symbols()}
    assert symbols["sequence_length"].hi == 512
    assert symbols["batch_size"].hi is None


def test_a_data_dependent_branch_is_reported() -> None:
    path = _path("silero_vad")
    with pytest.raises(UnsupportedError, match="which branch runs") as caught:
        import_onnx(path, shapes=MODELS["silero_vad"].shapes)
    assert caught.value.node
    report = support_report(path, shapes=MODELS["silero_vad"].shapes)
    assert [r.op for r in report if not r.supported] == ["If"]


def test_open_dimensions_that_must_agree_become_multiples(caplog: pytest.LogCaptureFixture) -> None:
    """The detector adds what it halved five times and doubled again: its file does not say of which sizes."""
    (image,) = import_onnx(_path("ppocr_det")).inputs
    assert [str(d).split("*")[0] for d in image.shape[2:]] == ["32", "32"]
    said = [m for m in caplog.messages if "only multiples of 32" in m]
    assert sorted(m[:20] for m in said) == ["axis 2 of input x: o", "axis 3 of input x: o"]
