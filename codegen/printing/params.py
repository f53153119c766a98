"""The ``Params`` struct of a kernel: pointers, sizes and descriptors, collected as the kernel's text is printed."""

from __future__ import annotations

from arcweld.codegen.kernel import Buffer, Kernel
from arcweld.compiler.device_function import DeviceFunction
from arcweld.compiler.dims import Dim, Sym, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.parameters import Integer, Parameter, Pointer, TensorMap

STORAGE = "storage.cuh"  # the types that values are only stored in
_ORDER = (Pointer, Integer, TensorMap)  # in the struct


class Params:
    """Collects the members of a kernel's ``Params`` struct as printing asks for them.

    Every method that adds a member returns its C expression (``p.name``), and raises ValueError if another parameter
    has that name.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._members: dict[str, Parameter[Dim]] = {}
        self._ctypes: dict[str, str] = {}
        self._workspace: list[Buffer] = []
        self._counters: list[Buffer] = []
        self._functions: dict[str, DeviceFunction] = {}
        self._headers: set[str] = {STORAGE} if any(b.dtype.is_storage for b in kernel.buffers) else set()
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

    def needs(self, header: str) -> None:
        """Notes a header of ``codegen/include`` that the kernel's text needs beside those that its template has."""
        self._headers.add(header)

    def calls(self, function: DeviceFunction) -> None:
        """Notes a user's function that the hooks call. Raises UsageError for two of one name."""
        known = self._functions.setdefault(function.name, function)
        if known != function:
            raise UsageError(
                f"two operators of one kernel define a device function {function.name}", hint="rename one of them"
            )

    def buffer(self, name: str) -> str:
        """The C expression of a buffer's pointer; an array in shared memory has its own name."""
        return name if any(b.name == name for b in self.kernel.scratch) else f"p.{name}"

    def scalar(self, name: str, value: Dim) -> str:
        """An i32 that the host computes from the dimensions at launch; a constant is no member but a literal."""
        if isinstance(value, int):
            return str(value)
        return self.member(name, value)

    def member(self, name: str, value: Dim) -> str:
        """``scalar``, but a member even if it is constant: a loop count that the compiler must not unroll."""
        return self._add(Integer(name, value), "int")

    def workspace(self, name: str, dtype: DType, *shape: Dim) -> str:
        """An array of the kernel's own, which holds nothing before the launch and nothing after it."""
        self._workspace.append(Buffer(name, dtype, shape, written=True))
        return self._add(Pointer(name, name), f"{dtype.cuda}*")

    def counters(self, name: str, *shape: Dim) -> str:
        """An array of u32 of the kernel's own: zeros before each launch, which has to leave zeros."""
        self._counters.append(Buffer(name, DType.U32, shape, written=True))
        return self._add(Pointer(name, name), "u32*")

    def own(self) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
        """The arrays that ``workspace`` and ``counters`` have added."""
        return tuple(self._workspace), tuple(self._counters)

    def tensor_map(self, view: TensorMap[Dim]) -> str:
        """A TMA descriptor."""
        return self._add(view, "TensorMap")

    def symbol(self, sym: Sym) -> str:
        """A symbolic dimension, as an i32."""
        return self._add(Integer(sym.name, var(sym)), "int")

    def struct(self) -> str:
        """The C declaration of the struct, below the headers and the users' functions that it or the hooks need."""
        lines = [f"  {self._ctypes[p.name]} {p.name};" for p in self.members()]
        included = "".join(f'#include "{h}"\n' for h in sorted(self._headers))
        functions = "".join(f"{f.source.strip()}\n\n" for _, f in sorted(self._functions.items()))
        return (included and f"{included}\n") + functions + "struct Params {\n" + "\n".join(lines) + "\n};"

    def members(self) -> tuple[Parameter[Dim], ...]:
        """The members in the struct's order: pointers, then integers, then TMA descriptors (64-byte aligned)."""
        return tuple(sorted(self._members.values(), key=lambda p: _ORDER.index(type(p))))
