"""Feature distillation from stored hidden states as a job.

ray job submit --working-dir . -- python -m train_jobs.features --config train_jobs/manifests/features.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("features")
