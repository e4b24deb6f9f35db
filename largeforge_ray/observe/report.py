"""The report of a run: one HTML page that opens anywhere, and the same facts as JSON beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from largeforge_ray.observe.collect import collect
from largeforge_ray.observe.data import ReportData
from largeforge_ray.observe.events import run_file
from largeforge_ray.observe.page import render

if TYPE_CHECKING:
    from largeforge_ray.store import Store


def build_report(store: Store, run_id: str) -> str:
    """The run's report as HTML; also of a run that failed or is still going.

    Raises:
        StoreError: the store has no such run, or its plan or events cannot be read.
    """
    return render(collect(store, run_id))


def write_report(store: Store, run_id: str) -> str:
    """Write ``report.html`` and ``report.json`` into the run's folder; returns the page's path or URL.

    Raises:
        StoreError: as for ``build_report``, or the store cannot be written.
    """
    data = collect(store, run_id)
    page = run_file(run_id, "report.html")
    # A lone surrogate in a model's answer has no UTF-8 form; a question mark is better than no report.
    store.write_bytes(page, render(data).encode("utf-8", "replace"))
    store.write_bytes(run_file(run_id, "report.json"), report_json(data).encode())
    if store.local_root is not None:
        return str(store.local_root / page)
    return f"{store.url.rstrip('/')}/{page}"


def report_json(data: ReportData) -> str:
    """What the page says as strict JSON; a number that is not finite becomes null."""
    return json.dumps(_finite(dataclasses.asdict(data)), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
