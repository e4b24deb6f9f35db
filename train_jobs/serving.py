"""A served router seen from outside: start it as a process of its own, ask it, stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from largeforge_ray.errors import StageError

START_LIMIT_S = 300
STOP_LIMIT_S = 60
QUESTIONS = (
    "Order as JSON with name, count, item, city: Ship 12 lanterns to Tallinn, the customer is Ingrid.",
    "What is the capital of France? Answer in one sentence.",
)
HEADERS = ("x-largeforge-expert", "x-largeforge-artifact", "x-largeforge-decision")


def server_command(store: str, router: str, port: int, *more: str) -> list[str]:
    """The command line of the server; an empty ``router`` means the newest."""
    options = ["--store", store, "--router", router, "--port", str(port), *more]
    return [sys.executable, "-m", "serve_apps.run", *options]


@contextmanager
def running_server(store: str, router: str, port: int, say: Callable[[str], None]) -> Iterator[str]:
    """The server's base URL while in the block; its errors pass through, it is stopped afterwards."""
    started = time.monotonic()
    say("starting the router and its experts (about 40 s) …")
    # A session of its own, so that Ctrl-C reaches it once: through the terminate below.
    server = subprocess.Popen(
        server_command(store, router, port), start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            if server.poll() is not None:
                raise StageError("the router did not start; its message stands above")
            if time.monotonic() - started > START_LIMIT_S:
                raise StageError(f"the router did not answer on {url} within {START_LIMIT_S} s")
            time.sleep(0.2)
        say(f"serving on {url}/v1 after {time.monotonic() - started:.1f} s")
        yield url
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def ask_router(url: str, say: Callable[[str], None]) -> None:
    """Ask each question with ``model: "auto"``, the second one streamed, and say who answered and why."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    say(f"  models: {', '.join(m.id for m in client.models.list())}")
    for stream, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        say(f"  > {question.splitlines()[-1]}")
        if stream:
            with client.chat.completions.with_streaming_response.create(
                model="auto", messages=messages, max_tokens=48, temperature=0, stream=True
            ) as response:
                headers = response.headers
                text = "".join(c.choices[0].delta.content or "" for c in response.parse() if c.choices)
        else:
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=messages, max_tokens=48, temperature=0
            )
            headers, text = raw.headers, raw.parse().choices[0].message.content
        say(f"    {text.strip()}")
        for name in HEADERS:
            say(f"    {name}: {headers[name]}")
