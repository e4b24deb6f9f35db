"""What becomes of the messages that Ray prints into a driver's output."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from actors import ray_messages

LOST = (
    "The node with node id: 14fda8c3 and address: 10.77.0.12 and node name: 10.77.0.12 has been marked dead "
    "because the detector has missed too many heartbeats from it. This can happen when a \t(1) raylet "
    "crashes unexpectedly (OOM, etc.) \n\t(2) raylet has lagging heartbeats due to slow network."
)
RETRIED = (
    "Task Asker.ask failed. There are 20 retries remaining, so the task will be retried. Error: The actor is "
    "temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14"
)
ENDED = "Raylet is terminated. Termination is unexpected. Possible reasons: (1) SIGKILL\n    0x55 main"
MEMORY = "1 Workers (tasks / actors) killed due to memory pressure (OOM)\nRefer to the documentation"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (LOST, "Ray lost the node 10.77.0.12"),
        (RETRIED, None),
        (RETRIED.replace("20 retries", "infinite retries"), None),
        (ENDED, None),
        ("WARNING: 10 PYTHON worker processes have been started on node: ef4b with address: 10.7.0.1", None),
        (MEMORY, "1 Workers (tasks / actors) killed due to memory pressure (OOM)"),
        (" \n", None),
    ],
)
def test_a_message_is_a_line_or_nothing(message: str, said: str | None) -> None:
    assert ray_messages.in_a_line(message) == said


def test_they_come_once_and_by_our_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    said: list[str] = []
    ray_messages.tell(said.append)
    for message in (LOST, LOST, RETRIED, MEMORY):
        worker.print_to_stdstream({"lines": [message], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert said == ["Ray lost the node 10.77.0.12", MEMORY.splitlines()[0]]


def test_what_is_replaced_is_what_rays_listener_calls() -> None:
    from ray._private import worker

    listener: Any = worker.listen_error_messages
    assert "print_to_stdstream(" in inspect.getsource(listener)
    assert list(inspect.signature(worker.print_to_stdstream).parameters) == ["data", "ignore_prefix"]
