"""The options of a build, as the driver hands them to every pass."""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.compiler.archs import parse_arch
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.size_ranges import SizeRange

OLDEST_ARCH = 80  # the templates use asynchronous copies
LOOP_LIMIT = 1 << 20  # iterations of a loop whose end depends on data
_PRECISIONS = {"fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a build optimises, so that a search finds the step from which on its results are wrong.

    It is LLVM's ``-opt-bisect-limit`` ("Using -opt-bisect-limit to debug optimization errors", LLVM documentation).

    passes   the number of the last pass that is applied (``passes/pipeline.py``); what a build needs is applied anyway
    fusions  how many nodes join the region of another node; None: all that can
    """

    passes: int
    fusions: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one build. Raises UsageError for an unknown precision, and for an unknown or too old architecture.

    precision  "fp32" keeps the model's types; "fp16" and "bf16" narrow f32 tensors to that type
    arch       the architectures to compile for, like ("sm_80", "sm_90a"); empty: the driver chooses
    disable    names of passes to skip
    tf32       f32 matrix products may round their operands to tf32
    keep_f32   origins (names of the model's nodes) whose results stay f32 whatever ``precision`` says
    ranges     ranges of sizes that get launches of their own, the first that holds; None: the driver chooses
    limit      where optimising ends; None: nowhere
    """

    precision: str = "fp32"
    arch: tuple[str, ...] = ()
    disable: frozenset[str] = frozenset()
    tf32: bool = False
    keep_f32: frozenset[str] = frozenset()
    ranges: tuple[SizeRange, ...] | None = None
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", hint=f"one of {', '.join(_PRECISIONS)}")
        for arch in self.arch:
            parsed = parse_arch(arch) if isinstance(arch, str) else None
            if parsed is None or parsed[0] < OLDEST_ARCH:
                hint = f"written like sm_80 or sm_90a; sm_{OLDEST_ARCH} is the oldest that the kernels are written for"
                raise UsageError(f"{arch!r} is no architecture that can be compiled for", hint=hint)

    @property
    def float_type(self) -> DType:
        """The element type that ``precision`` stands for."""
        return _PRECISIONS[self.precision]
