"""Handlers of operators that take or give strings. The host computes all of them.

Operators that only move elements move the places of strings instead, which are integers, by the handler that they have
for numbers; then the host takes the strings at these places (``MOVES``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import EMPTY, TensorType, Value
from arcweld.compiler.onnx.context import NodeContext, broadcast_shape
from arcweld.compiler.onnx.handlers.learning import default_of, kind_of, table_of, texts_attr
from arcweld.compiler.onnx.handlers.tfidf import of_tokens
from arcweld.compiler.onnx.host import call_on_host, view
from arcweld.compiler.onnx.operands import MAX_HOST_ELEMENTS, Operand, born, on_device, on_host
from arcweld.compiler.onnx.proto import element_type

ML = "ai.onnx.ml"
Handler = Callable[[NodeContext], "Value | Sequence[Value]"]
STRINGS: dict[tuple[str, str], Handler] = {}

# by operator, which operands are moved; None: all
MOVES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "GatherElements", "GatherND", "Slice",
         "Expand", "Tile", "Split", "Compress", "ReverseSequence"), (0,),
    ),
    "Where": (1, 2),
    "Concat": None,
}  # fmt: skip
MISSING = {"RegexFullMatch": "Python's matching of a pattern may take exponential time"}  # with the reason
_SAME_ORDER = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_TABLES = ("keys_strings", "values_strings", "classes_strings", "default_string")
# languages whose rules for upper and lower case are not those of Unicode's tables
_OWN_CASES = ("tr", "az", "lt")


def _string_handler(name: str, domain: str = "") -> Callable[[Handler], Handler]:
    def put(fn: Handler) -> Handler:
        STRINGS[domain, name] = fn
        return fn

    return put


def has_strings(c: NodeContext) -> bool:
    """Whether a node takes or gives strings."""
    if any(isinstance(o, Operand) and o.dtype.is_string for o in c.operands):
        return True
    if c.op == "Cast" and c.has_attr("to"):
        return element_type(c.int_attr("to")).is_string
    return c.op == "LabelEncoder" and (
        any(c.has_attr(k) for k in _TABLES) or any(_is_text(c, k) for k in ("keys_tensor", "values_tensor"))
    )


def _is_text(c: NodeContext, name: str) -> bool:
    found = c.attrs.get(name)
    return isinstance(found, tuple) and len(found) == 2 and found[1] is DType.STR


def _call(c: NodeContext, op: str, inputs: Sequence[Value], type_: TensorType, **attrs: Any) -> Value:
    return call_on_host(c, op, inputs, [type_], (), attrs or EMPTY)[0]


# --------------------------------------------------------------------------------------------------------- movement


def with_places(c: NodeContext) -> NodeContext:
    """The node with the places of strings in the stead of its operands that are strings.

    Places count the elements of all such operands, one operand after the other. Raises ModelError for other operands.
    """
    wanted = MOVES[c.op]
    moved = range(len(c.operands)) if wanted is None else wanted
    strings = [i for i, o in enumerate(c.operands) if o is not None and o.dtype.is_string]
    if strings != list(moved):
        c.broken(f"the operands {strings} are strings")
    operands = list(c.operands)
    start: Dim = 0
    for i in strings:
        operands[i] = _places(c, c.shape(i), start)
        start = start + product(c.shape(i))
    return NodeContext(c.builder, c.op, c.opset, c.name, operands, c.outputs, c.attrs, c.used)


def _places(c: NodeContext, shape: Sequence[Dim], start: Dim) -> Operand:
    """The numbers from ``start`` on, in row-major order."""
    count = product(shape)
    if isinstance(count, int) and isinstance(start, int) and count <= MAX_HOST_ELEMENTS:
        sizes = [int(d) for d in shape if isinstance(d, int)]
        if len(sizes) == len(shape):
            return on_host(np.arange(start, start + count).reshape(sizes), DType.I64)
    return on_device(c.reshape(c.emit("Range", start=start, length=count, dtype=DType.I64), shape))


def at_places(c: NodeContext, found: Sequence[Any]) -> list[Any]:
    """The strings at the places that are the results of ``with_places``; other results as they are."""
    tables = [c.value(i) for i, o in enumerate(c.operands) if o is not None and o.dtype.is_string]

    def one(o: Any) -> Any:
        if not isinstance(o, Operand):
            return o
        if c.op in _SAME_ORDER and tables[0].name not in c.builder.rw.weights:
            return on_device(view(c, tables[0], o.shape))
        places = c.builder.device(o, c.origin, f"{c.hint}.places")
        return on_device(_call(c, "TakeStrings", [places, *tables], TensorType(DType.STR, o.shape)))

    return [one(o) for o in found]


# -------------------------------------------------------------------------------------------------------- operators


@_string_handler("Identity")
def _identity(c: NodeContext) -> Value:
    return _call(c, "PassStrings", [c.value(0)], TensorType(DType.STR, c.shape(0)))


@_string_handler("Cast")
def _cast(c: NodeContext) -> Value:
    to, own = element_type(c.int_attr("to")), c.operand(0).dtype
    if to.is_string and own.is_string:
        return _call(c, "PassStrings", [c.value(0)], TensorType(to, c.shape(0)))
    number = own if to.is_string else to
    if number is DType.BF16 or number.is_storage or (number is DType.BOOL and not to.is_string):
        c.unsupported(f"a Cast of {own.value} to {to.value}")
    if to.is_string:
        return _call(c, "StringsOfNumbers", [c.value(0)], TensorType(to, c.shape(0)))
    return _call(c, "NumbersOfStrings", [c.value(0)], TensorType(to, c.shape(0)), to=to.value)


def _two(c: NodeContext) -> tuple[list[Value], tuple[Dim, ...]]:
    """Both operands and their broadcast shape. Raises ModelError where one is no string."""
    values = [c.value(0), c.value(1)]
    if not all(v.dtype.is_string for v in values):
        c.broken("one operand is strings, the other is not")
    return values, broadcast_shape(c, c.shape(0), c.shape(1))


@_string_handler("Equal")
def _equal(c: NodeContext) -> Value:
    values, shape = _two(c)
    return _call(c, "EqualStrings", values, TensorType(DType.BOOL, shape))


@_string_handler("StringConcat")
def _concat(c: NodeContext) -> Value:
    values, shape = _two(c)
    return _call(c, "StringConcat", values, TensorType(DType.STR, shape))


@_string_handler("StringSplit")
def _split(c: NodeContext) -> Sequence[Value]:
    shape = c.shape(0)
    parts = born(c.builder, f"{c.hint}_parts", 0, None)
    types = [TensorType(DType.STR, (*shape, parts)), TensorType(DType.I64, shape)]
    attrs = {"delimiter": c.str_attr("delimiter", ""), "maxsplit": c.int_attr("maxsplit", -1)}
    return call_on_host(c, "StringSplit", [c.value(0)], types, [parts], attrs)


@_string_handler("StringNormalizer")
def _normalizer(c: NodeContext) -> Sequence[Value]:
    rank, action = c.needs_rank(0, 1, 2), c.str_attr("case_change_action", "NONE")
    if action not in ("NONE", "LOWER", "UPPER"):
        c.broken(f"case_change_action is {action!r}")
    if rank == 2 and c.shape(0)[0] != 1:
        c.broken(f"the input has {c.shape(0)[0]} rows, not one")
    locale = c.str_attr("locale", "")
    if locale.lower()[:2] in _OWN_CASES:
        c.unsupported(f"the locale {locale}, which has rules of its own for upper and lower case")
    words = c.strings_attr("stopwords") or ()
    kept = born(c.builder, f"{c.hint}_kept", 1, None)
    attrs = {
        "case_change_action": action, "is_case_sensitive": c.int_attr("is_case_sensitive", 0), "stopwords": words,
    }  # fmt: skip
    types = [TensorType(DType.STR, (*c.shape(0)[:-1], kept))]
    return call_on_host(c, "StringNormalizer", [c.value(0)], types, [kept], attrs)


@_string_handler("TfIdfVectorizer")
def _tfidf(c: NodeContext) -> Value:
    """The host numbers the tokens by the pool; kernels count the numbers."""
    pool = texts_attr(c, "pool_strings")
    words, numbers = np.unique(pool, return_inverse=True)
    own = np.arange(len(words), dtype=np.int64)
    tokens = encode(c, c.value(0), words, own, np.array([-1], np.int64))
    return of_tokens(c, tokens, numbers.reshape(-1))


# ---------------------------------------------------------------------------------------------------- LabelEncoder


@_string_handler("LabelEncoder", ML)
def _label_encoder(c: NodeContext) -> Value:
    """Keys and values are constants of the call."""
    x = c.operand(0)
    if c.has_attr("classes_strings"):  # version 1: classes are the numbers of their names
        names, numbers = texts_attr(c, "classes_strings"), np.arange(len(texts_attr(c, "classes_strings")))
        keys, values = (names, numbers) if x.dtype.is_string else (numbers, names)
    else:
        keys, values = table_of(c, "keys"), table_of(c, "values")
    if len(keys) != len(values):
        c.broken(f"{len(keys)} keys and {len(values)} values")
    kind = kind_of(keys)
    if kind is not x.dtype:
        c.broken(f"the keys are {kind.value}, the elements {x.dtype.value}")
    return encode(c, c.value(0), keys, values, np.array([default_of(c, kind_of(values))], values.dtype))


def encode(c: NodeContext, x: Value, keys: np.ndarray, values: np.ndarray, default: np.ndarray) -> Value:
    """What a table gives for each element. Raises UnsupportedError for numbers that are not finite."""
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in (keys, values, default)):
        c.unsupported("a table of strings and of numbers that are not finite")
    constants = [_constant(c, a, what) for a, what in ((keys, "keys"), (values, "values"), (default, "default"))]
    return _call(c, "LabelEncoder", [x, *constants], TensorType(kind_of(values), x.shape))


def _constant(c: NodeContext, array: np.ndarray, what: str) -> Value:
    return c.builder.rw.constant(array, kind_of(array), f"{c.hint}.{what}")
