"""Simple preference optimisation as a job.

ray job submit --working-dir . -- python -m train_jobs.simpo --config train_jobs/manifests/simpo.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("simpo")
