"""An answer while it comes: what is read of it and what is not, with the steps of which the forms' readers consist."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
Steps = Generator[bool, None, T]  # pauses until there is more text (False), and where a call has ended (True)

MOST_HEAD = 256  # characters before a call's arguments
MOST_LEVELS = 100  # of JSON that is written anew
_HALF = re.compile(r"[\ud800-\udfff]")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_STRING = re.compile(_QUOTED, re.DOTALL)
_OBJECT = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_QUOTED})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)', re.DOTALL)


class News:
    """What is new of an answer: text, and pieces of calls in order, (number, name where it begins, arguments)."""

    def __init__(self) -> None:
        self.text = ""
        self.calls: list[tuple[int, str | None, str]] = []

    def call(self, number: int, name: str | None, arguments: str) -> None:
        """Adds a piece of a call."""
        if self.calls and self.calls[-1][0] == number:
            _, first, before = self.calls[-1]
            self.calls[-1] = number, first, before + arguments
        else:
            self.calls.append((number, name, arguments))


class _Nesting:
    """Finds where a JSON value ends in a text that comes bit by bit; ``depth`` brackets are open before it."""

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._string, self._escaped = depth, False, False

    def end(self, text: str, start: int = 0) -> int | None:
        """The place behind the value; None if it is not complete. ``text`` before ``start`` is known."""
        for k in range(start, len(text)):
            c = text[k]
            if self._string:
                self._string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return k + 1
        return None


class Answer:
    """An answer while it comes.

    functions  the JSON schemas of arguments by the function's name
    held       text that came and is not read yet
    ended      nothing follows it
    count      calls so far
    news       what was found in what is read
    """

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self.functions, self.held, self.ended, self.count, self.news = functions, "", False, 0, News()
        self._gap = self._tag = ""  # the tag that was found last, and the white space before it
        self._taken: str | None = None  # what was read since then

    # ------------------------------------------------------------------------------------------------------- reading

    def grow(self) -> Steps[bool]:
        """Waits for text; False at the end."""
        before = len(self.held)
        while len(self.held) == before and not self.ended:
            yield False
        return len(self.held) > before

    def take(self, count: int) -> str:
        """Reads characters of what is held."""
        found, self.held = self.held[:count], self.held[count:]
        if self._taken is not None:
            self._taken += found
        return found

    def mark(self, gap: str = "", tag: str = "") -> None:
        """``refuse`` goes back to here."""
        self._gap, self._tag, self._taken = gap, tag, ""

    def refuse(self) -> None:
        """What was read since the tag is no call: the tag is text, and what follows it is to be read anew."""
        assert self._taken is not None
        self.news.text += self._gap + self._tag
        self.held, self._taken = self._taken + self.held, None

    def text_until(self, *tags: str) -> Steps[str]:
        """Reads text up to one of these tags and that tag, which it returns; empty if the answer ends before.

        White space before the tag is left out, and so is white space alone behind the last call.
        """
        while True:
            at, tag = min(((self.held.find(t), t) for t in tags if t in self.held), default=(0, ""))
            if tag:
                text = self.held[:at]
                self.news.text += text.rstrip()
                self.held = self.held[at + len(tag) :]
                self.mark(text[len(text.rstrip()) :], tag)
                return tag
            sizes = range(1, max(map(len, tags), default=0))
            stays = max((n for n in sizes if any(t.startswith(self.held[-n:]) for t in tags)), default=0)
            end = len(self.held[: len(self.held) - min(stays, len(self.held))].rstrip())
            self.news.text += self.held[:end]
            self.held = self.held[end:]
            if not (yield from self.grow()):
                if self.held.strip() or not self.count:
                    self.news.text += self.held
                self.held = ""
                return ""

    def next_of(self, *tags: str) -> Steps[str]:
        """Reads white space and one of these tags, which it returns. Empty, and nothing is read, if another text comes.
        """  # fmt: skip
        while True:
            left = self.held.lstrip()
            for tag in tags:
                if left.startswith(tag):
                    self.take(len(self.held) - len(left) + len(tag))
                    return tag
            if not any(tag.startswith(left) for tag in tags) or not (yield from self.grow()):
                return ""

    def until(self, tag: str, most: int | None = None) -> Steps[str | None]:
        """Reads up to a tag, and that tag; what comes before it. None, and nothing is read, if there is none within
        ``most`` characters.
        """  # fmt: skip
        known = 0
        while (at := self.held.find(tag, known)) < 0 and (most is None or len(self.held) <= most):
            known = max(0, len(self.held) - len(tag) + 1)
            if not (yield from self.grow()):
                return None
        return None if at < 0 or (most is not None and at > most) else self.take(at + len(tag))[:at]

    def skip(self, *tags: str) -> Steps[None]:
        """Reads these tags one after another, as far as they are there; also one in which the answer ends."""
        for tag in tags:
            if not (yield from self.next_of(tag)) and self.ended and tag.startswith(self.held.strip()):
                self.take(len(self.held))

    # --------------------------------------------------------------------------------------------------------- calls

    def begin(self, name: str) -> None:
        """A call of this function begins."""
        self.news.call(self.count, name, "")
        self.count += 1
        self._taken = None

    def tell(self, arguments: str) -> None:
        """Arguments of the call that has begun, as the text of JSON."""
        self.news.call(self.count - 1, None, arguments)

    def head(self, pattern: re.Pattern[str]) -> Steps[bool]:
        """Reads what comes before the brace of the arguments, in which ``pattern`` finds the name, and begins the call.

        False, and nothing is read, if that does not come.
        """
        while (at := self.held.find("{")) < 0:
            if len(self.held) > MOST_HEAD or not (yield from self.grow()):
                return False
        match = pattern.fullmatch(self.held, 0, at) if at <= MOST_HEAD else None
        if match is None or match["name"] not in self.functions:
            return False
        self.take(at)
        self.begin(match["name"])
        return True

    def arguments(self) -> Steps[None]:
        """Reads the JSON object that comes next as the arguments of the call that has begun."""
        nesting = _Nesting()
        while (end := nesting.end(self.held)) is None:
            self.tell(self.take(len(self.held)))
            if not (yield from self.grow()):
                return
        self.tell(self.take(end))

    def object_call(self) -> Steps[bool]:
        """Reads a call as a JSON object with the name and the arguments, in any order.

        False, and nothing is read, if what comes is none or names none of the functions.
        """
        nesting, known = _Nesting(), 0
        while True:
            head = _OBJECT.match(self.held)
            if head is not None and loaded(head[1]) in self.functions:
                self.take(head.end())
                self.begin(loaded(head[1]))
                yield from self.arguments()
                yield from self._rest()
                return True
            end = nesting.end(self.held, known)
            known = len(self.held)
            if end is not None:
                found = _call(loaded(self.held[:end]))
                if found is None or found[0] not in self.functions:
                    return False
                self.take(end)
                self.begin(found[0])
                self.tell(found[1])
                return True
            if self.held.lstrip()[:1] not in ("", "{") or not (yield from self.grow()):
                return False

    def _rest(self) -> Steps[None]:
        """Reads what an object has behind its arguments."""
        nesting = _Nesting(1)
        while (end := nesting.end(self.held)) is None:
            self.take(len(self.held))
            if not (yield from self.grow()):
                return
        self.take(end)


def loaded(text: str) -> Any:
    """The value that a text of JSON is; None for a text that is none or has more than ``MOST_LEVELS``."""
    if _levels(text) > MOST_LEVELS:
        return None
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _levels(text: str) -> int:
    """How deep brackets are within brackets, at most."""
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return 0
    steps = ((c in "[{") - (c in "]}") for c in _STRING.sub("", text))
    return max(itertools.accumulate(steps), default=0)


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text} is no number of JSON")
    return found


def dumped(value: Any) -> str:
    """The JSON of a value; halves of characters, which are no Unicode, are written as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _HALF.search(text) else text


def _call(value: Any) -> tuple[str, str] | None:
    """The name and the arguments of an object, whatever their order; None if it is no call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = value.get("arguments", value.get("parameters", {}))
    given = loaded(given) if isinstance(given, str) else given
    return (value["name"], dumped(given)) if isinstance(given, dict) else None
