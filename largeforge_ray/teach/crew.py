"""The engines of a farm, which may leave it for a while: what they were at goes to the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import StageError
from largeforge_ray.models.room import LOOK_S, Room, Wish
from largeforge_ray.teach.asking import Made

Batch = list[dict[str, Any]]


@dataclass(eq=False)
class Hand:
    """An asker and the engine it works with, on ``busy`` batches of ``most``, which is 0 until the engine is
    up. It has none while that has left."""

    asker: Any
    engine: Any
    most: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    """Of a hand and the engine it had: a batch that was ``asked`` for, or else an engine's start."""

    hand: Hand
    engine: Any
    asked: bool


class Crew:
    """Hands batches to engines as they are free.

    ``held`` says how many batches an engine of so many slots holds. When ``room`` wishes it, an engine's
    actor is ended; as soon as nobody waits for room any more ``start`` makes another one in its place, which
    Ray starts when there is room for it. ``said`` is told how many are up of how many.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Any, Any]],
        held: Callable[[int], int],
        room: Room | None,
        start: Callable[[], Any] | None,
        said: Callable[[int, int], None],
    ) -> None:
        self._hands = [Hand(asker, engine) for asker, engine in pairs]
        self._held, self._room, self._start, self._said = held, room, start, said
        self._under_way: dict[Any, _Task] = {}
        self._some_left = False
        self._again: deque[Batch] = deque()
        for hand in self._hands:
            self._expect(hand)

    def dismiss(self, *, keep: Sequence[Any] | None = None) -> list[Any]:
        """End the engines that are still starting, and those not among ``keep``; returns the others."""
        import ray

        up = [hand for hand in self._hands if hand.most and (keep is None or hand.engine in keep)]
        for hand in self._hands:
            if hand.engine is not None and hand not in up:
                ray.kill(hand.engine)
        return [hand.engine for hand in up]

    @property
    def up(self) -> int:
        """How many engines can be asked."""
        return sum(hand.most > 0 for hand in self._hands)

    def ask(self, batches: Iterable[Batch], recipe: Any) -> Iterator[Batch | str]:
        """The numbers of what an asker has finished of a batch, or why it can do no more.

        Raises ``StageError`` when no engine is left, and none will come back.
        """
        for batch in batches:
            yield from self._give(batch, recipe)
        while self._again or any(task.asked for task in self._under_way.values()):
            if self._again:
                yield from self._give(self._again.popleft(), recipe)
            else:
                yield from self._next()

    def _give(self, batch: Batch, recipe: Any) -> Iterator[Batch | str]:
        self._welcome()
        while not (free := [hand for hand in self._hands if hand.busy < hand.most]):
            yield from self._next()
        # The emptiest: few batches are spread over all engines.
        hand = min(free, key=lambda each: each.busy / each.most)
        hand.busy += 1
        ref = hand.asker.ask.remote(batch, recipe, hand.engine)
        self._under_way[ref] = _Task(hand, hand.engine, asked=True)

    def _welcome(self) -> None:
        """Take up all engines that have started: they have nothing to do yet."""
        import ray

        starts = [ref for ref, task in self._under_way.items() if not task.asked]
        ready, _ = ray.wait(starts, num_returns=len(starts), timeout=0) if starts else ([], [])
        for ref in ready:
            self._started(self._under_way.pop(ref), ref)

    def _next(self) -> Sequence[Batch | str]:
        """Wait until something ends: a batch, of which something may be finished, or an engine's start."""
        import ray

        while True:
            self._heed()
            if self._under_way:
                ready, _ = ray.wait(list(self._under_way), timeout=LOOK_S)
                if ready:
                    break
            else:
                time.sleep(LOOK_S)
        task = self._under_way.pop(ready[0])
        if task.asked:
            return self._answered(task, ready[0])
        self._started(task, ready[0])
        return ()

    def _answered(self, task: _Task, ref: Any) -> Sequence[Batch | str]:
        import ray

        task.hand.busy -= 1
        made = ray.get(ref)
        if not isinstance(made, Made):
            return (made,)
        if made.left:
            self._again.append(made.left)
            if task.engine is task.hand.engine and task.hand.most:
                # Nobody told it to leave; it says itself whether Ray has started it again.
                task.hand.most = 0
                self._expect(task.hand)
        return (made.numbers,) if made.numbers else ()

    def _started(self, task: _Task, ref: Any) -> None:
        import ray
        from ray.exceptions import RayActorError

        if task.engine is not task.hand.engine:
            return
        try:
            task.hand.most = self._held(ray.get(ref))
        except RayActorError as error:
            self._hands.remove(task.hand)
            if not self._hands:
                raise StageError(f"every engine is gone, the last with: {error}") from error
        if self._some_left:
            self._said(self.up, len(self._hands))

    def _heed(self) -> None:
        wish = None if self._room is None else self._room.wish()
        if wish is Wish.LEAVE:
            self._leave()
        elif wish is Wish.STAY and self._start is not None:
            for hand in self._hands:
                if hand.engine is None:
                    hand.engine = self._start()
                    self._expect(hand)

    def _leave(self) -> None:
        """One that is starting, which may hold a place or wait for one before serving does; else one that is
        up."""
        import ray

        there = [hand for hand in self._hands if hand.engine is not None]
        if not there:
            return
        hand = min(reversed(there), key=lambda each: each.most > 0)
        if hand.most and self._room is not None:
            self._room.gave()
        ray.kill(hand.engine)
        hand.engine, hand.most = None, 0
        self._some_left = True
        self._said(self.up, len(self._hands))

    def _expect(self, hand: Hand) -> None:
        """Its first answer tells that it is up."""
        self._under_way[hand.engine.slots.remote()] = _Task(hand, hand.engine, asked=False)
