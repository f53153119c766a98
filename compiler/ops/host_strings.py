"""References of the operators of strings, which the host computes (``host.py`` registers them).

Strings are object arrays of ``str``. Operands may come from a stranger's file and grow from call to call of a loop, so
that every result is bounded before it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType

Arrays = Sequence[np.ndarray | None]
Results = tuple[np.ndarray, ...]

MAX_CHARACTERS = 1 << 26  # of a result
MAX_ELEMENTS = 1 << 24  # of a result that pads rows to the longest one
MAX_LITERAL_CHARACTERS = 1 << 22  # of the constants of one step
FLOAT_DIGITS = 8  # significant ones

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_FLOAT = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,5})?")
_CASES: Mapping[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}
_SPECIAL = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


def is_strings(array: np.ndarray) -> bool:
    """Whether an array holds strings and nothing else."""
    return array.dtype == object and all(isinstance(s, str) for s in array.flat)


def characters(*arrays: np.ndarray) -> int:
    """The characters of all strings."""
    return sum(len(s) for a in arrays for s in a.flat)


def _strings(found: np.ndarray | None) -> np.ndarray:
    """An operand that is strings. Raises TypeError for any other."""
    if found is None or not is_strings(found):
        raise TypeError("an operand should be strings")
    return found


def _mapped(fn: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The function's results for each element, as an object array of the broadcast shape."""
    return np.asarray(np.frompyfunc(fn, len(arrays), 1)(*arrays), object)


def taken(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """The strings at places ``operands[0]`` among the elements of all other operands, in row-major order."""
    places, *tables = operands
    assert places is not None
    every = np.concatenate([_strings(t).reshape(-1) for t in tables])
    return (np.asarray(every[places], object),)


def passed(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX Identity."""
    return (_strings(operands[0]),)


def equal(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX Equal-19."""
    a, b = map(_strings, operands)
    return (_mapped(str.__eq__, a, b).astype(bool),)


def concatenated(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX StringConcat-20: the texts of both operands one after the other, with broadcasting."""
    a, b = map(_strings, operands)
    lengths = _mapped(len, a).astype(np.int64) + _mapped(len, b).astype(np.int64)
    if int(lengths.sum()) > MAX_CHARACTERS:
        raise ValueError(f"the result would have more than {MAX_CHARACTERS} characters")
    return (_mapped(str.__add__, a, b),)


def split(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX StringSplit-20: the parts of each text along a new last axis, padded with empty ones, and their numbers.

    Without a delimiter, texts are split at runs of white space.
    """
    x = _strings(operands[0])
    delimiter, most = attrs.get("delimiter") or None, int(attrs.get("maxsplit", -1))
    parts = [s.split(delimiter, most) for s in x.flat]
    counts = np.array([len(p) for p in parts], np.int64).reshape(x.shape)
    width = int(counts.max(initial=0))
    if width * x.size > MAX_ELEMENTS:
        raise ValueError(f"the result would have {x.size} rows of {width} parts, more than {MAX_ELEMENTS} elements")
    found = np.full((x.size, width), "", object)
    for row, own in zip(found, parts):
        row[: len(own)] = own
    return found.reshape(*x.shape, width), counts


def normalized(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX StringNormalizer-10: the texts that are no stop words, perhaps in another case; one empty text for none."""
    x = _strings(operands[0])
    exact, action = bool(attrs.get("is_case_sensitive", 0)), attrs.get("case_change_action", "NONE")
    stop = {w if exact else w.lower() for w in attrs.get("stopwords", ())}
    kept = [s for s in x.reshape(-1) if (s if exact else s.lower()) not in stop]
    change = _CASES[action]
    found = np.array([change(s) for s in kept] or [""], object)
    if characters(found) > MAX_CHARACTERS:
        raise ValueError(f"the result would have more than {MAX_CHARACTERS} characters")
    return (found.reshape(*x.shape[:-1], -1),)


def encoded(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX LabelEncoder-4: of operands, keys, values and a default value, each element's value by the last equal key.

    NaN equals NaN.
    """
    x, keys, values, default = operands
    assert x is not None
    assert keys is not None
    assert values is not None
    assert default is not None
    table = {_key(k): n for n, k in enumerate(keys.reshape(-1).tolist())}
    places = [table.get(_key(v), -1) for v in x.reshape(-1).tolist()]
    every = np.concatenate([values.reshape(-1), default.reshape(-1)[:1]])
    return (every[np.array(places, np.int64)].reshape(x.shape),)


def _key(value: Any) -> Any:
    return None if value != value else value


def written(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX Cast to strings: integers in decimal, bool as 1 and 0, floats with 8 digits, as ONNX Runtime writes them.

    The specification does not say how many digits.
    """
    x = operands[0]
    assert x is not None
    if x.dtype.kind in "iub":
        return (_mapped(lambda v: str(int(v)), x),)
    return (_mapped(lambda v: _float_text(float(v)), x),)


def _float_text(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (np.inf, -np.inf):
        return "INF" if value > 0 else "-INF"
    return f"{value:.{FLOAT_DIGITS}g}"


def read(operands: Arrays, attrs: Mapping[str, Any]) -> Results:
    """ONNX Cast from strings to the type ``to``: decimal integers; floats plain, with an exponent, inf or nan.

    Raises ValueError for any other text, OverflowError for an integer that the type does not hold.
    """
    x, to = _strings(operands[0]), DType(attrs["to"])
    form = (_INTEGER,) if to.is_int else (_FLOAT, _SPECIAL)
    wrong = next((s for s in x.flat if not any(f.fullmatch(s.strip()) for f in form)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is no {'integer' if to.is_int else 'number'}")
    if to.is_float:
        return (np.array([float(s) for s in x.flat], np.float64).reshape(x.shape).astype(to.numpy),)
    return (np.array([int(s) for s in x.flat], to.numpy).reshape(x.shape),)


REFERENCES: Mapping[str, Callable[[Arrays, Mapping[str, Any]], Results]] = {
    "TakeStrings": taken,
    "PassStrings": passed,
    "EqualStrings": equal,
    "StringConcat": concatenated,
    "StringSplit": split,
    "StringNormalizer": normalized,
    "LabelEncoder": encoded,
    "StringsOfNumbers": written,
    "NumbersOfStrings": read,
}
