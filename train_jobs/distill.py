"""Distillation from stored probabilities as a job.

ray job submit --working-dir . -- python -m train_jobs.distill --config train_jobs/manifests/distill.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("distill")
