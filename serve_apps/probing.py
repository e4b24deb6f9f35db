"""The probe of an adapter in the engine that is to serve it, while that engine serves others."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from largeforge_ray.errors import GateError
from largeforge_ray.promote import judge_logits

PROBE_FILE = "probe.json"
SEQUENCES, PLACES, TOKENS = 2, 3, 64
"""Places of the second half of a few beginnings: with an adapter a CPU computes 150 tokens a second, and
what a probe computes, the engine's other requests wait for."""
ANSWER_TOKENS = 6
LEAST_TOLERANCE = 0.1
"""Of means over so few tokens."""


class Scores(Protocol):
    """What the probe asks of an engine. Raises ``ValueError`` for what the engine refuses."""

    async def log_probability(self, ids: list[int], token: int, adapter: str | None) -> float:
        """Of ``token`` after ``ids``."""

    async def greedy(self, ids: list[int], adapter: str | None, tokens: int) -> str:
        """What the engine says after ``ids``."""


async def probe(engine: Scores, adapter: str, folder: Path) -> dict[str, Any]:
    """Compare the loaded ``adapter`` with what PEFT computed of it, in ``folder``.

    One request for each place: the log-probabilities of a whole prompt, which would be one request for all,
    kill vLLM's CPU engine when others are being answered. Returns sequences, tokens, by token effect, error
    and noise, and a greedy answer. Raises ``GateError`` if the engine
    computes something else than was trained.
    """
    reference = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
    sequences: list[list[int]] = [ids[:TOKENS] for ids in reference["ids"][:SEQUENCES]]
    places = [_places(len(ids)) for ids in sequences]
    known = {
        name: [[values[p - 1] for p in at] for values, at in zip(reference[name], places, strict=False)]
        for name in ("base", "adapted")
    }

    async def measured(name: str | None) -> list[list[float]]:
        return list(
            await asyncio.gather(
                *(_along(engine, i, at, name) for i, at in zip(sequences, places, strict=True))
            )
        )

    try:
        base, adapted, answer = await asyncio.gather(
            measured(None),
            measured(adapter),
            engine.greedy(sequences[0][: places[0][0]], adapter, ANSWER_TOKENS),
        )
    except ValueError as error:
        raise GateError(f"the engine cannot compute the adapter's probe: {error}") from None
    judged = judge_logits(known, base, adapted, least_tolerance=LEAST_TOLERANCE)
    return asdict(judged) | {"answer": answer}


async def _along(engine: Scores, ids: list[int], places: list[int], adapter: str | None) -> list[float]:
    # One after the other, so that a probe takes few of the engine's slots.
    return [await engine.log_probability(ids[:p], ids[p], adapter) for p in places]


def _places(length: int) -> list[int]:
    """Up to ``PLACES`` places of the second half, the last among them."""
    half = length // 2
    return sorted({max(1, half + round((i + 1) * (length - 1 - half) / PLACES)) for i in range(PLACES)})
