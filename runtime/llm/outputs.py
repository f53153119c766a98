"""Results of requests, with the names that vLLM has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from arcweld.runtime.llm.sampling import Logprob


@dataclass(slots=True)
class CompletionOutput:
    """One result of a request.

    index               its number among the request's results
    text, token_ids     what was generated; both grow while the request runs
    cumulative_logprob  the sum of the tokens' log probabilities
    logprobs            for each token the most likely ones, if they were asked for
    finish_reason       ``stop``, ``length``, ``abort`` or ``error``; None while it goes on
    stop_reason         the token or the string that ended it; None for the model's own end
    error               what went wrong, if the reason is ``error``
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    logprobs: list[Mapping[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """What became of a request.

    prompt             the prompt's text, if it was given as text
    prompt_token_ids   its tokens
    prompt_logprobs    for each of its tokens but the first the most likely ones, if they were asked for
    outputs            its results
    finished           whether all of them are complete
    num_cached_tokens  how many of the prompt's tokens were found in pages of earlier requests
    embedding          the prompt's hidden states as one vector, f32[hidden size], if that was asked for
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[Mapping[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    embedding: np.ndarray | None = None
