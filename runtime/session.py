"""``InferenceSession``: an engine behind the interface of ONNX Runtime's class of that name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError, UsageError
from arcweld.runtime.binding import (
    TYPES,
    IOBinding,
    ModelMetadata,
    OrtValue,
    SessionOptions,
    is_session_options,
)
from arcweld.runtime.binding import provider_options as with_options
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.program import Argument, Tensor

_PROVIDER, _SIMULATOR = "CUDAExecutionProvider", "SimExecutionProvider"
PRODUCER = "arcweld"


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
        device: Device | str | SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        sess_options: SessionOptions | None = None,
        trusted: bool = False,
    ) -> None:
        """Opens the engine on ``device``, or on the device that ``providers`` names; ``trusted`` as for ``load``.

        The providers are ``CUDAExecutionProvider``, with the option ``device_id``, and ``SimExecutionProvider``.
        Session options, ONNX Runtime's too, may stand in the second place as there; they have no effect. Raises
        UsageError for other providers, for profiling, and for a device together with an open Engine; otherwise as
        ``load`` does.
        """
        if is_session_options(device):
            device, sess_options = None, device  # type: ignore[assignment]
        _check_options(sess_options)
        if device is not None and providers is not None:
            raise UsageError("providers and device both name the device", hint="give one of them")
        where = device if providers is None else _device_of(with_options(providers, provider_options))
        self._options = sess_options if sess_options is not None else SessionOptions()
        if not isinstance(path_or_bytes, Engine):
            self.engine = load(path_or_bytes, where, trusted=trusted)  # type: ignore[arg-type]
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
        _check_run_options(run_options)
        if isinstance(output_names, str):
            raise InputError("output names are a list", hint=f"write [{output_names!r}]")
        known = [a.name for a in self.engine.results]
        names = list(output_names or known)
        for name in names:
            if name not in known:
                raise InputError(f"the engine has no output {name!r}; it gives {', '.join(known)}")
        results = self.engine.run(input_feed)
        return [results[n] for n in names]

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue],
        run_options: None = None,
    ) -> list[OrtValue]:  # fmt: skip
        """Like ``run``, with values instead of arrays."""
        lists = [a.name for a in (*self.engine.arguments, *self.engine.results) if a.kind != "tensor"]
        if lists:
            raise UsageError(f"{lists[0]!r} is no tensor, and values are tensors", hint="call run with lists of arrays")
        feeds = {name: value.array for name, value in input_dict_ort_values.items()}
        return [OrtValue(a) for a in self.run(output_names, feeds, run_options)]

    def io_binding(self) -> IOBinding:
        """An object that binds inputs and outputs to memory, for ``run_with_iobinding``."""
        return IOBinding(self.engine)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: None = None) -> None:
        """Runs with bound inputs and outputs; the binding has the results. Raises as ``run`` does."""
        _check_run_options(run_options)
        iobinding.run()

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in calling order."""
        return _node_args(self.engine.arguments, self.engine.inputs)

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the order of results."""
        return _node_args(self.engine.results, self.engine.outputs)

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: ``session.engine.update_weights`` replaces weights."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """What the engine file says about itself."""
        data = self.engine.data
        return ModelMetadata(PRODUCER, data.program.name, dict(data.provenance))

    def get_providers(self) -> list[str]:
        """The provider that the engine runs on."""
        return [_SIMULATOR if self.engine.device.gpu_index is None else _PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of the provider, as texts."""
        index = self.engine.device.gpu_index
        return {name: {} if index is None else {"device_id": str(index)} for name in self.get_providers()}

    def get_session_options(self) -> SessionOptions:
        """The session options that were given, or default ones."""
        return self._options

    def enable_fallback(self) -> None:
        """Changes nothing: a session never falls back to another device."""

    def disable_fallback(self) -> None:
        """Changes nothing: a session never falls back to another device."""


def _node_args(arguments: Sequence[Argument], tensors: Sequence[Tensor]) -> list[NodeArg]:
    """The arguments in ONNX Runtime's words. It gives sequences, and empty optional values, no shape."""
    known = {t.name: t for t in tensors}

    def one(a: Argument) -> NodeArg:
        types = [f"tensor({TYPES[DType(known[n].dtype)]})" for n in a.items]
        if a.kind != "tensor":
            return NodeArg(a.name, [], f"seq({types[0] if types else ''})" if a.kind == "sequence" else "optional()")
        return NodeArg(a.name, [int(d) if d.isdigit() else d for d in known[a.items[0]].shape], types[0])

    return [one(a) for a in arguments]


def _check_options(options: Any) -> None:
    if options is None:
        return
    if not is_session_options(options):
        hint = "arcweld.SessionOptions(), or those of ONNX Runtime"
        raise UsageError(f"session options are no {type(options).__name__}", hint=hint)
    if options.enable_profiling:
        hint = "`onnx-to-engine bench --exportProfile=FILE` times kernels"
        raise UsageError("session options: enable_profiling is not supported", hint=hint)


def _check_run_options(options: Any) -> None:
    if options is not None:
        raise UsageError("run options have no meaning for an engine", hint="leave run_options out")


def _device_of(providers: Sequence[str | tuple[str, Mapping[str, Any]]]) -> str:
    """The device of the first provider. Further ones are fallbacks for ONNX Runtime; here they are ignored."""
    first = providers[0] if providers and not isinstance(providers, str) else ""
    name, options = (first, {}) if isinstance(first, str) else first
    if name not in (_PROVIDER, _SIMULATOR):
        raise UsageError(
            f"there is no provider {providers!r}",
            hint=f'providers=["{_PROVIDER}"], or device="sim" for the CPU simulator',
        )
    known = {"device_id"} if name == _PROVIDER else set()
    if unknown := sorted(set(options) - known):
        hint = f"{', '.join(known)} is" if known else None
        raise UsageError(f"{name}: the option {unknown[0]!r} is not known", hint=hint)
    return "sim" if name == _SIMULATOR else f"cuda:{int(options.get('device_id', 0))}"
