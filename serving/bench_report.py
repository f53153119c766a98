"""What outcomes of requests say of a server: rates, and percentiles of times, by vLLM's names for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from arcweld.serving.bench import Outcome

PERCENTILES = (50, 90, 99)
TIMES = {
    "ttft": "time to first token", "tpot": "time per output token", "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}  # fmt: skip


def measures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, rates per second and times in milliseconds of the requests that succeeded; the others' kinds of errors.

    ttft  from a request to its first piece of text
    tpot  what each token after the first one took, a mean for each request of at least two tokens
    itl   from each piece of text to the next one, of all requests; a piece may be several tokens
    e2el  from a request to its last event

    Each has its mean, median, standard deviation and percentiles by linear interpolation; None where there is none.
    ``duration`` is from the first request to the end of the last one, of those that failed too.
    """
    good = [o for o in outcomes if not o.error]
    span = max(o.ended for o in outcomes) - min(o.started for o in outcomes) if outcomes else 0.0
    tokens_in, tokens_out = sum(o.prompt for o in good), sum(o.output for o in good)
    found: dict[str, Any] = {
        "duration": span, "completed": len(good), "failed": len(outcomes) - len(good),
        "errors": dict(Counter(o.error for o in outcomes if o.error)),
        "total_input_tokens": tokens_in, "total_output_tokens": tokens_out,
    }  # fmt: skip
    counts = {"request": len(good), "output": tokens_out, "total_token": tokens_in + tokens_out}
    found |= {f"{what}_throughput": n / span if span else None for what, n in counts.items()}
    for name, seconds in _times(good).items():
        found |= dict(_statistics(name, np.array(seconds) * 1000))
    return found


def _times(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    first = [o.pieces[0] - o.started for o in outcomes]
    each = [(o.ended - o.pieces[0]) / (o.output - 1) for o in outcomes if o.output > 1]
    between = [b - a for o in outcomes for a, b in zip(o.pieces, o.pieces[1:])]
    return {"ttft": first, "tpot": each, "itl": between, "e2el": [o.ended - o.started for o in outcomes]}


def _statistics(name: str, values: np.ndarray) -> Iterator[tuple[str, float | None]]:
    some = values.size > 0
    yield f"mean_{name}_ms", float(values.mean()) if some else None
    yield f"median_{name}_ms", float(np.median(values)) if some else None
    yield f"std_{name}_ms", float(values.std()) if some else None
    for p in PERCENTILES:
        yield f"p{p}_{name}_ms", float(np.percentile(values, p)) if some else None


def first_complaints(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Of each kind of error, what was said of the first one."""
    found: dict[str, str] = {}
    for o in outcomes:
        if o.error:
            found.setdefault(o.error, o.told)
    return found
