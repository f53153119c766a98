"""TfIdfVectorizer against ONNX Runtime: modes, lengths, distances, places that nothing names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import evaluate, model, runtime

from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.onnx.importer import import_onnx

POOL: dict[str, Any] = {
    "ngram_counts": [0, 3, 9], "ngram_indexes": [4, 0, 1, 6, 3, 2, 8],
    "pool_int64s": [2, 3, 5, 5, 3, 2, 2, 3, 5, 5, 3, 2], "weights": [0.5, 2.0, 3.0, 1.5, 0.25, 4.0, 5.0],
}  # fmt: skip


def vectorizer(shape: list[Any], **attrs: Any) -> Any:
    every = {**POOL, "mode": "TF", "min_gram_length": 1, "max_gram_length": 3, "max_skip_count": 0, **attrs}
    node = helper.make_node("TfIdfVectorizer", ["x"], ["y"], **every)
    return model([node], {"x": (np.int64, shape)}, ["y"], opset=17)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("least", "most", "skips"), [(1, 1, 0), (1, 2, 3), (2, 3, 1), (3, 3, 0), (1, 3, 9)])
@pytest.mark.parametrize("shape", [(12,), (3, 7), (2, 2)])
def test_counts_of_n_grams(shape: tuple[int, ...], least: int, most: int, skips: int, mode: str) -> None:
    x = np.random.default_rng(1).choice([2, 3, 5, 7], shape)
    limits = {"min_gram_length": least, "max_gram_length": most, "max_skip_count": skips}
    proto = vectorizer(list(shape), mode=mode, **limits)
    (ours,), (theirs,) = evaluate(import_onnx(proto), {"x": x}), runtime(proto, {"x": x})
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("attrs", "reason"), [
    ({"mode": "BM25"}, "mode is"),
    ({"ngram_indexes": [0, 1]}, "7 n-grams have 2 places"),
    ({"ngram_indexes": [0, 1, 2, 3, 4, 5, 5]}, "two n-grams with one place"),
    ({"ngram_counts": [0, 3, 8]}, "5 tokens are no 2-grams"),
    ({"min_gram_length": 3, "max_gram_length": 1}, "make no sense"),
])  # fmt: skip
def test_pools_that_make_no_sense_are_refused(attrs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArcweldError, match=reason):
        import_onnx(vectorizer([4], **attrs))
