"""The gate: a pure decision on the outcomes of a candidate and of what it is to replace.

A gate that cannot be evaluated does not pass.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import fsum
from statistics import fmean
from typing import Any

from largeforge_ray.config.gate import Gate
from largeforge_ray.evaluate.bootstrap import Interval, paired_gain


@dataclass(frozen=True, slots=True)
class Change:
    """Mean quality of the candidate minus that of the baseline on ``n`` items of a task or slice."""

    mean: float
    n: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two experts: its mean cost of an item in US dollars, None if unknown, and failed answers."""

    cost: float | None
    errors: int


@dataclass(frozen=True, slots=True)
class GateEvidence:
    """What outcomes say of ``candidate`` and ``baseline`` on the items that both answered and that count.

    ``problems`` are reasons why the gain is not known. ``contaminated`` counts the items that stand in what
    one of the two was trained on, None if nobody looked at the candidate's. ``tasks`` and ``slices``
    ("task/slice") map to the change there.
    """

    candidate: str
    baseline: str
    problems: tuple[str, ...]
    gain: Interval | None = None
    sides: tuple[Side, Side] | None = None
    contaminated: int | None = None
    tasks: Mapping[str, Change] = field(default_factory=dict)
    slices: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether a candidate may go live, why, and the numbers that decided, as JSON values."""

    passed: bool
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Answers:
    """An expert's answers as rows pass by; ``totals`` is item -> [sum of the metric, samples]."""

    totals: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float | None]] = field(default_factory=dict)
    errors: int = 0

    def add(self, item: str, value: float, cost: float | None, failed: bool) -> None:
        total = self.totals.setdefault(item, [0.0, 0.0])
        total[0] += value
        total[1] += 1
        self.costs.setdefault(item, []).append(cost)
        self.errors += failed

    @property
    def means(self) -> dict[str, float]:
        return {item: total / samples for item, (total, samples) in self.totals.items()}

    @property
    def samples(self) -> int:
        return sum(map(len, self.costs.values()))


def gate_evidence(
    rows: Iterable[Mapping[str, Any]], candidate: str, baseline: str, gate: Gate, seed: int = 0
) -> GateEvidence:
    """What outcome rows say of two experts; perturbed items do not count, and a failed answer is worth 0."""
    answers = {candidate: _Answers(), baseline: _Answers()}
    place: dict[str, tuple[str, str | None]] = {}
    marked: set[str] = set()
    looked, lacking = False, ""
    for row in rows:
        if row["expert"] not in answers or row.get("variant") is not None:
            continue
        item = row.get("origin") or row["item_hash"]
        failed = row.get("error") is not None
        value = _value(row, gate.metric)
        if value is None and not failed:
            lacking = lacking or _lacks(row, gate.metric)
        place[item] = row["task"], row.get("slice")
        looked |= row["expert"] == candidate and row.get("contaminated") is not None
        if row.get("contaminated"):
            marked.add(item)
        answers[row["expert"]].add(item, value or 0.0, row.get("cost"), failed)
    kept = set(place) - (marked if gate.contamination == "exclude" else set())
    problems = [lacking] if lacking else []
    problems += _unanswered(answers, baseline)
    if place and not kept:
        problems.append(f"all {len(place)} items are contaminated; evaluate on others")
    if gate.contamination == "refuse" and not looked:
        problems.append(
            f"nobody compared items with what '{candidate}' was trained on; set contamination there"
        )
    found = len(marked) if looked or marked else None
    if problems:
        return GateEvidence(candidate, baseline, tuple(problems), contaminated=found)
    one, other = (
        {i: q for i, q in answers[name].means.items() if i in kept} for name in (candidate, baseline)
    )
    gains = {item: one[item] - other[item] for item in kept}
    tasks = {item: task for item, (task, _) in place.items()}
    return GateEvidence(
        candidate,
        baseline,
        (),
        paired_gain(one, other, confidence=gate.confidence, seed=seed, tasks=tasks),
        (_side(answers[candidate], kept), _side(answers[baseline], kept)),
        found,
        _changes(gains, tasks),
        _changes(gains, {item: f"{task}/{part}" for item, (task, part) in place.items() if part is not None}),
    )


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    if metric == "quality":
        return float(row["quality"])
    value = _scores(row).get(metric)
    return None if value is None else float(value)


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads(row.get("scores") or "{}")
    return scores


def _lacks(row: Mapping[str, Any], metric: str) -> str:
    has = ", ".join(["quality", *sorted(_scores(row))])
    return (
        f"metric '{metric}' is not in the scores of task '{row['task']}', which has {has}; name one of those"
    )


def _unanswered(answers: Mapping[str, _Answers], baseline: str) -> Iterator[str]:
    for name, of_it in answers.items():
        if not of_it.totals:
            yield f"'{name}' has no outcomes; add it to the evaluate stage's candidates"
        elif of_it.errors == of_it.samples:
            yield f"every answer of '{name}' failed; run the evaluation again"
    candidate, other = (of_it.totals.keys() for of_it in answers.values()) if len(answers) == 2 else ((), ())
    if candidate and other and candidate != other:
        lone = len(set(candidate) ^ set(other))
        yield f"{lone} items were answered by one of the two only; evaluate both on the same items"
    if len(answers) == 1:
        yield f"'{baseline}' is compared with itself; name another expert in gate.against"


