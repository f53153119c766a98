"""The C++ side of each combiner for the reducing templates: functor, identity, type of the accumulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel
from arcweld.compiler.dtypes import DType

COMBINERS = {"sum": "OpSum", "prod": "OpProd", "max": "OpMax", "min": "OpMin"}
ARG_COMBINERS = ("argmax", "argmin")

_LIMITS: dict[DType, tuple[str, str]] = {
    DType.I8: ("-128", "127"),
    DType.I16: ("-32768", "32767"),
    DType.I32: ("(-2147483647 - 1)", "2147483647"),
    DType.I64: ("(-9223372036854775807ll - 1)", "9223372036854775807ll"),
    DType.U8: ("0", "255"),
    DType.U16: ("0", "65535"),
    DType.U32: ("0", "4294967295u"),
    DType.U64: ("0", "18446744073709551615ull"),
    DType.BOOL: ("false", "true"),
}


def identity(combine: str, dtype: DType) -> str:
    """C text of a combiner's neutral element, which is also the result of an empty reduction (as ONNX specifies)."""
    if combine in ("sum", "prod"):
        return f"{dtype.cuda}({int(combine == 'prod')})"
    lowest = combine in ("max", "argmax")
    if dtype.is_float:
        return f"{'-' if lowest else ''}({dtype.cuda})INFINITY"
    return f"{dtype.cuda}({_LIMITS[dtype][0 if lowest else 1]})"


@dataclass(frozen=True, slots=True)
class Combiner:
    """The C++ side of a reduction.

    acc       the accumulator's type          op      the functor that combines two accumulators
    identity  what it starts from             term    C text of the accumulator for element {0} at index {1}
    results   what the store hook is given for accumulator {0}, in the order of ``variables``
    size      bytes of one accumulator
    """

    acc: str
    op: str
    identity: str
    term: str
    results: tuple[str, ...]
    variables: Mapping[str, tuple[str, DType, bool]]
    size: int

    @property
    def is_arg(self) -> bool:
        """True for argmax and argmin, whose accumulator also holds an index."""
        return "value" in self.variables


def combiner(kernel: Kernel, laned: bool) -> Combiner:
    """The combiner of a ``reduce`` or ``window`` kernel. ``laned``: the store hook takes a vector of results.

    The variables of an arg reduction are ``acc``, the i64 index, and ``value``, the element at it.
    """
    combine, dtype = kernel.attrs["combine"], kernel.loads["x"].dtype
    t = dtype.cuda
    if combine in COMBINERS:
        variables = {"acc": ("acc", dtype, laned)}
        return Combiner(t, COMBINERS[combine], identity(combine, dtype), "{0}", ("{0}",), variables, dtype.size)
    largest = str(combine == "argmax").lower()
    last = str(bool(kernel.attrs.get("select_last", False))).lower()
    variables = {"acc": ("acc", DType.I64, laned), "value": ("value", dtype, laned)}
    acc = f"Indexed<{t}>"
    return Combiner(
        acc, f"OpArg<{largest}, {last}>", f"no_candidate<{t}, {last}>({identity(combine, dtype)})",
        acc + "{{{0}, (i32)({1})}}", ("{0}.index", "{0}.value"), variables, 16 if dtype.size == 8 else 8,
    )  # fmt: skip


def unsupported_combiner(kernel: Kernel) -> str | None:
    """The reason why a kernel's combiner can't be rendered, or None."""
    combine = kernel.attrs["combine"]
    return None if combine in COMBINERS or combine in ARG_COMBINERS else f"no combiner is called {combine}"
