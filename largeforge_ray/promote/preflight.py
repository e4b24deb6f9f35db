"""Checks on an adapter before any engine is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import PromoteStage
from largeforge_ray.config.training import Training
from largeforge_ray.errors import ConfigError, ModelError


def check_settings(promote: PromoteStage, train: Training) -> None:
    """At plan time: will what is about to be trained fit this router's engine? Raises ``ConfigError``."""
    check_servable(train)
    if train.largest_rank > promote.max_lora_rank:
        raise ConfigError(
            f"rank {train.largest_rank} of stage '{train.name}' exceeds max_lora_rank "
            f"{promote.max_lora_rank} of "
            f"'{promote.name}'; raise max_lora_rank or lower lora.rank"
        )


def check_servable(train: Training) -> None:
    """At plan time: can the engine load what this stage makes? Raises ``ConfigError``."""
    if train.algorithm.name == "reward":
        raise ConfigError(
            f"stage '{train.name}' makes a reward model, which scores answers and gives none; "
            "name a stage of another algorithm"
        )
    if train.lora.dora:
        raise ConfigError(
            f"stage '{train.name}' has lora.dora: true, and the engine loads no DoRA adapters; "
            "set lora.dora: false"
        )


def check_adapter(folder: Path, *, max_lora_rank: int) -> dict[str, Any]:
    """Read an adapter's config and weights' header. Raises ``ModelError`` if it cannot be served."""
    from safetensors import SafetensorError, safe_open

    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"adapter {folder.name} has no readable adapter_config.json: {error}; train it again"
        ) from None
    rank = config.get("r") if isinstance(config, dict) else None
    if not isinstance(rank, int) or not 1 <= rank <= max_lora_rank:
        raise ModelError(
            f"adapter {folder.name} has rank {rank}, outside 1..{max_lora_rank}; raise max_lora_rank"
        )
    if config.get("modules_to_save"):
        raise ModelError(
            f"adapter {folder.name} replaces whole modules {config['modules_to_save']}; "
            "the engine loads LoRA weights only"
        )
    try:
        with safe_open(str(folder / "adapter_model.safetensors"), framework="numpy") as weights:
            names = list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter {folder.name} has no readable weights: {error}; train it again") from None
    if not any(".lora_A." in n for n in names) or not any(".lora_B." in n for n in names):
        raise ModelError(f"adapter {folder.name} holds no LoRA pairs; train it again")
    return config
