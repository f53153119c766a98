"""How a build's time grows with the model: ``python -m arcweld.models.scaling transformer 16 64 256 1024``.

Builds models of identical layers, measures every stage, and prints the exponent of the last step: 1 is linear.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.driver.assemble import assemble
from arcweld.driver.build import in_regions, materialise_outputs, plan_parts, without_passed_on
from arcweld.driver.object_code import ObjectCode
from arcweld.passes.pipeline import PASSES

ARCHS = ("sm_80",)
Result = TypeVar("Result")
Meter = Callable[[Callable[[], Any]], tuple[Any, float]]  # runs some work; its result, and how much work it was


class _Writer:
    """Collects the nodes and weights of an ONNX model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) / 8)

    def constant(self, data: Any) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = np.asarray(data)
        return name

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def model(self, result: str, shape: Sequence[int]) -> bytes:
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        weights = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "layers", [x], [onnx.ValueInfoProto(name=result)], weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(proto.SerializeToString())


def transformer(layers: int, length: int = 8, width: int = 16, heads: int = 2) -> bytes:
    """Pre-norm layers of attention and a GELU network, in the primitives that exporters write."""
    w, x = _Writer(), "x"

    def dense(x: str, inner: int, outer: int) -> str:
        return w.op("Add", w.op("MatMul", x, w.weight(inner, outer)), w.weight(outer))

    for _ in range(layers):
        h = w.op("LayerNormalization", x, w.weight(width), w.weight(width), axis=-1)
        split = w.constant([1, length, heads, width // heads])
        q, k, v = (w.op("Reshape", dense(h, width, width), split) for _ in range(3))
        scores = w.op("MatMul", w.op("Transpose", q, perm=[0, 2, 1, 3]), w.op("Transpose", k, perm=[0, 2, 3, 1]))
        p = w.op("Softmax", w.op("Mul", scores, w.constant(np.float32(0.35))), axis=-1)
        y = w.op("Transpose", w.op("MatMul", p, w.op("Transpose", v, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
        x = w.op("Add", x, dense(w.op("Reshape", y, w.constant([1, length, width])), width, width))
        h = w.op("LayerNormalization", x, w.weight(width), w.weight(width), axis=-1)
        y = dense(h, width, 2 * width)
        erf = w.op("Erf", w.op("Div", y, w.constant(np.float32(math.sqrt(2)))))
        gate = w.op("Mul", y, w.op("Add", erf, w.constant(np.float32(1))))
        x = w.op("Add", x, dense(w.op("Mul", gate, w.constant(np.float32(0.5))), 2 * width, width))
    return w.model(x, (1, length, width))


def residual(blocks: int, channels: int = 8) -> bytes:
    """Blocks of two convolutions with batch normalisations, and a shortcut."""
    w, x = _Writer(), "x"

    def conv(x: str) -> str:
        y = w.op("Conv", x, w.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
        variance = w.constant(np.ones(channels, np.float32))
        return w.op("BatchNormalization", y, *(w.weight(channels) for _ in range(3)), variance)

    for _ in range(blocks):
        x = w.op("Relu", w.op("Add", x, conv(w.op("Relu", conv(x)))))
    return w.model(x, (1, channels, 8, 8))


MODELS: Mapping[str, Callable[[int], bytes]] = {"transformer": transformer, "residual": residual}

REPEATS = 3


def measure(data: bytes, options: Options, meter: Meter) -> dict[str, float]:
    """What ``meter`` says of each stage of a build up to object code: import, passes, fusion, codegen, the program."""
    amounts: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Result]) -> Result:
        result: Result
        result, amounts[name] = meter(work)
        return result

    graph = stage("import", lambda: import_onnx(data))
    labels = graph.labels()
    graph = materialise_outputs(without_passed_on(graph.replace(output_labels=labels)))
    for n, step in enumerate(PASSES, 1):
        graph = stage(f"{n:02} {step.name}", lambda: step.run(graph, options))  # noqa: B023
    fused = stage("fusion", lambda: in_regions(materialise_outputs(graph)))
    parts = stage("codegen", lambda: plan_parts([(None, fused)], options.arch or ARCHS))
    stage("program", lambda: assemble(parts, ObjectCode({}, {}), labels))
    return amounts


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``work``, and the processor time that it took, without the garbage collector's."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        return work(), time.process_time() - start
    finally:
        gc.enable()


def main() -> None:
    """The command line: a table of seconds a stage, one column a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("layers", type=int, nargs="+")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    asked = parser.parse_args()
    options = Options(precision=asked.precision, arch=ARCHS)
    measure(MODELS[asked.model](1), options, seconds)  # what is made once for a process
    runs: list[dict[str, float]] = [{} for _ in asked.layers]
    for _ in range(REPEATS):  # the least time of a stage is the one that other processes disturbed least
        for best, n in zip(runs, asked.layers):
            once = measure(MODELS[asked.model](n), options, seconds)
            best |= {stage: min(t, best.get(stage, t)) for stage, t in once.items()}
    print(f"{'seconds for':24}" + "".join(f"{n:>9}" for n in asked.layers) + "  exponent")
    for name in runs[0]:
        taken = [r[name] for r in runs]
        growth = math.log(taken[-1] / taken[-2], asked.layers[-1] / asked.layers[-2]) if len(taken) > 1 else math.nan
        print(f"{name:24}" + "".join(f"{t:9.3f}" for t in taken) + f"{growth:10.2f}")


if __name__ == "__main__":
    main()
