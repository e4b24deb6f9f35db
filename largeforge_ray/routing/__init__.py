"""Which expert answers a request, and why. Pure: no clock, no Ray, and files only where policies are loaded.

from largeforge_ray.routing import Observation, Policies, parse_router, user_turns

policies = Policies(folder)                   # of a router artifact; its embedding and weights, once
router = parse_router((folder / "router.json").read_bytes())
policy = policies.build(router)               # again in milliseconds when the experts have changed
decision = policy.decide(Observation(request_id, user_turns(messages)), states)
decision.chosen, decision.reason              # an expert's name; "9 of 11 keywords of 'orders'"

territory_keywords(training_prompts)          # what makes a prompt look like the training set
"""

from __future__ import annotations

from largeforge_ray.routing.experts import Expert, Router, parse_router
from largeforge_ray.routing.features import user_turns
from largeforge_ray.routing.policies import Policies, build_policy
from largeforge_ray.routing.policy import Observation
from largeforge_ray.routing.territory import territory_keywords

__all__ = [
    "Expert",
    "Observation",
    "Policies",
    "Router",
    "build_policy",
    "user_turns",
    "parse_router",
    "territory_keywords",
]
