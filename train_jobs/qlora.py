"""Training of an adapter on a base in 4 bits as a job.

ray job submit --working-dir . -- python -m train_jobs.qlora --config train_jobs/manifests/qlora.yaml
"""

from __future__ import annotations

from train_jobs.training import main

if __name__ == "__main__":
    main("qlora")
