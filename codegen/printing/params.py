"""The ``Params`` struct of a kernel: pointers, sizes and descriptors, collected as the kernel's text is printed."""

from __future__ import annotations

from arcweld.codegen.kernel import Kernel, ParamField
from arcweld.compiler.dims import Dim, Sym, var


class Params:
    """Collects the members of a kernel's ``Params`` struct as printing asks for them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._fields: dict[str, ParamField] = {}
        self._ctypes: dict[str, str] = {}
        for b in kernel.buffers:
            const = "" if b.written else "const "
            self._add(ParamField("buffer", b.name, b.name), f"{const}{b.dtype.cuda}*")

    def _add(self, field: ParamField, ctype: str) -> str:
        known = self._fields.get(field.name)
        if known is not None and known != field:
            raise ValueError(f"two different parameters are called {field.name}")
        self._fields[field.name] = field
        self._ctypes[field.name] = ctype
        return f"p.{field.name}"

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
        return self._add(ParamField("i32", name, value), "int")

    def tensor_map(self, field: ParamField) -> str:
        """A TMA descriptor member; returns its C expression."""
        return self._add(field, "TensorMap")

    def symbol(self, sym: Sym) -> str:
        """A dimension that is known at launch."""
        return self._add(ParamField("i32", sym.name, var(sym)), "int")

    def struct(self) -> str:
        """The struct's declaration: pointers first, then scalars, then descriptors (64-byte aligned)."""
        lines = [f"  {self._ctypes[f.name]} {f.name};" for f in self.fields()]
        return "struct Params {\n" + "\n".join(lines) + "\n};"

    def fields(self) -> tuple[ParamField, ...]:
        order = {"buffer": 0, "i64": 1, "i32": 2, "f32": 2, "tensor_map": 3}
        return tuple(sorted(self._fields.values(), key=lambda f: order[f.kind]))
