"""A result as it grows: tokens to text, and where it ends."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from arcweld.runtime.llm.grammar import Constraint
from arcweld.runtime.llm.outputs import CompletionOutput
from arcweld.runtime.llm.sampling import Choice
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import Guess
from arcweld.runtime.llm.tokenizer import Detokenizer, Tokenizer


class Result:
    """The output of one sequence.

    end_tokens  the model's own tokens at which a result ends
    length      the most tokens of a sequence
    constraint  the form that the result has; None: any
    """

    def __init__(
        self, sequence: Sequence, index: int, tokenizer: Tokenizer | None, end_tokens: Collection[int], length: int,
        constraint: Constraint | None = None,
    ) -> None:  # fmt: skip
        params = sequence.params
        self.sequence = sequence
        self.output = CompletionOutput(index, logprobs=None if params.logprobs is None else [])
        self._text = Detokenizer(tokenizer, params.skip_special_tokens) if tokenizer is not None else None
        self._ends = frozenset(() if params.ignore_eos else end_tokens)
        self._stops = frozenset(params.stop_token_ids)
        self._length, self.constraint = length, constraint
        self._held = max((len(s) - 1 for s in params.stop_strings), default=0)

    def forbidden(self, length: int) -> tuple[int, ...]:
        """Tokens that may not follow ``length`` tokens, because the result is then shorter than ``min_tokens``."""
        too_short = length < self.sequence.params.min_tokens
        return tuple(self._ends | self._stops) if too_short else ()

    @property
    def allowed(self) -> np.ndarray | None:
        """bool[vocabulary]: the tokens that may come next; None: all. Raises MaskError if the grammar fails."""
        return None if self.constraint is None else self.constraint.allowed(self._ends | self._stops)

    def possible(self, guesses: tuple[Guess, ...]) -> tuple[int, ...]:
        """The tokens of guesses up to the first one that may not come.

        Of guesses that were drawn that one stays: rejection sampling must reject it itself to be exact.
        """
        tokens = tuple(g.token for g in guesses)
        if self.constraint is None:
            return tokens
        count = self.constraint.prefix(tokens)
        return tokens[: count + any(g.tokens is not None for g in guesses)]

    @property
    def settled(self) -> str:
        """The text that nothing takes back: without the beginning of what may become a stop string."""
        text = self.output.text
        if self.output.finished:
            return text
        stops = self.sequence.params.stop_strings
        for count in range(min(self._held, len(text)), 0, -1):
            if any(s.startswith(text[-count:]) for s in stops):
                return text[:-count]
        return text

    def add(self, choice: Choice) -> None:
        """Adds a token, and ends the result if it ends there."""
        s, out = self.sequence, self.output
        s.output.append(choice.token)
        out.token_ids.append(choice.token)
        out.cumulative_logprob += choice.logprob
        if out.logprobs is not None and choice.logprobs is not None:
            out.logprobs.append(choice.logprobs)
        if choice.token in self._ends:
            self.end("stop", None)
        elif choice.token in self._stops:
            self.end("stop", choice.token)
        else:
            before = len(out.text)
            if self._text is not None:
                out.text += self._text.add(choice.token)
            if self._stop_string(before):
                return
            if self.constraint is not None:
                self.constraint.take(choice.token)
                if self.constraint.complete:
                    out.text += "" if self._text is None else self._text.finish()
                    self.end("stop", None)
                    return
            if len(out.token_ids) >= (s.params.max_tokens or self._length) or len(s) >= self._length:
                self.end("length", None)

    def end(self, reason: str, stop: int | str | None) -> None:
        """The result ends for ``reason``; ``stop`` is the token or the string of the user's that ended it."""
        out = self.output
        if reason != "stop" and self._text is not None:
            before = len(out.text)
            out.text += self._text.finish()
            if self._stop_string(before):
                return
        out.finish_reason = self.sequence.finish = reason
        out.stop_reason = self.sequence.stopped_by = stop

    def fail(self, message: str) -> None:
        """The result ends because of an error."""
        self.output.error = message
        self.end("error", None)

    def _stop_string(self, before: int) -> bool:
        """Ends the result if a stop string ends in the text behind ``before``."""
        params, out = self.sequence.params, self.output
        if len(out.token_ids) < params.min_tokens:
            return False
        found = [(out.text.find(s, max(0, before - len(s) + 1)), s) for s in params.stop_strings]
        hits = [(at, s) for at, s in found if at >= 0]
        if not hits:
            return False
        at, stop = min(hits, key=lambda hit: hit[0])
        out.text = out.text[: at + len(stop) if params.include_stop_str_in_output else at]
        out.finish_reason = self.sequence.finish = "stop"
        out.stop_reason = self.sequence.stopped_by = stop
        return True
