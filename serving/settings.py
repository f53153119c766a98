"""What a server is told when it starts: its name for the model, its keys and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.serving.tool_calls.form import CallForm


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may take, and how long things may last. Raises UsageError for a limit that is not positive.

    body    bytes of a request
    prompt  tokens of a prompt; None: as many as the engine allows
    queue   sequences that wait beside those that run; one more request is refused with status 429
    seconds of a request from its arrival to its end
    step    seconds of one step, after which the server calls itself unhealthy
    drain   seconds for requests to end after SIGTERM
    """

    body: int = 4 << 20
    prompt: int | None = None
    queue: int = 256
    seconds: float = 600.0
    step: float = 60.0
    drain: float = 30.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name in ("queue", "drain") else 1e-9
            if value is not None and not least <= value:
                raise UsageError(f"the limit {f.name} is {value}, not {'at least 0' if least == 0 else 'positive'}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is told.

    name    of the model in requests and answers
    keys    of the API, one of which each request must bear; empty: no key is needed
    limits  of requests
    adapters  LoRA adapters, by the names that requests give for the model
    calls     the form in which the model writes tool calls; None: as its chat template says
    """

    name: str
    keys: tuple[str, ...] = ()
    limits: Limits = Limits()
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict)
    calls: CallForm | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may name as their model: it, and its adapters."""
        return self.name, *self.adapters
