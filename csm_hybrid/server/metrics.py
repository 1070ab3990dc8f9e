"""Prometheus metrics, in a registry of the server's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..engine.runner import Runner

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_AUDIO_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_SPEEDS = (0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50)


class _EngineCollector:
    """Reads the engine's state at the moment of the scrape."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        load = self._runner.load
        yield GaugeMetricFamily("csm_slots", "Speeches that can be made at once.", load.slots)
        yield GaugeMetricFamily("csm_running", "Utterances that hold a slot.", load.running)
        yield GaugeMetricFamily("csm_queued", "Utterances that wait for a slot.", load.waiting)
        yield CounterMetricFamily("csm_frames", "Frames made.", load.frames)


class Metrics:
    """Counters, histograms and the engine's gauges."""

    def __init__(self, runner: Runner) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(runner))
        self.requests = self._counter("csm_requests", "Speech requests by outcome.", "outcome")
        self.rejected = self._counter("csm_rejected", "Requests refused before any work, by reason.", "reason")
        self.aborted = self._counter("csm_aborted", "Speeches that broke off, by reason.", "reason")
        self.audio_seconds = self._counter("csm_audio_seconds", "Seconds of audio sent.")
        self.characters = self._counter("csm_characters", "Characters of text spoken to their end.")
        self.underruns = self._counter("csm_underruns", "Times that a listener in real time would have had to wait.")
        self.first_audio = Histogram(
            "csm_time_to_first_audio_seconds",
            "From the request to its first bytes of audio.",
            buckets=_FIRST_AUDIO_SECONDS,
            registry=self.registry,
        )
        self.speed = Histogram(
            "csm_realtime_speed",
            "Seconds of audio per second, of whole speeches.",
            buckets=_SPEEDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)
