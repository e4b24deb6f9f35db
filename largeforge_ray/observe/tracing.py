"""OpenTelemetry traces of what is served, from the router's span to the engine's.

They go by HTTP where OpenTelemetry's own variables say, as in OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318;
without one nothing is imported and nothing is kept. Spans carry names, numbers and decisions, no prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@cache
def _provider() -> Any:
    """This process's provider of tracers, None where no collector is named."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "largeforge")})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextmanager
def span(name: str, headers: Mapping[bytes, bytes]) -> Iterator[None]:
    """The block as a span, below the one that the ``traceparent`` among a request's ``headers`` names."""
    provider = _provider()
    if provider is None:
        yield
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items()}
    above = TraceContextTextMapPropagator().extract(carried)
    tracer = provider.get_tracer("largeforge_ray")
    with tracer.start_as_current_span(name, context=above, kind=SpanKind.SERVER):
        yield


def note(**facts: Any) -> None:
    """Attributes of the span that is open, as ``largeforge.<name>``."""
    if _provider() is None:
        return
    from opentelemetry.trace import get_current_span

    get_current_span().set_attributes({f"largeforge.{k}": v for k, v in facts.items() if v is not None})


def carried() -> dict[str, str]:
    """The headers that put what is asked next below the span that is open."""
    headers: dict[str, str] = {}
    if _provider() is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


def flush() -> None:
    """Send what is kept; for the end of a process."""
    provider = _provider()
    if provider is not None:
        provider.force_flush()
