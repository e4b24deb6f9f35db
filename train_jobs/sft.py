"""Supervised fine-tuning as a job.

ray job submit --working-dir . -- python -m train_jobs.sft --config train_jobs/manifests/sft.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("sft")
