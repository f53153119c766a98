"""Which kernels compute which nodes, in the form of ``trtexec --exportLayerInfo`` at detailed verbosity.

TensorRT's engine explorer (trex) reads it. The names of keys are those of TensorRT's engine inspector; the texts of
formats are those that trex knows (its ``activations.py``), so that it counts the bytes of tensors rightly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from arcweld.compiler.dtypes import DType
from arcweld.compiler.logs import printable
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.expressions import Expression
from arcweld.runtime.kernels import choose_variant
from arcweld.runtime.program import Launch, Program, Tensor
from arcweld.runtime.steps import sizes_given

UNKNOWN = -1  # a size that is not known, as TensorRT prints it
DELIMITER = "\x1e"  # between the names of nodes in the metadata
FORMATS = {
    "f32": "Row major linear FP32", "f16": "Row major linear FP16 format", "i32": "Row major linear Int32",
    "bf16": "Row major linear BFloat16 format", "i8": "Row major Int8 format", "u8": "Row major linear UInt8 format",
    "i64": "Row major linear Int64 format", "bool": "Row major linear BOOL", "f8e4m3fn": "Row major linear FP8 format",
    "f64": "Double", "i16": "Int16", "u16": "UInt16", "u32": "UInt32", "u64": "UInt64",
}  # fmt: skip
WEIGHTS = {"f32": "Float", "f16": "Half", "i32": "Int32", "i8": "Int8"}  # the types of weights that trex knows


def layer_info(data: EngineData, sizes: Mapping[str, int], arch: str) -> dict[str, Any]:
    """The layers, in the order of execution, and the names of the bindings.

    ``sizes`` are the values of the symbols, and ``arch`` is the architecture whose kernels are named. A launch is a
    layer. Where sizes are missing, dimensions that depend on them are -1, and the launches are those that serve all
    sizes. Raises DeviceError for an architecture that the engine has no kernels for.
    """
    program = data.program
    every = {**{n: s.hi for n, s in sizes_given(program.steps).items() if s.hi is not None}, **sizes}
    layers = []
    for stage in program.stages if program.steps else (program,):
        known = all(s.name in every for s in stage.symbols)
        part = stage.at(every) if known else stage.parts()[-1]
        tensors = _tensors(part, arch)
        roots, made = {a.name: a.of for a in part.aliases}, {n for x in part.launches for n in x.writes}
        for name in roots:  # an alias has the name of what a launch has made, by which layers are joined
            tensors[name] = msgspec.structs.replace(tensors[name], name=made_as(name, roots, made))
        layers += [_layer(x, tensors, {w.name for w in part.weights}, every, arch) for x in part.launches]
    return {"Layers": layers, "Bindings": [printable(t.name) for t in (*program.inputs, *program.outputs)]}


def made_as(name: str, roots: Mapping[str, str], made: Collection[str]) -> str:
    """The name by which a tensor was made: its own, or else that of the tensor in whose memory it is.

    ``roots`` says of aliases whose bytes they are, and ``made`` holds the names of what was made.
    """
    seen = {name}
    while name not in made and name in roots and roots[name] not in seen:
        name = roots[name]
        seen.add(name)
    return name


def _tensors(part: Program, arch: str) -> dict[str, Tensor]:
    """The tensors of a part, those of the kernels' own among them, by name."""
    own = [t for x in part.launches for t in choose_variant(x, arch).own()]
    weights = [Tensor(w.name, w.dtype, tuple(map(str, w.shape))) for w in part.weights]
    return {t.name: t for t in (*part.inputs, *part.temps, *part.outputs, *own, *weights)}


def _layer(
    x: Launch, tensors: Mapping[str, Tensor], weights: set[str], sizes: Mapping[str, int], arch: str
) -> dict[str, Any]:
    variant = choose_variant(x, arch)
    kind, counted = _counted([tensors[n] for n in dict.fromkeys(x.reads) if n in weights])
    read = [tensors[n] for n in dict.fromkeys(x.reads) if n not in counted]
    layer: dict[str, Any] = {
        "Name": printable(x.name), "LayerType": x.template,
        "Inputs": [_tensor(t, sizes) for t in read],
        "Outputs": [_tensor(tensors[n], sizes) for n in dict.fromkeys(x.writes)],
        "ParameterType": x.template, "TacticName": variant.entry, "StreamId": 0,
        "Metadata": DELIMITER.join(f"[ONNX Layer: {printable(n)}]" for n in x.origin),
    }  # fmt: skip
    if counted:
        layer["Weights"] = {"Type": kind, "Count": sum(math.prod(map(int, tensors[n].shape)) for n in counted)}
    return layer


def _counted(weights: list[Tensor]) -> tuple[str, set[str]]:
    """The weights that a layer's ``Weights`` count, which are of one type: those that have most bytes. The others are
    among its inputs.
    """
    found: dict[str, list[Tensor]] = {}
    for w in weights:
        if w.dtype in WEIGHTS:
            found.setdefault(w.dtype, []).append(w)
    if not found:
        return "", set()
    most = max(found, key=lambda d: sum(DType(d).nbytes(math.prod(map(int, w.shape))) for w in found[d]))
    return WEIGHTS[most], {w.name for w in found[most]}


def _tensor(t: Tensor, sizes: Mapping[str, int]) -> dict[str, Any]:
    dims = [Expression(d) for d in t.shape]
    return {
        "Name": printable(t.name),
        "Dimensions": [d(dict(sizes)) if d.names <= sizes.keys() else UNKNOWN for d in dims],
        "Format/Datatype": FORMATS.get(t.dtype, "Unknown format"),
    }  # fmt: skip
