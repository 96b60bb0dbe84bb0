"""What Prometheus reads: requests, errors, queue, latency, batches, evaluations of the prior."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from .engine import Fusion

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "ddfm_requests", "Requests answered, by route and status; 499: the client left.",
            ["route", "status"], registry=self.registry,
        )  # fmt: skip
        self.errors = Counter(
            "ddfm_errors", "Requests to fuse that got no picture, by status.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "ddfm_request_seconds", "Seconds from a request's header to its answer, by route.",
            ["route"], buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.fusion = Histogram(
            "ddfm_fusion_seconds", "Seconds spent on fusing a batch, without files.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "ddfm_batch_size", "Requests that were fused together.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry,
        )  # fmt: skip
        self.evaluations = Counter(
            "ddfm_prior_evaluations", "Evaluations of the prior, summed over pictures.",
            registry=self.registry,
        )  # fmt: skip
        self.queue = Gauge(
            "ddfm_queue", "Requests that wait or are worked on.", registry=self.registry
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Take the length of the queue from a function."""
        self.queue.set_function(length)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if route == "/fuse" and status >= 400:
            self.errors.labels(str(status)).inc()

    def fused(self, fusion: Fusion) -> None:
        """Count a batch that was fused."""
        self.fusion.observe(fusion.seconds)
        self.batches.observe(fusion.requests)
        self.evaluations.inc(fusion.evaluations)

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
