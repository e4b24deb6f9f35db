"""How many replicas an engine wants: Serve sees none of the requests, so each replica tells what it has."""

from __future__ import annotations

import math
from typing import Any


def by_running(context: Any) -> tuple[int, dict[str, Any]]:
    """As many as keep each at ``target_ongoing_requests``, for a ``ray.serve.config.AutoscalingContext``.

    A deployment without replicas has only the requests that wait at handles for a first one.
    """
    running = sum(context.aggregated_metrics.get("running", {}).values())
    wanted = (running + context.total_queued_requests) / context.config.target_ongoing_requests
    return math.ceil(wanted - 1e-9), {}
