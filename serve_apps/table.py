"""Who is asked: the experts that are live, and those on trial as if they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from largeforge_ray.routing import Expert, Observation, Policies, Router
from largeforge_ray.routing.cascade import cheap_to_dear
from largeforge_ray.routing.experts import AUTO
from largeforge_ray.routing.policy import ExpertState, Policy
from largeforge_ray.types import Decision

POLICY = "largeforge/"
"""Before the kind of a policy it asks that policy to choose, whatever the router's own is."""
CASCADE = f"{POLICY}cascade"

States = Mapping[str, ExpertState]


class Table:
    """A router's experts at one time, and a policy of each kind over them."""

    def __init__(self, router: Router, policies: Policies) -> None:
        self.router, self._all = router, policies
        self.on_trial = tuple(e for e in router.experts if e.state in ("shadow", "canary"))
        self._policies: dict[str, Policy] = {}
        self._policy(AUTO)  # a table nobody could route by is refused before it is used

    @property
    def names(self) -> list[str]:
        """What a request may name as its model."""
        kinds = [f"{POLICY}{kind}" for kind in self._all.kinds]
        cascade = [CASCADE] if len(self.router.live) > 1 else []
        return [AUTO, *kinds, *cascade, *(expert.name for expert in self.router.live)]

    def decide(self, model: str, seen: Observation, states: States) -> Decision | None:
        """Who answers a request that names ``model``; None if there is no such model."""
        if model == AUTO or (model.removeprefix(POLICY) in self._all.kinds and model.startswith(POLICY)):
            return self._policy(model).decide(seen, states)
        if model == CASCADE:
            first = self.cascade(states)[0]
            return Decision(seen.request_id, "cascade", first.name, "the cheapest is asked first")
        if self.router.expert(model) is None:
            return None
        return Decision(seen.request_id, "pinned", model, "the request names the expert")

    def cascade(self, states: States) -> tuple[Expert, ...]:
        """Who is asked, one after the other; all of them if none is up."""
        order = cheap_to_dear(self.router.live)
        return tuple(e for e in order if states[e.name].up) or order

    def trial(self, decision: Decision, seen: Observation, states: States) -> Expert | None:
        """Who of those on trial would have this request: the next version of who has it, or whom the policy
        would choose if all were live."""
        if not self.on_trial or decision.policy == "cascade":
            return None
        chosen = decision.chosen
        if decision.policy != "pinned":
            chosen = self._as_if_live.decide(seen, states).chosen
        return next((expert for expert in self.on_trial if expert.name == chosen), None)

    @cached_property
    def _as_if_live(self) -> Policy:
        names = {expert.name for expert in self.on_trial}
        usual = [expert for expert in self.router.live if expert.name not in names]
        trying = [replace(expert, state="live") for expert in self.on_trial]
        return self._all.build(Router(self.router.policy, (*usual, *trying)))

    def _policy(self, model: str) -> Policy:
        if model not in self._policies:
            kind = None if model == AUTO else model.removeprefix(POLICY)
            self._policies[model] = self._all.build(self.router, kind)
        return self._policies[model]
