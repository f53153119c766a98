"""Limits of grammars, which are checked before the library sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.params import StructuredOutputsParams

MOST_CHARACTERS = 1 << 17  # of a schema, an expression, a grammar, or all choices together
MOST_RULES = 500  # rules of a grammar, and references in a schema
MOST_REPEATS = 2000  # characters of a regular expression with its repeats written out
MOST_DEPTH = 64  # of a schema

_COUNT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_TILDE = re.compile(r"~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_RULE = re.compile(r"^\s*[!?]?[\w.\-]+(?:\[[^\]\n]*\])?(?:\.\d+)?\s*(?:::=|:)", re.MULTILINE)


def check_size(wanted: StructuredOutputsParams) -> None:
    """Raises UsageError for structured outputs that are beyond the limits, and for a schema that is no JSON."""
    if wanted.json_object:
        return
    kind = wanted.kind
    if wanted.regex is not None:
        _most(kind, "characters", len(wanted.regex), MOST_CHARACTERS)
        _most(kind, "characters with repeats written out", written_out(wanted.regex), MOST_REPEATS)
    elif wanted.choice is not None:
        _most(kind, "characters", sum(map(len, wanted.choice)), MOST_CHARACTERS)
    elif wanted.grammar is not None:
        _most(kind, "characters", len(wanted.grammar), MOST_CHARACTERS)
        _most(kind, "rules", len(_RULE.findall(wanted.grammar)), MOST_RULES)
        _most(kind, "repeats within repeats", _all_repeats(wanted.grammar), MOST_REPEATS)
        for embedded in _embedded(wanted.grammar):
            _check_schema(kind, embedded)
    else:
        _check_schema(kind, _parsed(wanted.json))
    _check_unicode(wanted)


def _check_unicode(wanted: StructuredOutputsParams) -> None:
    texts = [wanted.regex, wanted.grammar, *(wanted.choice or ()), wanted.json]
    try:
        for text in texts:
            (text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {wanted.kind} is no Unicode: {error.reason}") from None


def _parsed(given: Any) -> Any:
    try:
        # a schema that is given as an object must be one that JSON can hold
        return json.loads(given if isinstance(given, str) else json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {error}") from error


def _check_schema(kind: str, schema: Any) -> None:
    references = characters = 0
    todo: list[tuple[Any, int]] = [(schema, 1)]
    while todo:
        at, depth = todo.pop()
        _most(kind, "levels", depth, MOST_DEPTH)
        if isinstance(at, dict):
            references += "$ref" in at
            patterns = [at.get("pattern"), *(at["patternProperties"] if _is_object(at, "patternProperties") else ())]
            for pattern in (p for p in patterns if isinstance(p, str)):
                _most(f"pattern of the {kind}", "characters with repeats written out", written_out(pattern),
                      MOST_REPEATS)  # fmt: skip
            characters += sum(map(len, at))
            todo += ((child, depth + 1) for child in at.values())
        elif isinstance(at, list):
            todo += ((child, depth + 1) for child in at)
        else:
            characters += len(str(at))
    _most(kind, "references", references, MOST_RULES)
    _most(kind, "characters", characters, MOST_CHARACTERS)


def _is_object(at: dict[str, Any], name: str) -> bool:
    return isinstance(at.get(name), dict)


def _embedded(grammar: str) -> Iterator[Any]:
    """The JSON schemas in a grammar of Lark's form, ``%json {…}``."""
    for match in re.finditer(r"%json\s*(?=[\[{])", grammar):
        try:
            yield json.JSONDecoder().raw_decode(grammar, match.end())[0]
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a JSON schema in the grammar is no JSON: {error}") from error


def written_out(expression: str) -> int:
    """How many characters a regular expression has at most if its counted repeats are written out.

    A class counts as one. What is no expression has a size too: that it is wrong is found when it is compiled.
    """
    sizes, last, k = [0], 0, 0  # of open groups; of the last thing, which a repeat is about
    while k < len(expression):
        c = expression[k]
        count = _COUNT.match(expression, k) if c == "{" else None
        if count is not None:
            sizes[-1] += last * (_times(count) - 1)
            last *= _times(count)
            k = count.end()
            continue
        if c == "(":
            sizes.append(0)
        elif c == ")" and len(sizes) > 1:
            last = max(1, sizes.pop())
            sizes[-1] += last
        else:
            k = _end_of_class(expression, k) if c == "[" else k + (c == "\\")
            if c not in "*+?|":
                last = 1
                sizes[-1] += 1
        k += 1
    return sum(sizes)


def _times(count: re.Match[str]) -> int:
    least, comma, most = count.groups()
    return max(1, int(most or least or 1)) + (1 if comma and not most else 0)


def _end_of_class(expression: str, at: int) -> int:
    """The place of the bracket that closes the class which opens at ``at``."""
    k, depth = at, 0
    while k < len(expression):
        c = expression[k]
        depth += (c == "[") - (c == "]" and k > at + 1)
        if depth == 0:
            return k
        k += 2 if c == "\\" else 1
    return len(expression)


def _all_repeats(grammar: str) -> int:
    """The product of all counted repeats of a grammar, whose rules may be within one another in any way."""
    outside = re.sub(r"%json\s*\{.*", "", grammar)
    found = 1
    for match in _COUNT.finditer(outside):
        found *= _times(match)
    for match in _TILDE.finditer(outside):
        found *= max(1, int(match[2] or match[1]))
    return found


def _most(kind: str, what: str, count: int, most: int) -> None:
    if count > most:
        raise UsageError(f"the {kind} has {count} {what}, more than {most}")
