"""Decoders as exporters write them, 32 steps beside ONNX Runtime or the standard's evaluator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import arcweld
from arcweld import Engine, Input
from arcweld.cli.app import main
from arcweld.compiler import dims
from arcweld.compiler.errors import ArcweldError, InputError
from arcweld.driver.api import import_model
from arcweld.driver.samples import sample_inputs
from arcweld.runtime.arrays import aligned_empty

LAYERS, HIDDEN, HEADS, GROUPS, HEAD, WORDS, ROOM, STEPS = 2, 64, 4, 2, 16, 50, 48, 32
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
CACHES = [f"past_key_values.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]


def present(name: str) -> str:
    return name.replace("past_key_values", "present")


class Builder:
    """Nodes and weights of a decoder; each method adds nodes and returns the name of their result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(5)

    def op(self, op: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attrs: Any) -> str:
        names = list(outputs) or [f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}", domain=domain, **attrs))
        return names[0]

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def random(self, *shape: int) -> str:
        return self.weight((self.rng.standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32))

    def norm(self, x: str) -> str:
        scale = self.weight(self.rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
        return self.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-6)

    def mlp(self, x: str) -> str:
        h = self.norm(x)
        gate, up = (self.op("MatMul", h, self.random(HIDDEN, 96)) for _ in range(2))
        wide = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.op("Add", x, self.op("MatMul", wide, self.random(96, HIDDEN)))

    def model(self, inputs: Sequence[tuple[str, int, list[Any]]], outputs: Sequence[tuple[str, list[Any]]]) -> Any:
        infos = [helper.make_tensor_value_info(*i) for i in inputs]
        results = [helper.make_tensor_value_info(n, F32, s) for n, s in outputs]
        weights = [numpy_helper.from_array(a, n) for n, a in self.weights.items()]
        graph = helper.make_graph(self.nodes, "decoder", infos, results, weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def angles() -> np.ndarray:
    return np.outer(np.arange(ROOM), 0.6 ** np.arange(HEAD // 2)).astype(np.float32)


def past_and_present(length: str) -> tuple[list[Any], list[Any]]:
    shape = ["batch", GROUPS, "past_sequence_length", HEAD]
    return [(n, F32, shape) for n in CACHES], [(present(n), ["batch", GROUPS, length, HEAD]) for n in CACHES]


# ------------------------------------------------------------------------------------------------------ genai's form


def genai(packed: bool) -> onnx.ModelProto:
    """As onnxruntime-genai builds it: lengths from the attention mask, the rest inside GroupQueryAttention."""
    b = Builder()
    total = b.op("Gather", b.op("Shape", "attention_mask"), b.weight(np.int64(1)), axis=0)
    total = b.op("Cast", total, to=TensorProto.INT32)
    sums = b.op("ReduceSum", "attention_mask", b.weight(np.int64([1])), keepdims=1)
    lengths = b.op("Cast", b.op("Sub", sums, b.weight(np.int64([1]))), to=TensorProto.INT32)
    cos, sin = b.weight(np.cos(angles())), b.weight(np.sin(angles()))
    x = b.op("Gather", b.random(WORDS, HIDDEN), "input_ids", axis=0)
    for layer in range(LAYERS):
        h, wide = b.norm(x), GROUPS * HEAD
        if packed:
            qkv = [b.op("MatMul", h, b.random(HIDDEN, HIDDEN + 2 * wide)), "", ""]
        else:
            qkv = [b.op("MatMul", h, b.random(HIDDEN, n)) for n in (HIDDEN, wide, wide)]
        caches = CACHES[2 * layer : 2 * layer + 2]
        y = b.op(
            "GroupQueryAttention", *qkv, *caches, lengths, total, cos, sin, domain="com.microsoft", num_heads=HEADS,
            kv_num_heads=GROUPS, do_rotary=1, local_window_size=-1 if layer else 9,
            outputs=[f"attended{layer}", *map(present, caches)],
        )  # fmt: skip
        x = b.mlp(b.op("Add", x, b.op("MatMul", y, b.random(HIDDEN, HIDDEN))))
    b.op("MatMul", b.norm(x), b.random(HIDDEN, WORDS), outputs=["logits"])
    past, presents = past_and_present("total_sequence_length")
    now = ["batch", "sequence_length"]
    inputs = [("input_ids", I64, now), ("attention_mask", I64, ["batch", "total_sequence_length"])]
    return b.model([*inputs, *past], [("logits", [*now, WORDS]), *presents])


def in_place(model: onnx.ModelProto, new: int, batch: int = 1) -> Engine:
    shape = (batch, GROUPS, ROOM, HEAD)
    inputs = [Input("input_ids", (batch, new)), Input("attention_mask", (batch, None))]
    return arcweld.compile(model, inputs=[*inputs, *(Input(n, shape, inout=True) for n in CACHES)], device="sim")


def zeros(batch: int) -> np.ndarray:
    made = aligned_empty((batch, GROUPS, ROOM, HEAD), np.dtype(np.float32))
    made[...] = 0
    return made


def copies_of(engine: Engine, caches: Sequence[str]) -> list[str]:
    """What launches write that is as large as a cache, and caches that are copied at the end of a call."""
    program = engine.program
    placed = {a.name for a in program.aliases if a.of in caches}
    sizes = {t.name: math.prod(dims.evaluate(dims.parse(d), {"total_sequence_length": ROOM}) for d in t.shape)
             for t in (*program.temps, *program.outputs, *program.inputs)}  # fmt: skip
    least = min(sizes[n] for n in caches)
    assert [s.input for s in program.state] == list(caches)
    assert not any("copy" in v.kernel for launch in program.launches for v in launch.variants)
    found = [w for launch in program.launches for w in launch.writes if sizes[w] >= least and w not in placed]
    return found + [s.output for s in program.state if s.output not in placed]


def runtime_in_place(session: ort.InferenceSession, feeds: dict[str, np.ndarray], caches: dict[str, Any]) -> np.ndarray:
    """ONNX Runtime's logits, with each cache bound as past and as present."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, value in caches.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(present(name), value)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    logits: np.ndarray = next(v.numpy() for v in binding.get_outputs() if v.shape()[-1] == WORDS)
    return logits


def opened(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_shared_cache_over_32_steps() -> None:
    """A batch of two, of which the second is 3 tokens behind: its mask has zeros on the right."""
    model = genai(packed=False)
    engine, session = in_place(model, 1, batch=2), opened(model)
    assert copies_of(engine, CACHES) == []
    ours = {n: zeros(2) for n in CACHES}
    theirs = {n: ort.OrtValue.ortvalue_from_numpy(zeros(2)) for n in CACHES}
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        mask = np.ones((2, step + 1), np.int64)
        mask[1, max(1, step - 2) :] = 0
        feeds = {"input_ids": rng.integers(0, WORDS, (2, 1)), "attention_mask": mask}
        expected = runtime_in_place(session, feeds, theirs)
        found = engine.run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-4)
        assert all(found[present(n)] is ours[n] for n in CACHES)
    for n in CACHES:
        np.testing.assert_allclose(ours[n], theirs[n].numpy(), rtol=1e-4, atol=1e-5)


def test_a_prompt_then_steps_and_the_last_place() -> None:
    model = genai(packed=True)
    prompt, step, session = in_place(model, 7), in_place(model, 1), opened(model)
    ours, rng = {n: zeros(1) for n in CACHES}, np.random.default_rng(2)
    theirs = {n: ort.OrtValue.ortvalue_from_numpy(zeros(1)) for n in CACHES}
    for length in (7, *range(8, 12), *range(ROOM - 1, ROOM + 1)):
        feeds = {
            "input_ids": rng.integers(0, WORDS, (1, 7 if length == 7 else 1)),
            "attention_mask": np.ones((1, length), np.int64),
        }
        found = (prompt if length == 7 else step).run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], runtime_in_place(session, feeds, theirs), rtol=1e-4, atol=1e-4)
    before = {n: a.copy() for n, a in ours.items()}
    feeds["attention_mask"] = np.ones((1, ROOM + 1), np.int64)
    with pytest.raises(InputError, match=f"{ROOM + 1}"):  # one error, before anything is written
        step.run({**feeds, **ours})
    for n in CACHES:
        np.testing.assert_array_equal(ours[n], before[n])


def test_the_command_builds_it_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, room = tmp_path / "m.onnx", f"1x{GROUPS}x{ROOM}x{HEAD}"
    onnx.save(genai(packed=True), path)
    shapes = ",".join(["input_ids:1x1", *(f"{n}:{room}" for n in CACHES)])
    assert main(["explain", str(path), "--inout", "past_key_values.*", "--shapes", shapes]) == 0
    said = capsys.readouterr().out
    assert all(f"{n} is written in place by n" in said for n in CACHES)
    assert main(["explain", str(path), "--inout", "past_key_values.*,logits", "--shapes", shapes]) != 0
    assert "no input is called 'logits'" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "none.onnx"), "--inout", "past*"]) != 0
    assert "none.onnx" in capsys.readouterr().err


def test_a_cache_that_is_not_shared_grows() -> None:
    """The same model without state: present is as long as the mask."""
    model = genai(packed=False)
    inputs = [Input("input_ids", (1, 1)), Input("attention_mask", (1, None))]
    past = [Input(n, (1, GROUPS, ("past_sequence_length", 1, ROOM), HEAD)) for n in CACHES]
    engine, session = arcweld.compile(model, inputs=[*inputs, *past], device="sim"), opened(model)
    rng = np.random.default_rng(3)
    caches = {n: rng.standard_normal((1, GROUPS, 1, HEAD)).astype(np.float32) for n in CACHES}
    for length in range(2, 8):
        feeds = {"input_ids": rng.integers(0, WORDS, (1, 1)), "attention_mask": np.ones((1, length), np.int64)}
        expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {**feeds, **caches})))
        found = engine.run({**feeds, **caches})
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)
        caches = {n: expected[present(n)] for n in CACHES}


def test_lengths_that_only_the_device_sees() -> None:
    """Lengths are inputs. Verification draws lengths that fill the cache, and a run beyond its end is an error."""
    b, wide = Builder(), (HEADS + 2 * GROUPS) * HEAD
    caches = CACHES[:2]
    b.op(
        "GroupQueryAttention", "qkv", "", "", *caches, "lengths", "total", b.weight(np.cos(angles())),
        b.weight(np.sin(angles())), domain="com.microsoft", num_heads=HEADS, kv_num_heads=GROUPS, do_rotary=1,
        outputs=["logits", *map(present, caches)],
    )  # fmt: skip
    shape, int32 = [2, GROUPS, ROOM - 8, HEAD], TensorProto.INT32
    inputs = [("qkv", F32, [2, 1, wide]), ("lengths", int32, [2]), ("total", int32, [])]
    inputs += [(n, F32, shape) for n in caches]
    model = b.model(inputs, [("logits", [2, 1, HEADS * HEAD]), *((present(n), shape) for n in caches)])
    graph = import_model(model, inputs=[Input(n, inout=True) for n in caches])
    drawn = [sample_inputs(graph, {}, seed=seed)["lengths"] for seed in range(200)]
    assert (np.min(drawn), np.max(drawn)) == (0, ROOM - 9)
    engine, session = arcweld.compile(model, inputs=[Input(n, inout=True) for n in caches], device="sim"), opened(model)
    assert copies_of(engine, caches) == []
    rng = np.random.default_rng(7)
    ours = {n: aligned_empty(tuple(shape), np.dtype(np.float32)) for n in caches}
    for a in ours.values():
        a[...] = rng.standard_normal(shape)
    for lengths in ([1, 30], [17, 1], [ROOM - 8, 5], [2, ROOM - 8]):
        feeds = {"qkv": rng.standard_normal((2, 1, wide)).astype(np.float32), "lengths": np.int32(lengths) - 1}
        feeds["total"] = np.array(max(lengths), np.int32)
        expected = session.run(None, {**feeds, **ours})
        found = engine.run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], expected[0], rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(ours.values(), expected[1:]):
            for k, n in enumerate(lengths):
                np.testing.assert_allclose(mine[k, :, :n], theirs[k, :, :n], rtol=1e-5, atol=1e-6)
    with pytest.raises(ArcweldError, match="index"):
        engine.run({**feeds, **ours, "lengths": np.int32([3, ROOM - 8])})


# ---------------------------------------------------------------------------------------------------- Optimum's form


def optimum() -> onnx.ModelProto:
    """Rotation, concatenation and attention as separate operators, as PyTorch's exporter writes them for Optimum."""
    b = Builder()
    one, last, zero, middle, end = (b.weight(np.int64([n])) for n in (1, 3, 0, HEAD // 2, 1 << 40))
    in_heads, flat = b.weight(np.int64([0, 0, -1, HEAD])), b.weight(np.int64([0, 0, HIDDEN]))
    tables = [b.weight(np.tile(f(angles()), (1, 2))) for f in (np.cos, np.sin)]
    cos, sin = (b.op("Unsqueeze", b.op("Gather", t, "position_ids", axis=0), one) for t in tables)
    keep = b.op("Cast", b.op("Unsqueeze", "attention_mask", b.weight(np.int64([1, 2]))), to=TensorProto.BOOL)
    bias = b.op("Where", keep, b.weight(np.float32(0)), b.weight(np.float32(-3e38)))

    def split(x: str) -> str:
        return b.op("Transpose", b.op("Reshape", x, in_heads), perm=[0, 2, 1, 3])

    def turned(x: str) -> str:
        left = b.op("Slice", x, zero, middle, last)
        right = b.op("Slice", x, middle, end, last)
        swapped = b.op("Concat", b.op("Neg", right), left, axis=3)
        return b.op("Add", b.op("Mul", x, cos), b.op("Mul", swapped, sin))

    def repeated(x: str) -> str:
        parts = b.op("Expand", b.op("Unsqueeze", x, b.weight(np.int64([2]))), b.weight(np.int64([1, 1, 2, 1, 1])))
        shape = b.op("Concat", b.op("Shape", x, start=0, end=1), b.weight(np.int64([HEADS, -1, HEAD])), axis=0)
        return b.op("Reshape", parts, shape)

    x = b.op("Gather", b.random(WORDS, HIDDEN), "input_ids", axis=0)
    for layer in range(LAYERS):
        h, (key, value) = b.norm(x), CACHES[2 * layer : 2 * layer + 2]
        q, k, v = (split(b.op("MatMul", h, b.random(HIDDEN, n * HEAD))) for n in (HEADS, GROUPS, GROUPS))
        q, k = turned(q), turned(k)
        k = b.op("Concat", key, k, axis=2, outputs=[present(key)])
        v = b.op("Concat", value, v, axis=2, outputs=[present(value)])
        scores = b.op("MatMul", q, b.op("Transpose", repeated(k), perm=[0, 1, 3, 2]))
        scores = b.op("Add", b.op("Mul", scores, b.weight(np.float32(HEAD**-0.5))), bias)
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), repeated(v))
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), flat)
        x = b.mlp(b.op("Add", x, b.op("MatMul", y, b.random(HIDDEN, HIDDEN))))
    b.op("MatMul", b.norm(x), b.random(HIDDEN, WORDS), outputs=["logits"])
    whole = "past_sequence_length + sequence_length"
    past, presents = past_and_present(whole)
    now = ["batch", "sequence_length"]
    shapes = {"input_ids": now, "attention_mask": ["batch", whole], "position_ids": now}
    inputs = [(n, I64, s) for n, s in shapes.items()]
    return b.model([*inputs, *past], [("logits", [*now, WORDS]), *presents])


def test_a_growing_cache_over_32_steps() -> None:
    model = optimum()
    past = [Input(n, (2, GROUPS, ("past_sequence_length", 0, ROOM), HEAD)) for n in CACHES]
    engine = arcweld.compile(model, inputs=[Input("input_ids", (2, 1)), *past], device="sim")
    assert engine.inputs[1].shape == ("2", "past_sequence_length + 1")
    session, rng = opened(model), np.random.default_rng(4)
    caches = {n: np.zeros((2, GROUPS, 0, HEAD), np.float32) for n in CACHES}
    ours = dict(caches)
    for length in range(1, STEPS + 1):
        mask = np.ones((2, length), np.int64)
        mask[1, : min(3, length - 1)] = 0  # the second is padded on the left
        feeds = {
            "input_ids": rng.integers(0, WORDS, (2, 1)), "attention_mask": mask,
            "position_ids": mask.sum(1, keepdims=True) - 1,
        }  # fmt: skip
        expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {**feeds, **caches})))
        found = engine.run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
        caches, ours = ({n: results[present(n)] for n in CACHES} for results in (expected, found))
    for n in CACHES:
        np.testing.assert_allclose(ours[n], caches[n], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------- the standard's form


def standard(new: int, room: int = ROOM, **attrs: Any) -> onnx.ModelProto:
    """TensorScatter into both caches, then Attention over them, for keys and values that are inputs."""
    b = Builder()
    for name, update in zip(CACHES[:2], ("k", "v")):
        b.op("TensorScatter", name, update, "at", outputs=[present(name)], axis=2)
    names = ["q", *map(present, CACHES[:2]), "", "", "", "lengths"]
    b.op("Attention", *names, outputs=["logits"], **attrs)
    groups = {"q": HEADS, "k": GROUPS, "v": GROUPS}
    inputs = [(n, F32, [2, h, new, HEAD]) for n, h in groups.items()]
    inputs += [("at", I64, [2]), ("lengths", I64, [2]), *((n, F32, [2, GROUPS, room, HEAD]) for n in CACHES[:2])]
    outputs = [("logits", [2, HEADS, new, HEAD]), *((present(n), [2, GROUPS, room, HEAD]) for n in CACHES[:2])]
    model = b.model(inputs, outputs)
    model.opset_import[0].version, model.ir_version = 24, 11
    return model


def steps(new: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of steps with ``new`` tokens each; the second of the batch is one step behind."""
    rng = np.random.default_rng(6)
    for step in range(count):
        at = np.array([new * step, new * max(step - 1, 0)])
        groups = {"q": HEADS, "k": GROUPS, "v": GROUPS}
        feeds = {n: rng.standard_normal((2, h, new, HEAD)).astype(np.float32) for n, h in groups.items()}
        yield feeds | {"at": at, "lengths": at + new}


@pytest.mark.parametrize(("new", "attrs"), [(1, {"is_causal": 1}), (2, {"is_causal": 1, "scale": 0.2})])
def test_the_standards_cache_over_32_steps(new: int, attrs: dict[str, Any]) -> None:
    room = STEPS * new
    model = standard(new, room, **attrs)
    engine = arcweld.compile(model, inputs=[Input(n, inout=True) for n in CACHES[:2]], device="sim")
    assert copies_of(engine, CACHES[:2]) == []
    reference = ReferenceEvaluator(model)
    names = [o.name for o in model.graph.output]
    ours = {n: aligned_empty((2, GROUPS, room, HEAD), np.dtype(np.float32)) for n in CACHES[:2]}
    for a in ours.values():
        a[...] = 0
    theirs = {n: a.copy() for n, a in ours.items()}
    for feeds in steps(new, STEPS):
        expected = dict(zip(names, reference.run(None, {**feeds, **theirs})))
        found = engine.run({**feeds, **ours})
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
        for n in CACHES[:2]:
            np.testing.assert_array_equal(ours[n], expected[present(n)])
            theirs[n] = expected[present(n)]


def test_a_run_beyond_the_cache_is_an_error() -> None:
    """The position is on the device, so that the kernel that would write there says it."""
    engine = arcweld.compile(standard(2, 8), inputs=[Input(n, inout=True) for n in CACHES[:2]], device="sim")
    (feeds,) = steps(2, 1)
    ours = {n: aligned_empty((2, GROUPS, 8, HEAD), np.dtype(np.float32)) for n in CACHES[:2]}
    for a in ours.values():
        a[...] = 0
    with pytest.raises(ArcweldError, match="index"):
        engine.run({**feeds, **ours, "at": np.array([7, 0])})
    engine.run({**feeds, **ours, "at": np.array([6, 0])})
