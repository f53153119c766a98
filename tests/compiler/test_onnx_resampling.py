"""Antialiased Resize against ONNX Runtime, as references and as kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_runs import built, on_simulator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import compare, floats, ints, model, runtime

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.ops.resize import TRANSFORMS
from arcweld.driver.api import compile as compile_model


def resize(shape: list[Any], given: np.ndarray, dtype: Any = np.float32, **attrs: Any) -> onnx.ModelProto:
    """``given``: sizes if they are integers, else scales."""
    inputs = ["x", "", "", "g"] if given.dtype == np.int64 else ["x", "", "g"]
    node = helper.make_node("Resize", inputs, ["y"], antialias=1, **attrs)
    return model([node], {"x": (dtype, shape)}, ["y"], {"g": given}, opset=18)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("transform", TRANSFORMS[:5])
@pytest.mark.parametrize("outside", [0, 1])
def test_shrinking_and_growing(mode: str, transform: str, outside: int) -> None:
    x = floats(1, 2, 13, 17)
    for size in ((5, 6), (5, 30), (13, 4), (26, 34)):
        attrs = {"mode": mode, "coordinate_transformation_mode": transform, "exclude_outside": outside}
        compare(resize([1, 2, 13, 17], ints(1, 2, *size), **attrs), {"x": x})


@given(st.data())
@settings(max_examples=40)
def test_scales_and_axes(data: st.DataObject) -> None:
    channels_last = data.draw(st.booleans())  # ONNX Runtime knows these two layouts only
    shape = [data.draw(st.integers(1, 9)) for _ in range(4)]
    axes = [1, 2] if channels_last else [2, 3]
    scales = [data.draw(st.sampled_from([0.25, 0.34, 0.5, 0.8, 1.0, 1.5])) for _ in axes]
    assume(all(int(shape[a] * s) >= 1 for a, s in zip(axes, scales)))
    full = np.ones(len(shape), np.float32)
    full[axes] = scales
    proto = resize(shape, full, mode="linear")
    graph = import_onnx(proto)
    x = floats(*shape)
    (theirs,) = runtime(proto, {"x": x})
    (ours,) = on_simulator(built(graph), {"x": x}).values()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_it_is_products_with_constants() -> None:
    graph = import_onnx(resize(["n", 3, 64, 48], ints(2, 3, 16, 20), mode="cubic"), shapes={"x": [2, 3, 64, 48]})
    assert [n.op for n in graph.nodes] == ["MatMul", "MatMul"]
    open_batch = resize(["n", 3, 64, 48], np.array([1, 1, 0.25, 0.5], np.float32), mode="linear")
    compare(open_batch, {"x": floats(3, 3, 64, 48)})


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="antialiased resizing of u8"):
        import_onnx(resize([1, 1, 8, 8], ints(1, 1, 4, 4), np.uint8, mode="linear"))
    with pytest.raises(UnsupportedError, match="antialiased resizing of an axis of h"):
        import_onnx(resize([1, 1, "h", 8], np.array([1, 1, 0.5, 0.5], np.float32), mode="linear"))


def test_an_axis_without_elements_has_no_aspect_ratio() -> None:
    for policy in ("not_larger", "not_smaller"):
        with pytest.raises(ModelError, match="no aspect ratio to keep"):
            import_onnx(resize([1, 1, 0, 4], ints(8, 8), mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy))


def test_an_open_axis_that_shrinks_is_verified() -> None:
    """A size beyond every tile has some 10^5 rows: the reference must not be a matrix of their square."""
    proto = resize([1, 1, "h", 4], np.array([1, 1, 0.1, 2], np.float32), mode="linear")
    del proto.graph.node[0].attribute[[a.name for a in proto.graph.node[0].attribute].index("antialias")]
    engine = compile_model(proto, device="sim")
    (point,) = [p for p in engine.data.verify["points"] if p["name"] == "beyond"]
    assert "skipped" not in point
    assert point["sizes"]["h"] > 100_000
