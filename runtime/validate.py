"""Checks a program before it is used; everything that is wrong with one is an EngineFileError.

A valid program refers to existing tensors, symbols and kernels only, reads no tensor before it is written, and stays
within CUDA's launch limits. Limits that depend on shapes are checked by ``launch_list.py`` for each set of shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import msgspec

from arcweld.compiler.dtypes import DEVICE_TYPES, DType
from arcweld.compiler.errors import EngineFileError
from arcweld.compiler.parameters import Float, Integer, Parameter, Pointer, TensorMap, struct_offsets
from arcweld.compiler.tiling import ENGINES, Tiling
from arcweld.runtime.expressions import Expression
from arcweld.runtime.program import SCHEMA, Launch, Program, Tensor, Variant
from arcweld.runtime.steps import sizes_given
from arcweld.runtime.validate_steps import check_steps, refuse

MAX_RANK = 32
MAX_NAME = 1024
MAX_THREADS = 1024
MAX_SHARED = 232_448  # bytes of a block, on sm_90
MAX_CLUSTER = 16  # blocks, where the non-portable size is allowed
MAX_PARAMS = 32_764  # bytes
MAX_RANGES = 16

_DTYPES = {d.value: d for d in DType}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_KERNEL = re.compile(r"[A-Za-z0-9_\-]{1,200}")
_ARCH = re.compile(r"sm_[1-9]\d{1,2}[af]?")


class _KernelEvidence(msgspec.Struct):
    kernel: str
    status: str
    launch: str


class _OutputEvidence(msgspec.Struct):
    output: str
    status: str
    error: float | None = None
    reason: str = ""
    tolerance: float | None = None
    nonfinite: float = 0.0


class _Evidence(msgspec.Struct):
    """The members of the evidence that its readers rely on; ``driver/evidence.py`` writes them."""

    level: str
    kernels: list[_KernelEvidence]
    outputs: list[_OutputEvidence]
    device: str = ""
    shapes: dict[str, list[int]] = msgspec.field(default_factory=dict)
    replaced: list[str] = msgspec.field(default_factory=list)


def check_evidence(evidence: Any) -> None:
    """Raises EngineFileError where the evidence of verification is not what builds write."""
    try:
        if evidence is not None:
            msgspec.convert(evidence, _Evidence)
    except msgspec.ValidationError as error:
        raise EngineFileError(f"the evidence of verification is damaged: {error}") from None


def check_program(program: Program, kernels: Container[str]) -> None:
    """Checks everything that does not depend on shapes. ``kernels`` holds the names of the engine's sources.

    Raises EngineFileError.
    """
    check_schema(program.schema)
    _check_arguments(program)
    for stage in (program, *program.stages):
        _check_ranges(stage)
        for part in stage.parts():
            _Checker(part, kernels).run()
    if any(w.dtype not in DEVICE_TYPES for w in program.weights):
        raise refuse("a weight has no form on a device")
    if program.steps or program.stages:
        check_steps(program)


def _check_arguments(program: Program) -> None:
    """Raises EngineFileError where what a caller passes or gets is not made of all inputs or outputs, in order."""
    for arguments, tensors in ((program.takes, program.inputs), (program.gives, program.outputs)):
        if not arguments:
            continue
        listed = [n for a in arguments for n in a.items]
        if listed != [t.name for t in tensors] or not all(a.is_valid for a in arguments):
            raise refuse("the lists of its inputs or outputs do not hold each of them once, in order")
        names = [a.name for a in arguments]
        lists = {a.name for a in arguments if a.kind == "sequence"}
        if len(set(names)) != len(names) or lists & set(listed) or not all(0 < len(n) <= MAX_NAME for n in names):
            raise refuse("two inputs or outputs have one name, or one has none")
    if program.state and (program.takes or program.gives):
        raise refuse("it has lists of inputs or outputs, and state")
    if any(stage.takes or stage.gives for stage in program.stages):
        raise refuse("a stage has lists of inputs or outputs")


def _check_ranges(program: Program) -> None:
    """Raises EngineFileError for ranges of sizes that are not within the symbols' own, and for launches of one name."""
    symbols = {s.name: s for s in program.symbols}
    if len(program.ranges) > MAX_RANGES:
        raise refuse(f"there are {len(program.ranges)} ranges of sizes")
    for s in (s for r in program.ranges for s in r.symbols):
        own = symbols.get(s.name)
        inside = own is not None and s.hi is not None and own.lo <= s.lo and (own.hi is None or s.hi <= own.hi)
        if not inside or (own is not None and s.multiple_of != own.multiple_of):
            raise refuse(f"a range of {s.name[:80]!r} is not within that of the symbol")
    names = [x.name for x in program.all_launches()] if program.ranges else []
    if len(set(names)) != len(names):
        raise refuse("two launches of different ranges have one name")


