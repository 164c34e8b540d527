"""Samples as Prometheus reads them. Imports prometheus_client, which is the package's extra ``metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from zkc.metrics.families import Durations, Metric, Sample

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Exposition:
    """Makes the page of ``metrics``, of which ``read`` gives the samples of now, and of the process."""

    def __init__(self, metrics: Sequence[Metric], read: Callable[[], Iterable[Sample]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Samples(metrics, read))
        ProcessCollector(registry=self._registry)

    def page(self) -> bytes:
        return prometheus_client.generate_latest(self._registry)


class _Samples(Collector):
    def __init__(self, metrics: Sequence[Metric], read: Callable[[], Iterable[Sample]]) -> None:
        self._metrics = metrics
        self._read = read

    def describe(self) -> Iterator[Family]:
        """Names alone: what registers a collector asks for them, and needs no samples."""
        return map(_family, self._metrics)

    def collect(self) -> Iterator[Family]:
        families = {metric: _family(metric) for metric in self._metrics}
        for metric, value, labels in self._read():
            family = families[metric]
            if isinstance(value, Durations):
                if not isinstance(family, HistogramMetricFamily):
                    raise AssertionError(f"{metric.name} is no histogram")
                family.add_metric(labels, value.buckets(), value.total)
            elif isinstance(family, HistogramMetricFamily):
                raise AssertionError(f"{metric.name} is a histogram")
            else:
                family.add_metric(labels, value)
        return iter(families.values())


def _family(metric: Metric) -> Family:
    kinds: dict[str, type[Family]] = {
        "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
    }
    return kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
