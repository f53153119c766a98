"""The form of calls whose arguments are texts between tags: Qwen3-Coder's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from arcweld.compiler.errors import UsageError
from arcweld.serving.tool_calls.answer import MOST_HEAD, Answer, Steps, dumped
from arcweld.serving.tool_calls.form import CallForm, Frame, quoted, symbol
from arcweld.serving.tool_calls.typed_texts import converted, kinds, resolved, written

log = logging.getLogger("arcweld.serving")

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_TEXT = f"value[suffix={quoted(_PARAMETER_END)}]: /(?s:.*)/"  # a text and the tag behind it
_KEPT = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "title",
         "description", "x-guidance"}  # fmt: skip
_KEPT_OF_TEXTS = {"type", "$ref", "title", "description", "default", "examples", "anyOf", "oneOf", "nullable"}


class Qwen3Coder(CallForm):
    """``<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>`` on lines: Qwen3-Coder.

    Values are texts as they are, others JSON; the schema of the parameter says which. A value that is not of its
    schema's type is a text.
    """

    name = "qwen3_coder"
    tags = "<tool_call>", "</tool_call>"

    def is_asked_for_by(self, template: str) -> bool:
        """By the tags of functions and parameters."""
        return self.tags[0] in template and _FUNCTION in template and _PARAMETER in template

    def read(self, answer: Answer) -> Steps[None]:
        """Parameters become members of a JSON object, each when it is complete."""
        opening, closing = self.tags
        while (yield from answer.text_until(opening)):
            name = yield from self._name(answer)
            tag = name and (yield from answer.next_of(_PARAMETER, _FUNCTION_END))
            if not name or not tag:
                answer.refuse()
                continue
            answer.begin(name)
            answer.tell("{")
            if (yield from self._parameters(answer, tag, answer.functions[name])):
                answer.tell("}")
            yield True
            yield from answer.skip(closing)

    def _name(self, answer: Answer) -> Steps[str]:
        """Reads the tag of a function; its name, or nothing if it is none of those that there are."""
        if not (yield from answer.next_of(_FUNCTION)):
            return ""
        name = (yield from answer.until(">", MOST_HEAD)) or ""
        return name if name in answer.functions else ""

    def _parameters(self, answer: Answer, tag: str, schema: Mapping[str, Any]) -> Steps[bool]:
        """Reads the parameters behind the first tag. False if the answer ends among them."""
        own, between = resolved(schema, schema).get("properties"), ""
        while tag == _PARAMETER:
            key = yield from answer.until(">")
            value = None if key is None else (yield from answer.until(_PARAMETER_END))
            if key is None or value is None:
                break
            of = own.get(key) if isinstance(own, Mapping) else None
            found = converted(value.removeprefix("\n").removesuffix("\n"), of, schema)
            answer.tell(f"{between}{dumped(key)}: {dumped(found)}")
            between = ", "
            tag = yield from answer.next_of(_PARAMETER, _FUNCTION_END)
        if answer.ended and tag != _FUNCTION_END:
            answer.take(len(answer.held))
            return False
        return True

    # ------------------------------------------------------------------------------------------------------ grammars

    def frame(self, special: Mapping[str, int]) -> Frame:
        """A line each."""
        return Frame(between=(quoted("\n"),))

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The function with its parameters in the schema's order.

        Raises UsageError for schemas that must be kept (``lenient`` of ``x-guidance`` is false) and cannot be: those
        of texts with more than an ``enum``, and conditions on all parameters together.
        """
        lenient = schema.get("x-guidance", {}).get("lenient", True)
        _cannot_keep(name, set(schema) - _KEPT, lenient)
        own, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(own, Mapping) or not isinstance(required, list):
            raise UsageError(f"the parameters of {name!r} are no schema of an object")
        parameters = []
        for key in [*own, *(k for k in required if k not in own)]:
            if not key or ">" in key:
                raise UsageError(f"the parameter {key!r} of {name!r} has no form between tags")
            value = _value(name, own.get(key, {}), schema, lenient)
            one = f"{quoted(f'{_PARAMETER}{key}>' + chr(10))} {value} {quoted(chr(10))}"
            parameters.append(one if key in required else f"({one})?")
        opening, closing = (symbol(t, special) for t in self.tags)
        head, tail = quoted(f"\n{_FUNCTION}{name}>\n"), quoted(f"{_FUNCTION_END}\n")
        return [f"call{number}: {' '.join([opening, head, *parameters, tail, closing])}", _TEXT]


def _value(function: str, schema: Any, root: Mapping[str, Any], lenient: bool) -> str:
    """The symbols of a parameter's value and of the tag behind it."""
    of = resolved(schema, root)
    end = quoted(f"\n{_PARAMETER_END}")
    values = [of["const"]] if "const" in of else of.get("enum")
    if isinstance(values, list) and values:
        texts = [written(v) for v in values]
        if bad := [t for t in texts if _PARAMETER_END in t]:
            raise UsageError(f"the value {bad[0]!r} for {function!r} has no form between tags")
        return f"({' | '.join(map(quoted, texts))}) {end}"
    allowed = kinds(schema, root)
    if allowed and "string" not in allowed:
        around = {k: root[k] for k in ("$defs", "definitions", "x-guidance") if k in root}
        return f"%json {json.dumps({**around, **of})} {end}"
    _cannot_keep(function, (set(of) - _KEPT_OF_TEXTS) | (allowed - {"string", "null"}), lenient)
    return "value"


def _cannot_keep(function: str, what: set[str], lenient: bool) -> None:
    """Says what of a function's schema its texts are not held to. Raises UsageError if they must be."""
    if not what:
        return
    text = f"the parameters of {function!r} between tags cannot be held to {', '.join(sorted(what))}"
    if not lenient:
        raise UsageError(text, hint="leave it out, or do not ask for strict")
    log.warning("%s of a request", text)
