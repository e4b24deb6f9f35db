"""Direct preference optimisation as a job.

ray job submit --working-dir . -- python -m train_jobs.dpo --config train_jobs/manifests/dpo.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("dpo")
