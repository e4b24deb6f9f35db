"""Whether speculation pays: a draft token's acceptance rate against its price.

A step that verifies drafts takes longer than a plain one. The price is by how much: plain steps for each
drafted token of each running request. A step of R requests that verifies d drafted tokens yields
``R + rate * d`` tokens in ``1 + price * d / R`` plain steps, where a plain one yields R, so speculation pays
exactly while ``rate > price``. The rate belongs to who is asked, the price to the machine and the batch size.

Nothing here reads a clock or knows an engine.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

logger = logging.getLogger(__name__)

BASELINE_STEPS = 4
"""Plain steps of a batch size before a price can be told."""
TRIAL_STEPS = 4
"""Fewest steps that speculation stays on once it is, or one slow step would end it."""
MARGIN = 1.25
"""It is switched on at ``MARGIN`` times the price, and off at the price."""
FORGET = 0.5 ** (1 / 512)
"""By which a price shrinks in a plain step, so that what cost too much is tried again: half of it in 512."""
LEAST_RATE = 0.02
"""A rate is taken for at least this, or a draft that once failed would never be tried again."""
STEP_WEIGHT, PRICE_MEMORY, RATE_MEMORY = 0.2, 0.8, 0.97
HIGHEST_PRICE = 2.0
"""What makes a step longer than this is not the drafts in it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a batch size's steps take: ``plain_s`` seconds, and ``excess / drafted`` more for a token.

    At first a token is taken to be cheap.
    """

    plain_s: float = 0.0
    plain_steps: int = 0
    excess: float = 0.05
    drafted: float = 1.0

    @property
    def price(self) -> float:
        """Infinite as long as there is nothing to compare with."""
        return self.excess / self.drafted if self.plain_steps >= BASELINE_STEPS else math.inf

    def after(self, requests: int, drafted: int, seconds: float) -> Pace:
        """One more step of ``requests`` that verified ``drafted`` tokens."""
        if drafted == 0:
            seen = min(seconds, 2 * self.plain_s) if self.plain_steps else seconds
            weight = max(STEP_WEIGHT, 1 / (self.plain_steps + 1))
            return replace(
                self,
                plain_s=self.plain_s + weight * (seen - self.plain_s),
                plain_steps=self.plain_steps + 1,
                excess=self.excess * FORGET,
            )
        if not self.plain_steps:
            return self
        paid = requests * (seconds / self.plain_s - 1)
        excess = PRICE_MEMORY * self.excess + min(paid, HIGHEST_PRICE * drafted)
        return replace(self, excess=max(0.0, excess), drafted=PRICE_MEMORY * self.drafted + drafted)


@dataclass(frozen=True, slots=True)
class Speculating:
    """Whether one expert's requests speculate, and how many of its drafted tokens were right of late.

    ``steps`` since it was switched.
    """

    on: bool = False
    accepted: float = 4.0
    drafted: float = 8.0
    steps: int = 0
    switches: int = 0

    @property
    def rate(self) -> float:
        """The acceptance rate."""
        return max(LEAST_RATE, self.accepted / self.drafted)

    def after(self, drafted: int, accepted: int) -> Speculating:
        """One more draft."""
        return replace(
            self,
            accepted=RATE_MEMORY * self.accepted + accepted,
            drafted=RATE_MEMORY * self.drafted + drafted,
        )


def decide(state: Speculating, price: float) -> Speculating:
    """The state for the next step, at this price."""
    if state.on:
        stays = state.rate >= price or (state.steps < TRIAL_STEPS and price < math.inf)
    else:
        stays = state.rate <= MARGIN * price
    if stays:
        return replace(state, steps=state.steps + 1)
    return replace(state, on=not state.on, steps=0, switches=state.switches + 1)


def size_class(requests: int) -> int:
    """Batch sizes whose plain steps take nearly as long have one class: a fifth apart, from 4 on."""
    return round(4 * math.log2(requests))


@dataclass(slots=True)
class Controller:
    """The states of one engine: a pace for each size class, and whether each expert speculates."""

    paces: dict[int, Pace] = field(default_factory=dict)
    experts: dict[str, Speculating] = field(default_factory=dict)

    def see_step(self, requests: int, drafted: int, seconds: float) -> None:
        """A step in which every request decoded; prefills have other lengths."""
        size = size_class(requests)
        self.paces[size] = self.paces.get(size, Pace()).after(requests, drafted, seconds)

    def see_draft(self, expert: str, drafted: int, accepted: int) -> None:
        """A draft of an expert's, verified or only watched."""
        self.experts[expert] = self.experts.get(expert, Speculating()).after(drafted, accepted)

    def settle(self, requests: int) -> None:
        """Decide for every expert, at the price of the present batch size."""
        price = self.paces.get(size_class(requests), Pace()).price
        for name, state in self.experts.items():
            self.experts[name] = after = decide(state, price)
            if after.on != state.on:
                logger.info(
                    "speculation %s for expert=%s rate=%.2f price=%.2f requests=%d",
                    *("on" if after.on else "off", name or "base", after.rate, price, requests),
                )

    def speculates(self, expert: str) -> bool:
        """Whether the drafts for an expert's requests are to be verified; one that is new waits a step."""
        return self.experts.setdefault(expert, Speculating()).on
