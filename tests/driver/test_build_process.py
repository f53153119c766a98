"""What only whole processes show: equal bytes whatever the hash seed, and memory that weights take while building."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

BUILD = """
import sys
from arcweld.cli.app import main
code = main(sys.argv[1:])
# not getrusage, whose maximum begins with that of the process that forked this one
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
sys.exit(code)
"""


def layers(path: Path, width: int, count: int) -> int:
    """A chain of matrix products with weights beside the model file, every other one transposed; the weights' bytes."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    value = "x"
    with path.with_suffix(".bin").open("wb") as file:
        for i in range(count):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.stem}.bin", "offset": str(file.tell()), "length": str(4 * width * width)}
            for key, text in entries.items():
                tensor.external_data.add(key=key, value=text)
            file.write((rng.standard_normal((width, width), np.float32) / np.float32(width**0.5)).tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("Gemm", [value, f"w{i}"], [f"h{i}"], name=f"fc{i}", transB=i % 2))
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"relu{i}"))
            value = f"r{i}"
        total = file.tell()
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", value))
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return total


def build(model: Path, engine: Path, *flags: str, seed: int = 0) -> int:
    """Builds in a process of its own; its largest resident memory in bytes."""
    command = [sys.executable, "-c", BUILD, str(model), "-o", str(engine), "--arch=sm_80,sm_90a", *flags]
    environment = {**os.environ, "ARCWELD_DEVICE": "sim", "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.parametrize("flags", [(), ("--fp16",)], ids=["fp32", "fp16"])
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, flags: tuple[str, ...]) -> None:
    model = tmp_path / "m.onnx"
    layers(model, 32, 3)
    engines = [tmp_path / "a.engine", tmp_path / "b.engine"]
    for seed, engine in zip((1, 77), engines):
        build(model, engine, *flags, seed=seed)
    assert engines[0].read_bytes() == engines[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fp16",)], ids=["fp32", "fp16"])
def test_a_build_takes_little_more_memory_than_the_weights(tmp_path: Path, flags: tuple[str, ...]) -> None:
    weights = layers(tmp_path / "m.onnx", 3584, 4)
    assert weights > 200e6
    peak = build(tmp_path / "m.onnx", tmp_path / "m.engine", "--verify=off", *flags)
    assert peak < 1.5 * weights + 300e6
