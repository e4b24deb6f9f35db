"""LoRA adapters, Hu et al. 2021 (arXiv:2106.09685): which layers, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import Lora
from largeforge_ray.errors import ModelError

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "query_key_value",
        "c_attn",
        "out_proj",
    ),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2"),
}
HEADS = ("lm_head", "score", "embed_out")
"""Linear layers that ``all-linear`` leaves alone: the engine serves adapters of the layers before them."""


def choose_targets(targets: Iterable[str], linear: Iterable[str]) -> list[str]:
    """Layer names for ``targets``, which may name groups, out of a model's ``linear`` layers' names.

    Raises ``ModelError`` for a target that matches nothing: PEFT accepts a list in which only some
    names match and trains less than was asked for.
    """
    there = sorted(set(linear) - set(HEADS))
    chosen: set[str] = set()
    for target in targets:
        wanted = there if target == "all-linear" else GROUPS.get(target, (target,))
        found = [name for name in there if name in wanted]
        if not found:
            raise ModelError(
                f"lora target '{target}' matches no linear layer; the model has: {', '.join(there)}"
            )
        chosen |= set(found)
    return sorted(chosen)


def linear_names(model: Any) -> list[str]:
    """The last names of a model's linear layers, before there are adapters on them."""
    import torch

    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})


def lora_config(lora: Lora, linear: Iterable[str], task: str = "CAUSAL_LM") -> Any:
    """A PEFT ``LoraConfig`` for a model with these ``linear`` layers."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=choose_targets(lora.targets, linear),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        # A reward model's head is fresh: it is trained and kept with the adapter.
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def save_adapter(model: Any, name: str, weights: dict[str, Any], folder: Path) -> None:
    """Write the adapter ``name`` with ``weights`` (by the model's parameter names) as a PEFT folder.

    This machine's model path stays out of it: lineage names the base.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = model.peft_config[name].to_dict() | {
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    named = get_peft_model_state_dict(model, state_dict=weights, adapter_name=name)
    save_file(
        {n: w.detach().cpu().contiguous().clone() for n, w in named.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
