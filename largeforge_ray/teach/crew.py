"""The engines of a farm, which may leave it for a while: what they were at goes to the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.teach.room import LOOK_S, Room

Batch = list[dict[str, Any]]


@dataclass(eq=False)
class Hand:
    """An engine and the asker that works with it, on ``busy`` batches of ``most``; 0 while it is away."""

    asker: Any
    engine: Any
    most: int = 0
    busy: int = 0


class Crew:
    """Hands batches to engines as they are free.

    ``held`` says how many batches an engine of so many slots holds. When ``room`` is wanted, an engine's
    process is ended, and Ray starts it again as soon as there is room; ``said`` is told how many are here.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Any, Any]],
        held: Callable[[int], int],
        room: Room | None,
        said: Callable[[int, int], None],
    ) -> None:
        import ray

        self._hands = [Hand(asker, engine) for asker, engine in pairs]
        self._held, self._room, self._said = held, room, said
        self._under_way: dict[Any, tuple[Hand, Batch | None]] = {}
        self._again: deque[Batch] = deque()
        slots = ray.get([hand.engine.slots.remote() for hand in self._hands])
        for hand, number in zip(self._hands, slots, strict=True):
            hand.most = held(number)

    @property
    def here(self) -> int:
        """How many engines can be asked."""
        return sum(hand.most > 0 for hand in self._hands)

    def ask(self, batches: Iterable[Batch], recipe: Any) -> Iterator[Any]:
        """What an asker returns of each batch, in the order they are finished."""
        for batch in batches:
            yield from self._give(batch, recipe)
        while self._again or any(hand.busy for hand in self._hands):
            if self._again:
                yield from self._give(self._again.popleft(), recipe)
            else:
                yield from self._next()

    def _give(self, batch: Batch, recipe: Any) -> Iterator[Any]:
        while not (free := [hand for hand in self._hands if hand.busy < hand.most]):
            yield from self._next()
        # The emptiest: few batches are spread over all engines.
        hand = min(free, key=lambda each: each.busy / each.most)
        hand.busy += 1
        self._under_way[hand.asker.ask.remote(batch, recipe, hand.engine)] = hand, batch

    def _next(self) -> Sequence[Any]:
        """Wait until something ends: a batch, which is returned, or an engine's absence."""
        import ray
        from ray.exceptions import TaskCancelledError

        while True:
            if self._room is not None and self._room.wanted():
                self._make_room()
            ready, _ = ray.wait(list(self._under_way), timeout=LOOK_S)
            if ready:
                break
        hand, batch = self._under_way.pop(ready[0])
        if batch is None:
            hand.most = self._held(ray.get(ready[0]))
            if self.here == len(self._hands):
                self._said(self.here, len(self._hands))
            return ()
        hand.busy -= 1
        try:
            return (ray.get(ready[0]),)
        except TaskCancelledError:
            self._again.append(batch)
            return ()

    def _make_room(self) -> None:
        import ray

        # The last that came, and so the least of what engines keep of earlier prompts is lost.
        hand = next((each for each in reversed(self._hands) if each.most), None)
        if hand is None:
            return
        hand.most = 0
        ray.kill(hand.engine, no_restart=False)
        for ref, (whose, batch) in self._under_way.items():
            if whose is hand and batch is not None:
                ray.cancel(ref)
        # Answered by the process that Ray starts in its place.
        self._under_way[hand.engine.slots.remote()] = hand, None
        self._said(self.here, len(self._hands))
