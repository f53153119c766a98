"""What a model that runs has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the start: steps, tokens computed, tokens chosen, and what the pool and the scheduler did.

    compiled_late  kernels that were compiled or loaded after the engine was: always 0
    on_device      tokens that the device chose
    on_host        tokens that were chosen on the host, to which their rows of logits came
    bytes_read     bytes of results that came from the device's memory
    steps_ahead    steps that began before the tokens of the last one were read
    """

    steps: int
    computed_tokens: int
    generated_tokens: int
    cached_tokens: int
    preemptions: int
    proposed: int
    accepted: int
    pages_used: int
    pages_cached: int
    pages: int
    running: int
    waiting: int
    compiled_late: int
    on_device: int
    on_host: int
    bytes_read: int
    steps_ahead: int
