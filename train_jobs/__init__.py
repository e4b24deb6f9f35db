"""The ``largeforge`` command, the farm from Python, and thin entry points for ``ray job submit``.

largeforge run train_jobs/manifests/quickstart.yaml
ray job submit --working-dir . -- python -m train_jobs.run --manifest train_jobs/manifests/quickstart.yaml
"""

from __future__ import annotations

from train_jobs.cli import main
from train_jobs.synthetic import SyntheticDataGenerator

__all__ = ["SyntheticDataGenerator", "main"]
