"""Forms of calls whose arguments are a JSON object: Hermes', Llama's, Mistral's and DeepSeek's."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

from arcweld.serving.tool_calls.answer import Answer, Steps
from arcweld.serving.tool_calls.form import CallForm, Frame, arguments_rule, quoted, symbol


def _object(number: int, name: str, schema: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The symbols of a call as an object, and the rule that they need."""
    head = quoted(f'{{"name": {json.dumps(name)}, "{key}": ')
    return f'{head} arguments{number} "}}"', arguments_rule(number, schema)


class Hermes(CallForm):
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` anywhere in a text: Hermes, Qwen 2.5 and 3."""

    name = "hermes"
    tags = "<tool_call>", "</tool_call>"

    def is_asked_for_by(self, template: str) -> bool:
        """By the tag and the key; forms with ``<function=`` are others."""
        return self.tags[0] in template and "<function=" not in template and "arguments" in template

    def read(self, answer: Answer) -> Steps[None]:
        """An object behind the tag is a call; a closing tag may be missing."""
        opening, closing = self.tags
        while (yield from answer.text_until(opening)):
            if not (yield from answer.object_call()):
                answer.refuse()
                continue
            yield True
            yield from answer.skip(closing)

    def frame(self, special: Mapping[str, int]) -> Frame:
        """A line each."""
        return Frame(between=(quoted("\n"),))

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The object between the tags."""
        found, rule = _object(number, name, schema, "arguments")
        opening, closing = (symbol(t, special) for t in self.tags)
        return [f'call{number}: {opening} "\\n" {found} "\\n" {closing}', rule]


class Llama(CallForm):
    """``{"name": …, "parameters": {…}}``, one or several with ``;`` between them, from the beginning of an answer."""

    name = "llama3_json"
    _PYTHON = "<|python_tag|>"  # may come before the calls

    def is_asked_for_by(self, template: str) -> bool:
        """By the name of its environment and the key."""
        return "ipython" in template and "parameters" in template

    def read(self, answer: Answer) -> Steps[None]:
        """Objects from the beginning on; what follows the last call is text."""
        while True:
            answer.mark()
            yield from answer.next_of(";" if answer.count else self._PYTHON)
            if not (yield from answer.object_call()):
                break
            yield True
        answer.refuse()
        yield from answer.text_until()

    def frame(self, special: Mapping[str, int]) -> Frame:
        """Semicolons."""
        return Frame(between=(quoted("; "),))

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The object alone."""
        found, rule = _object(number, name, schema, "parameters")
        return [f"call{number}: {found}", rule]


class Mistral(CallForm):
    """``[TOOL_CALLS]`` with a list of objects, or ``[TOOL_CALLS]name[ARGS]{…}`` for each call.

    Tokenizers with the token ``[ARGS]`` are of models that write the second one (``[CALL_ID]`` and an id may come
    before it).
    """

    name = "mistral"
    tags = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
    _HEAD = re.compile(r"\s*(?P<name>[\w-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?")

    def is_asked_for_by(self, template: str) -> bool:
        """By the tag."""
        return self.tags[0] in template

    def read(self, answer: Answer) -> Steps[None]:
        """Either form behind the tag."""
        while (yield from answer.text_until(self.tags[0])):
            if (yield from answer.next_of("[")):
                yield from self._list(answer)
            elif (yield from answer.head(self._HEAD)):
                yield from answer.arguments()
                yield True
            else:
                answer.refuse()

    def _list(self, answer: Answer) -> Steps[None]:
        """The objects of a list whose bracket is read. An object that is no call is text with all behind it."""
        first = True
        while (yield from answer.object_call()):
            first = False
            yield True
            if not (yield from answer.next_of(",")):
                yield from answer.skip("]")
                return
        if first:
            answer.refuse()

    def frame(self, special: Mapping[str, int]) -> Frame:
        """The tag and a list's brackets, or the tag before each."""
        tag = symbol(self.tags[0], special)
        if self.tags[2] in special:
            return Frame((tag,), (tag,))
        return Frame((tag, quoted("[")), (quoted(", "),), (quoted("]"),))

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The object of a list, or the name and the arguments."""
        _, call_id, args = self.tags
        if args not in special:
            found, rule = _object(number, name, schema, "arguments")
            return [f"call{number}: {found}", rule]
        id_ = f"({symbol(call_id, special)} /[a-zA-Z0-9]{{9}}/)? " if call_id in special else ""
        head = f"{quoted(name)} {id_}{symbol(args, special)}"
        return [f"call{number}: {head} arguments{number}", arguments_rule(number, schema)]

    def call_id(self) -> str:
        """Nine letters and digits, which its chat templates demand."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class DeepSeek31(CallForm):
    """``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`` in tags round all calls: DeepSeek V3.1."""

    name = "deepseek_v31"
    tags = (
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    )  # fmt: skip
    _HEAD = re.compile(r"\s*(?P<name>[\w-]+)\s*<｜tool▁sep｜>\s*")
    _BEHIND: tuple[str, ...] = ()  # the arguments, before the tag

    def is_asked_for_by(self, template: str) -> bool:
        """By a tag, without the fence of V3."""
        return self.tags[1] in template and "```json" not in template

    def read(self, answer: Answer) -> Steps[None]:
        """Calls with or without the tags round all of them."""
        begin, one, _, one_end, end = self.tags
        while tag := (yield from answer.text_until(begin, one)):
            called = tag == one or (yield from answer.next_of(one))
            if not called or not (yield from answer.head(self._HEAD)):
                answer.refuse()
                continue
            yield from answer.arguments()
            yield True
            yield from answer.skip(*self._BEHIND, one_end, end)

    def frame(self, special: Mapping[str, int]) -> Frame:
        """The tags round all calls."""
        return Frame((symbol(self.tags[0], special),), (), (symbol(self.tags[4], special),))

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The name, then the arguments."""
        one, sep, end = (symbol(t, special) for t in self.tags[1:4])
        return [f"call{number}: {one} {quoted(name)} {sep} arguments{number} {end}", arguments_rule(number, schema)]


class DeepSeek3(DeepSeek31):
    """``function<｜tool▁sep｜>name`` and a fenced block of JSON, in the tags of V3.1: DeepSeek V3 and R1."""

    name = "deepseek_v3"
    _HEAD = re.compile(r"\s*function\s*<｜tool▁sep｜>\s*(?P<name>[\w-]+)\s*```json\s*")
    _BEHIND = ("```",)

    def is_asked_for_by(self, template: str) -> bool:
        """By a tag and the fence."""
        return self.tags[1] in template and "```json" in template

    def frame(self, special: Mapping[str, int]) -> Frame:
        """As V3.1, with a line each."""
        found = super().frame(special)
        return Frame(found.before, (quoted("\n"),), found.behind)

    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """The kind, the name, then the arguments between fences."""
        one, sep, end = (symbol(t, special) for t in self.tags[1:4])
        head, tail = quoted(f"{name}\n```json\n"), quoted("\n```")
        rule = f'call{number}: {one} "function" {sep} {head} arguments{number} {tail} {end}'
        return [rule, arguments_rule(number, schema)]
