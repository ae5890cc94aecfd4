"""What the station tells Prometheus: decisions, latency, queues, models, and what others hang here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from makel.station.station import Outcome, Station

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)

Gauge = tuple[str, str, Callable[[], Mapping[str, float]]]
"""Name, what it says, and what gives its value for each model."""


class Metrics:
    """The metrics of one station."""

    def __init__(self, station: Station) -> None:
        """Count everything the station decides from now on."""
        self._gauges: list[Gauge] = []
        self._registry = CollectorRegistry()
        self._decisions = Counter(
            "makel_decisions",
            "Decisions on parts of the line, by model, verdict, and what decided: score or fail-safe.",
            ["model", "verdict", "decided_by"],
            registry=self._registry,
        )
        self._latency = Histogram(
            "makel_latency_seconds",
            "From accepted to decided, of parts of the line.",
            ["model"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_State(station, self._gauges))
        station.watch_outcomes(self._count)

    def add_gauge(self, name: str, documentation: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Show another number for each model, such as drift.

        Args:
            name: As Prometheus shows it, "makel_drift_p_value".
            documentation: What it says.
            values: Gives, quickly, the value for each model's name.
        """
        self._gauges.append((name, documentation, values))

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def _count(self, outcome: Outcome) -> None:
        decision = outcome.decision
        if not decision.of_the_line:
            return
        decided_by = "fail-safe" if decision.reason else "score"
        self._decisions.labels(decision.model, decision.verdict, decided_by).inc()
        self._latency.labels(decision.model).observe(decision.latency_ms / 1000)


class _State(Collector):
    """What is so at the moment somebody asks."""

    def __init__(self, station: Station, gauges: list[Gauge]) -> None:
        self._station, self._gauges = station, gauges

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: the registry must not collect when this is registered."""
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily]:
        """The present state."""
        station = self._station
        depth = GaugeMetricFamily("makel_queue_depth", "Images under way.", labels=["model"])
        limit = GaugeMetricFamily("makel_queue_limit", "Images under way at most.", labels=["model"])
        model = InfoMetricFamily("makel_model", "The model that judges.", labels=["model"])
        for name in station.models():
            line = station.line(name)
            manifest = line.inspector.manifest
            depth.add_metric([name], line.depth)
            limit.add_metric([name], line.queue)
            described = {"model_id": manifest.model_id, "method": manifest.method.name}
            model.add_metric([name], {**described, "created": manifest.provenance.created})
        yield from (depth, limit, model)
        refused = CounterMetricFamily("makel_refused", "Images refused because there was no room.")
        refused.add_metric([], station.refused)
        yield refused
        waiting = GaugeMetricFamily("makel_journal_waiting", "Decisions that wait for the record to come back.")
        waiting.add_metric([], station.waiting)
        yield waiting
        for gauge_name, documentation, values in self._gauges:
            gauge = GaugeMetricFamily(gauge_name, documentation, labels=["model"])
            for name, value in values().items():
                gauge.add_metric([name], value)
            yield gauge
