"""Ray Data carries work to an engine; the journal decides what is still to be done.

A batch's rows are journalled before the batch counts as done, under a name that follows from
their keys. A worker that dies is run again by Ray and overwrites its own shard; a driver that
dies is started again and skips what the journal holds. So each row is made once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.data.rows import decode_row
from largeforge_ray.types import GenerateRequest, Generation

BATCH = 8
"""Rows a task: small enough that a kill costs little, while IN_FLIGHT tasks keep the engine full."""
IN_FLIGHT = 6


@dataclass(frozen=True, slots=True)
class Work:
    """One row to make: its key, the request that makes it, and the item it came from."""

    row_key: str
    request: GenerateRequest
    item: dict[str, Any]


Expand = Callable[[dict[str, Any]], list[Work]]
ToRow = Callable[[Work, Generation], dict[str, Any]]


def run_farm(
    items: Path,
    *,
    expand: Expand,
    to_row: ToRow,
    engine: Any,
    journal: Any,
    on_batch: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Make every row that ``journal`` does not hold yet.

    ``items`` is a dataset part (Parquet), ``engine`` an actor handle with ``generate``.
    ``on_batch`` gets the small numbers of each finished batch, in the driver. Raises what the
    engine raises once it has used up its restarts.
    """
    pipeline = build_pipeline(items, expand=expand, to_row=to_row, engine=engine, journal=journal)
    for batch in pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        on_batch(batch.to_pylist())


def build_pipeline(items: Path, *, expand: Expand, to_row: ToRow, engine: Any, journal: Any) -> Any:
    """The lazy Ray Data pipeline: read -> expand to missing rows -> ask the engine and journal."""
    import ray

    context = ray.data.DataContext.get_current()
    # Progress is shown from the batches' own numbers, for the work as a whole.
    context.enable_progress_bars = context.print_on_execution_start = False
    # Set after ray.data is loaded, which configures this logger anew.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Few rows left to make are no mistake.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    done = ray.put(journal.done())
    missing = partial(_missing, expand=expand, done=done)
    ask = partial(_ask, expand=expand, to_row=to_row, engine=engine, journal=journal)
    return (
        ray.data.read_parquet(str(items))
        .flat_map(missing, num_cpus=0.1)
        .repartition(target_num_rows_per_block=BATCH)
        .map_batches(
            ask,
            batch_size=BATCH,
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ray.data.TaskPoolStrategy(size=IN_FLIGHT),
        )
    )


def _missing(row: dict[str, Any], *, expand: Expand, done: Any) -> list[dict[str, Any]]:
    import ray

    finished = ray.get(done)
    return [row | {"wanted": w.row_key} for w in expand(decode_row(row)) if w.row_key not in finished]


def _ask(batch: Any, *, expand: Expand, to_row: ToRow, engine: Any, journal: Any) -> Any:
    """Answer one batch of rows and journal them; returns their numbers for the progress line."""
    import pyarrow as pa
    import ray

    work = [_find(row, expand) for row in batch.to_pylist()]
    generations = ray.get(engine.generate.remote([w.request for w in work]))
    rows = [to_row(w, g) for w, g in zip(work, generations, strict=True)]
    journal.append(rows)
    return pa.Table.from_pylist([_numbers(r) for r in rows])


def _find(row: dict[str, Any], expand: Expand) -> Work:
    wanted = row.pop("wanted")
    return next(w for w in expand(decode_row(row)) if w.row_key == wanted)


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    verdict = row.get("verdict")
    return {
        "failed": row["error"] is not None,
        "kept": bool(verdict and verdict["kept"]) or row.get("quality") == 1.0,
        "tokens": int(row["completion_tokens"]),
    }
