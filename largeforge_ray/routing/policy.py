"""Policies: ``decide(observation) -> Decision``, without clock, I/O or state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from largeforge_ray.errors import ConfigError
from largeforge_ray.routing.experts import Expert, Router
from largeforge_ray.routing.features import words
from largeforge_ray.types import Decision

SUPPORTED = ("keyword",)


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known when a request arrives. ``text`` is the last user turn."""

    request_id: str
    text: str


class Policy(Protocol):
    """Chooses one of the live experts it was built with."""

    def decide(self, observation: Observation) -> Decision: ...


def build_policy(router: Router) -> Policy:
    """The policy a router asks for. Raises ``ConfigError`` for a kind that does not exist."""
    if router.policy.kind == "keyword":
        return KeywordPolicy(router.live, router.policy.fallback, router.policy.threshold)
    raise ConfigError(f"policy kind '{router.policy.kind}' is unknown. Supported: {list(SUPPORTED)}")


class KeywordPolicy:
    """The expert whose territory's keywords the request covers best.

    The score is the weight of the keywords found over the weight of them all. The request goes to
    ``fallback`` when no score reaches ``threshold``; equal scores go to the cheaper expert, then to the
    alphabet, so the choice depends on no order.
    """

    def __init__(self, experts: tuple[Expert, ...], fallback: str, threshold: float) -> None:
        self._fallback = fallback
        self._threshold = threshold
        self._experts = tuple(sorted(experts, key=_by_price))
        # Folded once here, because keywords are compared with folded words on every request.
        self._keywords = {expert.name: _folded(expert.territory.keywords) for expert in experts}

    def decide(self, observation: Observation) -> Decision:
        found = words(observation.text)
        scores = {e.name: _coverage(self._keywords[e.name], found) for e in self._experts}
        ranked = sorted(scores, key=lambda name: -scores[name])  # stable: ties keep the cheaper first
        best = ranked[0]
        fell_back = scores[best] < self._threshold or scores[best] == 0.0
        chosen = self._fallback if fell_back else best
        others = [name for name in ranked if name != chosen]
        return Decision(
            request_id=observation.request_id,
            policy="keyword",
            chosen=chosen,
            reason=self._reason(best, scores[best], found, fell_back),
            runner_up=others[0] if others else None,
            scores=scores,
            confidence=round(1.0 - scores[best], 4) if fell_back else scores[best],
            fell_back=fell_back,
        )

    def _reason(self, best: str, score: float, found: frozenset[str], fell_back: bool) -> str:
        # Counts only: the words themselves would carry a piece of the prompt into logs and headers.
        keywords = self._keywords[best]
        covered = f"{len(keywords.keys() & found)} of {len(keywords)} keywords of '{best}'"
        if not keywords or score == 0.0:
            return "no keyword of any expert found"
        return f"{covered}, below threshold {self._threshold:g}" if fell_back else covered


def _by_price(expert: Expert) -> tuple[float, str]:
    return (expert.price.per_1k_prompt + expert.price.per_1k_completion, expert.name)


def _folded(keywords: dict[str, float]) -> dict[str, float]:
    """Keywords as ``words`` would find them. A phrase counts as its words, each with the phrase's weight."""
    return {word: weight for keyword, weight in keywords.items() for word in words(keyword) if weight > 0}


def _coverage(keywords: dict[str, float], found: frozenset[str]) -> float:
    total = sum(keywords.values())
    return round(sum(w for word, w in keywords.items() if word in found) / total, 4) if total else 0.0
