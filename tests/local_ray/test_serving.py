"""The served router with a real engine behind it, seen through the official client and by process."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import openai
import psutil
import pytest
from websockets.sync.client import connect

from tests.local_ray._browser import DESKTOP, Tab
from tests.local_ray._server import ORDER, Server, ask, family, wait_for
from tests.local_ray.conftest import Forge

pytestmark = pytest.mark.timeout(600)


def test_auto_goes_to_the_expert_whose_territory_it_is(server: Server, forge: Forge) -> None:
    from largeforge_ray.store import open_store

    reply = ask(server, "auto", ORDER)
    assert reply.headers["x-largeforge-expert"] == "orders"
    assert open_store(forge.store).get("orders").key.startswith(reply.headers["x-largeforge-artifact"])
    assert json.loads(reply.headers["x-largeforge-decision"])["policy"] == "keyword"
    answer = json.loads(reply.parse().choices[0].message.content)
    assert set(answer) == {"name", "count", "item", "city"}
    assert ask(server, "auto", "What is the capital of France?").headers["x-largeforge-expert"] == "base"


def test_a_name_pins_and_the_adapter_makes_the_difference(server: Server) -> None:
    base, expert = ask(server, "base", ORDER), ask(server, "orders", ORDER)
    assert base.headers["x-largeforge-expert"] == "base"
    assert json.loads(expert.headers["x-largeforge-decision"])["policy"] == "pinned"
    assert base.parse().choices[0].message.content != expert.parse().choices[0].message.content


def test_the_app_does_on_a_sample_what_the_matrix_says_it_would(server: Server, forge: Forge) -> None:
    live = ("replay", "outcomes", "live", "--sample", "8", "--live")
    done = forge.command(*live, f"{server.url}/v1")
    assert done.code == 0, done.out + done.err
    assert "on 8 items, 0 failed" in done.out
    assert "the same expert for 100%" in done.out
    wrong = forge.command(*live, "http://127.0.0.1:9/v1")
    assert wrong.code == 1
    assert "http://127.0.0.1:9/v1 answered none of 8 requests: Connection error" in wrong.err


def test_generation_stops_by_itself(server: Server) -> None:
    assert ask(server, "orders", ORDER).parse().choices[0].finish_reason == "stop"


def test_a_stream_gives_the_same_text_in_pieces(server: Server) -> None:
    whole = ask(server, "orders", ORDER).parse().choices[0].message.content
    messages = [{"role": "user", "content": ORDER}]
    stream = server.client.chat.completions.create(
        model="orders", messages=messages, temperature=0, max_tokens=40, stream=True
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert len(pieces) > 5
    assert "".join(pieces) == whole


def test_models_lists_auto_and_every_expert(server: Server) -> None:
    policies = ["largeforge/keyword", "largeforge/cascade"]
    assert [m.id for m in server.client.models.list()] == ["auto", *policies, "base", "orders"]


def test_a_refusal_is_the_clients_own_error(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="base, orders"):
        ask(server, "gpt-4", ORDER)
    with pytest.raises(openai.BadRequestError, match="context length"):
        ask(server, "base", "word " * 3000)


def test_ray_exports_what_the_router_counts(server: Server) -> None:
    """What the tests before have asked, within the ten seconds between two exports."""
    urls = metrics_urls(server)
    with ThreadPoolExecutor(16) as pool:
        exporters = [url for url, text in zip(urls, pool.map(read, urls), strict=True) if "ray_" in text]
    counted = (
        r'ray_largeforge_requests_total\{.*expert="orders".*status="200".*\} [1-9]',
        r'ray_largeforge_requests_total\{.*expert="base".*status="400".*\} [1-9]',
        r'ray_largeforge_decisions_total\{.*expert="orders".*policy="keyword".*\} [1-9]',
        r'ray_largeforge_first_event_seconds_count\{.*expert="orders".*\} [1-9]',
        r'ray_largeforge_tokens_total\{.*expert="orders".*kind="completion".*\} [1-9]',
        r'ray_largeforge_output_token_seconds_count\{.*expert="orders".*\} [1-9]',
        r"ray_largeforge_replicas\{.*\} 1",
    )

    def missing() -> list[str]:
        text = "".join(map(read, exporters))
        return [pattern for pattern in counted if not re.search(pattern, text)]

    wait_for(lambda: not missing(), 40)


def metrics_urls(server: Server) -> list[str]:
    """Where the processes of the server's Ray could tell Prometheus something."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    sockets = [socket for process in processes for socket in process.net_connections("tcp")]
    listening = {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return [f"http://{address.ip}:{address.port}/metrics" for address in listening]


def read(url: str) -> str:
    """What is there, or nothing: most ports speak another protocol."""
    with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=5) as reply:
        return str(reply.read(), errors="replace")
    return ""


def test_a_busy_port_is_refused_before_anything_starts(server: Server, forge: Forge) -> None:
    port = server.url.rsplit(":", 1)[1]
    second = forge.command("serve", "--port", port)
    assert second.code == 1
    assert f"port {port} cannot be used" in second.err
    assert "--port" in second.err
    assert "Ray" not in second.out
    assert second.seconds < 10


def test_the_page_streams_an_answer_and_shows_who_gave_it(server: Server, browser: str) -> None:
    with connect(browser, max_size=None) as wire:
        tab = Tab(wire)
        tab.open(f"{server.url}/", DESKTOP, "light")
        wait_for(lambda: "orders" in tab.run("document.body.innerText"), 10)
        tab.run("document.querySelector('textarea').focus()")
        tab.call("Input.insertText", text=ORDER)
        tab.run("document.getElementById('send').click()")
        wait_for(lambda: tab.run("document.getElementById('status').innerText").count("tokens"), 60)
        said = tab.run("document.querySelector('.turn.expert').innerText")
        asked = {event["request"]["url"] for event in tab.named("Network.requestWillBeSent")}
    assert said.startswith("orders")
    assert '"item"' in said
    assert all(url.startswith(server.url) for url in asked)
    assert not tab.named("Runtime.exceptionThrown")


def test_everything_listens_on_loopback_only(server: Server) -> None:
    addresses = {
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == int(server.url.rsplit(":", 1)[1])
    }
    assert addresses == {"127.0.0.1"}


def test_a_killed_engine_is_a_503_and_comes_back(server: Server) -> None:
    engine = family(server, "VLLM::EngineCore")
    os.kill(engine.pid, signal.SIGKILL)
    refusals = []

    def answers() -> bool:
        try:
            ask(server, "orders", ORDER)
        except openai.InternalServerError as error:
            refusals.append((error.status_code, error.response.headers.get("retry-after")))
            return False
        return True

    seconds = wait_for(answers, 120, lambda: server.process.poll() is None)
    assert refusals
    assert set(refusals) == {(503, "5")}
    print(f"answers again after {seconds:.1f} s and {len(refusals)} refusals")


def test_sigterm_leaves_no_process(server: Server) -> None:
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.terminate()
    assert server.process.wait(60) == 130
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    output = server.process.stdout.read() if server.process.stdout else ""
    assert "Traceback" not in output
    assert "SIGTERM" not in output
