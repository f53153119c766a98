"""Text to tokens and back: ``tokenizers`` does the work, and Jinja the chat template, in its sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from arcweld.compiler.errors import EnvironmentError_, UsageError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # stands for the bytes of a character of which some are missing


class Tokenizer:
    """A tokenizer as the ``tokenizers`` library stores it, with the chat template of its model.

    definition  the text of a tokenizer.json
    template    the chat template; None: the model has none
    special     names of special tokens for the template: bos_token, eos_token
    """

    def __init__(self, definition: str, template: str | None = None, special: Mapping[str, str] | None = None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise EnvironmentError_(
                "text needs the package tokenizers", hint='pip install "arcweld[llm]", or give and take token ids'
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exceptions
            raise UsageError(f"the tokenizer is damaged: {error}") from error
        self.definition, self.template, self.special = definition, template, dict(special or {})

    @property
    def size(self) -> int:
        """One more than the greatest token."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def token(self, token: int) -> str:
        """A token as text: special ones by their names, bytes that are no character as the replacement character."""
        return self.decode([token], skip_special_tokens=False)

    @cached_property
    def _chat(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.template is None:
            raise UsageError("the model has no chat template", hint="use generate with a prompt of its form")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=_EXTENSIONS)
        environment.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, **k)
        environment.globals["raise_exception"] = _raise
        try:
            return environment.from_string(self.template)
        except TemplateError as error:
            raise UsageError(f"the chat template is damaged: {error}") from error

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, **more: Any,
    ) -> str:  # fmt: skip
        """The prompt of a conversation. Raises UsageError for a template that fails, or that reaches for the host."""
        from jinja2 import TemplateError

        try:
            given = {**self.special, **more, "messages": list(messages), "tools": tools}
            text: str = self._chat.render(add_generation_prompt=add_generation_prompt, **given)
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError, OverflowError, MemoryError) as error:
            raise UsageError(f"the chat template refuses this conversation: {error}") from error
        return text


_EXTENSIONS = ("jinja2.ext.loopcontrols",)


def _raise(message: str) -> None:
    """What templates call to refuse a conversation."""
    from jinja2 import TemplateError

    raise TemplateError(message)


class Detokenizer:
    """The text of tokens that come one by one.

    Characters that take several tokens appear when they are complete; ``finish`` shows what was left of them.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._tokens: list[int] = []
        self._start = 0  # where the tokens begin whose text depends on what follows
        self._shown = 0  # tokens before this one are shown

    def add(self, token: int) -> str:
        """What text the token adds."""
        self._tokens.append(token)
        return self._new(complete=False)

    def finish(self) -> str:
        """The rest of the text."""
        return self._new(complete=True)

    def _new(self, complete: bool) -> str:
        # the text of a token may depend on the one before it (a space, joined bytes), so both are decoded together
        before = self._tokenizer.decode(self._tokens[self._start : self._shown], self._skip)
        whole = self._tokenizer.decode(self._tokens[self._start :], self._skip)
        if not complete and whole.endswith(_REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return whole[len(before) :]
