"""``InferenceSession`` with the calling conventions of ONNX Runtime, over an engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcweld.compiler.errors import InputError, UsageError
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.program import Tensor

_TYPES = {
    "f64": "double", "f32": "float", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output. ``shape`` holds ints, and texts for symbolic dimensions; ``type`` is
    ``tensor(float)``.
    """

    name: str
    shape: tuple[int | str, ...]
    type: str


class InferenceSession:
    """Runs an engine file (or an Engine) by names."""

    def __init__(self, path: str | os.PathLike[str] | Engine, device: Device | str | None = None) -> None:
        """Raises UsageError when both an open Engine and a device are given; otherwise as ``load``."""
        if isinstance(path, Engine):
            if device is not None:
                raise UsageError("an open engine already has a device", hint="pass the engine file's path instead")
            self.engine = path
        else:
            self.engine = load(path, device)

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Results in the order of ``output_names``, or all of them for None. Raises InputError."""
        known = [t.name for t in self.engine.outputs]
        names = known if output_names is None else list(output_names)
        for name in names:
            if name not in known:
                raise InputError(f"the engine has no output {name!r}; it gives {', '.join(known)}")
        results = self.engine.run(feeds)
        return [results[n] for n in names]

    def get_inputs(self) -> list[NodeArg]:
        return [_node_arg(t) for t in self.engine.inputs]

    def get_outputs(self) -> list[NodeArg]:
        return [_node_arg(t) for t in self.engine.outputs]


def _node_arg(tensor: Tensor) -> NodeArg:
    shape = tuple(int(d) if d.isdigit() else d for d in tensor.shape)
    return NodeArg(tensor.name, shape, f"tensor({_TYPES[tensor.dtype]})")
