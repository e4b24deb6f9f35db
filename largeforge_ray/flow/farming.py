"""How a stage lets the farm make rows: engines, the journal, progress, and when to give up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from largeforge_ray.errors import StageError
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.store import RowJournal
from largeforge_ray.teach import Recipe, run_farm


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a stage's rows: who is asked, started when it is that part's turn, and for what.

    There are ``total`` rows to make of ``items``, the address of a Parquet file; ``finished`` counts those
    that the ``journal`` holds. ``yields``: the engines hold room that serving may want.
    """

    engines: Callable[[], Sequence[Any]]
    recipe: Recipe
    items: str
    journal: RowJournal
    total: int
    finished: Callable[[], int]
    yields: bool = True


def farm(
    context: RunContext,
    stage: PlannedStage,
    shares: Sequence[Share],
    verdicts: tuple[str, str],
    most_failed: int | None = None,
) -> None:
    """Make every row of the ``shares`` that their journals do not hold.

    Raises ``StageError`` as soon as more than ``most_failed`` rows have no answer.
    """
    there = [share.finished() for share in shares]
    done, total = sum(there), sum(share.total for share in shares)
    progress = _Progress(context, stage.name, done, total, verdicts)
    if done:
        context.emit(
            stage.name, "progress", {"done": done, "total": total}, f"{done} rows were already in the journal"
        )
    for share, finished in zip(shares, there, strict=True):
        if finished == share.total:
            continue

        def on_batch(rows: list[dict[str, Any]], journal: RowJournal = share.journal) -> None:
            progress.add(rows)
            if most_failed is not None and progress.counts["failed"] > most_failed:
                raise StageError(_too_many(stage.name, journal, most_failed, total))

        waiting = time.monotonic()
        engines = share.engines()
        progress.began += time.monotonic() - waiting
        with context.phase("generation"):
            up = run_farm(
                share.items,
                share.recipe,
                engines=engines,
                journal=share.journal,
                total=share.total,
                on_batch=on_batch,
                room=context.room() if share.yields else None,
                start=context.start_another if share.yields else None,
                on_crew=partial(progress.crew, engines),
            )
        if share.yields:
            context.keep_engines(engines, up)
    made = sum(share.finished() for share in shares) + progress.counts["failed"]
    if made != total:
        raise StageError(f"stage '{stage.name}' made {made} rows of {total}; run the same command again")


class _Progress:
    def __init__(
        self, context: RunContext, stage: str, done: int, total: int, verdicts: tuple[str, str]
    ) -> None:
        self._context, self._stage = context, stage
        self._done, self._total, self._verdicts = done, total, verdicts
        self.began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self._usd = 0.0

    def crew(self, engines: Sequence[Any], up: int, all_: int) -> None:
        self._context.some_left(engines, up)
        said = f"others need room: {up} of {all_} engines go on"
        if up == all_:
            lost = len(engines) - up
            said = f"{lost} engines did not start again; {up} go on" if lost else "all engines are back"
        self._context.emit(self._stage, "progress", {}, said)

    def add(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.counts["failed" if row["failed"] else self._verdicts[not row["kept"]]] += 1
            self.counts.update({name: row[name] for name in ("tokens", "prompt", "cached")})
            self._usd += row["usd"]
        names = (*self._verdicts, "failed")
        made = sum(self.counts[name] for name in names)
        seconds = time.monotonic() - self.began
        numbers: dict[str, Any] = {"done": self._done + made, "total": self._total}
        numbers |= {name: self.counts[name] for name in names}
        numbers |= {
            "rows_per_s": round(made / seconds, 2),
            "tokens_per_s": round(self.counts["tokens"] / seconds, 1),
        }
        if self.counts["cached"]:
            numbers["prefix_hits"] = round(self.counts["cached"] / self.counts["prompt"], 3)
        if self._usd:
            numbers["usd"] = round(self._usd, 6)
        self._context.emit(self._stage, "progress", numbers)


def _too_many(stage: str, journal: RowJournal, most: int, total: int) -> str:
    errors = Counter(row["error"] for row in journal.rows() if row["error"] is not None)
    common = "; ".join(f"{error} ({n})" for error, n in errors.most_common(3))
    return (
        f"stage '{stage}': {sum(errors.values())} rows failed and {most} of {total} may: {common}; "
        "mend the cause and run the same command again, which asks for these rows anew, or raise max_failed"
    )
