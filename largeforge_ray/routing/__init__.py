"""Which expert answers a request, and why. Pure: no clock, no I/O, no Ray.

from largeforge_ray.routing import Observation, build_policy, parse_router

router = parse_router((folder / "router.json").read_bytes())
decision = build_policy(router).decide(Observation(request_id, user_turns(messages)), states)
decision.chosen, decision.reason              # an expert's name; "9 of 11 keywords of 'orders'"

territory_keywords(training_prompts)          # what makes a prompt look like the training set
"""

from __future__ import annotations

from largeforge_ray.routing.experts import Expert, Router, model_groups, parse_router
from largeforge_ray.routing.features import user_turns
from largeforge_ray.routing.policy import Observation, build_policy
from largeforge_ray.routing.territory import territory_keywords

__all__ = [
    "Expert",
    "Observation",
    "Router",
    "build_policy",
    "user_turns",
    "model_groups",
    "parse_router",
    "territory_keywords",
]
