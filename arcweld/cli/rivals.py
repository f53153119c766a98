"""ONNX Runtime and PyTorch as an engine's rivals: on the same inputs, with results by the engine's names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.signature import gathered, spread
from arcweld.compiler.text import sanitize
from arcweld.runtime.arrays import host_array
from arcweld.runtime.engine import Engine

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Run = Callable[[], Any]


class OnnxRuntime:
    """A session of ONNX Runtime for the model that an engine was built from.

    ``frozen`` are the model's inputs that the engine has as constants. With ``copies`` a run takes and gives arrays in
    the host's memory, else arrays on the provider's device. Raises EnvironmentError_ where ONNX Runtime or the provider
    is missing, UsageError for a model that it cannot open.
    """

    def __init__(
        self, model: str, engine: Engine, feeds: Mapping[str, np.ndarray], frozen: Mapping[str, np.ndarray],
        provider: str = "cpu", copies: bool = True,
    ) -> None:  # fmt: skip
        self._engine, self._runtime = engine, _onnxruntime()
        if PROVIDERS[provider] not in self._runtime.get_available_providers():
            raise EnvironmentError_(
                f"this ONNX Runtime has no {PROVIDERS[provider]}",
                hint="pip install onnxruntime-gpu in place of onnxruntime, or --provider=cpu",
            )
        try:
            self._session = self._runtime.InferenceSession(model, providers=[PROVIDERS[provider]])
        except Exception as error:  # its classes have no common base
            raise _cannot("ONNX Runtime", "open", error) from error
        if PROVIDERS[provider] not in self._session.get_providers():  # it goes on without one that fails
            raise EnvironmentError_(
                f"ONNX Runtime's {PROVIDERS[provider]} cannot start here",
                hint="check its messages above, or --provider=cpu",
            )
        fed = gathered(engine.arguments, feeds)
        inputs = [i.name for i in self._session.get_inputs()]
        self._given = {n: frozen[n] if n in frozen else fed[sanitize(n)] for n in inputs}
        self._names = [o.name for o in self._session.get_outputs()]
        self.run: Run = self._run_copying if copies else self._bound(provider)

    def _run_copying(self) -> Any:
        return self._session.run(self._names, self._given)

    def _bound(self, provider: str) -> Run:
        """A run from and to the provider's memory, as the runtime's ``IOBinding`` has it."""
        binding = self._session.io_binding()
        try:
            for name, array in self._given.items():
                binding.bind_ortvalue_input(name, self._runtime.OrtValue.ortvalue_from_numpy(array, provider, 0))
            for name in self._names:
                binding.bind_output(name, provider)
        except Exception as error:  # sequences and strings have no such form
            raise _cannot("ONNX Runtime", "bind the inputs of", error) from error
        return lambda: self._session.run_with_iobinding(binding)

    def results(self) -> dict[str, np.ndarray]:
        """The results of one run by the engine's names. Raises UsageError for a model that it cannot run."""
        try:
            found = spread(self._engine.results, dict(zip(self._names, self._run_copying())))
        except Exception as error:
            raise _cannot("ONNX Runtime", "run", error) from error
        return {n: a for n, a in found.items() if a is not None}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        hint = "pip install onnxruntime, or onnxruntime-gpu (which the extra `bench` has)"
        raise EnvironmentError_("ONNX Runtime is not installed", hint=hint) from None
    return onnxruntime


def _cannot(who: str, what: str, error: Exception) -> UsageError:
    option = "--onnxrt" if who == "ONNX Runtime" else "--torch"
    return UsageError(f"{who} cannot {what} the model: {str(error).strip()}", hint=f"leave {option} out")


