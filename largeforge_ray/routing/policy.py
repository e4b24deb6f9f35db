"""Policies: ``decide(observation, states) -> Decision``, without clock, I/O or state.

A scorer says how good each expert would be for a text; one rule, the same for every policy, makes a decision
of it: the expert with the most ``quality - cost_weight * price - wait_weight * predicted wait`` of those that
are up and reach the threshold. The general expert, ``fallback``, is worth the threshold for whatever it is
not scored higher for, so a specialist that is dear or busy loses to it before it loses to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from largeforge_ray.routing.experts import Expert, PolicyConfig
from largeforge_ray.types import Decision

MOST_TURNS = 16
"""Of a conversation: who has not found its expert by then is asked about its last turn."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known when a request arrives: the user's turns, the last one at the end."""

    request_id: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpertState:
    """What is known of an expert: whether requests should go to it, and how long one would wait."""

    up: bool = True
    wait_s: float = 0.0


Scored = tuple[dict[str, float], Callable[[str], str]]
"""0..1 for every expert, and what an expert's score stands on, without a word of the text."""


class Scorer(Protocol):
    """How good each expert would be."""

    name: str

    def score(self, text: str) -> Scored:
        """Of one turn."""


class Policy:
    """Chooses one of the live experts of a router."""

    def __init__(self, config: PolicyConfig, experts: tuple[Expert, ...], scorer: Scorer) -> None:
        self.config, self.scorer = config, scorer
        # The cheaper one comes first, then the alphabet, so that the choice depends on no order.
        prices = ((expert.name, expert.price.per_1k_tokens) for expert in experts)
        self._prices = dict(sorted(prices, key=lambda each: (each[1], each[0])))

    def decide(self, observation: Observation, states: Mapping[str, ExpertState] | None = None) -> Decision:
        """Experts that ``states`` does not mention are up and idle.

        A conversation stays with the expert of its first turn that has one, so that what the engine has
        computed of it is of use; ``sticky: false`` goes by the last turn alone.
        """
        request_id, states = observation.request_id, states or {}
        *earlier, last = observation.turns or ("",)
        for text in earlier[:MOST_TURNS] if self.config.sticky else ():
            scored = self.scorer.score(text)
            if max(scored[0].values()) < self.config.threshold:
                continue  # it would fall back
            decision = self._decide(request_id, scored, states)
            if not decision.fell_back:
                return replace(decision, reason=f"{decision.reason}, in an earlier turn")
        return self._decide(request_id, self.scorer.score(last), states)

    def _decide(self, request_id: str, scored: Scored, states: Mapping[str, ExpertState]) -> Decision:
        config, (scores, why) = self.config, scored
        ranked = sorted(self._prices, key=lambda name: -scores[name])  # stable: ties keep the cheaper first
        best = ranked[0]
        fits = [n for n in ranked if n != config.fallback and scores[n] > 0 and scores[n] >= config.threshold]
        open_to = [n for n in fits if states.get(n, ExpertState()).up]
        worth = {n: self._worth(n, scores, states) for n in (*open_to, config.fallback)}
        chosen = max(worth, key=worth.__getitem__)
        fell_back = chosen == config.fallback and (best != chosen or scores[best] < config.threshold)
        others = [name for name in ranked if name != chosen]
        return Decision(
            request_id=request_id,
            policy=self.scorer.name,
            chosen=chosen,
            reason=self._reason(why(best), best, scores[best], chosen, open_to),
            runner_up=others[0] if others else None,
            scores=scores,
            confidence=round(1.0 - scores[best], 4) if fell_back else scores[chosen],
            predicted_wait_s=states[chosen].wait_s if chosen in states else None,
            fell_back=fell_back,
        )

    def _worth(self, name: str, scores: Mapping[str, float], states: Mapping[str, ExpertState]) -> float:
        config, state = self.config, states.get(name, ExpertState())
        quality = max(scores[name], config.threshold) if name == config.fallback else scores[name]
        return quality - config.cost_weight * self._prices[name] - config.wait_weight * state.wait_s

    def _reason(self, why: str, best: str, score: float, chosen: str, open_to: list[str]) -> str:
        if score == 0.0:
            return f"by {self.scorer.name} no expert scores above 0"
        if chosen == best:
            return why
        if score < self.config.threshold:
            return f"{why}, below threshold {self.config.threshold:g}"
        return f"{why}, dearer or busier" if best in open_to else f"{why}, which is down"
