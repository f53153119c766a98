"""A sequence: the tokens of one result, how many of them are in its pages, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.runtime.llm.params import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """The prompt and what follows it.

    number      counts up in order of arrival; it says who comes first among equals
    prompt      the prompt's tokens
    priority    smaller comes first
    salt        keeps its prefixes apart from those of other sequences (``PagePool.match``)
    output      tokens that were chosen
    pages       where keys and values of its first tokens are, in order
    computed    how many tokens are in the pages
    published   how many of its full pages may be found by others
    cached      how many tokens it found in pages of others when it was first admitted
    finish      why it ended: ``stop``, ``length``, ``abort`` or ``error``; empty while it goes on
    stopped_by  the token or the string that ended it
    noted       whether ``cached`` has been counted
    lora        the LoRA adapter that it is computed with; None: it has none
    adapter     the place of that adapter while it runs, from 1 on; else 0
    """

    number: int
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    salt: bytes = b""
    output: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    published: int = 0
    cached: int | None = None
    finish: str = ""
    stopped_by: int | str | None = None
    preemptions: int = 0
    noted: bool = False
    lora: LoRARequest | None = None
    adapter: int = 0

    def __len__(self) -> int:
        """Its tokens."""
        return len(self.prompt) + len(self.output)

    @property
    def left(self) -> int:
        """Tokens that are not in the pages yet, of which the last one's logits are wanted."""
        return len(self) - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """The tokens at positions ``start`` to ``stop - 1``."""
        split = len(self.prompt)
        if stop <= split:
            return self.prompt[start:stop]
        if start >= split:
            return self.output[start - split : stop - split]
        return self.prompt[start:] + self.output[: stop - split]

    @property
    def order(self) -> tuple[int, int]:
        """Who comes first: by priority, then by arrival."""
        return self.priority, self.number
