"""What an endpoint has cost, and what its requests under way may still cost, in US dollars."""

from __future__ import annotations

import math

from largeforge_ray.config.teaching import Price


def cost_usd(price: Price | None, prompt_tokens: int, completion_tokens: int) -> float:
    """0 without a price."""
    if price is None:
        return 0.0
    return (prompt_tokens * price.per_1k_prompt + completion_tokens * price.per_1k_completion) / 1000


class Spend:
    """A ledger under a cap, which is None for none: spent and held together never exceed it."""

    def __init__(self, max_usd: float | None, spent_usd: float) -> None:
        self.spent_usd = spent_usd
        self._max_usd = math.inf if max_usd is None else max_usd
        self._held: list[float] = []

    @property
    def is_pending(self) -> bool:
        """Whether anything is held, of which some may come back."""
        return bool(self._held)

    def hold(self, amounts: list[float]) -> bool:
        """Set the most that each of some requests can cost aside, for all or for none of them."""
        fits = math.fsum([self.spent_usd, *self._held, *amounts]) <= self._max_usd
        if fits:
            self._held += amounts
        return fits

    def settle(self, held: float, usd: float) -> None:
        """What was held for one request is free again, and ``usd`` of it is spent."""
        self._held.remove(held)
        self.spent_usd += usd
