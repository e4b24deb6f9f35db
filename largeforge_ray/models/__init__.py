"""Where weights come from, and the engine that runs them.

from largeforge_ray.models import locate, materialise

source = locate(manifest.model)          # identity only: nothing is read into memory
source.identity                          # goes into the model artifact's key
materialise(source, folder)              # config.json, tokenizer and safetensors in ``folder``
"""

from __future__ import annotations

from largeforge_ray.models.engine import Engine
from largeforge_ray.models.hardware import Hardware, detect, engine_args, engine_env
from largeforge_ray.models.source import ModelSource, locate, materialise

__all__ = [
    "Engine",
    "Hardware",
    "ModelSource",
    "detect",
    "engine_args",
    "engine_env",
    "locate",
    "materialise",
]
