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
        self._room, self._holds, self._told = context.room(), False, False

    def began(self) -> None:
        """The workers have their place."""
        self._holds = True

    def wanted(self) -> bool | None:
        if self._told and self._room.nobody_waits():
            self._told = False
            self._say("nobody waits any more: the workers stay")
            return False
        # Looks in which the workers have yet to reach their checkpoint would count as in vain.
        if self._told or not self._holds or self._room.wish() is not Wish.LEAVE:
            return None
        self._told = True
        self._say("others need room: the workers go at their next checkpoint")
        return True

    def wait(self) -> None:
        for _ in range(self._processes):
            self._room.gave()
        self._holds = self._told = False
        self._say("the workers have gone")
        with self._context.ledger.holding(-self._processes):
            while self._room.wish() is not Wish.STAY:
                time.sleep(LOOK_S)
        self._say("nobody waits any more: training goes on")

    def _say(self, message: str) -> None:
        self._context.emit(self._stage, "progress", {}, message)


class Packs:
    """A sweep's packs. The board has those that are up, and trials go to them; ``start`` starts one."""

    def __init__(
        self, context: RunContext, stage: str, board: Any, start: Callable[[], Any], number: int
    ) -> None:
        self._context, self._stage, self._board, self._start = context, stage, board, start
        self._room, self._number = context.room(), number
        self._serial = count()
        self._up: dict[int, Any] = {}
        self._starting: dict[Any, tuple[int, Any]] = {}
        self._some_left = False
        self._fill()

    def heed(self) -> None:
        """Take up those that have started, let one go that others need the place of, or start others."""
        self._welcome()
        wish = self._room.wish()
        if wish is Wish.LEAVE and (self._starting or self._up):
            self._leave()
        elif wish is Wish.STAY:
            self._fill()

    def close(self) -> None:
        """They hold the CPUs and GPUs that an engine needs."""
        import ray

        for pack in (*self._up.values(), *(pack for _, pack in self._starting.values())):
            ray.kill(pack)
        self._context.ledger.hold(-len(self._up))

    def _fill(self) -> None:
        while len(self._up) + len(self._starting) < self._number:
            pack = self._start()
            self._starting[pack.ready.remote()] = next(self._serial), pack

    def _welcome(self) -> None:
        import ray

        starting = list(self._starting)
        # Of one that could not start, trials hear why.
        ready, _ = ray.wait(starting, num_returns=len(starting), timeout=0) if starting else ([], [])
        for ref in ready:
            number, pack = self._starting.pop(ref)
            self._up[number] = pack
            self._context.ledger.hold(1)
        if ready:
            self._pin()

    def _leave(self) -> None:
        """One that is starting, which may hold a place or wait for one before others do; else one that is
        up."""
        import ray

        if self._starting:
            _, (_, gone) = self._starting.popitem()
        else:
            _, gone = self._up.popitem()
            # A trial looks there before it takes its pack's end for a failure.
            self._pin()
            self._room.gave()
            self._context.ledger.hold(-1)
        ray.kill(gone)
        self._some_left = True
        self._say(f"others need room: {len(self._up)} of {self._number} packs go on")

    def _pin(self) -> None:
        import ray

        ray.get(self._board.pin.remote(PACKS, self._up))
        if self._some_left and len(self._up) == self._number:
            self._some_left = False
            self._say("all packs are back")

    def _say(self, message: str) -> None:
        self._context.emit(self._stage, "progress", {}, message)
