"""Tells calls from other text, as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.serving.tool_calls.answer import Answer, News
from arcweld.serving.tool_calls.form import CallForm


class CallReader:
    """Reads one answer.

    What names none of ``functions`` (the JSON schemas of their arguments, by name) is text. White space round calls is
    left out, and with ``single`` all that follows the first call.
    """

    def __init__(self, form: CallForm, functions: Mapping[str, Any], single: bool) -> None:
        self.form, self._single = form, single
        self._answer = Answer(functions)
        self._steps = form.read(self._answer)

    @property
    def count(self) -> int:
        """Calls so far."""
        return self._answer.count

    def add(self, text: str) -> News:
        """What ``text`` adds."""
        self._answer.held += text
        self._answer.news = News()
        while next(self._steps, False):  # a call has ended
            if self._single:
                self._steps.close()
        return self._answer.news

    def finish(self) -> News:
        """What is left at the end of the answer."""
        self._answer.ended = True
        return self.add("")


def read(reader: CallReader, text: str) -> tuple[str, Sequence[tuple[str, str]]]:
    """A complete answer: its text, and the names and arguments of its calls."""
    calls: list[tuple[str, str]] = []
    shown = ""
    for news in (reader.add(text), reader.finish()):
        shown += news.text
        for number, name, arguments in news.calls:
            if number == len(calls):
                assert name is not None
                calls.append((name, ""))
            calls[number] = calls[number][0], calls[number][1] + arguments
    return shown, calls
