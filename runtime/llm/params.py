"""``SamplingParams``: how tokens are chosen, with the names that vLLM has for these settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from arcweld.compiler.errors import UsageError


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form that results have: exactly one of the first five. Raises UsageError for none of them or several.

    json                    a JSON schema, as a text or a mapping
    regex                   a regular expression that matches a whole result, in the syntax of Rust's crate ``regex``
    choice                  the texts that a result may be
    grammar                 a grammar without context, in Lark's form or GBNF
    json_object             any JSON object
    disable_any_whitespace  of JSON: no white space between its parts
    lenient                 of ``json``: keywords that cannot be kept are logged and left out, not refused
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    lenient: bool = False

    def __post_init__(self) -> None:
        given = (self.json, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(g is not None for g in given) != 1:
            raise UsageError("structured outputs are one of json, regex, choice, grammar and json_object")
        if self.choice is not None and (isinstance(self.choice, str) or not self.choice or not all(self.choice)):
            raise UsageError("choice is a list of texts, none of them empty")

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        if self.regex is not None:
            return "regular expression"
        return "choice" if self.choice is not None else "grammar" if self.grammar is not None else "JSON schema"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of a request are chosen. Raises UsageError for a value out of its range.

    n                    how many results a prompt has
    best_of              how many are computed, of which the ``n`` most likely ones are returned; None: ``n``
    temperature          logits are divided by it; 0: the most likely token (greedy)
    top_k                only the so many most likely tokens; 0 or -1: all
    top_p                only the most likely tokens whose probabilities reach this sum (Holtzman et al., 2020)
    min_p                only tokens at least this likely, relative to the most likely one
    repetition_penalty   by it logits of tokens seen before are divided, or multiplied if negative (Keskar et al., 2019)
    presence_penalty     subtracted from the logits of tokens that the result has
    frequency_penalty    the same, times how often the result has them
    logit_bias           added to logits, by token
    seed                 of the request's random numbers, 64 bits; None: drawn for each request
    stop                 strings at which a result ends; they are not part of it
    include_stop_str_in_output  but with this they are
    stop_token_ids       tokens at which a result ends, beside the model's own
    ignore_eos           the model's own end tokens end nothing
    max_tokens           the most tokens of a result; None: as many as the model's length allows
    min_tokens           before so many tokens nothing ends by a token
    logprobs             how many of the most likely tokens are reported with each token; None: none
    prompt_logprobs      the same for the tokens of the prompt
    skip_special_tokens  special tokens are left out of the text
    pooling              no token is chosen: the result is the prompt's hidden states, the ``last`` or their ``mean``
    structured_outputs   the form that results have
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    pooling: Literal["last", "mean"] | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        within: tuple[tuple[str, float | None, float, float], ...] = (
            ("n", self.n, 1, math.inf), ("best_of", self.best_of, self.n, math.inf),
            ("temperature", self.temperature, 0, math.inf), ("top_k", self.top_k, -1, math.inf),
            ("top_p", self.top_p, 5e-324, 1), ("min_p", self.min_p, 0, 1),
            ("repetition_penalty", self.repetition_penalty, 5e-324, math.inf),
            ("presence_penalty", self.presence_penalty, -2, 2), ("frequency_penalty", self.frequency_penalty, -2, 2),
            ("max_tokens", self.max_tokens, 1, math.inf), ("min_tokens", self.min_tokens, 0, math.inf),
            ("logprobs", self.logprobs, 0, math.inf), ("prompt_logprobs", self.prompt_logprobs, 0, math.inf),
            ("seed", self.seed, 0, 2**64 - 1),
        )  # fmt: skip
        for name, value, least, most in within:
            if value is not None and not least <= value <= most:  # NaN is in no range
                limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise UsageError(f"{name} is {value!r}, not {limits}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}")
        if self.best_of is not None and self.best_of > 1 and self.temperature == 0:
            raise UsageError("best_of with temperature 0: all results would be the same", hint="leave out best_of")
        if self.pooling not in (None, "last", "mean"):
            raise UsageError(f"pooling is {self.pooling!r}, not last or mean")
        if any(not s for s in self.stop_strings):
            raise UsageError("an empty stop string ends every result at once", hint="leave it out")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings at which a result ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_prompt(self) -> bool:
        """Whether results of all tokens of the prompt are wanted, so that none may come from the prefix cache."""
        return self.prompt_logprobs is not None or self.pooling == "mean"

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def counts(self) -> bool:
        """Whether tokens seen before matter."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)
