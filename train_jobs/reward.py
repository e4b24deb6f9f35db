"""A reward model as a job.

ray job submit --working-dir . -- python -m train_jobs.reward --config train_jobs/manifests/reward.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("reward")
