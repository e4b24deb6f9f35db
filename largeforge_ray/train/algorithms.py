"""Which objective an algorithm's configuration stands for."""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.distill import DistillObjective
from largeforge_ray.train.dpo import DpoObjective
from largeforge_ray.train.features import FeaturesObjective
from largeforge_ray.train.grpo import GrpoObjective
from largeforge_ray.train.kto import KtoObjective
from largeforge_ray.train.objective import Objective
from largeforge_ray.train.on_policy import OnPolicyObjective
from largeforge_ray.train.orpo import OrpoObjective
from largeforge_ray.train.rationale import RationaleObjective
from largeforge_ray.train.reward import RewardObjective
from largeforge_ray.train.sft import SftObjective
from largeforge_ray.train.simpo import SimpoObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SftObjective,
    "distill": DistillObjective,
    "features": FeaturesObjective,
    "rationale": RationaleObjective,
    "dpo": DpoObjective,
    "orpo": OrpoObjective,
    "kto": KtoObjective,
    "simpo": SimpoObjective,
    "reward": RewardObjective,
    "grpo": GrpoObjective,
    "on_policy": OnPolicyObjective,
}


def objective_for(algorithm: Any) -> Objective:
    """The objective of an algorithm's configuration."""
    return OBJECTIVES[algorithm.name](algorithm)
