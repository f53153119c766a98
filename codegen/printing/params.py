"""The ``Params`` struct of a kernel: pointers, sizes and descriptors, collected as the kernel's text is printed."""

from __future__ import annotations

from arcweld.codegen.kernel import Kernel
from arcweld.compiler.dims import Dim, Sym, var
from arcweld.compiler.parameters import Integer, Parameter, Pointer, TensorMap

_ORDER = (Pointer, Integer, TensorMap)  # in the struct


class Params:
    """Collects the members of a kernel's ``Params`` struct as printing asks for them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._members: dict[str, Parameter[Dim]] = {}
        self._ctypes: dict[str, str] = {}
        for b in kernel.buffers:
            const = "" if b.written else "const "
            self._add(Pointer(b.name, b.name), f"{const}{b.dtype.cuda}*")

    def _add(self, parameter: Parameter[Dim], ctype: str) -> str:
        known = self._members.get(parameter.name)
        if known is not None and known != parameter:
            raise ValueError(f"two different parameters are called {parameter.name}")
        self._members[parameter.name] = parameter
        self._ctypes[parameter.name] = ctype
        return f"p.{parameter.name}"

    def buffer(self, name: str) -> str:
        """The C expression of a buffer's pointer."""
        return f"p.{name}"

    def scalar(self, name: str, value: Dim) -> str:
        """A 32-bit integer computed on the host from the dimensions; returns its C expression (a literal if
        constant)."""
        if isinstance(value, int):
            return str(value)
        return self.member(name, value)

    def member(self, name: str, value: Dim) -> str:
        """The same, a struct member even if constant: a loop count that the compiler can't unroll by."""
        return self._add(Integer(name, value), "int")

    def tensor_map(self, view: TensorMap[Dim]) -> str:
        """A TMA descriptor member; returns its C expression."""
        return self._add(view, "TensorMap")

    def symbol(self, sym: Sym) -> str:
        """A dimension that is known at launch."""
        return self._add(Integer(sym.name, var(sym)), "int")

    def struct(self) -> str:
        """The struct's declaration: pointers first, then scalars, then descriptors (64-byte aligned)."""
        lines = [f"  {self._ctypes[p.name]} {p.name};" for p in self.members()]
        return "struct Params {\n" + "\n".join(lines) + "\n};"

    def members(self) -> tuple[Parameter[Dim], ...]:
        """The struct's members in their order."""
        return tuple(sorted(self._members.values(), key=lambda p: _ORDER.index(type(p))))
