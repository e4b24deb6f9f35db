"""LoRA adapters: Hu et al. 2021, arXiv:2106.09685."""

from __future__ import annotations

from typing import Any

from largeforge_ray.config.stages import Lora
from largeforge_ray.errors import ModelError


def lora_config(lora: Lora, model: Any) -> Any:
    """A PEFT ``LoraConfig`` for ``model``.

    Raises ``ModelError`` if a target names no linear layer of the model: PEFT accepts a list in
    which only some names match and trains less than was asked for.
    """
    import torch
    from peft import LoraConfig

    linear = sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    absent = [t for t in lora.targets if t not in linear]
    if absent:
        raise ModelError(
            f"lora target '{absent[0]}' matches no linear layer; the model has: {', '.join(linear)}"
        )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
