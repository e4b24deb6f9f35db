"""Distilling step by step as a job.

ray job submit --working-dir . -- python -m train_jobs.rationale --config train_jobs/manifests/rationale.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("rationale")
