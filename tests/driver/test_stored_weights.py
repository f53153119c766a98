"""Weights of checkpoints in graphs: the storage pass keeps them packed, and engines give what f64 gives with them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from arcweld.cli.storage_report import quantised_products
from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.compiler.checkpoints.graph import add_linear
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.tensors import StoredTensor
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.registry import make
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify
from arcweld.driver.api import compile_graph
from arcweld.driver.build import build_graph
from arcweld.models import reencode
from arcweld.passes import storage
from arcweld.passes.pipeline import run_passes

N, K = 160, 256
LAYER = "layer.up_proj"


def by_gguf(kind: str) -> Callable[[Path, np.ndarray], StoredTensor]:
    def write(folder: Path, w: np.ndarray) -> StoredTensor:
        data = reencode.k_blocks(w, kind) if kind.endswith("_K") else w
        path = reencode.write_gguf(folder / "m.gguf", "llama", {}, {LAYER: (data, kind)})
        return open_checkpoint(path).tensors[LAYER]

    return write


def by_method(encode: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Path, np.ndarray], StoredTensor]:
    def write(folder: Path, w: np.ndarray) -> StoredTensor:
        reencode.write_folder(folder, {}, *encode({f"{LAYER}.weight": w}, *args, **options))
        return open_checkpoint(folder).tensors[f"{LAYER}.weight"]

    return write


FORMS: dict[str, tuple[Callable[[Path, np.ndarray], StoredTensor], DType]] = {
    "Q4_0": (by_gguf("Q4_0"), DType.U4),
    "Q4_1": (by_gguf("Q4_1"), DType.U4),
    "Q5_0": (by_gguf("Q5_0"), DType.U1),
    "Q5_1": (by_gguf("Q5_1"), DType.U1),
    "Q4_K": (by_gguf("Q4_K"), DType.U4),
    "Q5_K": (by_gguf("Q5_K"), DType.U1),
    "Q6_K": (by_gguf("Q6_K"), DType.U2),
    "Q8_0": (by_gguf("Q8_0"), DType.I8),
    "gptq": (by_method(reencode.gptq, 4, 64), DType.U4),
    "gptq act-order": (by_method(reencode.gptq, 4, 64, act_order=True), DType.U4),
    "gptq 2 bits": (by_method(reencode.gptq, 2, 64), DType.U2),
    "gptq 3 bits": (by_method(reencode.gptq, 3, -1), DType.U4),
    "awq": (by_method(reencode.awq, 128), DType.U4),
    "pack": (by_method(reencode.compressed), DType.U4),
    "int8": (by_method(reencode.compressed, "int-quantized", 8, 0), DType.I8),
    "fp8": (by_method(reencode.compressed, "float-quantized"), DType.F8E4M3FN),
    "modelopt": (by_method(reencode.modelopt), DType.F8E4M3FN),
}


def at_an_odd_address(folder: Path, w: np.ndarray) -> StoredTensor:
    """An f32 matrix in a file whose header has an odd length."""
    reencode.write_folder(folder, {}, {f"{LAYER}.weight": w})
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes((end - 7).to_bytes(8, "little") + data[8:end] + b" " + data[end:])
    return open_checkpoint(folder).tensors[f"{LAYER}.weight"]


def product(form: str, folder: Path, rows: int, seed: int = 1) -> tuple[Graph, np.ndarray]:
    """A graph that multiplies ``x[rows, K]`` by the transpose of a stored matrix, and that matrix as f32."""
    w = np.random.default_rng(seed).normal(0.01, 0.05, (N, K)).astype(np.float32)
    tensor = at_an_odd_address(folder, w) if form == "odd" else FORMS[form][0](folder, w)
    x = Value("x", TensorType(DType.F32, (rows, K)))
    rw = Rewriter(Graph("g", (x,), (x,), ()))
    y = add_linear(rw, x, tensor)
    graph = rw.finish().replace(outputs=(y,))
    verify(graph, after="a stored weight")
    return graph, tensor.decode()


def elements_of(graph: Graph, dtype: DType) -> int:
    """The elements of the largest weight of a type."""
    read = [v for n in graph.nodes for v in n.operands() if v.dtype is dtype and v.name in graph.weights]
    return max((graph.weights[v.name].data.size for v in read), default=0)


def reference(graph: Graph, x: np.ndarray) -> np.ndarray:
    return run_reference(graph, {"x": x})[graph.outputs[0].name]


def close(got: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    """Sums of 256 products in f32: each is off by at most 256 roundings of the sum of magnitudes."""
    want = x.astype(np.float64) @ w.astype(np.float64).T
    bound = K * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T)
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_storage_pass_keeps_what_is_packed(form: str, tmp_path: Path) -> None:
    graph, w = product(form, tmp_path, 1)
    x = np.random.default_rng(2).standard_normal((1, K)).astype(np.float32)
    close(reference(graph, x), x, w)
    after = run_passes(graph, Options(arch=("sm_80",)), verify_each=True)
    assert elements_of(after, FORMS[form][1]) == N * K
    kept = [n.attrs["keep"] for n in after.nodes if n.op == "DequantizeLinear"]
    assert kept == [1] * {"Q4_K": 3, "Q5_K": 3, "Q6_K": 2}.get(form, 1)  # scales and minima have units
    close(reference(after, x), x, w)


@pytest.mark.parametrize("form", [f for f in FORMS if f.startswith("Q")])
def test_engines_are_as_small_as_files(form: str, tmp_path: Path) -> None:
    """Scales and minima of 6 bits take a byte each, which is at most 3 % more. ``inspect`` says what is stored."""
    graph, _ = product(form, tmp_path, 1)
    data = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False).data
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
    assert sum(a.nbytes for a in data.weights.values()) <= 1.03 * (N * K // block * nbytes) + 128
    (said,) = quantised_products(data)
    bits = {"4": "u4", "5": "u4 + u1", "6": "u4 + u2", "8": "i8"}[form[1]]
    assert (said["stored"], said["from"]) == (bits, bits)
    assert abs(said["reads"] - sum(a.nbytes for a in data.weights.values())) <= 128


# all of them take two minutes (``ARCWELD_EVERY=1``)
COMPILED = [*itertools.product(("Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"), ("fp32", "fp16", "bf16"), (1, 8, 64))]
SOME = [("Q5_K", "fp16", 64), ("Q6_K", "bf16", 1), ("Q5_0", "fp16", 8)]
CHOSEN = COMPILED if os.environ.get("ARCWELD_EVERY") else SOME


@pytest.mark.slow
@pytest.mark.parametrize(("form", "precision", "rows"), CHOSEN)
def test_kernels_of_gguf_types_compile_without_spills(
    form: str, precision: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q5_0 and Q6_K have no offsets: products of few rows in 16 bits multiply their integers on tensor cores."""
    monkeypatch.setattr(storage, "SLACK", float("inf"))
    graph, _ = product(form, tmp_path, rows)
    for arch in ("sm_80", "sm_90a"):
        data = build_graph(graph, Options(arch=(arch,), precision=precision), compile_kernels=False).data
        few = any("Planes<u4" in source for source in data.sources.values())
        assert few == (form in ("Q5_0", "Q6_K") and precision != "fp32" and rows < 64)
        for name, source in data.sources.items():
            done = compile_cubin(source, arch, name=name)
            assert not done.warnings
            assert done.spill_bytes == 0, f"{name} for {arch}"


