"""Calls of functions in a model's text: the form in which it writes them, grammars that force it, and their reading."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcweld.compiler.errors import UsageError

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_QUOTED})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a model writes calls: each as a JSON object with ``name`` and the arguments.

    opening, closing  tags round a call; empty: there are none, and an answer is calls from its beginning or is none
    separator         between calls
    arguments         the key of the arguments
    """

    name: str
    opening: str
    closing: str
    separator: str
    arguments: str


HERMES = CallForm("hermes", "<tool_call>", "</tool_call>", "\n", "arguments")
LLAMA3 = CallForm("llama3_json", "", "", "; ", "parameters")
FORMS = {form.name: form for form in (HERMES, LLAMA3)}
_PYTHON = "<|python_tag|>"  # may come before Llama's calls


def form_named(name: str) -> CallForm:
    """The form with this name. Raises UsageError if there is none."""
    if name not in FORMS:
        raise UsageError(f"there is no form of tool calls {name!r}", hint=f"known are {', '.join(FORMS)}")
    return FORMS[name]


def form_of(template: str) -> CallForm | None:
    """The form that a chat template asks its model for; None if it is no known one."""
    if "tools" not in template:
        return None
    if HERMES.opening in template:
        return HERMES if "<function=" not in template and "arguments" in template else None
    return LLAMA3 if "ipython" in template and "parameters" in template else None


# --------------------------------------------------------------------------------------------------------- grammars