def _side(answers: _Answers, kept: set[str]) -> Side:
    costs = [cost for item in kept for cost in answers.costs[item]]
    known = [cost for cost in costs if cost is not None]
    # What was not priced is recorded as 0 too, and nothing that runs is free.
    whole = len(known) == len(costs) and sum(known) > 0
    return Side(fsum(known) / len(kept) if whole else None, answers.errors)


def _changes(gains: Mapping[str, float], parts: Mapping[str, str]) -> dict[str, Change]:
    found: dict[str, list[float]] = {}
    for item in sorted(gains):
        if item in parts:
            found.setdefault(parts[item], []).append(gains[item])
    return {name: Change(fmean(of_it), len(of_it)) for name, of_it in sorted(found.items())}


def decide_gate(gate: Gate, evidence: GateEvidence) -> GateDecision:
    """Pass if every rule of ``gate`` holds; the reason names each one that does not.

    Rules that cannot be evaluated do not hold.
    """
    numbers: dict[str, Any] = {
        "candidate": evidence.candidate,
        "against": evidence.baseline,
        "metric": gate.metric,
        "contaminated": evidence.contaminated,
    }
    if evidence.gain is None or evidence.sides is None:
        return GateDecision(False, f"it cannot be evaluated: {'; '.join(evidence.problems)}", numbers)
    gain = asdict(evidence.gain)
    numbers |= {"gain": gain.pop("mean"), **gain, "min_gain": gate.least_gain}
    numbers["errors"] = [side.errors for side in evidence.sides]
    said, failures = _gain(gate, evidence.gain)
    if gate.contamination == "refuse" and evidence.contaminated:
        failures.append(f"{evidence.contaminated} items are contaminated; evaluate on others or exclude them")
    failures += _cost(gate, evidence, numbers)
    failures += _floors(gate, evidence, numbers)
    return GateDecision(not failures, "; ".join(failures) if failures else said, numbers)


def _gain(gate: Gate, gain: Interval) -> tuple[str, list[str]]:
    numbers = f"gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {gain.n} items"
    if gain.low > gate.least_gain:
        return f"{numbers} lies above {gate.least_gain:+.3f}", []
    if gate.max_loss is not None:
        rule, fix = f"-max_loss {gate.least_gain:+.3f}", "evaluate on more items or raise gate.max_loss"
    else:
        rule, fix = f"min_gain {gate.least_gain:+.3f}", "train on more rows or lower gate.min_gain"
    return "", [f"{numbers} does not lie above {rule}; {fix}"]


def _cost(gate: Gate, evidence: GateEvidence, numbers: dict[str, Any]) -> list[str]:
    assert evidence.sides is not None
    costs = candidate, baseline = evidence.sides[0].cost, evidence.sides[1].cost
    numbers["cost"] = {"candidate": candidate, "against": baseline, "most": gate.matched_cost}
    if gate.matched_cost is None:
        return []
    if candidate is None or baseline is None:
        unknown = [
            n for n, c in zip((evidence.candidate, evidence.baseline), costs, strict=True) if c is None
        ]
        return [
            f"the cost of {' and '.join(unknown)} is not known; give prices or leave out gate.matched_cost"
        ]
    if candidate <= gate.matched_cost * baseline:
        return []
    return [
        f"an item costs {candidate:.3g} USD, {candidate / baseline:.2f} times that of '{evidence.baseline}', "
        f"and matched_cost allows {gate.matched_cost:.2f}; lower the cost or raise gate.matched_cost"
    ]


def _floors(gate: Gate, evidence: GateEvidence, numbers: dict[str, Any]) -> list[str]:
    """A named part that is missing or small fails; of others only slices of enough items are looked at."""
    numbers["floors"], failures = {}, []
    known = {**evidence.tasks, **evidence.slices}
    floors = dict(gate.floors)
    if gate.slice_floor is not None:
        large = [name for name, change in evidence.slices.items() if change.n >= gate.slice_min_items]
        floors = dict.fromkeys(large, gate.slice_floor) | floors
    for name, most in floors.items():
        change = known.get(name)
        if change is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"tasks are: {', '.join(evidence.tasks)}"
            failures.append(f"floor '{name}' names no task or slice of the outcomes; {hint}")
            continue
        numbers["floors"][name] = {"change": change.mean, "n": change.n, "max_lost": most}
        if change.n < gate.slice_min_items:
            failures.append(
                f"'{name}' has {change.n} items, and slice_min_items asks for {gate.slice_min_items}; "
                "evaluate on more or lower gate.slice_min_items"
            )
        elif change.mean < -most:
            failures.append(
                f"'{name}' changes by {change.mean:+.3f} on {change.n} items and may lose {most:.3f}; train "
                "on more of its kind or raise its floor"
            )
    return failures
