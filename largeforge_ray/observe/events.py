"""A run's event log: ``runs/<run id>/events.jsonl`` in the store, one RunEvent a line.

In a local store every event is on disk when ``append`` returns, so a killed run leaves everything up
to its last moment. An object store cannot append, so there the whole object is written again when a
stage finishes or fails and when the log is closed; progress in between can be lost with the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge_ray.errors import StoreError
from largeforge_ray.store.files import explained
from largeforge_ray.types import RunEvent

if TYPE_CHECKING:
    from types import TracebackType

    from largeforge_ray.store import Store

KINDS = ("planned", "started", "progress", "finished", "failed", "cached")
_SAVED_AT_ONCE = frozenset({"finished", "failed"})
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class EventLog:
    """Appends the events of one run. Threads may share it; one process at a time may hold it.

    A run that is continued goes on in the same file. A line that a killed process left half written
    is removed first: it never became an event.
    """

    def __init__(self, store: Store, run: str, clock: Callable[[], float] = time.time) -> None:
        self.run = run
        self._store = store
        self._clock = clock
        self._path = run_file(run, "events.jsonl")
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._lines: list[bytes] = []
        self._unsaved = False
        if store.is_local and store.local_root is not None:
            self._file = _open_for_append(store.local_root / self._path)
        elif store.exists(self._path):
            self._lines = [_whole_lines(store.read_bytes(self._path))]

    def emit(
        self, stage: str, kind: str, numbers: Mapping[str, Any] | None = None, message: str = ""
    ) -> RunEvent:
        """Append an event that happens now, and return it."""
        event = RunEvent(self._clock(), self.run, stage, kind, dict(numbers or {}), message)
        self.append(event)
        return event

    def append(self, event: RunEvent) -> None:
        """Add one event.

        Raises:
            StoreError: it cannot be written, as on a full disk; nothing of it stays.
            ValueError: its kind is not one of KINDS, or it belongs to another run.
        """
        if event.kind not in KINDS:
            raise ValueError(f"event kind {event.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if event.run != self.run:
            raise ValueError(f"event of run {event.run!r} in the log of run {self.run!r}; open its own log")
        line = (json.dumps(dataclasses.asdict(event), separators=(",", ":")) + "\n").encode()
        with self._lock:
            if self._file is not None:
                with explained("write", self._path):
                    _write_whole(self._file, line)
                return
            self._lines.append(line)
            self._unsaved = True
            if event.kind in _SAVED_AT_ONCE:
                self._save()

    def close(self) -> None:
        """Write what is not written yet. A second call does nothing."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            elif self._unsaved:
                self._save()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _save(self) -> None:
        self._store.write_bytes(self._path, b"".join(self._lines))
        self._unsaved = False


def read_events(store: Store, run: str) -> list[RunEvent]:
    """The run's events in the order they were written; empty if it has logged nothing.

    A last line that a killed process left half written is left out.

    Raises:
        StoreError: any other line is not an event, or the run id is not a plain name.
    """
    path = run_file(run, "events.jsonl")
    if not store.exists(path):
        return []
    lines = store.read_bytes(path).split(b"\n")
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        event = _parse(line)
        if event is not None:
            events.append(event)
        elif number < len(lines):
            raise StoreError(
                f"line {number} of {path} is not an event: {line[:80]!r}; "
                "only a torn last line is expected, so the file was changed by hand: remove that line"
            )
    return events


def run_file(run: str, name: str) -> str:
    """The path of a run's file inside the store.

    Raises:
        StoreError: the run id is not a plain name, so it could point outside the runs folder.
    """
    if not _RUN_ID.fullmatch(run):
        raise StoreError(
            f"run id {run!r} is not a plain name (letters, digits, '.', '_', '-'); "
            "pass the id that `largeforge run` printed"
        )
    return f"runs/{run}/{name}"


def _parse(line: bytes) -> RunEvent | None:
    try:
        value = json.loads(line)
        return RunEvent(
            time=float(value["time"]),
            run=str(value["run"]),
            stage=str(value["stage"]),
            kind=str(value["kind"]),
            numbers=dict(value.get("numbers") or {}),
            message=str(value.get("message", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _whole_lines(data: bytes) -> bytes:
    """The data without a torn last line, ending in a newline unless it is empty."""
    head, newline, tail = data.rpartition(b"\n")
    if tail and _parse(tail) is not None:
        return data + b"\n"
    return head + newline


def _write_whole(file: FileIO, line: bytes) -> None:
    before, left = file.tell(), memoryview(line)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        # The beginning of a line would spoil the one after it.
        file.truncate(before)
        raise


def _open_for_append(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        data = path.read_bytes()
        whole = _whole_lines(data)
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        elif len(whole) > len(data):
            with path.open("ab") as file:
                file.write(b"\n")
    # Without a buffer nothing is left to fail when it is closed.
    appending = path.open("ab", buffering=0)
    appending.seek(0, os.SEEK_END)
    return appending
