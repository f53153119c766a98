"""Text to tokens and back: ``tokenizers`` does the work."""

from __future__ import annotations

import json
from collections.abc import Sequence

from arcweld.compiler.errors import EnvironmentError_, UsageError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # stands for the bytes of a character of which some are missing


class Tokenizer:
    """A tokenizer; ``definition`` is the text of a tokenizer.json. Raises UsageError for a damaged one."""

    def __init__(self, definition: str) -> None:
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
        self.definition = definition

    @property
    def size(self) -> int:
        """One more than the greatest token."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def is_plain(self) -> bool:
        """Whether a text is the names of its tokens, joined as they are."""
        decoder = json.loads(self.definition).get("decoder")
        return decoder is None or decoder["type"] == "Fuse"

    @property
    def special(self) -> frozenset[int]:
        """Tokens that are no text, as those that begin and end a turn."""
        return frozenset(k for k, t in self._tokenizer.get_added_tokens_decoder().items() if t.special)

    def with_end(self) -> tuple[str, int]:
        """The definition with one special token more, and that token. Raises ValueError where it has no place."""
        import tokenizers

        more = tokenizers.Tokenizer.from_str(self.definition)
        name = "<|arcweld: the end|>"
        more.add_special_tokens([name])
        end = more.token_to_id(name)
        if end is None or self._tokenizer.id_to_token(end) is not None:
            raise ValueError("its tokens have gaps")
        return more.to_str(), end

    def name(self, token: int) -> str:
        """A token's name in the vocabulary; empty for one that there is not."""
        return self._tokenizer.id_to_token(token) or ""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def token(self, token: int) -> str:
        """A token as text: special ones by their names, bytes that are no character as the replacement character."""
        return self.decode([token], skip_special_tokens=False)


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
