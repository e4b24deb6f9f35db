"""largeforge: from prompts to a served mixture of experts on Ray, with a record of how each came to be.

from largeforge_ray.config import load_manifest
from largeforge_ray.flow import make_plan, run_plan
from largeforge_ray.store import open_store

manifest, store = load_manifest("manifest.yaml"), open_store("./forge")
plan = make_plan(manifest, store, folder)          # keys and what is cached; starts nothing
run_plan(plan, manifest, store, tools=tools)       # on a connected Ray; ``train_jobs`` shows the tools
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
