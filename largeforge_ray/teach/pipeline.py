"""Ray Data carries work to engines; the journal decides what is still to be done.

A row is journalled before its batch counts as done. Whatever process dies is started again by Ray and asks
for nothing that the journal holds, and neither does a driver that is started again. So each row is made
once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from largeforge_ray.data.rows import decode_row
from largeforge_ray.errors import StageError
from largeforge_ray.models.room import Room
from largeforge_ray.teach.asking import WANTED, start_asker
from largeforge_ray.teach.crew import Crew
from largeforge_ray.teach.reading import read_items
from largeforge_ray.teach.work import Recipe

FEWEST, MOST, BATCHES = 8, 256, 4000
SPARE = 3.0
"""Rows given to an engine for each that it works on at once: a batch keeps its place until its longest answer
is there, and where lengths differ as lognormal ones do, half as many left an engine without work."""

BLOCK_BYTES, READERS = 2**17, 2


def batch_rows(total: int) -> int:
    """Rows a batch, of ``total``: its last row keeps a small one open, and each batch costs time."""
    return min(MOST, max(FEWEST, total // BATCHES))


def batches_under_way(slots: int, batch: int) -> int:
    """Batches that keep an engine of ``slots`` requests at once full."""
    return max(2, round(SPARE * slots / batch))


def run_farm(
    items: str,
    recipe: Recipe,
    *,
    engines: Sequence[Any],
    journal: Any,
    total: int,
    on_batch: Callable[[list[dict[str, Any]]], None],
    room: Room | None = None,
    start: Callable[[], Any] | None = None,
    on_crew: Callable[[int, int], None] = lambda up, all_: None,
) -> list[Any]:
    """Make every row that ``journal`` does not hold yet.

    ``items`` is the address of a dataset part (Parquet), ``engines`` are actor handles with ``generate`` and
    ``slots``; about ``total`` rows are made. ``on_batch`` gets the small numbers of each finished batch, in
    the driver. Engines leave for ``room``, and ``start`` makes others for them; ``on_crew`` is told how many
    are up of how many since the first has left. Returns those that are up in the end.

    Raises ``StageError`` with the words of an engine that can go on no more, such as one whose money is
    spent.
    """
    import ray

    askers = [start_asker(journal) for _ in engines]
    batch = batch_rows(total)
    pairs = zip(askers, engines, strict=True)
    crew = Crew(pairs, lambda slots: batches_under_way(slots, batch), room, start, on_crew)
    # Closed, not left to the collector: its threads would outlive an error and reach for a Ray that is gone.
    with closing(in_batches(missing_rows(items, recipe, journal), batch)) as batches:
        try:
            for made in crew.ask(batches, ray.put(recipe)):
                if isinstance(made, str):
                    raise StageError(made)
                on_batch(made)
        except BaseException:
            # Of those it started itself nobody else knows.
            crew.dismiss(keep=engines)
            raise
    return crew.dismiss()


def missing_rows(items: str, recipe: Recipe, journal: Any) -> Any:
    """The lazy Ray dataset of the rows to make: their items, and in ``WANTED`` their keys."""
    import ray

    # A copy: the process may have Ray Data of its own.
    context = ray.data.DataContext.get_current().copy()
    # Progress is shown from the batches' own numbers, for the work as a whole.
    context.enable_progress_bars = context.print_on_execution_start = False
    # The engines wait for the first block, and blocks as large as Ray Data's take minutes of short prompts.
    context.target_max_block_size = BLOCK_BYTES
    # Set after ray.data is loaded, which configures this logger anew.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Few rows left to make are no mistake.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    missing = partial(_missing, recipe=recipe, done=ray.put(journal.index()))
    # Engines may hold every CPU. With equal shares Ray Data makes one task of reading and expanding.
    share: Any = {"num_cpus": 0, "concurrency": READERS}
    with ray.data.DataContext.current(context):
        return read_items(items, **share).map_batches(
            missing, batch_size=MOST, batch_format="pyarrow", **share
        )


def _missing(items: Any, *, recipe: Recipe, done: Any) -> Any:
    import pyarrow as pa
    import ray

    finished = ray.get(done)
    at, keys = [], []
    for i, item in enumerate(items.to_pylist()):
        for work in recipe.work(decode_row(item)):
            if work.row_key not in finished:
                at.append(i)
                keys.append(work.row_key)
    return items.take(pa.array(at, pa.int64())).append_column(WANTED, pa.array(keys, pa.string()))


def in_batches(dataset: Any, rows: int) -> Generator[list[dict[str, Any]]]:
    """The rows of a Ray dataset, at most so many at a time, as its blocks become ready.

    Not by ``iter_batches``, whose threads outlive its closing.
    """
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            table = ray.get(block.ref)
            for start in range(0, len(table), rows):
                yield table.slice(start, rows).to_pylist()