class Torch:
    """A module of PyTorch with the engine's inputs as its arguments, in the engine's order.

    ``spec`` names it as ``load_module`` takes it. The module is run as it is: in its own types. ``compiled`` puts
    ``torch.compile`` before it. With ``copies`` a run takes and gives tensors in the host's memory, else tensors on the
    device. Raises EnvironmentError_ where PyTorch or its device is missing, and as ``load_module``.
    """

    def __init__(
        self, spec: str, engine: Engine, feeds: Mapping[str, np.ndarray], compiled: bool, copies: bool = True
    ) -> None:
        self._torch = torch = _torch()
        self._engine, self._spec, self._copies = engine, spec, copies
        index = engine.device.gpu_index
        if index is not None and not torch.cuda.is_available():
            hint = "install PyTorch with CUDA, or compare on --device=sim"
            raise EnvironmentError_("this PyTorch has no CUDA device", hint=hint)
        self._on_gpu = index is not None
        self._device = torch.device("cpu") if index is None else torch.device("cuda", index)
        self._module = load_module(spec)
        if hasattr(self._module, "to"):
            self._module = self._module.to(self._device)
        self._call = torch.compile(self._module) if compiled else self._module
        self._host = [self._tensor(feeds[t.name], t.name) for t in engine.inputs]
        self._there = [t.to(self._device) for t in self._host]

    def _tensor(self, array: np.ndarray, name: str) -> Any:
        torch = self._torch
        try:
            if array.dtype.name == "bfloat16":
                return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
            return torch.from_numpy(array.copy())
        except TypeError:
            raise UsageError(f"PyTorch has no tensors of {array.dtype}, such as input {name}") from None

    def run(self) -> Any:
        """One call; returns what the module returns, when all of it has been computed."""
        torch = self._torch
        with torch.inference_mode():
            given = [t.to(self._device, non_blocking=True) for t in self._host] if self._copies else self._there
            results = self._call(*given)
            if self._on_gpu:
                results = torch.utils._pytree.tree_map_only(torch.Tensor, self._given_back, results)
                torch.cuda.synchronize(self._device)
        return results

    def _given_back(self, tensor: Any) -> Any:
        return tensor.cpu() if self._copies else tensor

    def results(self) -> dict[str, np.ndarray]:
        """The results of one run by the engine's names. Raises UsageError for a module that does not fit the inputs,
        and for another number of results than the engine's.
        """
        try:
            leaves = [x for x in self._torch.utils._pytree.tree_leaves(self.run()) if x is not None]
        except Exception as error:
            raise _cannot("PyTorch", "run", error) from error
        names = [t.name for t in self._engine.outputs]
        if len(leaves) != len(names):
            raise UsageError(f"{self._spec} gives {len(leaves)} results, the engine {len(names)}: {', '.join(names)}")
        return {name: host_array(leaf) for name, leaf in zip(names, leaves)}

    def peak_bytes(self) -> int | None:
        """Bytes on the GPU at most during a call, weights included; None on the CPU, where PyTorch does not count."""
        if not self._on_gpu:
            return None
        self._torch.cuda.reset_peak_memory_stats(self._device)
        self.run()
        return int(self._torch.cuda.max_memory_allocated(self._device))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentError_("PyTorch is not installed", hint='pip install torch, or ".[torch]"') from None
    return torch


def load_module(spec: str) -> Any:
    """The module that ``spec`` names: a ``.pt2`` file of ``torch.export.save``, or ``package.module:name``.

    ``name`` is a ``torch.nn.Module``, or a function without arguments that returns one. The current folder is searched
    first. Raises UsageError for what names no module, and for what the named code raises.
    """
    torch = _torch()
    if spec.endswith(".pt2"):
        if not Path(spec).is_file():
            raise UsageError(f"{spec} cannot be read: there is no such file")
        try:
            return torch.export.load(spec).module()
        except Exception as error:
            raise UsageError(f"{spec} is no program of torch.export: {str(error).strip()}") from error
    where, _, name = spec.partition(":")
    if not where or not name:
        raise UsageError(f"--torch: {spec!r} names no module", hint="write model.pt2, or package.module:name")
    found = _named(where, name)
    if not isinstance(found, torch.nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise UsageError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, torch.nn.Module):
        raise UsageError(f"{spec} is a {type(found).__name__}, no torch.nn.Module and no function that returns one")
    return found.eval()


def _named(where: str, name: str) -> Any:
    folder, before = os.getcwd(), list(sys.path)
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(where)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except Exception as error:  # whatever the code raises that is imported
        raise UsageError(f"{where}:{name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before


def provider_for(engine: Engine, asked: str) -> str:
    """The provider of ONNX Runtime: the one asked for, or else that of the engine's device. Raises UsageError for
    another name.
    """
    if asked and asked not in PROVIDERS:
        raise UsageError(f"--provider: {asked!r} is not one of {', '.join(PROVIDERS)}")
    return asked or ("cpu" if engine.device.gpu_index is None else "cuda")
