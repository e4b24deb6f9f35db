"""The routed system on one outcome matrix: every policy replayed without inference, the live app beside it.

found = replay_policies(matrix, router, Policies(folder))
live = asyncio.run(ask_live(url, items, expected=chosen_of(matrix, policy)))
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.bootstrap import Interval, interval
from largeforge_ray.evaluate.calibration import calibrate
from largeforge_ray.evaluate.matrix import Matrix
from largeforge_ray.evaluate.replay import Replayed, baselines, choose, decide_all, replay
from largeforge_ray.evaluate.scoring import judge
from largeforge_ray.routing.experts import Router
from largeforge_ray.routing.policies import Policies
from largeforge_ray.types import Generation

AT_ONCE = 4
EXPERT_HEADER = "x-largeforge-expert"


@dataclass(frozen=True, slots=True)
class Routed:
    """A policy on the matrix; ``ece`` is how far its confidence lies from the quality it gets, None for a
    baseline, which has none."""

    replayed: Replayed
    ece: float | None


@dataclass(frozen=True, slots=True)
class Live:
    """What the served app made of the same items: mean quality, the share of items given to the expert that
    the replay chose, and the replay's own mean quality.

    ``error`` is that of the first that ``failed``.
    """

    quality: Interval
    same_expert: float
    replayed: Interval
    failed: int
    error: str | None = None


def replay_policies(
    matrix: Matrix, router: Router, policies: Policies, *, confidence: float = 0.95, seed: int = 0
) -> dict[str, Routed]:
    """Every kind of policy that ``policies`` has files for, then the baselines and the oracle.

    Items of the matrix without an answer of some expert of the router are left out. Raises ``DataError`` if
    none is left, or an expert of the router is in no column.
    """
    import numpy as np

    matrix = of_router(matrix, router)
    found = {}
    for kind in policies.kinds:
        chosen_N, sure_N = decide_all(policies.build(router, kind), matrix)
        made = replay(matrix, choose(matrix, chosen_N), confidence=confidence, seed=seed)
        quality_N = matrix.quality_NE[np.arange(len(chosen_N)), chosen_N]
        found[kind] = Routed(made, calibrate(sure_N, quality_N)["ece"])
    folds_N = np.random.default_rng(seed).permutation(len(matrix.items)) % 2
    alone = {f"all to {name}": choose(matrix, e) for e, name in enumerate(matrix.experts)}
    for name, shares_NE in (alone | baselines(matrix, folds_N)).items():
        found[name] = Routed(replay(matrix, shares_NE, confidence=confidence, seed=seed), None)
    return found


def of_router(matrix: Matrix, router: Router) -> Matrix:
    """The columns of a router's experts, and the items that all of them answered."""
    columns = [matrix.expert(expert.name) for expert in router.live]
    kept = matrix.columns(columns).complete()
    if not kept.items:
        raise DataError("no item was answered by every expert of the router; evaluate them in one stage")
    return kept


async def ask_live(
    url: str,
    items: Sequence[Mapping[str, Any]],
    matrix: Matrix,
    chosen_N: Any,
    *,
    api_key: str = "none",
    confidence: float = 0.95,
    seed: int = 0,
) -> Live:
    """Let the app at ``url`` (up to and with /v1) route and answer ``items`` of the matrix, greedily.

    ``chosen_N`` are the columns that its policy chose in the replay.
    """
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key=api_key, max_retries=2)
    turn = asyncio.Semaphore(AT_ONCE)
    place = {digest: n for n, digest in enumerate(matrix.items)}

    async def ask(each: Mapping[str, Any]) -> _Answered:
        async with turn:
            return await _ask(client, each)

    try:
        made = await asyncio.gather(*(ask(each) for each in items))
    finally:
        await client.close()
    at = [place[each["item_hash"]] for each in items]
    expected = [matrix.experts[chosen_N[n]] for n in at]
    same = [one.expert == meant for one, meant in zip(made, expected, strict=True)]
    replayed = [float(matrix.quality_NE[n, chosen_N[n]]) for n in at]
    return Live(
        quality=interval([[one.quality for one in made]], confidence=confidence, seed=seed),
        same_expert=sum(same) / len(same),
        replayed=interval([replayed], confidence=confidence, seed=seed),
        failed=sum(one.error is not None for one in made),
        error=next((one.error for one in made if one.error is not None), None),
    )


@dataclass(frozen=True, slots=True)
class _Answered:
    """Who answered and how good it was, or why nobody did."""

    expert: str | None
    quality: float
    error: str | None = None


async def _ask(client: Any, each: Mapping[str, Any]) -> _Answered:
    from openai import OpenAIError

    try:
        reply = await client.chat.completions.with_raw_response.create(
            model="auto",
            messages=each["messages"],
            temperature=0,
            max_tokens=each["max_tokens"],
            stop=each["stop"] or None,
        )
    except OpenAIError as error:
        return _Answered(None, 0.0, str(error))
    text = reply.parse().choices[0].message.content or ""
    judged = await asyncio.to_thread(judge, dict(each), Generation("live", text))
    return _Answered(reply.headers.get(EXPERT_HEADER), judged.quality)
