"""Kahneman-Tversky optimisation as a job.

ray job submit --working-dir . -- python -m train_jobs.kto --config train_jobs/manifests/kto.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("kto")
