"""``--layerPrecisions``: the precision of single nodes, as trtexec writes it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from arcweld.cli.shapes import split_pairs
from arcweld.compiler.errors import UnsupportedError, UsageError
from arcweld.compiler.ir import Graph

_HALF = ("fp16", "bf16")
_ABSENT = ("int8", "fp8", "int4", "fp4")
CONSTRAINTS = ("none", "prefer", "obey")


def layer_precisions(text: str, precision: str, graph: Graph) -> tuple[str, frozenset[str]]:
    """The precision of the build, and the names of the nodes that stay in f32.

    ``text`` is ``name:fp32,part*:fp16``, where ``*`` stands for any text and later entries win; ``precision`` is what
    the command line asks for the model as a whole. Nodes without an entry compute in ``precision``. Raises UsageError
    for an entry that names no node, for an unknown type, and for fp16 beside bf16; UnsupportedError for types of 8 bits
    and less.
    """
    names = list(dict.fromkeys(o for n in graph.nodes for o in n.origin))
    asked: dict[str, str] = {}
    for pattern, kind in split_pairs(text, "layerPrecisions"):
        if kind in _ABSENT:
            raise UnsupportedError(f"layerPrecisions: {kind} is not available yet", hint="use fp16 or bf16")
        if kind not in ("fp32", *_HALF):
            raise UsageError(f"layerPrecisions: {kind!r} is no precision", hint="write conv1:fp32, or *:fp16")
        asked.update(dict.fromkeys(_matching(pattern, names), kind))
    half = sorted({k for k in (precision, *asked.values()) if k in _HALF})
    if len(half) > 1:
        raise UsageError("layerPrecisions: fp16 and bf16 exclude each other in one engine")
    if not half:
        return "fp32", frozenset()
    return half[0], frozenset(n for n in names if asked.get(n, precision) == "fp32")


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that fit the pattern. Raises UsageError if none does."""
    shape = re.compile(".*".join(map(re.escape, pattern.strip("\"'").split("*"))), re.S)
    found = [n for n in names if shape.fullmatch(n)]
    if not found:
        near = difflib.get_close_matches(pattern, list(names), 3, 0.3)
        hint = f"close: {', '.join(near)}" if near else "`onnx-to-engine explain` prints the names"
        raise UsageError(f"layerPrecisions: no node is called {pattern!r}", hint=hint)
    return found
