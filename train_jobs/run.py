"""Run a manifest as a job.

ray job submit --working-dir . -- python -m train_jobs.run --manifest train_jobs/manifests/quickstart.yaml
"""

from __future__ import annotations

import sys

from train_jobs.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--manifest" in arguments:
        arguments.remove("--manifest")
    main(["run", *arguments])
