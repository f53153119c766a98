"""The options of ``torch.compile(model, backend="arcweld", options={...})``.

Options that Torch-TensorRT has too have the same names. An unknown option raises UsageError with the list of options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from arcweld.compiler.errors import UsageError
from arcweld.compiler.options import Options

# torch.compile's modes, with what each asks for
MODES = {
    "default": "a good compromise",
    "reduce-overhead": "CUDA graphs, which are used for every shape that comes back",
    "max-autotune": "the best kernels and CUDA graphs; tactics are chosen by an analytical model in every build",
}


@dataclasses.dataclass(frozen=True, slots=True)
class BackendOptions:
    """The options of one ``torch.compile``. Raises UsageError for invalid values.

    min_block_size            blocks with fewer computing operators are left to PyTorch
    movement                  operators that only move elements count as computing ones
    torch_executed_ops        operators to leave to PyTorch: "aten.softmax.int", "aten.softmax" or the operator itself
    require_full_compilation  raise UnsupportedError instead of leaving nodes to PyTorch
    truncate_double           compute f64 tensors in f32 (inputs and results keep their type)
    precision                 fp32 | fp16 | bf16, as in ``arcweld.compile``
    device                    cuda, cuda:N or sim; None: ARCWELD_DEVICE, else the GPU
    freeze                    make parameters and buffers weights of the engine, packed once and watched for changes
    training                  compile forward and backward graphs too; parameters are then inputs
    verify, verify_budget, tolerance, tf32, disable, dump   as in ``arcweld.compile``
    dryrun                    report what would be compiled, and run in PyTorch
    """

    min_block_size: int = 3
    movement: bool = False
    torch_executed_ops: frozenset[str] = frozenset()
    require_full_compilation: bool = False
    truncate_double: bool = False
    precision: str = "fp32"
    device: str | None = None
    freeze: bool = True
    training: bool = True
    verify: str = "quick"
    verify_budget: float = 20.0
    tolerance: float | None = None
    tf32: bool = False
    disable: frozenset[str] = frozenset()
    dump: str | None = None
    dryrun: bool = False

    def __post_init__(self) -> None:
        Options(precision=self.precision)
        if self.min_block_size < 1:
            raise UsageError(f"min_block_size must be at least 1, not {self.min_block_size}")
        if self.verify not in ("quick", "full", "off"):
            raise UsageError(f"unknown verify level {self.verify!r}", hint="quick, full or off")


def parse_options(options: Mapping[str, Any] | None, mode: str | None = None) -> BackendOptions:
    """Options as ``torch.compile`` passes them. Raises UsageError for unknown names, wrong types or modes.

    The modes of ``MODES`` change nothing: each asks for what every engine does.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode={mode!r} is not a mode of this backend", hint=f"it has {', '.join(MODES)}")
    given = dict(options or {})
    fields = {f.name: f for f in dataclasses.fields(BackendOptions)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise UsageError(
            f"the arcweld backend has no option {', '.join(map(repr, unknown))}", hint=f"it has {', '.join(fields)}"
        )
    for name in ("torch_executed_ops", "disable"):
        if name in given:
            given[name] = frozenset(_operator_name(op) for op in _collection(name, given[name]))
    for name, value in given.items():
        _check_type(name, value, fields[name].default)
    return BackendOptions(**given)


def _collection(name: str, value: Any) -> Any:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise UsageError(f"option {name} is a collection of names, not {value!r}")
    return value


def _operator_name(op: Any) -> str:
    """``aten.softmax.int`` from an operator object or from any of the usual spellings."""
    return str(op).removeprefix("torch.ops.").replace("::", ".")


def _check_type(name: str, value: Any, default: Any) -> None:
    if default is None:
        return
    wanted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UsageError(f"option {name} must be of type {type(default).__name__}, not {value!r}")
