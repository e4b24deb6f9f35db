"""Every test carries the marker of its ring, the folder right under ``tests``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RINGS = ("unit", "contracts", "local_ray", "gpu")

# Otherwise Ray's statistics and the model hub try the network and a test waits for their time-outs.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        ring = item.path.relative_to(here).parts[0]
        if ring not in RINGS:
            raise pytest.UsageError(f"{item.path} is in no ring; move it under tests/{{{','.join(RINGS)}}}")
        item.add_marker(ring)
