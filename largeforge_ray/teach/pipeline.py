"""Ray Data carries work to engines; the journal decides what is still to be done.

A batch's rows are journalled before the batch counts as done, under a name that follows from
their keys. A worker that dies is run again by Ray and overwrites its own shard; a driver that
dies is started again and skips what the journal holds. So each row is made once.
"""

from __future__ import annotations

import logging
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.data.rows import decode_row
from largeforge_ray.errors import ForgeError, StageError
from largeforge_ray.types import GenerateRequest, Generation

FEWEST, MOST, TASKS = 8, 256, 4000
STOPPED = "stopped"
IN_FLIGHT = 6
"""Tasks that keep an engine full."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """One row to make: its key, the request that makes it, and the item it came from."""

    row_key: str
    request: GenerateRequest
    item: dict[str, Any]


class Recipe(ABC):
    """What is asked of an item, and what becomes of the answers. It is pickled into every task."""

    @abstractmethod
    def work(self, item: dict[str, Any]) -> list[Work]:
        """The rows to make of an item; the same ones whenever it is asked."""

    def follow(self, work: Work, made: Sequence[Generation]) -> GenerateRequest | None:
        """The next request of a row that takes several, given the answers so far; None after the last."""
        return None

    @abstractmethod
    def row(self, work: Work, made: Sequence[Generation]) -> dict[str, Any]:
        """The row, with ``row_key`` and ``error``; the last of ``made`` may be an error."""

    @abstractmethod
    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the progress line counts: ``failed``, ``kept``, ``tokens``, ``usd``."""


def batch_rows(total: int) -> int:
    """Rows a task, of ``total``: a kill costs what is under way, so few of few; a task costs time, so more of
    many."""
    return min(MOST, max(FEWEST, total // TASKS))


def run_farm(
    items: Path,
    recipe: Recipe,
    *,
    engines: Sequence[Any],
    journal: Any,
    total: int,
    on_batch: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Make every row that ``journal`` does not hold yet.

    ``items`` is a dataset part (Parquet), ``engines`` actor handles with ``generate``; ``total`` rows are
    made about. ``on_batch`` gets the small numbers of each finished batch, in the driver.

    Raises ``StageError`` with the words of an engine that can go on no more, such as one whose money is
    spent.
    """
    pipeline = build_pipeline(items, recipe, engines=engines, journal=journal, batch=batch_rows(total))
    batches = iter(pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    # Closed, not left to the collector: its threads would outlive an error and reach for a Ray that is gone.
    with closing(batches):
        for batch in batches:
            rows = batch.to_pylist()
            if stopped := rows[0].get(STOPPED):
                raise StageError(stopped)
            on_batch(rows)


def build_pipeline(items: Path, recipe: Recipe, *, engines: Sequence[Any], journal: Any, batch: int) -> Any:
    """The lazy Ray Data pipeline: read -> expand to missing rows -> ask an engine and journal."""
    import ray

    context = ray.data.DataContext.get_current()
    # Progress is shown from the batches' own numbers, for the work as a whole.
    context.enable_progress_bars = context.print_on_execution_start = False
    # Set after ray.data is loaded, which configures this logger anew.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Few rows left to make are no mistake.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    missing = partial(_missing, recipe=recipe, done=ray.put(journal.index()))
    ask = partial(_ask, recipe=recipe, engines=list(engines), journal=journal)
    return (
        ray.data.read_parquet(str(items))
        .flat_map(missing, num_cpus=0.1)
        # Neighbours stay together: what they share of their prompts is computed once.
        .repartition(target_num_rows_per_block=batch)
        .map_batches(
            ask,
            batch_size=batch,
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ray.data.TaskPoolStrategy(size=IN_FLIGHT * len(engines)),
        )
    )


def _missing(row: dict[str, Any], *, recipe: Recipe, done: Any) -> list[dict[str, Any]]:
    import ray

    finished = ray.get(done)
    return [row | {"wanted": w.row_key} for w in recipe.work(decode_row(row)) if w.row_key not in finished]


def _ask(batch: Any, *, recipe: Recipe, engines: list[Any], journal: Any) -> Any:
    """Answer one batch of rows and journal them; returns their numbers for the progress line."""
    import pyarrow as pa

    work = [_find(row, recipe) for row in batch.to_pylist()]
    try:
        rows = _rows(work, recipe, engines)
    except Exception as error:
        # Ray Data would wrap it in traces; as a row it reaches the driver in its own words.
        _log.exception("a batch of the farm failed")
        return pa.Table.from_pylist([{STOPPED: _words(error)}])
    journal.append(rows)
    return pa.Table.from_pylist([recipe.numbers(r) for r in rows])


def _words(error: Exception) -> str:
    """What an engine said, without the trace that a Ray error carries."""
    said = getattr(error, "cause", error)
    return str(said) if isinstance(said, ForgeError) else f"{type(said).__name__}: {said}"


def _rows(work: list[Work], recipe: Recipe, engines: list[Any]) -> list[dict[str, Any]]:
    made: list[list[Generation]] = [[] for _ in work]
    asked: list[tuple[int, GenerateRequest]] = [(i, w.request) for i, w in enumerate(work)]
    while asked:
        for (i, _), generation in zip(asked, _generate(engines, [r for _, r in asked]), strict=True):
            made[i].append(generation)
        open_ = [i for i, _ in asked if not made[i][-1].error]
        asked = [(i, request) for i in open_ if (request := recipe.follow(work[i], made[i]))]
    return [recipe.row(w, g) for w, g in zip(work, made, strict=True)]


def _generate(engines: list[Any], requests: list[GenerateRequest]) -> list[Generation]:
    """Of the less busy of two engines: Mitzenmacher 2001, the power of two choices."""
    import ray

    engine = engines[0]
    if len(engines) > 1:
        two = random.sample(engines, 2)
        loads = ray.get([e.load.remote() for e in two])
        engine = two[loads.index(min(loads))]
    generations: list[Generation] = ray.get(engine.generate.remote(requests))
    return generations


def _find(row: dict[str, Any], recipe: Recipe) -> Work:
    wanted = row.pop("wanted")
    return next(w for w in recipe.work(decode_row(row)) if w.row_key == wanted)
