"""How long a request would wait for an expert."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """An engine's work: requests ``given`` to it and not ended, of which it works on ``slots`` at once for
    ``seconds`` each; ``load_s`` is what an adapter that is not in it takes to load."""

    given: int
    slots: int
    seconds: float
    load_s: float = 0.0


def predicted_wait_s(load: Load) -> float:
    """Until as many requests have ended as stand before a new one: ``slots`` of them end in ``seconds``."""
    before = max(0, load.given + 1 - load.slots)
    return load.load_s + before * load.seconds / load.slots
