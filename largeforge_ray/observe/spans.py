"""From events to when each stage ran, on a clock that starts at the run's first event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from largeforge_ray.observe.data import Span, StageView
from largeforge_ray.types import RunEvent

_ENDS = ("finished", "failed")


def stage_views(planned: Sequence[Mapping[str, Any]], events: Sequence[RunEvent]) -> tuple[StageView, ...]:
    """The plan's stages in its order, each with its state, its attempts and its phases."""
    origin_s = events[0].time if events else 0.0
    now_s = events[-1].time - origin_s if events else 0.0
    return tuple(
        _stage_view(stage, [event for event in events if event.stage == stage["name"]], origin_s, now_s)
        for stage in planned
    )


def _stage_view(
    stage: Mapping[str, Any], events: Sequence[RunEvent], origin_s: float, now_s: float
) -> StageView:
    spans = _spans(events, origin_s, now_s)
    cached = next((event for event in reversed(events) if event.kind == "cached"), None)
    last = next((event for event in reversed(events) if event.kind in (*_ENDS, "started", "cached")), None)
    finished = next((event for event in reversed(events) if event.kind == "finished"), None)
    return StageView(
        name=str(stage["name"]),
        kind=str(stage["kind"]),
        artifact_kind=str(stage.get("artifact_kind", "")),
        key=str(stage.get("key", "")),
        state=_state(last, bool(stage.get("cached"))),
        spans=spans,
        cached_at_s=cached.time - origin_s if cached is not None else None,
        seconds=_seconds(finished, spans),
        phases=_phases(finished),
        message=last.message if last is not None else "",
    )


def _state(last: RunEvent | None, planned_as_cached: bool) -> str:
    if last is None:
        return "cached" if planned_as_cached else "planned"
    return "running" if last.kind == "started" else last.kind


def _spans(events: Sequence[RunEvent], origin_s: float, now_s: float) -> tuple[Span, ...]:
    """Each start with the end that follows it. A start that never ended runs until the log's last event."""
    spans = []
    started_s: float | None = None
    seen_s = 0.0
    for event in events:
        at_s = event.time - origin_s
        if event.kind == "started":
            if started_s is not None:  # the process died in between: its last sign of life ends the attempt
                spans.append(Span(started_s, seen_s, "failed"))
            started_s = at_s
        elif event.kind in _ENDS:
            began_s = at_s - float(event.numbers.get("seconds", 0.0)) if started_s is None else started_s
            spans.append(Span(began_s, at_s, event.kind))
            started_s = None
        seen_s = at_s
    if started_s is not None:
        spans.append(Span(started_s, now_s, "running"))
    return tuple(spans)


def _seconds(finished: RunEvent | None, spans: Sequence[Span]) -> float | None:
    if finished is not None and "seconds" in finished.numbers:
        return float(finished.numbers["seconds"])
    return sum(span.end_s - span.start_s for span in spans) if spans else None


def _phases(finished: RunEvent | None) -> tuple[tuple[str, float], ...]:
    if finished is None:
        return ()
    phases = finished.numbers.get("phases") or {}
    return tuple((str(name), float(seconds)) for name, seconds in phases.items())
