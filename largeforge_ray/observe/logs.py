"""Log lines as JSON, each with the run, the stage and the request it belongs to, for whoever collects logs.

    LARGEFORGE_LOG=json largeforge run manifest.yaml

dress_handlers()                     # once in a process; does nothing without LARGEFORGE_LOG=json
configure(run=run, stage="tuned")    # every line from here on in this thread or task says so
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import MemoryHandler

FIELDS = ("run", "stage", "request_id")
_ABOUT: dict[str, ContextVar[str]] = {name: ContextVar(name, default="") for name in FIELDS}


def wanted() -> bool:
    """Whether LARGEFORGE_LOG asks for JSON."""
    return os.environ.get("LARGEFORGE_LOG", "").lower() == "json"


def configure(*, run: str | None = None, stage: str | None = None, request_id: str | None = None) -> None:
    """What the lines of this thread or task are about from now on; what is None stays as it is."""
    for name, value in zip(FIELDS, (run, stage, request_id), strict=True):
        if value is not None:
            _ABOUT[name].set(value)


def dress_handlers(logger: str | None = None) -> None:
    """Have a logger's handlers write JSON, the root's if it is None; without any, one to standard output."""
    if not wanted():
        return
    dressed = logging.getLogger(logger)
    if not dressed.handlers:
        dressed.addHandler(logging.StreamHandler(sys.stdout))
        dressed.setLevel(logging.INFO)
    for handler in dressed.handlers:
        handler.addFilter(_stamped)
        # What a memory handler formats is formatted by whom it hands it to.
        last = handler.target if isinstance(handler, MemoryHandler) and handler.target else handler
        last.setFormatter(JsonLines())


class JsonLines(logging.Formatter):
    """time in UTC, level, logger, message, and where known run, stage, request_id, ``facts`` and error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "about", {}) | getattr(record, "facts", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _stamped(record: logging.LogRecord) -> bool:
    """Note what the record is about while its own task runs; a buffer writes it in another's."""
    if not hasattr(record, "about"):
        record.about = {name: said for name in FIELDS if (said := _ABOUT[name].get())}
    return True
