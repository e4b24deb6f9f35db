"""The teacher farm as a job.

ray job submit --working-dir . -- python -m train_jobs.teach --config train_jobs/manifests/teach.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("teach")