def calls_grammar(
    form: CallForm, functions: Mapping[str, Any], *, single: bool, special: Collection[str] = (),
    answer: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """A grammar in Lark's form of one call at least.

    functions  the JSON schemas of arguments by the function's name
    single     one call alone
    special    names of tokens that are no text: a tag among them is written as that token
    answer     a JSON schema: JSON of it is allowed too, in place of calls
    """

    def tag(text: str) -> str:
        return text if text in special else json.dumps(text)

    lines = [f"start: calls{' | answer' if answer is not None else ''}"]
    lines += [f"answer: %json {json.dumps(answer)}"] if answer is not None else []
    lines += ["calls: call" if single else f"calls: call ({json.dumps(form.separator)} call)*"]
    lines += ["call: " + " | ".join(f"call{k}" for k in range(len(functions)))]
    for k, (name, schema) in enumerate(functions.items()):
        head = json.dumps(f'{{"name": {json.dumps(name)}, "{form.arguments}": ')
        parts = [head, f"arguments{k}", json.dumps("}")]
        if form.opening:
            parts = [tag(form.opening), '"\\n"', *parts, '"\\n"', tag(form.closing)]
        lines += [f"call{k}: {' '.join(parts)}", f"arguments{k}: %json {json.dumps(schema)}"]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(slots=True)
class News:
    """What is new of an answer: text, and pieces of calls in order, (number, name where it begins, arguments)."""

    text: str = ""
    calls: list[tuple[int, str | None, str]] | None = None

    def call(self, number: int, name: str | None, arguments: str) -> None:
        """Adds a piece of a call."""
        self.calls = self.calls or []
        if self.calls and self.calls[-1][0] == number:
            _, first, before = self.calls[-1]
            self.calls[-1] = number, first, before + arguments
        else:
            self.calls.append((number, name, arguments))


class _Value:
    """Finds the end of a JSON object in a text that grows."""

    def __init__(self, start: int) -> None:
        self._at, self._depth, self._string, self._escaped = start, 0, False, False

    def end(self, text: str) -> int | None:
        """The place behind the object; None while it is not complete."""
        while self._at < len(text):
            c = text[self._at]
            self._at += 1
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
                    return self._at
        return None


class CallReader:
    """Tells calls from other text, as it comes.

    An object that names none of ``functions`` is text. White space round calls is left out, and with ``single`` all
    that follows the first call.
    """

    def __init__(self, form: CallForm, functions: Collection[str], single: bool) -> None:
        self._form, self._functions, self._single = form, frozenset(functions), single
        self.count = 0  # calls so far
        self._held = ""
        self._state = self._outside
        self._whole = self._inner = _Value(0)
        self._told = 0  # characters of the held text whose arguments are told

    def add(self, text: str) -> News:
        """What ``text`` adds."""
        self._held += text
        news = News()
        while self._state(news):
            pass
        return news

    def finish(self) -> News:
        """What is left at the end of the answer."""
        news = News()
        if self._state == self._unnamed:
            news.text = self._form.opening + self._held
        elif self._state in (self._outside, self._text) and (self._held.strip() or not self.count):
            news.text = self._held
        self._held, self._state = "", self._over
        return news

    # each state handles the held text, and says whether the next one has something to do

    def _outside(self, news: News) -> bool:
        if self._form.opening:
            return self._text(news)
        begun = self._held.lstrip() if not self.count else self._held.lstrip("; \n\t\r")
        if begun == "" or (_PYTHON.startswith(begun) and not self.count):
            return False
        begun = begun.removeprefix(_PYTHON).lstrip() if not self.count else begun
        if begun == "":
            return False
        if not begun.startswith("{"):
            self._state = self._text
            return True
        return self._begin(begun)

    def _begin(self, begun: str) -> bool:
        self._held, self._state, self._whole = begun, self._unnamed, _Value(0)
        return True

    def _text(self, news: News) -> bool:
        tag = self._form.opening
        at = self._held.find(tag) if tag else -1
        if at >= 0:
            news.text += self._held[:at].rstrip()
            return self._begin(self._held[at + len(tag) :])
        stays = next((k for k in range(min(len(tag), len(self._held)), 0, -1) if tag.startswith(self._held[-k:])), 0)
        end = len(self._held[: len(self._held) - stays].rstrip())
        news.text += self._held[:end]
        self._held = self._held[end:]
        return False

    def _unnamed(self, news: News) -> bool:
        head = _HEAD.match(self._held)
        if head is not None and (name := _loaded(head[1])) in self._functions:
            news.call(self.count, name, "")
            self.count += 1
            self._told, self._inner, self._state = head.end(), _Value(head.end()), self._arguments
            return True
        end = self._whole.end(self._held)
        if end is None and not (self._held.strip() and not self._held.lstrip().startswith("{")):
            return False
        found = None if end is None else _call(_loaded(self._held[:end]))
        if end is None or found is None or found[0] not in self._functions:
            news.text += self._form.opening
            self._state = self._text
            return True
        news.call(self.count, *found)
        self.count += 1
        self._held, self._state = self._held[end:], self._behind
        return True

    def _arguments(self, news: News) -> bool:
        end = self._inner.end(self._held)
        stop = len(self._held) if end is None else end
        if stop > self._told:
            news.call(self.count - 1, None, self._held[self._told : stop])
        self._told = stop
        if end is not None:
            self._state = self._rest
        return end is not None

    def _rest(self, news: News) -> bool:
        """What an object has behind its arguments."""
        end = self._whole.end(self._held)
        if end is None:
            return False
        self._held, self._state = self._held[end:], self._behind
        return True

    def _behind(self, news: News) -> bool:
        """The tag behind a call."""
        if self._single:
            self._state = self._over
            return True
        left = self._held.lstrip()
        if self._form.closing.startswith(left) and left != self._form.closing:
            return False
        self._held, self._state = left.removeprefix(self._form.closing), self._outside
        return True

    def _over(self, news: News) -> bool:
        self._held = ""
        return False


def _loaded(text: str) -> Any:
    """The value that a text of JSON is; None for a text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> tuple[str, str] | None:
    """The name and the arguments of an object, whatever their order; None if it is no call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = value.get("arguments", value.get("parameters", {}))
    given = _loaded(given) if isinstance(given, str) else given
    return (value["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None


def read(reader: CallReader, text: str) -> tuple[str, Sequence[tuple[str, str]]]:
    """A complete answer: its text, and the names and arguments of its calls."""
    calls: list[tuple[str, str]] = []
    shown = ""
    for news in (reader.add(text), reader.finish()):
        shown += news.text
        for number, name, arguments in news.calls or ():
            if number == len(calls):
                assert name is not None
                calls.append((name, ""))
            calls[number] = calls[number][0], calls[number][1] + arguments
    return shown, calls
