"""Work that blocks, beside a thread that has to stay awake for Ctrl-C and progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.5


def run_beside(work: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    """Run ``work`` in a thread of its own and ``meanwhile`` in this one, again and again until it ends.

    Returns what ``work`` returns and raises what it raises.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:  # handed to the caller's thread, which raises it
            outcome["error"] = error

    thread = threading.Thread(target=run, name="largeforge-work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        meanwhile()
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result
