"""Numbers and results in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from largeforge_ray.observe.data import Interval, Promotion, ReportData


@dataclass(frozen=True, slots=True)
class Headline:
    """The first thing a reader sees. ``tone`` is good, bad or open."""

    title: str
    lead: str
    tone: str


def duration(seconds: float | None) -> str:
    """0.42 s, 12.3 s, 4 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if 0 < seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(iso: str) -> str:
    """An ISO 8601 time to the minute with its zone; as it is if it is something else."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso or "–"
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def signed_points(gain: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    points = round(gain * 100, 1)
    return "0.0" if points == 0 else f"{points:+.1f}".replace("-", "−")


def count(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() or abs(number) >= 1000 else f"{number:,.4g}"


def setting(value: object) -> str:
    """A value of a sweep's point: 0.0123 as 0.0123, 0.054735202 as 0.0547, a list with plus signs."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def point(settings: Mapping[str, object]) -> str:
    """A sweep's point: rank 4, alpha 8."""
    return ", ".join(f"{name} {setting(value)}" for name, value in settings.items())


def leg(taken: Mapping[str, Any]) -> str:
    """Whose weights a trial went on from: trial 00003 at step 12 (rank 4, alpha 8)."""
    return f"trial {taken['trial']} at step {taken['step']} ({point(taken['point'])})"


def confidence(interval: Interval) -> str:
    """'95% interval', or 'interval' where the level was not recorded."""
    return "interval" if interval.confidence is None else f"{interval.confidence * 100:g}% interval"


def gain_sentence(gain: Interval) -> str:
    """The gain with its interval, and a warning if that interval leaves the sign open."""
    word = "gain" if gain.value >= 0 else "loss"
    size = f"{abs(gain.value) * 100:.1f}"
    said = (
        f"a {word} of {size} points, with a {confidence(gain)} "
        f"from {signed_points(gain.low)} to {signed_points(gain.high)}"
    )
    if gain.low <= 0 <= gain.high:
        return f"{said}. The interval includes zero: these items alone do not show a difference."
    return f"{said}."


def headline(data: ReportData) -> Headline:
    """What the run came to: promoted, refused, failed, unfinished, or just measured."""
    failed = next((stage for stage in data.stages if stage.state == "failed"), None)
    if data.promotions:
        promotion = data.promotions[-1]
        if promotion.state in ("finished", "cached"):
            earlier = " An earlier run decided this; this one found it in the store."
            lead = _measured(data, promotion) + (earlier if promotion.state == "cached" else "")
            return Headline(f"‘{promotion.candidate}’ was promoted", lead.strip(), "good")
        if promotion.state == "failed":
            title = f"‘{promotion.candidate}’ was not promoted"
            return Headline(title, f"{_measured(data, promotion)} {promotion.message}".strip(), "bad")
    if failed is not None:
        return Headline(f"The run failed in stage ‘{failed.name}’", failed.message, "bad")
    if data.state != "finished":
        done = sum(stage.state in ("finished", "cached") for stage in data.stages)
        return Headline("The run has not finished", f"{done} of {len(data.stages)} stages are done.", "open")
    return _without_promotion(data)


def _without_promotion(data: ReportData) -> Headline:
    gains = [gain for evaluation in data.evaluations for gain in evaluation.gains]
    if not gains:
        return Headline("The run finished", f"All {len(data.stages)} stages have their artifact.", "open")
    best = max(gains, key=lambda gain: gain.interval.value)
    if best.interval.low > 0:
        title, tone = f"‘{best.expert}’ improves on ‘{best.against}’", "good"
    else:
        title, tone = f"No expert clearly improves on ‘{best.against}’", "open"
    lead = f"‘{best.expert}’ shows {gain_sentence(best.interval)} The run has no promote stage."
    return Headline(title, lead, tone)


def _measured(data: ReportData, promotion: Promotion) -> str:
    if promotion.gain is None:
        return ""
    for evaluation in data.evaluations:
        gain = next((gain for gain in evaluation.gains if gain.expert == promotion.candidate), None)
        expert = evaluation.candidate(promotion.candidate)
        base = evaluation.candidate(gain.against) if gain is not None else None
        if expert is not None and base is not None:
            return (
                f"It scored {percent(expert.accuracy.value)} on {count(expert.n)} held-out items, where "
                f"‘{base.name}’ scored {percent(base.accuracy.value)}: {gain_sentence(promotion.gain)}"
            )
    return f"It showed {gain_sentence(promotion.gain)}"
