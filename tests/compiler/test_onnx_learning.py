"""Operators of ``ai.onnx.ml``, against ONNX Runtime and as kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_runs import built, on_simulator
from onnx import helper, numpy_helper
from onnx_models import compare, evaluate, floats, ints, model, runtime

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

F = floats
ML = "ai.onnx.ml"


def of_ml(op: str, version: int, feeds: dict[str, np.ndarray], **attrs: Any) -> onnx.ModelProto:
    given = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attrs.items()}
    node = helper.make_node(op, list(feeds), ["y"], domain=ML, **given)
    inputs = {k: (a.dtype, a.shape) for k, a in feeds.items()}
    return model([node], inputs, ["y"], opset=18, opsets=[helper.make_opsetid(ML, version)])


@pytest.mark.parametrize("attrs", [{}, {"threshold": 0.4}])
def test_binarizer(attrs: dict[str, Any]) -> None:
    feeds = {"x": F(3, 4)}
    compare(of_ml("Binarizer", 1, feeds, **attrs), feeds)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_columns(shape: tuple[int, ...]) -> None:
    feeds = {"x": F(*shape), "i": ints(3, 0, 0)}
    compare(of_ml("ArrayFeatureExtractor", 1, feeds), feeds)


@pytest.mark.parametrize(
    ("x", "attrs"),
    [
        (ints([3, 4], [9, -1]), {"keys_int64s": [4, 3, -1], "values_floats": [0.5, 1.5, 2.5], "default_float": 9.0}),
        (ints(3, 4, 9), {"keys_int64s": [4, 3], "values_int64s": [10, 20]}),
        (F(4).round(), {"keys_floats": [0.0, 1.0], "values_int64s": [7, 8], "default_int64": 5}),
        (F(5).round(), {"keys_floats": [1.0, -1.0], "values_floats": [0.25, 1.25]}),
    ],
)
def test_labels(x: np.ndarray, attrs: dict[str, Any]) -> None:
    proto = of_ml("LabelEncoder", 2, {"x": x}, **attrs)
    graph = compare(proto, {"x": x})
    (computed,) = on_simulator(built(graph), {"x": x}).values()
    np.testing.assert_array_equal(computed, evaluate(graph, {"x": x})[0])


def test_the_last_of_equal_keys_counts() -> None:
    x = ints(1, 2)
    proto = of_ml("LabelEncoder", 2, {"x": x}, keys_int64s=[1, 2, 1], values_int64s=[10, 20, 30])
    np.testing.assert_array_equal(evaluate(import_onnx(proto), {"x": x})[0], [30, 20])


def test_a_key_that_is_not_a_number_matches_every_such_element() -> None:
    """As the standard says; a comparison alone would find none."""
    x = np.array([1, 2.5, np.nan], np.float32)
    proto = of_ml("LabelEncoder", 2, {"x": x}, keys_floats=[2.5, np.nan], values_floats=[0.25, 1.25])
    np.testing.assert_array_equal(evaluate(import_onnx(proto), {"x": x})[0], np.float32([0, 0.25, 1.25]))


def test_labels_that_are_not_computed() -> None:
    with pytest.raises(ModelError, match="2 keys and 1 values"):
        import_onnx(of_ml("LabelEncoder", 2, {"x": ints(1)}, keys_int64s=[1, 2], values_int64s=[1]))
    with pytest.raises(UnsupportedError, match="not finite"):
        import_onnx(of_ml("LabelEncoder", 2, {"x": np.ones(1, np.float32)}, keys_floats=[np.nan], values_strings=["a"]))


# ------------------------------------------------------------------------------------------------------- TreeEnsemble


def forest(seed: int, *, modes: tuple[int, ...], trees: int = 3, features: int = 4, targets: int = 3) -> dict[str, Any]:
    """Random trees of random depths, as TreeEnsemble's attributes."""
    rng = np.random.default_rng(seed)
    nodes: list[dict[str, Any]] = []
    leaves: list[tuple[float, int]] = []

    def grow(depth: int) -> tuple[int, int]:
        """A branch: whether it is a leaf, and its number."""
        if depth == 0 or (depth < 4 and rng.random() < 0.3):
            leaves.append((float(np.float32(rng.normal())), int(rng.integers(targets))))
            return 1, len(leaves) - 1
        place = len(nodes)
        nodes.append({"mode": int(rng.choice(modes)), "split": float(rng.integers(-2, 3)) / 2})
        nodes[place] |= {"feature": int(rng.integers(features)), "missing": int(rng.integers(2))}
        nodes[place]["true"], nodes[place]["false"] = grow(depth - 1), grow(depth - 1)
        return 0, place

    roots = [grow(5)[1] for _ in range(trees)]
    attrs: dict[str, Any] = {
        "tree_roots": roots, "n_targets": targets, "nodes_featureids": [n["feature"] for n in nodes],
        "nodes_modes": np.array([n["mode"] for n in nodes], np.uint8),
        "nodes_splits": np.array([n["split"] for n in nodes], np.float32),
        "nodes_missing_value_tracks_true": [n["missing"] for n in nodes],
        "leaf_weights": np.array([w for w, _ in leaves], np.float32), "leaf_targetids": [t for _, t in leaves],
    }  # fmt: skip
    for side in ("true", "false"):
        attrs[f"nodes_{side}leafs"] = [n[side][0] for n in nodes]
        attrs[f"nodes_{side}nodeids"] = [n[side][1] for n in nodes]
    return attrs


