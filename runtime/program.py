"""The program of an engine: what is launched, in which order, over which buffers. Plain data, checked when
decoded.

Everything that depends on a symbolic dimension is the text of an integer expression
(``arcweld.compiler.dims``), evaluated once for each set of input shapes.
"""

from __future__ import annotations

import msgspec

from arcweld.compiler.parameters import Parameter

SCHEMA = 2


class Symbol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A symbolic dimension and the range the engine was built for; ``hi`` None means unbounded."""

    name: str
    lo: int = 1
    hi: int | None = None
    multiple_of: int = 1


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named array: ``shape`` holds one expression text for each dimension, row-major and dense."""

    name: str
    dtype: str
    shape: tuple[str, ...]


class WeightEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A constant of the engine. ``name`` is its key in weights.safetensors.

    ``source`` is the model's own name for the array and ``transform`` the recorded steps by which it was
    made from one or more of the model's arrays (``arcweld.compiler.records``), as (name, arguments) pairs;
    an empty tuple means stored as it is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str = ""
    transform: tuple[tuple[str, tuple[int | str, ...]], ...] = ()


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One implementation of a launch. ``arch`` is the least architecture that runs it (``sm_80``), or an
    exact one that ends in ``a`` (``sm_90a``). ``kernel`` names a file in kernels/ and ``entry`` the extern
    "C" symbol in it. ``params`` are the members of the kernel's ``Params`` struct in the order of declaration.
    """

    arch: str
    kernel: str
    entry: str
    grid: tuple[str, str, str]
    block: tuple[int, int, int]
    shared_bytes: int
    params: tuple[Parameter[str], ...]
    cluster: int = 1
    pdl: bool = True


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel launch. ``reads`` and ``writes`` name tensors; ``origin`` the model's nodes that it
    computes.

    ``zero`` names written tensors that must hold zeros before the launch (split reductions, scatter-add).
    """

    name: str
    template: str
    variants: tuple[Variant, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    origin: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    flops: str = "0"


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that shares the bytes of another from ``offset`` bytes on (a reshape, or a graph output that
    is an input).
    """

    name: str
    of: str
    offset: str = "0"


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that the executor needs. ``temps`` live in the arena, from the first launch that writes to the
    last that reads. ``fixed`` names the model's weights that kernels hold as constants.
    """

    schema: int
    name: str
    symbols: tuple[Symbol, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[WeightEntry, ...]
    temps: tuple[Tensor, ...]
    aliases: tuple[Alias, ...]
    launches: tuple[Launch, ...]
    fixed: tuple[str, ...] = ()
