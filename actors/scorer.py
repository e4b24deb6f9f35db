"""A model that compares continuations, as an actor: what is asked while it computes goes together next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from actors.engine import model_actor
from largeforge_ray.models.hardware import detect, give_way, threads_per_worker
from largeforge_ray.models.likelihood import Likelihood
from largeforge_ray.models.room import Place
from largeforge_ray.types import ChoiceRequest, ChoiceScores

SLOTS = 64
"""Requests asked at once: of more of them more begins alike, and what is finished is kept later."""
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}


class ScorerActor:
    """One model in its own process, asked as an engine is."""

    def __init__(self, model_dir: str, max_model_len: int) -> None:
        import torch

        give_way()
        started = time.monotonic()
        device = detect().device
        if device == "cpu":
            # Ray leaves a worker as many threads as it has logical CPUs.
            torch.set_num_threads(threads_per_worker(1))
        self._likelihood = Likelihood(
            model_dir, max_model_len=max_model_len, device=device, dtype=PRECISION[device]
        )
        self._start_seconds = time.monotonic() - started
        self._next: list[ChoiceRequest] = []
        self._turn = asyncio.Lock()

    async def start_seconds(self) -> float:
        return self._start_seconds

    async def slots(self) -> int:
        return SLOTS

    async def generate(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceScores]:
        """Score all requests, in their order, together with what others ask until it is their turn."""
        start = len(self._next)
        self._next.extend(requests)
        if start == 0:
            self._scored = asyncio.create_task(self._score_next())
        # A caller that leaves must not take its neighbours along.
        scores = await asyncio.shield(self._scored)
        return scores[start : start + len(requests)]

    async def _score_next(self) -> list[ChoiceScores]:
        async with self._turn:
            requests, self._next = self._next, []
            return await asyncio.to_thread(self._likelihood.score, requests)

    async def stop(self) -> None:
        """What is being computed is waited for."""
        async with self._turn:
            pass


def start_scorer(model_dir: str, *, max_model_len: int, place: Place | None = None) -> Any:
    """Start a scorer actor and return its handle at once; the first call waits for the model."""
    return model_actor(ScorerActor, place).remote(model_dir, max_model_len)
