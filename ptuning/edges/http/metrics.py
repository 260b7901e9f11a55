"""``/metrics``: figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ptuning.engine.request import Generation
from ptuning.serving.chat_service import ChatService

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one service, in a registry of their own.

    Args:
        service: whose answers are counted.
    """

    def __init__(self, service: ChatService) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        ProcessCollector(registry=self.registry)
        self.first_token = Histogram(
            "ptuning_time_to_first_token_seconds", "From the request to its first token.", buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "ptuning_request_seconds", "From the request to the end of its answer.", buckets=_SECONDS,
            registry=self.registry,
        )

    def observe(self, generation: Generation) -> None:
        """Record the times of a finished answer."""
        if generation.first_token is not None:
            self.first_token.observe(generation.first_token - generation.submitted)
        if generation.finished is not None:
            self.duration.observe(generation.finished - generation.submitted)

    def collect(self) -> Iterator[Any]:
        """The engine's counters, read at the moment of the request."""
        engine, counters = self.service.engine, self.service.engine.counters
        yield GaugeMetricFamily("ptuning_requests_running", "Rows of the batch.", value=len(engine.running))
        yield GaugeMetricFamily("ptuning_requests_waiting", "Requests in the queue.", value=len(engine.waiting))
        yield GaugeMetricFamily("ptuning_rows", "Most rows that run at a time.", value=engine.max_rows)
        yield GaugeMetricFamily("ptuning_prefixes", "Prefixes loaded.", value=len(self.service.store.names()) - 1)
        finished = CounterMetricFamily("ptuning_requests_finished", "Answers by how they ended.", labels=["reason"])
        for reason, count in counters.finished.items():
            finished.add_metric([reason], count)
        yield finished
        yield CounterMetricFamily("ptuning_prompt_tokens", "Tokens of prompts.", value=counters.prompt_tokens)
        yield CounterMetricFamily("ptuning_generated_tokens", "Tokens of answers.", value=counters.generated_tokens)
        yield CounterMetricFamily("ptuning_steps", "Decode steps.", value=counters.steps)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
