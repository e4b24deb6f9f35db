"""Between batches of rows and an engine: asks row by row, and journals what is finished."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.data.rows import decode_row
from largeforge_ray.errors import ForgeError
from largeforge_ray.teach.work import Recipe, Work
from largeforge_ray.types import GenerateRequest, Generation

RESTARTS = 20
CALLS = 32
"""Of an engine, at once, for a batch. Its rows are asked for one by one, but a few at a time in a batch as
large as a million rows have: each call costs half a millisecond."""
WANTED = "wanted"
"""The field of a batch that holds the key of the row to make; the others are its item's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a batch: the numbers of the rows that are journalled, and the rows that are ``left``
    because their engine is gone."""

    numbers: list[dict[str, Any]]
    left: list[dict[str, Any]]


class Asker:
    """Works on many batches at once, in a process of its own.

    Whenever a batch ends, every row that is finished by then is journalled, those of other batches too: a
    kill costs little more than what the engine was at. An asker that dies is started again by Ray, gets its
    batches again and knows from the journal which of their rows are finished.
    """

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self._finished = journal.index()
        self._fresh: list[dict[str, Any]] = []
        self._journalling = asyncio.Lock()

    async def ask(self, batch: Sequence[dict[str, Any]], recipe: Recipe, engine: Any) -> Made | str:
        """Make and journal the rows of a batch, which are encoded items and the keys ``WANTED``.

        A text is why the engine can go on no more, in its own words.
        """
        from ray.exceptions import RayActorError

        wanted = [row for row in batch if row[WANTED] not in self._finished]
        few = max(1, len(batch) // CALLS)
        parts = [wanted[start : start + few] for start in range(0, len(wanted), few)]
        made = await asyncio.gather(*(self._make(p, recipe, engine) for p in parts), return_exceptions=True)
        try:
            await self._keep()
            # Only now: what was paid for is kept, whatever became of its neighbours.
            gone = [isinstance(each, RayActorError) for each in made]
            return Made(
                [n for each, lost in zip(made, gone, strict=True) if not lost for n in _made(each)],
                [row for part, lost in zip(parts, gone, strict=True) if lost for row in part],
            )
        except Exception as error:
            # Ray would wrap it in traces and tell of each batch; as a result it reaches the driver as it is.
            _log.exception("a batch of the farm failed")
            return _words(error)

    async def _make(
        self, rows: Sequence[dict[str, Any]], recipe: Recipe, engine: Any
    ) -> list[dict[str, Any]]:
        work = [_work(row, recipe) for row in rows]
        made: list[list[Generation]] = [[] for _ in work]
        asked: dict[int, GenerateRequest] = {i: w.request for i, w in enumerate(work)}
        while asked:
            for i, answer in zip(asked, await engine.generate.remote(list(asked.values())), strict=True):
                made[i].append(answer)
            open_ = [i for i in asked if not made[i][-1].error]
            asked = {i: more for i in open_ if (more := recipe.follow(work[i], made[i]))}
        finished = await asyncio.to_thread(lambda: [*map(recipe.row, work, made)])
        self._fresh += finished
        return [recipe.numbers(row) for row in finished]

    async def _keep(self) -> None:
        async with self._journalling:
            fresh, self._fresh = self._fresh, []
            await asyncio.to_thread(self._journal.append, fresh)


def start_asker(journal: Any) -> Any:
    """Start the actor and return its handle at once."""
    import ray

    # It mostly waits; with a part of a CPU it would keep Ray Data from a task that wants a whole one.
    actor = ray.remote(Asker).options(num_cpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS)
    # Neither engine nor recipe: Ray warns of references in what an actor is started again with.
    return actor.remote(journal)


def _work(row: dict[str, Any], recipe: Recipe) -> Work:
    item = {name: value for name, value in row.items() if name != WANTED}
    return next(w for w in recipe.work(decode_row(item)) if w.row_key == row[WANTED])


def _made(part: list[dict[str, Any]] | BaseException) -> list[dict[str, Any]]:
    if isinstance(part, BaseException):
        raise part
    return part


def _words(error: Exception) -> str:
    """What an engine said, without the trace that a Ray error carries."""
    said = getattr(error, "cause", error)
    return str(said) if isinstance(said, ForgeError) else f"{type(said).__name__}: {said}"
