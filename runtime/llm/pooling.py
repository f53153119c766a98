"""Embeddings: hidden states of a prompt's tokens as one vector, and results with the names that vLLM has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.outputs import RequestOutput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """``data``: the vector of a prompt, f32[hidden size]."""

    data: np.ndarray


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """``embedding``: the vector of a prompt, of length 1 unless that was not wanted."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class _OfPrompt(Generic[T]):
    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class PoolingRequestOutput(_OfPrompt[PoolingOutput]):
    """What ``LLM.encode`` gives for a prompt."""

    __slots__ = ()


class EmbeddingRequestOutput(_OfPrompt[EmbeddingOutput]):
    """What ``LLM.embed`` gives for a prompt."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """``score``: the cosine of the angle between two embeddings."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """What ``LLM.score`` gives for two texts; ``prompt_token_ids`` are those of both."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    finished: bool = True


class Pooling:
    """The vector of a prompt whose tokens are computed in several steps, perhaps some of them twice.

    kind  ``last``, the last token's hidden state; ``mean``, the mean of all tokens' hidden states
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._sum: np.ndarray | None = None
        self._count = 0  # tokens that were taken

    def add(self, start: int, hidden: np.ndarray) -> None:
        """Takes the hidden states of wanted tokens, of which the first is at ``start``."""
        if self.kind == "last":
            self._sum, self._count = hidden[-1].astype(np.float64), 1
            return
        for row in hidden[self._count - start :]:  # one by one: the sum does not depend on chunks
            self._sum = row.astype(np.float64) if self._sum is None else self._sum + row
            self._count += 1

    def vector(self) -> np.ndarray:
        """The vector: f32[hidden size]."""
        assert self._sum is not None, "tokens were computed"
        found: np.ndarray = (self._sum / self._count).astype(np.float32)
        return found


def normalised(vector: np.ndarray) -> np.ndarray:
    """The vector with the length 1; zeros stay."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    found: np.ndarray = vector if length == 0 else (vector / length).astype(np.float32)
    return found


def vector_of(output: RequestOutput, normalise: bool) -> np.ndarray:
    """The vector of a request that has ended. Raises UsageError for one whose hidden states are not finite."""
    if output.embedding is None:
        raise UsageError(f"request {output.request_id} failed: {output.outputs[0].error}")
    return normalised(output.embedding) if normalise else output.embedding


def check_pairs(left: int, right: int) -> None:
    """Raises UsageError for numbers of texts that are no pairs."""
    if left not in (1, right):
        raise UsageError(f"{left} texts are compared with {right}: give one, or as many")


def scores(
    left: Sequence[EmbeddingRequestOutput], right: Sequence[EmbeddingRequestOutput]
) -> list[ScoringRequestOutput]:
    """The cosine of each pair of embeddings of length 1; one on the left is paired with all on the right."""
    pairs = zip(list(left) * (len(right) if len(left) == 1 else 1), right)
    return [
        ScoringRequestOutput(
            f"{a.request_id}_{b.request_id}", ScoringOutput(float(np.dot(a.outputs.embedding, b.outputs.embedding))),
            a.prompt_token_ids + b.prompt_token_ids,
        )
        for a, b in pairs
    ]  # fmt: skip
