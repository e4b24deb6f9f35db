"""How a training or a sweep gives its place to others and takes it again; a farm's crew does so itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from largeforge_ray.flow.context import RunContext
from largeforge_ray.models.room import LOOK_S, Wish
from largeforge_ray.sweep import PACKS


class TrainingBreak:
    """``train.build.Break`` for as long as others wait for what the workers hold."""

    def __init__(self, context: RunContext, stage: str, processes: int) -> None:
        self._context, self._stage, self._processes = context, stage, processes
        self._room, self._due = context.room(), False

    def due(self) -> bool:
        # Looks in which the workers have yet to reach their checkpoint would count as in vain.
        if self._due or self._room.wish() is not Wish.LEAVE:
            return False
        self._due = True
        self._say("others need room: the workers go at their next checkpoint")
        return True

    def wait(self) -> None:
        for _ in range(self._processes):
            self._room.gave()
        self._say("the workers have gone")
        with self._context.ledger.holding(-self._processes):
            while self._room.wish() is not Wish.STAY:
                time.sleep(LOOK_S)
        self._due = False
        self._say("nobody waits any more: training goes on")

    def _say(self, message: str) -> None:
        self._context.emit(self._stage, "progress", {}, message)


class Packs:
    """A sweep's packs, of which the board says who is there. ``start`` starts one."""

    def __init__(
        self, context: RunContext, stage: str, board: Any, start: Callable[[], Any], number: int
    ) -> None:
        self._context, self._stage, self._board, self._start = context, stage, board, start
        self._room, self._number = context.room(), number
        self._serial = count()
        self._packs: dict[int, Any] = {}
        self._fill()

    def heed(self) -> None:
        """Let one go that others need the place of, or start as many as have gone."""
        wish = self._room.wish()
        if wish is Wish.LEAVE and self._packs:
            _, gone = self._packs.popitem()
            # A trial looks there before it takes its pack's end for a failure.
            self._pin()
            self._end(gone)
            self._room.gave()
            self._context.ledger.hold(-1)
            self._say(f"others need room: {len(self._packs)} of {self._number} packs go on")
        elif wish is Wish.STAY and len(self._packs) < self._number:
            self._context.ledger.hold(self._number - len(self._packs))
            self._fill()
            self._say("nobody waits any more: all packs are started")

    def end(self) -> None:
        """They hold the CPUs and GPUs that an engine needs."""
        for pack in self._packs.values():
            self._end(pack)

    def _fill(self) -> None:
        while len(self._packs) < self._number:
            self._packs[next(self._serial)] = self._start()
        self._pin()

    def _end(self, pack: Any) -> None:
        import ray

        ray.kill(pack)

    def _pin(self) -> None:
        import ray

        ray.get(self._board.pin.remote(PACKS, self._packs))

    def _say(self, message: str) -> None:
        self._context.emit(self._stage, "progress", {}, message)
