"""A sweep as a heat map: two dimensions across and down, the best held-out loss in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from largeforge_ray.observe import words
from largeforge_ray.observe.data import HeatCell, Sweep, TrialView

DOWN = ("rank", "lora.rank")
ACROSS = ("alpha", "alpha_ratio", "lora.alpha")


def sweep_view(stage: str, metrics: Mapping[str, Any]) -> Sweep | None:
    """The sweep that a stage's metrics record, None if they record none."""
    trials = metrics.get("trials")
    if not trials:
        return None
    points: list[Mapping[str, Any]] = [t["point"] for t in trials]
    varying = [k for k in points[0] if len({str(p[k]) for p in points}) > 1] or list(points[0])
    down = next((k for k in varying if k in DOWN), varying[0])
    others = [k for k in varying if k != down]
    across = next((k for k in others if k in ACROSS), others[0] if others else "")
    rows, columns = _values(points, down), _values(points, across) if across else [""]
    cells = tuple(
        tuple(_cell(trials, {down: row} | ({across: column} if across else {})) for column in columns)
        for row in rows
    )
    losses = sorted(c.held_out for line in cells for c in line if c is not None)
    views = tuple(
        TrialView(
            name=str(t.get("trial", "")),
            point=words.point(t["point"]),
            held_out=float(t["held_out"]),
            step=int(t["step"]),
            stopped=bool(t["stopped"]),
            seconds=float(t["seconds"]),
            taken=tuple(map(words.leg, t.get("history") or ())),
        )
        for t in trials
    )
    return Sweep(
        stage=stage,
        down=down,
        across=across,
        rows=tuple(map(words.setting, rows)),
        columns=tuple(map(words.setting, columns)),
        cells=cells,
        low=losses[0],
        high=losses[-1],
        trials=views,
    )


def _values(points: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return sorted(
        {words.setting(p[name]): p[name] for p in points}.values(), key=lambda v: (isinstance(v, str), v)
    )


def _cell(trials: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> HeatCell | None:
    here = [
        t for t in trials if all(words.setting(t["point"][k]) == words.setting(v) for k, v in place.items())
    ]
    if not here:
        return None
    best = min(here, key=lambda t: float(t["held_out"]))
    return HeatCell(float(best["held_out"]), len(here), all(t["stopped"] for t in here))
