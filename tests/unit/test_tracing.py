"""A request is one trace from the router to the engine, sent to a collector that a variable names."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

ROUTED = """
from largeforge_ray.observe import tracing

with tracing.span("POST /v1/chat/completions", {b"traceparent": TRACEPARENT}):
    tracing.note(expert="orders", confidence=None)
    sent = tracing.carried()
with tracing.span("engine", {name.encode(): value.encode() for name, value in sent.items()}):
    tracing.note(running=3)
tracing.flush()
"""
TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP collector's address, and the spans it was sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()


def run(program: str, **env: str) -> str:
    clean = {"PATH": "/usr/bin:/bin"} | env
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_engines_span_is_below_the_routers_and_that_below_the_clients(
    collector: tuple[str, list[Any]],
) -> None:
    address, spans = collector
    program = ROUTED.replace("TRACEPARENT", repr(f"00-{TRACE}-{ABOVE}-01".encode()))
    run(program, OTEL_EXPORTER_OTLP_ENDPOINT=address)
    router, engine = sorted(spans, key=lambda span: span.name == "engine")
    assert {router.trace_id.hex(), engine.trace_id.hex()} == {TRACE}
    assert router.parent_span_id.hex() == ABOVE
    assert engine.parent_span_id == router.span_id
    assert {a.key: a.value.string_value for a in router.attributes} == {"largeforge.expert": "orders"}
    assert {a.key: a.value.int_value for a in engine.attributes} == {"largeforge.running": 3}


def test_without_a_collector_nothing_is_imported_or_sent_along() -> None:
    program = """
import json, sys
from largeforge_ray.observe import tracing
with tracing.span("engine", {}):
    tracing.note(running=1)
    print(json.dumps([tracing.carried(), any(m.startswith("opentelemetry") for m in sys.modules)]))
"""
    assert json.loads(run(program)) == [{}, False]
