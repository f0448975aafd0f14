"""What a service counts, for Prometheus (OpenMetrics) on a loopback port of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from protocols.errors import ConfigError, explain

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's counters in a registry of their own. Labels are models, codes, stages and parties: all from a
    closed list, never from a client's words."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter("requests", "Requests by how they ended.", ("model", "code"), registry=registry)
        self.queue_rows = Gauge("queue_rows", "Rows that wait for a batch.", registry=registry)
        self.queue_seconds = Histogram("queue_seconds", "Time in the queue.", buckets=_SECONDS, registry=registry)
        self.batch_rows = Histogram("batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "batch_seconds", "Time of a batch by stage.", ("stage",), buckets=_SECONDS, registry=registry
        )
        self.runs_ahead = Gauge(
            "runs_ahead", "Runs that preprocessing is ready for.", ("model", "size"), registry=registry
        )
        self.rounds = Counter("rounds", "Rounds among the parties.", registry=registry)
        self.sent_bytes = Counter("sent_bytes", "Bytes sent to a party.", ("peer",), registry=registry)
        self.peer_up = Gauge("peer_up", "1 where the party is connected.", ("peer",), registry=registry)
        self._children: dict[tuple[str, str], Counter] = {}

    def request(self, model: str, code: str) -> None:
        """Counts a request that ended; `model` is one that is served, or empty."""
        child = self._children.get((model, code))
        if child is None:
            child = self._children[model, code] = self.requests.labels(model, code)
        child.inc()

    @contextmanager
    def served(self, port: int) -> Iterator[int]:
        """Serves /metrics on 127.0.0.1 meanwhile, in a thread; port 0 takes a free one. Yields the port. Raises
        ConfigError where it is taken.
        """
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            what, fix = "metrics cannot be served", "choose another port, or end what listens there"
            raise ConfigError(explain(what, where=f"127.0.0.1:{port}", why=str(error), fix=fix)) from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
