"""The chat template of a model: a conversation as the text of a prompt, by Jinja in its sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from arcweld.compiler.errors import UsageError

_FAILURES = (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)  # of templates
MOST_CHARACTERS = 1 << 22  # of a prompt: a template may double its text again and again


class ChatTemplate:
    """A template in Jinja, as model cards and checkpoints have it, with the names of special tokens that it may use."""

    def __init__(self, text: str, special: Mapping[str, str]) -> None:
        self.text, self.special = text, dict(special)

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` marks what the model has said, for training: here it is shown as the rest."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Parser) -> nodes.Node:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=("jinja2.ext.loopcontrols", Generation)
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            return environment.from_string(self.text)
        except (TemplateError, RecursionError) as error:
            raise UsageError(f"the chat template is damaged: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, **more: Any,
    ) -> str:  # fmt: skip
        """The prompt of a conversation.

        Raises UsageError for a template that is damaged, refuses the conversation, reaches for the host or gives more
        than ``MOST_CHARACTERS``.
        """
        from jinja2 import TemplateError

        given = {"documents": None, **self.special, **more, "messages": list(messages), "tools": tools}
        pieces, length = [], 0
        try:
            for piece in self._template.generate(add_generation_prompt=add_generation_prompt, **given):
                pieces.append(piece)
                length += len(piece)
                if length > MOST_CHARACTERS:
                    raise UsageError(f"the chat template gives more than {MOST_CHARACTERS} characters")
        except (TemplateError, *_FAILURES) as error:
            raise UsageError(f"the chat template refuses this conversation: {error}") from error
        return "".join(pieces)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """The filter ``tojson`` as transformers has it: characters stay as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    """What templates call for the date, by ``strftime``."""
    return datetime.datetime.now().strftime(form)


def _raise(message: str) -> None:
    """What templates call to refuse a conversation."""
    from jinja2 import TemplateError

    raise TemplateError(message)
