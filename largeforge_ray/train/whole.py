"""A whole trained model as a folder that transformers and the engine read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from largeforge_ray.models.source import PICKLE_SUFFIXES
from largeforge_ray.store.artifact import RECORD


def save_model(bench: Any, weights: dict[str, Any], folder: Path) -> None:
    """Write ``weights`` (whole, by the model's parameter names) in the model's precision, with its config
    and the base's tokenizer and chat template."""
    from huggingface_hub import save_torch_state_dict

    model = bench.model
    # Weights that are one under two names are one parameter, and the config says that they are tied.
    whole = {n: w.to(model.dtype, copy=True) for n, w in weights.items()}
    save_torch_state_dict(whole, folder, metadata={"format": "pt"})
    copy_beside_weights(Path(bench.model_dir), folder)
    config = model.config.to_dict() | {"architectures": [type(model).__name__.removeprefix("FSDP")]}
    type(model.config).from_dict(config).save_pretrained(folder)


def copy_beside_weights(base: Path, target: Path) -> None:
    """The base's files other than its weights and its record in the store."""
    for file in base.iterdir():
        weights = file.suffix in (".safetensors", *PICKLE_SUFFIXES) or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name != RECORD:
            shutil.copyfile(file, target / file.name)
