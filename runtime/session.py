"""``InferenceSession``: an engine behind the interface of ONNX Runtime's class of that name."""

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


_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output. Symbolic dimensions of ``shape`` are texts; ``type`` is written like ``tensor(float)``."""

    name: str
    shape: list[int | str]
    type: str


class InferenceSession:
    """Runs an engine, given as a path, as bytes or as an open Engine, through ONNX Runtime's methods."""

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | Engine,
        device: Device | str | None = None,
        *,
        sess_options: None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        trusted: bool = False,
    ) -> None:
        """Opens the engine on ``device``, or on the device that ``providers`` names; ``trusted`` as for ``load``.

        The only provider is ``CUDAExecutionProvider``, with the option ``device_id``. Raises UsageError for other
        providers, for session options, and for a device together with an open Engine; otherwise as ``load`` does.
        """
        if sess_options is not None:
            raise UsageError("session options have no meaning for an engine", hint="leave sess_options out")
        if device is not None and providers is not None:
            raise UsageError("providers and device both name the device", hint="give one of them")
        where = device if providers is None else _device_of(providers)
        if not isinstance(path_or_bytes, Engine):
            self.engine = load(path_or_bytes, where, trusted=trusted)
        elif where is None:
            self.engine = path_or_bytes
        else:
            raise UsageError("an open engine already has a device", hint="pass the engine file's path instead")

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: None = None
    ) -> list[Any]:
        """The results named by ``output_names``, in that order; all of them for None or an empty list.

        Raises InputError for an unknown output or inputs that do not fit, UsageError for run options.
        """
        if run_options is not None:
            raise UsageError("run options have no meaning for an engine", hint="leave run_options out")
        if isinstance(output_names, str):
            raise InputError("output names are a list", hint=f"write [{output_names!r}]")
        known = [t.name for t in self.engine.outputs]
        names = list(output_names or known)
        for name in names:
            if name not in known:
                raise InputError(f"the engine has no output {name!r}; it gives {', '.join(known)}")
        results = self.engine.run(input_feed)
        return [results[n] for n in names]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in calling order."""
        return [_node_arg(t) for t in self.engine.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the order of results."""
        return [_node_arg(t) for t in self.engine.outputs]


def _node_arg(tensor: Tensor) -> NodeArg:
    shape: list[int | str] = [int(d) if d.isdigit() else d for d in tensor.shape]
    return NodeArg(tensor.name, shape, f"tensor({_TYPES[tensor.dtype]})")


def _device_of(providers: Sequence[str | tuple[str, Mapping[str, Any]]]) -> str:
    """The device of the first provider. Further ones are fallbacks for ONNX Runtime; here they are ignored."""
    first = providers[0] if providers and not isinstance(providers, str) else ""
    name, options = (first, {}) if isinstance(first, str) else first
    if name != _PROVIDER:
        raise UsageError(
            f"there is no provider {providers!r}",
            hint=f'providers=["{_PROVIDER}"], or device="sim" for the CPU simulator',
        )
    if unknown := sorted(set(options) - {"device_id"}):
        raise UsageError(f"{_PROVIDER}: the option {unknown[0]!r} is not known", hint="device_id is")
    return f"cuda:{int(options.get('device_id', 0))}"
