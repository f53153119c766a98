"""The execution plan: a program with its expressions compiled, aliases resolved and lifetimes computed.

A plan depends neither on shapes nor on addresses, so that one serves every context and every set of shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from arcweld.compiler.dims.binding import linear, solve
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EngineFileError, InputError
from arcweld.compiler.parameters import Parameter
from arcweld.runtime.expressions import Expression
from arcweld.runtime.kernels import choose_variant
from arcweld.runtime.program import Launch, Program, Symbol, Tensor, Variant

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor whose shape is given by functions of the symbols.

    ``root`` is the tensor that owns the bytes (the tensor itself, or the end of a chain of aliases); the tensor begins
    at the sum of ``offsets`` in it, in bytes.
    """

    name: str
    dtype: DType
    shape: tuple[Expression, ...]
    root: str
    offsets: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A launch and the variant of it that was chosen for the device."""

    launch: Launch
    variant: Variant
    grid: tuple[Expression, Expression, Expression]
    params: tuple[Parameter[Expression], ...]

    def written(self) -> set[str]:
        """The tensors that it writes, those of the kernel's own among them."""
        return {*self.launch.writes, *(t.name for t in self.variant.own())}


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The range of launch indices over which a temporary needs its bytes, both ends included.

    For an output that is copied after the last launch, ``last`` is the number of launches.
    """

    name: str
    first: int
    last: int


class ExecutionPlan:
    """The plan of ``program`` on devices of architecture ``arch``.

    ``inputs`` and ``outputs`` map names to positions. ``direct_outputs`` are those that launches write into the
    caller's array; the others are copied there after the last launch. ``state`` maps the position of an output that
    takes over an input's memory to that of the input. ``counters`` are the arrays of zeros that kernels have for
    themselves.
    """

    def __init__(self, program: Program, arch: str) -> None:
        """Raises DeviceError for a launch without a variant for ``arch``, EngineFileError for aliases in a circle."""
        self.program = program
        self.inputs = {t.name: i for i, t in enumerate(program.inputs)}
        self.outputs = {t.name: i for i, t in enumerate(program.outputs)}
        self.launches = tuple(_launch_plan(launch, choose_variant(launch, arch)) for launch in program.launches)
        self.tensors = _tensor_plans(program, self.launches)
        self.counters = tuple(t.name for launch in self.launches for t in launch.variant.counters)
        self.state = {self.outputs[s.output]: self.inputs[s.input] for s in program.state}
        kept = {s.output for s in program.state}
        written = {self.tensors[n].root for launch in program.launches for n in launch.writes}
        self.direct_outputs = {
            t.name
            for t in program.outputs
            if self.tensors[t.name].root == t.name and t.name in written and t.name not in kept
        }
        self.lifetimes = self._lifetimes()

    def _lifetimes(self) -> tuple[Lifetime, ...]:
        own = {t.name for t in self.program.temps} | {t.name for t in self.program.outputs}
        own -= self.direct_outputs | set(self.inputs) | {w.name for w in self.program.weights}
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for index, launch in enumerate(self.program.launches):
            for name in (*launch.reads, *launch.writes):
                root = self.tensors[name].root
                if root in own:
                    first.setdefault(root, index)
                    last[root] = index
            for tensor in self.launches[index].variant.workspace:
                first[tensor.name] = last[tensor.name] = index
        for name in self.outputs:
            root = self.tensors[name].root
            if root in last:
                last[root] = len(self.program.launches)
        return tuple(Lifetime(n, first[n], last[n]) for n in first)

    def bind_symbols(self, shapes: Iterable[Shape]) -> dict[str, int]:
        """The value of every symbol, solved from the inputs' shapes (in calling order).

        Raises InputError for another rank, a constant dimension of another size, contradicting values of a symbol, a
        symbol that the shapes do not determine, or a value that is not the multiple it has to be.
        """
        env: dict[str, int] = {}
        given = list(zip(self.program.inputs, shapes, strict=True))
        for tensor, shape in given:
            if len(shape) != len(tensor.shape):
                raise InputError(_got(tensor, shape, f"{len(shape)} dimensions instead of {len(tensor.shape)}"))
        solve([(d, n) for tensor, shape in given for d, n in zip(self.tensors[tensor.name].shape, shape)], env)
        for tensor, shape in given:
            for axis, (size, dim) in enumerate(zip(shape, self.tensors[tensor.name].shape)):
                wrong = _difference(dim, size, env)
                if wrong:
                    raise InputError(_got(tensor, shape, f"dimension {axis} is {size}, not {wrong}"))
        for s in self.program.symbols:
            if env[s.name] % s.multiple_of:
                raise InputError(f"dimension {s.name} is {env[s.name]}; it must be a multiple of {s.multiple_of}")
        return env

    def out_of_range(self, env: Mapping[str, int]) -> list[Symbol]:
        """Symbols whose value lies outside the range that the engine was built for."""
        return [s for s in self.program.symbols if env[s.name] < s.lo or (s.hi is not None and env[s.name] > s.hi)]


def describe(tensor: Tensor) -> str:
    """``f32[n, 8]``."""
    return f"{tensor.dtype}[{', '.join(tensor.shape)}]"


def _got(tensor: Tensor, shape: Shape, reason: str) -> str:
    return f"input {tensor.name!r} must be {describe(tensor)}, got shape {list(shape)}: {reason}"


def _difference(dim: Expression, size: int, env: Mapping[str, int]) -> str:
    """What a dimension of ``size`` should be, as text; empty if it is that.

    Raises InputError if a symbol of the dimension has no value and cannot be solved for.
    """
    unknown = sorted(dim.names - env.keys())
    if not unknown:
        want = dim(env)
        return "" if want == size else f"{want} ({dim.text})" if dim.names else str(want)
    if len(unknown) == 1 and linear(dim, unknown[0], env) is not None:
        return f"{dim.text} for any {unknown[0]}"
    raise InputError(f"the inputs' shapes do not determine {', '.join(unknown)} (from {dim.text})")


def _tensor_plans(program: Program, launches: Iterable[LaunchPlan]) -> dict[str, TensorPlan]:
    alias = {a.name: a for a in program.aliases}
    tensors = [*program.inputs, *program.temps, *program.outputs]
    tensors += [t for launch in launches for t in launch.variant.own()]
    tensors += [Tensor(w.name, w.dtype, tuple(map(str, w.shape))) for w in program.weights]
    plans: dict[str, TensorPlan] = {}
    for tensor in tensors:
        root, offsets = tensor.name, []
        while root in alias:
            offsets.append(Expression(alias[root].offset))
            root = alias[root].of
            if len(offsets) > len(alias):
                raise EngineFileError(f"the aliases of {tensor.name} form a circle")
        shape = tuple(Expression(d) for d in tensor.shape)
        plans[tensor.name] = TensorPlan(tensor.name, DType(tensor.dtype), shape, root, tuple(offsets))
    return plans


def _launch_plan(launch: Launch, variant: Variant) -> LaunchPlan:
    x, y, z = (Expression(g) for g in variant.grid)
    return LaunchPlan(launch, variant, (x, y, z), tuple(p.convert(Expression) for p in variant.params))
