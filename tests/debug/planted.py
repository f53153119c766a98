"""A small model, and faults planted into its kernels and passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cli_models import save_model
from faults import FAULTS
from injection import edited
from onnx import helper

from arcweld.compiler.ir import Graph, Node, Rewriter
from arcweld.compiler.options import Options
from arcweld.passes import pipeline


def net(path: Path) -> Path:
    """Products with epilogues, a reduction and a softmax: nodes fc1, relu, fc2, tanh, softmax, total, sub."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (16, 40), "b1": (40,), "w2": (40, 12)}
    weights = {n: (rng.standard_normal(s) / 2).astype(np.float32) for n, s in shapes.items()}
    weights["axes"] = np.array([1], np.int64)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="fc1"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], name="fc2"),
        helper.make_node("Tanh", ["m"], ["t"], name="tanh"),
        helper.make_node("Softmax", ["t"], ["s"], name="softmax", axis=-1),
        helper.make_node("ReduceSum", ["r", "axes"], ["g"], name="total", keepdims=1),
        helper.make_node("Sub", ["s", "g"], ["y"], name="sub"),
    ]
    return save_model(path, nodes, {"x": ["N", 16]}, {"y": ["N", 12]}, weights)


MATRICES = {"big": 900.0, "small": 1e-3}


def magnitudes(path: Path) -> Path:
    """A product (``grow``) that f16 does not hold, and a sum (``away``) in which f16 loses its operand."""
    rng = np.random.default_rng(4)
    weights = {n: (scale * rng.standard_normal((16, 16))).astype(np.float32) for n, scale in MATRICES.items()}
    weights |= {"loud": np.float32(40.0), "far": np.float32(4000.0)}
    nodes = [
        helper.make_node("Mul", ["x", "loud"], ["z"], name="louder"),
        helper.make_node("MatMul", ["z", "big"], ["u"], name="grow"),
        helper.make_node("MatMul", ["u", "small"], ["w"], name="shrink"),
        helper.make_node("Softmax", ["x"], ["p"], name="softmax", axis=-1),
        helper.make_node("Add", ["p", "far"], ["q"], name="away"),
        helper.make_node("Sub", ["q", "far"], ["b"], name="back"),
        helper.make_node("Mul", ["b", "w"], ["y"], name="last"),
    ]
    return save_model(path, nodes, {"x": [4, 16]}, {"y": [4, 16]}, weights)


@dataclass(frozen=True)
class KernelFault:
    """An edit of the kernels whose text has both patterns; ``nodes`` are those of the kernel that is then wrong."""

    name: str
    kernel: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    nodes: tuple[str, ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Within it, builds get the wrong kernel."""
        with edited(self._edit):
            yield

    def _edit(self, text: str) -> str:
        if not re.search(self.kernel, text):
            return text
        return re.sub(self.pattern, self.replacement, text, count=1)


def known(name: str, kernel: str, *nodes: str) -> KernelFault:
    """One of the faults with which verification is tested."""
    f = next(f for f in FAULTS if f.name == name)
    return KernelFault(name, kernel, f.pattern, f.replacement, nodes)


KERNEL_FAULTS = [
    known("Relu dropped", "contract_matmul_add_relu", "fc1", "relu"),
    known("bias dropped", "contract_matmul_add_relu", "fc1", "relu"),
    KernelFault(
        "second tile", "contract_matmul_tanh", r"buffers \+ current \* Work::BUFFER\)", "buffers)", ("fc2", "tanh")
    ),
    known("sum becomes maximum", "softmax", "softmax"),
    known("sum becomes maximum", "reduce_", "total"),
]


@contextmanager
def wrong_pass(name: str, change: Callable[[Node], Node]) -> Iterator[None]:
    """Within it, the first pass of that name replaces each node by what ``change`` makes of it."""
    at = next(k for k, p in enumerate(pipeline.PASSES) if p.name == name)
    right = pipeline.PASSES[at]

    def run(graph: Graph, options: Options) -> Graph:
        rw = Rewriter(right.run(graph, options))
        for n in rw.graph.nodes:
            rw.append(change(n))
        return rw.finish()

    with pytest.MonkeyPatch.context() as patch:
        passes = (*pipeline.PASSES[:at], replace(right, run=run), *pipeline.PASSES[at + 1 :])
        patch.setattr(pipeline, "PASSES", passes)
        yield
