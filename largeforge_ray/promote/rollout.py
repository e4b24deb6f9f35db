"""The way of an expert from proposed to live, as a pure function: what is known gives the next state, or
none.

proposed -> loading -> shadow -> canary -> live, and from each of them to failed, with the reason. In shadow
it is asked what it would be asked, and its answers are discarded; in canary a share of the clients get them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from largeforge_ray.promote.views import Entry, Trials
from largeforge_ray.routing.experts import State


@dataclass(frozen=True, slots=True)
class Rules:
    """When a trial is over, and what ends it badly; times are in seconds.

    A stage of the trial is over after so many requests, or after its time, because no traffic may fit.
    Failures are a share of what was asked; ``max_slowdown`` is a ratio of medians; ``max_unfinished`` is how
    much larger than the baseline's the share of answers cut at their limit may be.
    """

    load_s: float = 120.0
    shadow_requests: int = 8
    shadow_s: float = 1.0
    canary_share: float = 0.25
    canary_requests: int = 16
    canary_s: float = 2.0
    max_failures: float = 0.05
    max_slowdown: float = 3.0
    max_unfinished: float = 0.5
    least_compared: int = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an expert: of ``replicas`` engines that run its model ``serving`` have it."""

    replicas: int = 0
    serving: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)


@dataclass(frozen=True, slots=True)
class Move:
    """The next state and why."""

    to: State
    reason: str


def next_move(entry: Entry, seen: Seen, now: float, rules: Rules) -> Move | None:
    """What becomes of an expert now, None if nothing does. ``now`` is on the clock of ``entry.since``."""
    state, waited = entry.expert.state, now - entry.since
    if state not in ("loading", "shadow", "canary"):
        return None
    if seen.refused:
        replica, reason = min(seen.refused.items())
        return Move("failed", f"engine {replica} refuses it: {reason}")
    if state == "loading":
        return _loaded(seen, waited, rules)
    if breach := _breach(seen.trials, rules):
        return Move("failed", f"in {state}: {breach}")
    most, longest = (
        (rules.shadow_requests, rules.shadow_s)
        if state == "shadow"
        else (rules.canary_requests, rules.canary_s)
    )
    if seen.trials.asked < most and waited < longest:
        return None
    return Move(
        "canary" if state == "shadow" else "live", f"{state}: {summary(seen.trials)} in {waited:.1f} s"
    )


def _loaded(seen: Seen, waited: float, rules: Rules) -> Move | None:
    if 0 < seen.replicas <= seen.serving:
        return Move(
            "shadow", f"loaded and probed by {seen.serving} of {seen.replicas} engines in {waited:.1f} s"
        )
    if waited < rules.load_s:
        return None
    return Move(
        "failed", f"loaded by {seen.serving} of {seen.replicas} engines in {waited:.0f} s; see their logs"
    )


def _breach(trials: Trials, rules: Rules) -> str | None:
    """Why a trial has failed, None while it has not. One failure of few requests is not yet a share."""
    if trials.failed > max(1.0, rules.max_failures * trials.asked):
        return f"{trials.failed} of {trials.asked} requests failed, more than {rules.max_failures:.0%}"
    if min(len(trials.seconds), len(trials.baseline_seconds)) >= rules.least_compared:
        slow, usual = median(trials.seconds), median(trials.baseline_seconds)
        if slow > rules.max_slowdown * usual:
            return f"answers take {slow:.2f} s, over {rules.max_slowdown:g} times the others' {usual:.2f} s"
    answered = trials.asked - trials.failed
    if min(answered, trials.baseline_asked) >= rules.least_compared:
        cut = 1 - trials.finished / answered
        usual_cut = 1 - trials.baseline_finished / trials.baseline_asked
        if cut > usual_cut + rules.max_unfinished:
            return f"{cut:.0%} of its answers do not end before max_tokens, {usual_cut:.0%} of the others'"
    return None


def summary(trials: Trials) -> str:
    """A trial in a few words."""
    if not trials.asked:
        return "no request fitted it"
    parts = [f"{trials.asked} requests, {trials.failed} failed"]
    if trials.seconds and trials.baseline_seconds:
        parts.append(f"median {median(trials.seconds):.2f} s to {median(trials.baseline_seconds):.2f} s")
    if trials.agreement:
        parts.append(f"agreement {sum(trials.agreement) / len(trials.agreement):.2f}")
    return ", ".join(parts)
