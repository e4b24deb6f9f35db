"""What Ray tells a driver of its cluster, in a line each, through the run's own output.

Ray prints it to standard output whatever ``log_to_driver`` says, by ``print_to_stdstream`` of
``ray._private.worker`` (read in Ray 2.60.0), which is replaced here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

LOST = re.compile(r"The node with node id: \w+ and address: (\S+) .*marked dead", re.DOTALL)
HARMLESS = re.compile(
    r"Task \S+ failed\. There are \S+ retries remaining"  # it is asked again, which is what we rely on
    r"|Raylet is terminated"  # of a node that LOST tells of, with a stack trace
    r"|WARNING: \d+ PYTHON worker processes have been started"  # trials that only forward need no CPU
)


def in_a_line(message: str) -> str | None:
    """What to say of a message of Ray's; None of one that means nothing to a user."""
    if found := LOST.search(message):
        return f"Ray lost the node {found[1]}"
    if HARMLESS.match(message):
        return None
    return message.strip().splitlines()[0] if message.strip() else None


def tell(say: Callable[[str], None]) -> None:
    """From now on Ray's messages go to ``say``, repeated ones once."""
    from ray._private import worker

    said: set[str] = set()

    def to_us(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        for message in data.get("lines", []):
            line = in_a_line(message)
            # By the whole of it, which names the node: another one at the same address is another loss.
            if line is not None and message not in said:
                said.add(message)
                say(line)

    worker.print_to_stdstream = to_us  # type: ignore[assignment]
