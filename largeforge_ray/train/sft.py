"""Supervised fine-tuning on assistant tokens, with TRL's ``SFTTrainer`` (read in TRL 1.16.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from largeforge_ray.data.chat import render_chat
from largeforge_ray.data.rows import read_rows
from largeforge_ray.errors import DataError
from largeforge_ray.train.lora import lora_config


def build_dataset(data: Path, tokenizer: Any, max_tokens: int) -> Any:
    """Tokenised rows with labels. Raises ``DataError`` if every row is longer than ``max_tokens``."""
    from datasets import Dataset

    rendered = [
        render_chat(tokenizer, row["messages"], max_tokens=max_tokens) for row in read_rows(data, "train")
    ]
    kept = [r for r in rendered if r is not None]
    if not kept:
        raise DataError(
            f"all {len(rendered)} rows are longer than max_tokens {max_tokens}; "
            "raise max_tokens or shorten the rows"
        )
    return Dataset.from_list(kept)


def build_sft_trainer(
    stage: Any, model: Any, tokenizer: Any, data: Path, arguments: dict[str, Any], callbacks: list[Any]
) -> Any:
    """TRL's trainer over our own token ids and labels, so that the loss mask is ours to prove."""
    from trl import SFTConfig, SFTTrainer

    dataset = build_dataset(data, tokenizer, stage.max_tokens)
    config = SFTConfig(
        **arguments,
        max_length=stage.max_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(stage.lora, model),
        callbacks=callbacks,
    )
