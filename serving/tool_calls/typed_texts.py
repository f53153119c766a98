"""Values of JSON as plain texts, which their schema tells from strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcweld.serving.tool_calls.answer import dumped, loaded

_MOST_REFERENCES = 64
_PYTHON = {"True": True, "False": False, "None": None}  # as templates write them that do not use tojson


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference within ``root`` leads to; an empty one for a reference that leads nowhere."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, Mapping):
            return {}
        target = schema.get("$ref")
        if not isinstance(target, str):
            return schema
        if not target.startswith("#"):
            return {}
        schema = root
        for part in target.lstrip("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, Mapping) else None
    return {}


def kinds(schema: Any, root: Mapping[str, Any], depth: int = 8) -> frozenset[str]:
    """The JSON types that a schema allows, as its type, its values or its alternatives say; empty if they say none."""
    of = resolved(schema, root)
    if "const" in of:
        return frozenset({kind(of["const"])})
    if isinstance(of.get("enum"), list):
        return frozenset(map(kind, of["enum"]))
    given = of.get("type")
    if isinstance(given, str):
        return frozenset({given})
    if isinstance(given, list):
        return frozenset(g for g in given if isinstance(g, str))
    alternatives = of.get("anyOf", of.get("oneOf"))
    if not isinstance(alternatives, list) or not depth:
        return frozenset()
    return frozenset[str]().union(*(kinds(a, root, depth - 1) for a in alternatives))


def kind(value: Any) -> str:
    """The JSON type of a value."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def converted(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """The value that a text stands for: of a type that the schema allows beside strings, else the text itself."""
    allowed = kinds(schema, root)
    plain = text.strip()
    value = _PYTHON.get(plain, loaded(plain))
    if value is None and plain not in ("null", "None"):
        return text
    own = kind(value)
    fits = own in allowed or (own == "integer" and "number" in allowed)
    whole = own == "number" and "integer" in allowed and value == int(value)
    return value if own != "string" and (fits or whole) else text


def written(value: Any) -> str:
    """The text that stands for a value."""
    return value if isinstance(value, str) else dumped(value)
