"""Prometheus metrics of a judge server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server; each server has a registry of its own."""

    def __init__(self, waiting_rows: Callable[[], float], ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("latent_rewards_requests", "Requests answered.", ["route", "status"], **new)
        self.seconds = Histogram(
            "latent_rewards_request_seconds", "From the request to its answer.", ["route"], buckets=_SECONDS, **new
        )
        self.rows = Counter("latent_rewards_rows", "Rows judged.", **new)
        self.missing = Counter("latent_rewards_missing", "Rows without a score.", ["reward"], **new)
        self.batch_rows = Histogram("latent_rewards_batch_rows", "Rows judged together.", buckets=_ROWS, **new)
        self.judge_seconds = Counter("latent_rewards_judge_seconds", "Seconds in which judges worked.", **new)
        self.label_mass = Gauge("latent_rewards_label_mass", "Mean label mass of the last request.", ["reward"], **new)
        Gauge("latent_rewards_waiting_rows", "Rows in the queue.", **new).set_function(waiting_rows)
        Gauge("latent_rewards_ready", "1 when all judges are loaded.", **new).set_function(lambda: float(ready()))

    def batch(self, rows: int, seconds: float) -> None:
        """One batch was judged."""
        self.rows.inc(rows)
        self.batch_rows.observe(rows)
        self.judge_seconds.inc(seconds)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
