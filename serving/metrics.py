"""What Prometheus scrapes: names and meanings are vLLM's where it has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arcweld.runtime.llm.core import Core

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """Histograms of requests, and the counts of a ``Core`` as they are when somebody asks."""

    def __init__(self, name: str) -> None:
        """``name`` is the model's; every metric has it as the label ``model_name``."""
        self._name = name
        self.registry = CollectorRegistry()

        def histogram(key: str, text: str, buckets: Iterable[float]) -> Histogram:
            made = Histogram(key, text, ["model_name"], buckets=tuple(buckets), registry=self.registry)
            child: Histogram = made.labels(name)
            return child

        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST
        )
        self.between_tokens = histogram(
            "vllm:inter_token_latency_seconds", "From a result's token to its next one.", _BETWEEN
        )
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", _WHOLE)
        self.queued = histogram(
            "vllm:request_queue_time_seconds", "From a request's arrival to its first place in a step.", _WHOLE
        )
        self.prompt_tokens = histogram("vllm:request_prompt_tokens", "Tokens of a request's prompt.", _TOKENS)
        self.result_tokens = histogram("vllm:request_generation_tokens", "Tokens of a request's results.", _TOKENS)
        def counter(key: str, text: str) -> Counter:
            child: Counter = Counter(key, text, ["model_name"], registry=self.registry).labels(name)
            return child

        self.prompts = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.looked_up = counter("vllm:prefix_cache_queries", "Tokens that were looked for in the prefix cache.")
        self._ended = Counter(
            "vllm:request_success", "Results that ended, by reason.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "arcweld:requests_refused", "Requests that were answered by an error, by status.",
            ["model_name", "status"], registry=self.registry,
        )  # fmt: skip

    def ended(self, reason: str) -> None:
        """A result ended for ``reason``."""
        self._ended.labels(self._name, reason).inc()

    def refused(self, status: int) -> None:
        """A request was answered by an error."""
        self._refused.labels(self._name, str(status)).inc()

    def watch(self, core: Core) -> None:
        """Lets the text tell what ``core`` counts."""
        self.registry.register(_Counts(core, self._name))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Counts(Collector):
    """The counts of a core."""

    def __init__(self, core: Core, name: str) -> None:
        self._core, self._name = core, name

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now. They are read beside a step that runs: each is one number."""
        s = self._core.stats()
        gauges = (
            ("vllm:num_requests_running", "Sequences that run.", s.running),
            ("vllm:num_requests_waiting", "Sequences that wait.", s.waiting),
            ("vllm:kv_cache_usage_perc", "Pages in use, 1 is all of them.", s.pages_used / s.pages),
            ("arcweld:kv_cache_pages_used", "Pages in use.", s.pages_used),
            ("arcweld:kv_cache_pages_cached", "Pages that the prefix cache could give.", s.pages_cached),
            ("arcweld:kv_cache_pages", "Pages there are.", s.pages),
        )
        counters = (
            ("vllm:num_preemptions", "Sequences that gave their pages up.", s.preemptions),
            ("vllm:generation_tokens", "Tokens of results.", s.generated_tokens),
            ("vllm:prefix_cache_hits", "Tokens that were found there.", s.cached_tokens),
            ("vllm:spec_decode_num_draft_tokens", "Guesses that were checked.", s.proposed),
            ("vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", s.accepted),
            ("arcweld:steps", "Steps.", s.steps),
            ("arcweld:steps_ahead", "Steps that began before the tokens of the last one were read.", s.steps_ahead),
            ("arcweld:tokens_chosen_on_device", "Tokens that the device chose.", s.on_device),
            ("arcweld:tokens_chosen_on_host", "Tokens that were chosen on the host.", s.on_host),
            ("arcweld:kernels_compiled_after_loading", "Kernels compiled after the model was loaded.", s.compiled_late),
        )
        for key, text, value in gauges:
            gauge = GaugeMetricFamily(key, text, labels=["model_name"])
            gauge.add_metric([self._name], value)
            yield gauge
        for key, text, value in counters:
            counter = CounterMetricFamily(key, text, labels=["model_name"])
            counter.add_metric([self._name], value)
            yield counter