def rows(seed: int) -> np.ndarray:
    """Features that often equal a split, and a few that are missing."""
    x = np.round(F(12, 4, seed=seed) * 2) / 2
    x[::5, 1] = np.nan
    return x


@pytest.mark.parametrize("modes", [(0,), (0, 1, 2, 3), (4, 5, 0)])
@pytest.mark.parametrize("more", [{}, {"aggregate_function": 2}, {"aggregate_function": 3}])
def test_trees(modes: tuple[int, ...], more: dict[str, int]) -> None:
    feeds = {"x": rows(1)}
    proto = of_ml("TreeEnsemble", 5, feeds, **forest(len(modes), modes=modes), **more)
    graph = compare(proto, feeds)
    (computed,) = on_simulator(built(graph), feeds).values()
    np.testing.assert_allclose(computed, evaluate(graph, feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [1, 2])
def test_scores_are_transformed(how: int) -> None:
    """The standard numbers softmax 1 and the logistic function 2; ONNX Runtime has them the other way round."""
    feeds, attrs = {"x": rows(2)}, forest(7, modes=(0, 3))
    scores = runtime(of_ml("TreeEnsemble", 5, feeds, **attrs), feeds)[0]
    expected = torch.softmax(torch.from_numpy(scores), 1) if how == 1 else torch.sigmoid(torch.from_numpy(scores))
    found = evaluate(import_onnx(of_ml("TreeEnsemble", 5, feeds, **attrs, post_transform=how)), feeds)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_mean_of_trees() -> None:
    feeds, attrs = {"x": rows(2)}, forest(7, modes=(0, 3))
    total = evaluate(import_onnx(of_ml("TreeEnsemble", 5, feeds, **attrs)), feeds)[0]
    mean = evaluate(import_onnx(of_ml("TreeEnsemble", 5, feeds, **attrs, aggregate_function=0)), feeds)[0]
    np.testing.assert_allclose(mean, total / 3, rtol=1e-6)


def test_malformed_trees_are_broken() -> None:
    feeds, attrs = {"x": rows(2)}, forest(7, modes=(0,))
    circular = {**attrs, "nodes_trueleafs": [0] * len(attrs["nodes_featureids"])}
    circular["nodes_truenodeids"] = [0] * len(attrs["nodes_featureids"])
    for wrong, word in (
        (circular, "leads back"),
        ({**attrs, "tree_roots": [10**6]}, "tree_roots"),
        ({**attrs, "nodes_featureids": [4] * len(attrs["nodes_featureids"])}, "nodes_featureids"),
        ({**attrs, "nodes_modes": np.array(["<"] * len(attrs["nodes_featureids"]), object)}, "wrong type, object"),
        ({**attrs, "nodes_modes": np.zeros(len(attrs["nodes_featureids"]), np.float32)}, "wrong type, float32"),
        ({**attrs, "leaf_weights": np.array(["1"], object)}, "leaf_weights"),
    ):
        with pytest.raises(ModelError, match=word):
            import_onnx(of_ml("TreeEnsemble", 5, feeds, **wrong))
    with pytest.raises(UnsupportedError, match="1099511627776 targets"):
        import_onnx(of_ml("TreeEnsemble", 5, feeds, **(attrs | {"n_targets": 1 << 40})))
    with pytest.raises(UnsupportedError, match="PROBIT"):
        import_onnx(of_ml("TreeEnsemble", 5, feeds, **attrs, post_transform=4))
