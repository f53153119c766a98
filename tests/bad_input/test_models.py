"""Models that decode but make no sense: each is refused with a typed error, or compiles, and nothing else happens.

Damaged bytes are the business of tests/compiler/test_onnx_damage.py; here fields get other values.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from bad_models import varied_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError, VerifyError
from arcweld.compiler.options import Options
from arcweld.compiler.verifier import verify
from arcweld.driver.api import compile as compile_model
from arcweld.driver.api import import_model
from arcweld.driver.build import build_graph
from arcweld.driver.stages import plain_graphs

ORIGINAL = varied_model().SerializeToString()
OPERATORS = ("Relu", "Conv", "MatMul", "Concat", "Softmax", "Reshape", "Gather", "Slice", "Nothing", "")
INTEGERS = (-(2**63), -7, -1, 0, 1, 2, 5, 64, 2**31, 2**63 - 1)


def changed(seed: int) -> onnx.ModelProto:
    """The model with one to three fields changed."""
    rng = random.Random(seed)
    model = onnx.ModelProto.FromString(ORIGINAL)
    for _ in range(rng.randint(1, 3)):
        rng.choice((change_node, change_attribute, change_tensor, change_input))(model.graph, rng)
    return model


def change_node(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    names = [n for m in graph.node for n in (*m.input, *m.output)] + ["", "nowhere"]
    match rng.randrange(5):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1:
            node.input[:] = [rng.choice(names) if rng.random() < 0.4 else n for n in node.input]
        case 2:
            node.output[0] = rng.choice(names)
        case 3:
            del node.input[rng.randint(0, len(node.input)) :]
        case _:
            node.input.append(rng.choice(names))


def change_attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = rng.choice([n for n in graph.node if n.attribute])
    attribute = rng.choice(node.attribute)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(INTEGERS)
    elif attribute.type == onnx.AttributeProto.INTS:
        new = [rng.choice(INTEGERS) if rng.random() < 0.5 else n for n in attribute.ints]
        attribute.ints[:] = new[: rng.randrange(6)]
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    elif rng.random() < 0.5:
        node.attribute.remove(attribute)
    else:
        attribute.type = rng.choice((onnx.AttributeProto.FLOAT, onnx.AttributeProto.INTS, onnx.AttributeProto.TENSOR))


def change_tensor(graph: onnx.GraphProto, rng: random.Random) -> None:
    tensor = rng.choice(graph.initializer)
    data = onnx.numpy_helper.to_array(tensor)
    match rng.randrange(4):
        case 0:
            new = data.reshape(-1)[: rng.randrange(data.size + 1)]
        case 1:
            new = data.astype(rng.choice((np.float16, np.float64, np.int32, np.bool_)))
        case 2:
            new = data[None]
        case _:
            new = np.full_like(data, rng.choice(INTEGERS[1:8]))
    tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))


def change_input(graph: onnx.GraphProto, rng: random.Random) -> None:
    (x,) = graph.input
    dims = x.type.tensor_type.shape.dim
    if rng.random() < 0.3:
        x.type.tensor_type.elem_type = rng.choice((TensorProto.INT64, TensorProto.STRING, TensorProto.FLOAT16, 0, 99))
    elif rng.random() < 0.3:
        del dims[rng.randint(0, len(dims)) :]
    elif dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(INTEGERS)


@pytest.mark.slow
@settings(max_examples=2000)
@given(st.integers(0, 2**32))
def test_a_changed_model_is_refused_or_makes_a_sound_graph(seed: int) -> None:
    try:
        graph = import_model(changed(seed))
    except VerifyError:
        raise
    except ArcweldError:
        return
    verify(graph)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_a_changed_model_is_refused_or_compiles(seed: int) -> None:
    try:
        for graph in plain_graphs(import_model(changed(seed))):
            build_graph(graph, Options(), compile_kernels=False)
    except (ModelError, UnsupportedError):
        return


def test_the_undamaged_model_compiles_and_matches_onnx() -> None:
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    got = compile_model(ORIGINAL, device="sim", verify="full")(x)
    want = ReferenceEvaluator(varied_model()).run(None, {"x": x})
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def single(op: str, shapes: list[list[int]], **attributes: object) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="the_node", **attributes)],
        "single",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("MatMul", [[3, 4], [5, 6]], {}),
        ("Add", [[3, 4], [3, 5]], {}),
        ("Gemm", [[3, 4], [4, 5], [7]], {}),
        ("Conv", [[1, 3, 8, 8], [4, 2, 3, 3]], {}),
        ("Conv", [[1, 4, 8, 8], [4, 2, 3, 3]], {"group": 3}),
        ("Concat", [[3, 4], [3, 5]], {"axis": 0}),
        ("Transpose", [[3, 4]], {"perm": [0, 0]}),
        ("Softmax", [[3, 4]], {"axis": 5}),
        ("MaxPool", [[1, 2, 3, 3]], {"kernel_shape": [5, 5]}),
        ("Einsum", [[3, 4], [5, 6]], {"equation": "ij,jk->ik"}),
    ],
)
def test_shapes_that_do_not_agree_name_the_node(
    op: str, shapes: list[list[int]], attributes: dict[str, object]
) -> None:
    with pytest.raises(ModelError) as caught:
        compile_model(single(op, shapes, **attributes), device="sim")
    assert "the_node" in str(caught.value)
