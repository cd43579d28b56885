"""A collector for tests: takes OTLP over HTTP on loopback, and keeps what it was sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """What came in. `refuse`: an HTTP status to answer everything with."""

    def __init__(self) -> None:
        self.url = ""
        self.refuse: int | None = None
        self.asked = 0
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Any]] = []
        self._metrics: list[Any] = []
        self._records: list[Any] = []

    @property
    def spans(self) -> list[tuple[str, Any]]:
        """(name of the service, span)."""
        with self._lock:
            return list(self._spans)

    @property
    def metrics(self) -> list[Any]:
        with self._lock:
            return list(self._metrics)

    @property
    def records(self) -> list[Any]:
        with self._lock:
            return list(self._records)

    def take(self, path: str, body: bytes) -> None:
        with self._lock:
            if path == "/v1/traces":
                for whole in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = attributes(whole.resource)["service.name"]
                    self._spans += [(service, span) for scope in whole.scope_spans for span in scope.spans]
            elif path == "/v1/metrics":
                for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self._metrics += [metric for scope in metrics.scope_metrics for metric in scope.metrics]
            elif path == "/v1/logs":
                for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                    self._records += [record for scope in logs.scope_logs for record in scope.log_records]


def attributes(thing: Any) -> dict[str, Any]:
    """Of a span, a resource, a data point or a log record."""
    found = {}
    for pair in thing.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Listens on a free port of loopback."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            made.asked += 1
            if made.refuse is None:
                made.take(self.path, body)
            self.send_response(made.refuse or 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def one_tree(spans: list[Any]) -> Any:
    """The root, where these spans are one connected trace: one id, and every parent but the root's among them."""
    assert len({span.trace_id for span in spans}) == 1
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    roots = [span for span in spans if span.parent_span_id not in ids]
    assert len(roots) == 1, [span.name for span in roots]
    return roots[0]
