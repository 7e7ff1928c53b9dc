"""The Prometheus endpoint of a running server: what it measures itself, and what its store says at every scrape.

The only import of prometheus-client. Loaded only when an endpoint is configured.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import DatabaseError

from fedfleet.fleet_server.config_observe import MetricsConfig
from fedfleet.fleet_server.gauges import KINDS, OTHER, STEPS, TABLE, Family, Sample, read
from fedfleet.fleet_server.stopwatch import Step
from fedfleet.fleet_server.store import open_reader
from fedfleet.link.port import Connected, Delivery, Disconnected, Event
from fedfleet.protocol.errors import UsageError

__all__ = ["Telemetry"]

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """Metrics of one server process. ``note`` and ``received`` are cheap; the store is read when someone asks.

    ``waiting`` tells how many events wait for the server, ``overflows`` how many found no room, both at any time.
    """

    def __init__(
        self,
        data_dir: Path,
        regions: Sequence[str],
        *,
        waiting: Callable[[], int],
        overflows: Callable[[], int],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more per counter, of no use
        self.registry = CollectorRegistry()
        self._seconds = {step: _histogram(TABLE[name], self.registry) for step, name in STEPS.items()}
        self._messages = _counter(TABLE["fedfleet_received_messages_total"], self.registry)
        self._bytes = _counter(TABLE["fedfleet_received_bytes_total"], self.registry)
        self._connected = _gauge(TABLE["fedfleet_broker_connected"], self.registry)
        self._writable = _gauge(TABLE["fedfleet_store_writable"], self.registry)
        self._writable.set(1)
        _gauge(TABLE["fedfleet_queue_depth"], self.registry).set_function(waiting)
        for kind in KINDS:
            self._messages.labels(kind)
            self._bytes.labels(kind)
        self.registry.register(_Told(overflows))
        self.registry.register(_Stored(data_dir, tuple(regions)))
        ProcessCollector(registry=self.registry)
        self._served: tuple[WSGIServer, Thread] | None = None

    def note(self, step: Step, seconds: float) -> None:
        """Note how long a step of the server took."""
        self._seconds[step].observe(seconds)

    def received(self, events: Sequence[Event]) -> None:
        """Count what the broker brought."""
        for event in events:
            match event:
                case Delivery(topic=topic, payload=payload):
                    kind = _kind(topic)
                    self._messages.labels(kind).inc()
                    self._bytes.labels(kind).inc(len(payload))
                case Connected():
                    self._connected.set(1)
                case Disconnected():
                    self._connected.set(0)
                case _:
                    pass

    def writable(self, *, is_writable: bool) -> None:
        """Note whether the store takes what is written; while it does not, nothing is acknowledged."""
        self._writable.set(1 if is_writable else 0)

    def serve(self, config: MetricsConfig) -> Self:
        """Answer scrapes from now on, in a thread of its own; UsageError when the port cannot be had."""
        try:
            self._served = start_http_server(config.port, config.host, self.registry)
        except (OSError, OverflowError) as error:
            where = f"{config.host}:{config.port}"
            raise UsageError(
                f"metrics: cannot listen on {where}: {getattr(error, 'strerror', '') or error}"
            ) from error
        return self

    def close(self) -> None:
        """Answer no more."""
        if self._served is not None:
            server, thread = self._served
            server.shutdown()
            server.server_close()
            thread.join()
            self._served = None


class _Told(Collector):
    """A counter that someone else keeps."""

    def __init__(self, overflows: Callable[[], int]) -> None:
        self._overflows = overflows

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from _families([Sample("fedfleet_queue_refused_total", self._overflows())])


class _Stored(Collector):
    """What the store says, read anew for each scrape on a connection of its own."""

    def __init__(self, data_dir: Path, regions: tuple[str, ...]) -> None:
        self._data_dir, self._regions = data_dir, regions

    def describe(self) -> list[Metric]:
        return []  # else registering would read the store

    def collect(self) -> Iterator[Metric]:
        try:
            store = open_reader(self._data_dir)
            try:
                with store.read() as connection:
                    samples = list(read(connection, self._regions))
            finally:
                store.close()
        except (UsageError, DatabaseError):
            yield from _families([Sample("fedfleet_store_readable", 0)])
            return
        yield from _families([*samples, Sample("fedfleet_store_readable", 1)])


def _families(samples: Sequence[Sample]) -> Iterator[Metric]:
    made: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for sample in samples:
        family = TABLE[sample.name]
        if sample.name not in made:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            made[sample.name] = kind(family.name, family.meaning, labels=family.labels)
        made[sample.name].add_metric(sample.labels, sample.value)
    yield from made.values()


def _kind(topic: str) -> str:
    """What a message is, by the seventh level of its topic; cheap, and whatever it says is one of five."""
    levels = topic.split("/", 7)
    kind = levels[6] if len(levels) > 6 else OTHER
    return "request" if kind == "req" else kind if kind in KINDS else OTHER


def _histogram(family: Family, registry: CollectorRegistry) -> Histogram:
    return Histogram(family.name, family.meaning, family.labels, buckets=BUCKETS_S, registry=registry)


def _counter(family: Family, registry: CollectorRegistry) -> Counter:
    return Counter(family.name, family.meaning, family.labels, registry=registry)


def _gauge(family: Family, registry: CollectorRegistry) -> Gauge:
    return Gauge(family.name, family.meaning, family.labels, registry=registry)
