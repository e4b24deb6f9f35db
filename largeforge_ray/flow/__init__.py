"""Manifest to plan to run.

from largeforge_ray.flow import make_plan, run_plan

plan = make_plan(manifest, store, folder)     # keys, what is cached, resources; starts nothing
result = run_plan(plan, manifest, store, tools=tools)   # on a connected Ray
"""

from __future__ import annotations

from largeforge_ray.flow.context import RunContext, Tools
from largeforge_ray.flow.plan import Plan, PlannedStage, check_resources, make_plan
from largeforge_ray.flow.run import RunResult, run_plan

__all__ = [
    "Plan",
    "PlannedStage",
    "RunContext",
    "RunResult",
    "Tools",
    "check_resources",
    "make_plan",
    "run_plan",
]
