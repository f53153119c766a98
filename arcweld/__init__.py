"""Arcweld: compile ONNX files and PyTorch modules to engines of fused CUDA kernels.

    engine = arcweld.compile("model.onnx")
    y = engine(x)
    engine.save("model.engine")
    engine = arcweld.load("model.engine", device="cuda")

Environment: ``ARCWELD_DEVICE`` (cuda, cuda:N, sim), ``ARCWELD_CACHE_DIR``, ``ARCWELD_LOG`` (``+fusion,codegen``),
``ARCWELD_TRUST=1`` (run any engine file on sim), ``ARCWELD_NVTX=1`` (NVTX ranges around launches).
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from arcweld.compiler.errors import (
    AccuracyError,
    ArcweldError,
    CompileError,
    DeviceError,
    EngineFileError,
    EnvironmentError_,
    InputError,
    ModelError,
    ProfileError,
    UnsupportedError,
    UntrustedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcweld.driver.api import CompileOptions, Input, compile
    from arcweld.driver.custom_op import custom_op
    from arcweld.driver.estimate import Estimate
    from arcweld.driver.llm import LLM
    from arcweld.runtime.binding import OrtValue, SessionOptions
    from arcweld.runtime.engine import Engine, load
    from arcweld.runtime.engine_file import EngineData
    from arcweld.runtime.llm.adapters import LoRARequest
    from arcweld.runtime.llm.params import SamplingParams, StructuredOutputsParams
    from arcweld.runtime.session import InferenceSession
    from arcweld.torch.report import torch_report

__version__ = "0.1.0"

# imported on first use, so that `import arcweld` costs milliseconds
_LAZY = {
    "compile": "arcweld.driver.api",
    "CompileOptions": "arcweld.driver.api",
    "Input": "arcweld.driver.api",
    "custom_op": "arcweld.driver.custom_op",
    "LLM": "arcweld.driver.llm",
    "LoRARequest": "arcweld.runtime.llm.adapters",
    "SamplingParams": "arcweld.runtime.llm.params",
    "StructuredOutputsParams": "arcweld.runtime.llm.params",
    "Engine": "arcweld.runtime.engine",
    "load": "arcweld.runtime.engine",
    "InferenceSession": "arcweld.runtime.session",
    "OrtValue": "arcweld.runtime.binding",
    "SessionOptions": "arcweld.runtime.binding",
    "torch_report": "arcweld.torch.report",
}

__all__ = [
    "LLM", "AccuracyError", "ArcweldError", "CompileError", "CompileOptions", "DeviceError", "Engine",
    "EngineFileError", "EnvironmentError_", "InferenceSession", "Input", "InputError", "LoRARequest", "ModelError",
    "OrtValue", "ProfileError", "SamplingParams", "SessionOptions", "StructuredOutputsParams", "UnsupportedError",
    "UntrustedError", "UsageError", "__version__", "compile", "custom_op", "load", "torch_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'arcweld' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = getattr(module, name)
    globals()[name] = value
    return value


def _inject() -> None:
    """Gives the runtime what it does not import itself: the code generator, and the check of strangers' files."""
    from arcweld.runtime import injected

    def rebuild(name: str, source: str, headers: dict[str, str], arch: str) -> bytes:
        from arcweld.driver.api import rebuild_kernel

        return rebuild_kernel(name, source, headers, arch)

    def difference(data: EngineData) -> str:
        from arcweld.driver import remake

        return remake.difference(data)

    def estimate(data: EngineData, card: str, sizes: Mapping[str, int]) -> Estimate:
        from arcweld.driver.estimate import estimate_called

        return estimate_called(data, card, sizes)

    injected.rebuild, injected.difference, injected.estimate = rebuild, difference, estimate


def __dir__() -> list[str]:
    return sorted(__all__)


def _set_up() -> None:
    from arcweld.compiler.logs import configure

    try:
        configure()
    except UsageError as error:  # a misspelt variable must not make the package unusable
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


_set_up()
_inject()
