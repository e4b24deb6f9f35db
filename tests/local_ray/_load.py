"""Streaming traffic on a served router that goes on through faults, and what became of every request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

QUESTIONS = ("What is the capital of France?", "Name a river.", "Why is the sky blue?", "Tell me about tea.")


@dataclass(frozen=True)
class Outcome:
    """A request's end. ``status`` 0 is a connection that was refused or reset; times are of ``monotonic``.

    ``whole``: it ended as a stream ends. ``told``: it ended with an error event.
    """

    began: float
    ended: float
    status: int
    whole: bool = False
    told: bool = False
    retry_after: str | None = None

    @property
    def good(self) -> bool:
        return self.status == 200 and self.whole

    @property
    def honest(self) -> bool:
        """Answered, refused with a time to come back, or broken off with an error that says so."""
        refused = self.status in (429, 503) and self.retry_after is not None
        return self.good or refused or (self.status == 200 and self.told) or self.status == 504


@dataclass
class Load:
    """All outcomes so far, in the order they ended."""

    outcomes: list[Outcome] = field(default_factory=list)

    def since(self, moment: float) -> list[Outcome]:
        """Of the requests that began after it."""
        return [one for one in self.outcomes if one.began >= moment]

    def good_since(self, moment: float) -> int:
        return sum(one.good for one in self.since(moment))


def ask(
    url: str, tokens: int = 24, timeout: float = 120, question: str = QUESTIONS[0], key: str = ""
) -> Outcome:
    """One streamed request on a connection of its own."""
    began, status, whole, told, retry = time.monotonic(), 0, False, False, None
    where = urlsplit(url)
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout)
    try:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        status, retry = reply.status, reply.headers.get("retry-after")
        for line in reply:
            whole = whole or line.startswith(b"data: [DONE]")
            told = told or line.startswith(b'data: {"error"')
    except (OSError, http.client.HTTPException):
        status = status if told or whole else 0
    finally:
        connection.close()
    return Outcome(began, time.monotonic(), status, whole, told, retry)


@contextmanager
def load(url: str, at_once: int = 4, tokens: int = 24, key: str = "") -> Iterator[Load]:
    """Requests that follow one another on ``at_once`` threads during the block."""
    made, over = Load(), threading.Event()

    def go(number: int) -> None:
        while not over.is_set():
            made.outcomes.append(ask(url, tokens, question=QUESTIONS[number % 4], key=key))
            if made.outcomes[-1].status != 200:
                time.sleep(0.05)

    threads = [threading.Thread(target=go, args=(i,)) for i in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        over.set()
        for thread in threads:
            thread.join()