@pytest.mark.parametrize("form", ["Q5_0", "Q5_K", "Q6_K"])
def test_what_does_not_pay_is_widened(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SLACK", 0.0)
    graph, w = product(form, tmp_path, 3)
    after = run_passes(graph, Options(arch=("sm_80",)), verify_each=True)
    assert not any(n.op == "DequantizeLinear" for n in after.nodes)
    x = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32)
    close(reference(after, x), x, w)
    data = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False).data
    (said,) = quantised_products(data)
    assert (said["stored"], said["from"]) == ("f32", "u4 + u2" if form == "Q6_K" else "u4 + u1")


def test_products_of_one_input_read_one_matrix(tmp_path: Path) -> None:
    """Scales of two levels are put side by side as they are stored, in either order of the matrix."""
    for kind in ("Q4_K", "Q6_K", "Q5_0"):
        rng = np.random.default_rng(3)
        given = [rng.normal(0, 0.05, (N, K)).astype(np.float32) for _ in range(2)]
        for i in range(2):
            (tmp_path / f"{kind}{i}").mkdir()
        tensors = [by_gguf(kind)(tmp_path / f"{kind}{i}", w) for i, w in enumerate(given)]
        x = Value("x", TensorType(DType.F32, (2, K)))
        rw = Rewriter(Graph("g", (x,), (x,), ()))
        ys = [make(rw, "Neg", [add_linear(rw, x, replace(t, name=f"layer{i}"))]) for i, t in enumerate(tensors)]
        graph = rw.finish().replace(outputs=tuple(ys))
        after = run_passes(graph, Options(arch=("sm_80",)), verify_each=True)
        assert sum(n.op == "MatMul" for n in after.nodes) == 1
        assert not any(n.op == "Concat" for n in after.nodes)
        types = {v.name: v.dtype for node in after.nodes for v in node.operands()}
        sizes = sum(w.data.size * types[name].bits // 8 for name, w in after.weights.items())
        assert sizes <= 1.03 * sum(t.nbytes for t in tensors) + 128
        a = rng.standard_normal((2, K)).astype(np.float32)
        found = run_reference(after, {"x": a})
        for y, t in zip(after.outputs, tensors):
            close(-found[y.name], a, t.decode())


@pytest.mark.parametrize("form", ["Q4_1", "Q5_0", "Q5_K", "Q6_K", "gptq act-order", "awq", "fp8"])
def test_engines_unpack_them(form: str, tmp_path: Path) -> None:
    graph, w = product(form, tmp_path, 1)
    x = np.random.default_rng(2).standard_normal((1, K)).astype(np.float32)
    engine = compile_graph(graph, device="sim")
    (got,) = engine.run({"x": x}).values()
    close(got, x, w)
    assert sum(a.nbytes for a in engine.data.weights.values()) < 1.3 * N * K


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("form", ["Q4_K", "Q5_0", "Q5_K", "Q6_K"])
def test_new_bits_of_every_plane(form: str, rows: int, tmp_path: Path) -> None:
    """An engine takes the lower and the upper bits, scales and minima of another matrix."""
    (graph, old), (other, new) = product(form, tmp_path, rows), product(form, tmp_path, rows, seed=2)
    x = np.random.default_rng(3).standard_normal((rows, K)).astype(np.float32)
    engine = compile_graph(graph, device="sim")
    for w in (old, new):
        (got,) = engine.run({"x": x}).values()
        close(got, x, w)
        fixed = engine.program.fixed  # zero points that a type has not
        engine.update_weights({name: weight.data for name, weight in other.weights.items() if name not in fixed})
    lower = f"{LAYER}.packed"
    if form != "Q4_K":  # upper bits lie in a plane of their own: with the old lower bits, a third matrix
        engine.update_weights({lower: graph.weights[lower].data})
        (mixed,) = engine.run({"x": x}).values()
        want = reference(other.replace(weights={**other.weights, lower: graph.weights[lower]}), x)
        np.testing.assert_allclose(mixed, want, rtol=0, atol=1e-4)
        assert np.abs(mixed - got).max() > 0.1


def test_an_engine_with_a_weight_at_an_odd_address(tmp_path: Path) -> None:
    graph, w = product("odd", tmp_path, 3)
    assert not any(weight.data.flags.aligned for weight in graph.weights.values())
    x = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32)
    (got,) = compile_graph(graph, device="sim").run({"x": x}).values()
    close(got, x, w)
