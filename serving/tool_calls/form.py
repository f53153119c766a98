"""What every form of calls has: how it is known, read and forced."""

from __future__ import annotations

import abc
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from arcweld.serving.tool_calls.answer import Answer, Steps


@dataclass(frozen=True, slots=True)
class Frame:
    """What comes before, between and behind calls, as symbols of a grammar in Lark's form."""

    before: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


class CallForm(abc.ABC):
    """How a model writes calls.

    name  as vLLM's ``--tool-call-parser`` names it
    tags  texts round calls, which may be tokens of their own
    """

    name: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def is_asked_for_by(self, template: str) -> bool:
        """Whether a chat template asks its model for calls of this form."""

    @abc.abstractmethod
    def read(self, answer: Answer) -> Steps[None]:
        """Reads an answer to its end."""

    @abc.abstractmethod
    def frame(self, special: Mapping[str, int]) -> Frame:
        """What is round calls. ``special``: the numbers of tokens that are no text, by their names."""

    @abc.abstractmethod
    def call(self, number: int, name: str, schema: Mapping[str, Any], special: Mapping[str, int]) -> list[str]:
        """Rules of a grammar, of which ``call{number}`` is a call of this function."""

    def call_id(self) -> str:
        """A new id for a call."""
        return f"call_{uuid.uuid4().hex}"


def symbol(text: str, special: Mapping[str, int]) -> str:
    """A text in a grammar; a token where it is one that is no text."""
    return f"<[{special[text]}]>" if text in special else quoted(text)


def quoted(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def arguments_rule(number: int, schema: Mapping[str, Any]) -> str:
    """The rule ``arguments{number}``: a JSON object of the schema."""
    return f"arguments{number}: %json {json.dumps(schema)}"
