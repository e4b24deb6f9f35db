"""Checks on an adapter before any engine is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from largeforge_ray.config.stages import PromoteStage
from largeforge_ray.config.training import Training
from largeforge_ray.errors import ConfigError, ModelError
from largeforge_ray.train.lora import HEADS

ENDS = (*HEADS, "embed_tokens")
"""What lies before and after a model's layers. Adapters of it are not trained here."""
IGNORED = ("bias", "alpha_pattern", "rank_pattern", "layer_replication")
"""Settings of PEFT that change what an adapter computes and that vLLM 0.29.0 refuses or does not read."""


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
    if reason := why_not_servable(train):
        raise ConfigError(f"stage '{train.name}' {reason}")


def why_not_servable(train: Training) -> str | None:
    """Why the engine cannot load what the stage makes as an adapter, and what to do; None if it can."""
    if train.algorithm.name == "reward":
        return "makes a reward model, which scores answers and gives none; name a stage of another algorithm"
    if train.lora is None:
        return "has lora: null and makes a whole model, no adapter of the base; give it lora settings"
    if train.lora.dora:
        return "has lora.dora: true, and the engine loads no DoRA adapters; set lora.dora: false"
    if ends := sorted(set(train.lora.targets) & set(ENDS)):
        return (
            f"has lora.targets {', '.join(ends)}, which are no layers between the embedding and the head; "
            "leave them out"
        )
    return None


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
    if config.get("use_dora"):
        raise ModelError(
            f"adapter {folder.name} is a DoRA adapter, which the engine loads none of; train it "
            "with lora.dora: false"
        )
    if unread := [k for k in IGNORED if config.get(k) not in (None, "none", {}, [])]:
        raise ModelError(
            f"adapter {folder.name} sets {', '.join(unread)}, which the engine does not follow; "
            "train it again without"
        )
    try:
        with safe_open(str(folder / "adapter_model.safetensors"), framework="numpy") as weights:
            names = list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter {folder.name} has no readable weights: {error}; train it again") from None
    if not any(".lora_A." in n for n in names) or not any(".lora_B." in n for n in names):
        raise ModelError(f"adapter {folder.name} holds no LoRA pairs; train it again")
    return config
