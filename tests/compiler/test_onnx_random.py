"""Random numbers: Philox against its authors' known answers, distributions against their moments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_runs import built, on_simulator
from onnx import TensorProto, helper
from onnx_models import evaluate, floats, model, one_node
from onnx_oracle import philox

from arcweld.compiler.errors import ModelError
from arcweld.compiler.onnx.importer import import_onnx


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_oracle_gives_the_known_answers(counter: str, key: str, words: str) -> None:
    """Those of Random123, by the authors of the generator."""
    given = [[int(w, 16) for w in text.split()] for text in (counter, key)]
    assert philox(*given) == [int(w, 16) for w in words.split()]


def numbers(op: str, shape: tuple[int, ...] = (200, 250), **attrs: Any) -> np.ndarray:
    proto, _ = one_node(op, 15, [], {"shape": list(shape), **attrs})
    (found,) = evaluate(import_onnx(proto), {})
    return found


def test_uniform_numbers() -> None:
    x = numbers("RandomUniform", low=-3.0, high=5.0, seed=1.5)
    assert x.dtype == np.float32
    assert -3 <= x.min() < -2.99
    assert 4.99 < x.max() <= 5
    np.testing.assert_allclose([x.mean(), x.var()], [1, 64 / 12], rtol=0.02)
    counts, _ = np.histogram(x, 40)
    assert np.sum((counts - 1250.0) ** 2 / 1250) < 73  # chi-squared with 39 degrees of freedom: one in 1000


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_normal_numbers(dtype: int) -> None:
    x = numbers("RandomNormal", mean=2.0, scale=3.0, seed=7.0, dtype=dtype)
    assert x.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    z = (x.astype(np.float64) - 2) / 3
    assert np.isfinite(z).all()
    np.testing.assert_allclose([z.mean(), z.var(), (z**3).mean(), (z**4).mean()], [0, 1, 0, 3], atol=0.08)


def test_seeds_and_names_choose_the_numbers() -> None:
    same = [numbers("RandomUniform", (50,), seed=s) for s in (1.0, 1.0, 2.0)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).all()
    nodes = [helper.make_node("RandomUniformLike", ["x"], [y], name=y) for y in ("a", "b")]
    a, b = evaluate(import_onnx(model(nodes, {"x": (np.float32, [50])}, ["a", "b"])), {"x": floats(50)})
    assert (a != b).all()


def test_numbers_of_an_open_shape() -> None:
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], seed=3.0)
    graph = import_onnx(model([node], {"x": (np.float32, ["n", 5])}, ["y"]))
    feeds = {"x": floats(9, 5)}
    (computed,) = on_simulator(built(graph), feeds).values()
    np.testing.assert_allclose(computed, evaluate(graph, feeds)[0], rtol=1e-5, atol=1e-5)


def test_bernoulli() -> None:
    p = np.broadcast_to(np.float32([0, 0.1, 0.5, 1]), (10000, 4)).copy()
    proto, feeds = one_node("Bernoulli", 15, [p], {"seed": 1.0, "dtype": TensorProto.BOOL})
    (found,) = evaluate(import_onnx(proto), feeds)
    assert found.dtype == np.bool_
    np.testing.assert_allclose(found.mean(0), [0, 0.1, 0.5, 1], atol=0.015)
    assert not found[:, 0].any()
    assert found[:, 3].all()


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
def test_multinomial(dtype: int) -> None:
    p = np.array([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0]], np.float32)
    with np.errstate(divide="ignore"):
        x = np.log(p) + 3
    proto, feeds = one_node("Multinomial", 15, [x], {"sample_size": 5000, "dtype": dtype, "seed": 1.0})
    graph = import_onnx(proto)
    (found,) = evaluate(graph, feeds)
    assert found.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    shares = np.stack([np.bincount(row, minlength=4) / 5000 for row in found])
    np.testing.assert_allclose(shares, p, atol=0.025)
    assert (shares[p == 0] == 0).all()
    (computed,) = on_simulator(built(graph), feeds).values()
    assert (computed != found).mean() < 1e-3  # a sum that rounds otherwise may move a sample to the next class


def test_dropout_while_training() -> None:
    x = np.ones((100, 100), np.float32)
    proto, feeds = one_node("Dropout", 13, [x], {"seed": 5}, {1: np.float32(0.2), 2: np.bool_(True)}, outputs=2)
    y, kept = evaluate(import_onnx(proto), feeds)
    np.testing.assert_array_equal(y, np.where(kept, np.float32(1.25), 0))
    assert abs(kept.mean() - 0.8) < 0.02
    proto, feeds = one_node("Dropout", 13, [x], {}, {1: np.float32(1.0), 2: np.bool_(True)}, outputs=2)
    assert not np.any(evaluate(import_onnx(proto), feeds))


def test_what_has_no_meaning_is_broken() -> None:
    proto, _ = one_node("Dropout", 13, [floats(4)], {}, {1: np.float32(1.5), 2: np.bool_(True)})
    with pytest.raises(ModelError, match=r"ratio is 1\.5"):
        import_onnx(proto)
    proto, _ = one_node("RandomUniformLike", 15, [np.arange(4)], {})
    with pytest.raises(ModelError, match="i64 numbers"):
        import_onnx(proto)
