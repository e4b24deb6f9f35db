"""What a run does and did: its events while it goes, one page to read when it is over.

with EventLog(store, run) as log:                     # runs/<run>/events.jsonl
    log.emit("tuned", "started")
    log.emit("tuned", "progress", {"step": 3, "loss": 1.8})
    log.emit("tuned", "finished", {"seconds": 41.0, "phases": {"training": 38.5}})
read_events(store, run)                               # list[RunEvent]
print(write_report(store, run))                       # runs/<run>/report.html, report.json beside it
"""

from __future__ import annotations

from largeforge_ray.observe.events import EventLog, read_events
from largeforge_ray.observe.report import build_report, write_report

__all__ = ["EventLog", "read_events", "build_report", "write_report"]