def check_schema(schema: int) -> None:
    """Raises EngineFileError for the program of another version of Arcweld."""
    if schema != SCHEMA:
        raise EngineFileError(
            f"the program has schema {schema}; this version of Arcweld reads schema {SCHEMA}",
            hint="build the engine again, or use the Arcweld version that wrote it",
        )


def _type(tensor: Tensor) -> tuple[str, tuple[str, ...]]:
    return tensor.dtype, tensor.shape


@dataclass
class _Checker:
    program: Program
    kernels: Container[str]
    symbols: set[str] = field(default_factory=set)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)  # workspace and counters of variants
    alias_of: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        self.check_symbols()
        self.check_tensors()
        self.check_aliases()
        self.check_state()
        self.check_limits()
        for launch in self.program.launches:
            self.check_launch(launch)
        self.check_order()

    def expression(self, text: str, place: str) -> Expression:
        parsed = Expression(text)
        unknown = parsed.names - self.symbols
        if unknown:
            raise refuse(f"{place} uses the undeclared symbol {min(unknown)!r}")
        return parsed

    def check_symbols(self) -> None:
        for s in self.program.symbols:
            if not _IDENTIFIER.fullmatch(s.name) or s.name in self.symbols:
                raise refuse(f"symbol {s.name[:80]!r} is invalid or declared twice")
            if s.multiple_of < 1 or s.lo < 0 or (s.hi is not None and s.hi < s.lo):
                raise refuse(f"symbol {s.name} has an impossible range")
            self.symbols.add(s.name)
        born = sizes_given(self.program.steps)
        found = {n for t in self.program.inputs for d in t.shape for n in self.expression(d, t.name[:80]).names}
        for name in self.symbols - found:
            raise refuse(f"symbol {name} is in no dimension of any input")
        self.symbols |= set(born)

    def check_tensors(self) -> None:
        p = self.program
        for tensor in (*p.inputs, *p.temps):
            self.declare(tensor)
        for w in p.weights:
            if any(not 0 <= d < 1 << 48 for d in w.shape) or math.prod(w.shape) >= 1 << 48:
                raise refuse(f"weight {w.name[:80]!r} has an impossible shape")
            self.declare(Tensor(w.name, w.dtype, tuple(str(d) for d in w.shape)))
        given = dict(self.tensors)
        seen: set[str] = set()
        for tensor in p.outputs:
            if tensor.name in seen or any(tensor.name == t.name for t in p.temps):
                raise refuse(f"output {tensor.name[:80]!r} is declared twice")
            seen.add(tensor.name)
            if tensor.name not in given:
                self.declare(tensor)
            elif tensor != given[tensor.name]:  # the output is an input or a weight
                raise refuse(f"output {tensor.name} differs from the input or weight of that name")
        for variant in (v for launch in p.launches for v in launch.variants):
            for tensor in variant.own():
                self.declare(tensor, self.own)
            if any(t.dtype != DType.U32.value for t in variant.counters):
                raise refuse(f"kernel {variant.kernel[:80]!r} counts in numbers that are not u32")

    def declare(self, tensor: Tensor, into: dict[str, Tensor] | None = None) -> None:
        name = tensor.name
        if not 0 < len(name) <= MAX_NAME or name in self.tensors or name in self.own:
            raise refuse(f"tensor {name[:80]!r} is unnamed or declared twice")
        if tensor.dtype not in (_DTYPES if self.program.steps else DEVICE_TYPES):
            raise refuse(f"tensor {name} has the unknown element type {tensor.dtype[:20]!r}")
        if len(tensor.shape) > MAX_RANK:
            raise refuse(f"tensor {name} has {len(tensor.shape)} dimensions")
        for dim in tensor.shape:
            self.expression(dim, f"tensor {name}")
        (self.tensors if into is None else into)[name] = tensor

    def check_aliases(self) -> None:
        p = self.program
        fixed = {t.name for t in p.inputs} | {w.name for w in p.weights}
        for alias in p.aliases:
            if alias.name not in self.tensors or alias.of not in self.tensors or alias.name in fixed:
                raise refuse(f"alias {alias.name[:80]!r} of {alias.of[:80]!r} names unknown or given tensors")
            if alias.name in self.alias_of:
                raise refuse(f"{alias.name} is an alias twice")
            self.expression(alias.offset, f"alias {alias.name}")
            self.alias_of[alias.name] = alias.of
        for name in self.alias_of:
            self.root(name)

    def check_state(self) -> None:
        inputs, outputs = ({t.name: t for t in found} for found in (self.program.inputs, self.program.outputs))
        weights = {w.name: w for w in self.program.weights}
        for s in self.program.state:
            into, out = inputs.get(s.input), outputs.get(s.output)
            if into is None or out is None or s.input in outputs:
                raise refuse(f"state {s.input[:80]!r} names unknown tensors")
            if _type(into) != _type(out):
                raise refuse(f"state {s.input} differs from the output {s.output}")
            if self.alias_of.get(s.output, s.input) != s.input:
                raise refuse(f"output {s.output} is an alias of another tensor than the state {s.input}")
            if s.initial and (s.initial not in weights or _type(self.tensors[s.initial]) != _type(into)):
                raise refuse(f"state {s.input} begins with {s.initial[:80]!r}, which is no weight of its type")
        for names in ([s.input for s in self.program.state], [s.output for s in self.program.state]):
            if len(set(names)) != len(names):
                raise refuse("two outputs take over the memory of one input")

    def check_limits(self) -> None:
        integers = {t.name for t in self.program.inputs if _DTYPES[t.dtype].is_int}
        for limit in self.program.limits:
            if limit.input not in integers:
                raise refuse(f"there is a limit for {limit.input[:80]!r}, which is no input of integers")
            for text in (limit.extent, limit.least, limit.most):
                self.expression(text, f"the limit of {limit.input}")

    def root(self, name: str) -> str:
        steps = 0
        while name in self.alias_of:
            name = self.alias_of[name]
            steps += 1
            if steps > len(self.alias_of):
                raise refuse(f"the aliases of {name} form a circle")
        return name

    def check_launch(self, launch: Launch) -> None:
        place = f"launch {launch.name[:80]!r}"
        for name in (*launch.reads, *launch.writes):
            if name not in self.tensors:
                raise refuse(f"{place} uses the unknown tensor {name[:80]!r}")
        if not set(launch.zero) <= set(launch.writes):
            raise refuse(f"{place} clears a tensor that it does not write")
        if not launch.variants:
            raise refuse(f"{place} has no implementation")
        self.expression(launch.flops, place)
        self.expression(launch.iterations, place)
        for variant in launch.variants:
            self.check_variant(launch, variant, place)

    def check_variant(self, launch: Launch, v: Variant, place: str) -> None:
        if not _KERNEL.fullmatch(v.kernel) or v.kernel not in self.kernels:
            raise refuse(f"{place} runs the unknown kernel {v.kernel[:80]!r}")
        if not _IDENTIFIER.fullmatch(v.entry) or not _ARCH.fullmatch(v.arch):
            raise refuse(f"{place} has an invalid entry point or architecture")
        for text in v.grid:
            self.expression(text, place)
        if not all(1 <= b <= m for b, m in zip(v.block, (1024, 1024, 64))) or math.prod(v.block) > MAX_THREADS:
            raise refuse(f"{place} has the impossible block {v.block}")
        if not 0 <= v.shared_bytes <= MAX_SHARED or not 1 <= v.cluster <= MAX_CLUSTER:
            raise refuse(f"{place} asks for impossible shared memory or clusters")
        allowed = {*launch.reads, *launch.writes, *(t.name for t in v.own())}
        for p in v.params:
            self.check_parameter(p, allowed, place)
        if struct_offsets(v.params)[1] > MAX_PARAMS:
            raise refuse(f"{place} has more than {MAX_PARAMS} bytes of parameters")
        if v.tiling is not None:
            self.check_tiling(v.tiling, place)

    def check_tiling(self, t: Tiling[str], place: str) -> None:
        counts = (t.stages, t.macs, t.elements, t.split)
        if t.engine not in ENGINES or not all(0 < n < 1 << 40 for n in counts):
            raise refuse(f"{place} has impossible tiles")
        if not all(0 <= n < 1 << 40 for n in (t.loaded, t.read, t.exponents)):
            raise refuse(f"{place} has impossible tiles")
        t.convert(lambda text: self.expression(text, place))

    def check_parameter(self, p: Parameter[str], allowed: set[str], place: str) -> None:
        if isinstance(p, Pointer | TensorMap) and p.tensor not in allowed:
            raise refuse(f"{place} takes {p.tensor[:80]!r}, which it declares neither as read nor as written")
        if isinstance(p, Integer) and p.bits not in (32, 64):
            raise refuse(f"{place} has an integer of {p.bits} bits")
        if isinstance(p, Float) and not math.isfinite(p.value):
            raise refuse(f"{place} has the parameter {p.value}, which the file can't hold")
        p.convert(lambda text: self.expression(text, place))
        if isinstance(p, TensorMap):
            self.check_tensor_map(p, place)

    def check_tensor_map(self, p: TensorMap[str], place: str) -> None:
        rank = len(p.dims)
        if not 1 <= rank <= 5 or len(p.strides) != rank - 1 or len(p.box) != rank:
            raise refuse(f"{place} has a tensor map of impossible rank")
        if len(p.element_strides) != rank or p.swizzle not in (0, 32, 64, 128):
            raise refuse(f"{place} has a tensor map with impossible strides or swizzle")
        if not all(1 <= b <= 256 for b in p.box) or not all(1 <= e <= 8 for e in p.element_strides):
            raise refuse(f"{place} has a tensor map with an impossible box")

    def check_order(self) -> None:
        p = self.program
        given = {t.name for t in p.inputs} | {w.name for w in p.weights}
        over = {s.output: s.input for s in p.state if s.output in self.alias_of}  # written in place
        written, lost = set(given), set[str]()
        for launch in p.launches:
            for name in launch.reads:
                if over[name] not in lost if name in over else self.root(name) not in written:
                    raise refuse(f"launch {launch.name[:80]!r} reads {name} before it is written")
                if name in lost:
                    raise refuse(f"launch {launch.name[:80]!r} reads {name} after it is overwritten")
            for name in launch.writes:
                if name in over:
                    lost.add(over[name])
                elif self.root(name) in given:
                    raise refuse(f"launch {launch.name[:80]!r} writes {name}, an input or weight")
                written.add(self.root(name))
        for output in p.outputs if not p.steps else ():
            if self.root(output.name) not in written or over.get(output.name) in written - lost:
                raise refuse(f"output {output.name} is never written")
