"""Experts come and go while the router serves: verified, without a restart and without a failed request."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from largeforge_ray.store import open_store
from tests.local_ray._server import ORDER, Server, ask, family, wait_for
from tests.local_ray.conftest import Forge

pytestmark = pytest.mark.timeout(600)


@contextmanager
def traffic(server: Server, at_once: int = 2) -> Iterator[list[Any]]:
    """Orders and questions that go on during the block; the list is of what failed."""
    failures: list[Any] = []
    over = threading.Event()

    def go(number: int) -> None:
        while not over.is_set():
            try:
                question = ORDER if number % 2 else "What is the capital of France?"
                ask(server, "auto", question, max_tokens=16)
            except openai.OpenAIError as error:
                failures.append(error)

    threads = [threading.Thread(target=go, args=(i,)) for i in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        over.set()
        for thread in threads:
            thread.join()


def state(server: Server, name: str) -> str:
    return str(server.experts().get(name, {"state": "gone"})["state"])


def altered(forge: Forge, folder: Path, name: str, change: Callable[[Path], None], **more: Any) -> str:
    """The key of an artifact that is the run's adapter with a change."""
    store = open_store(forge.store)
    adapter = store.get("orders")
    copy = folder / name
    shutil.copytree(store.fetch(adapter), copy, copy_function=shutil.copyfile)
    (copy / "artifact.json").unlink(missing_ok=True)
    change(copy)
    facts = {"parents": adapter.parents, "key": hashlib.sha256(name.encode()).hexdigest()} | more
    return store.publish("adapter", facts["key"], name, facts["parents"], adapter.config, copy).key


def test_a_fresh_adapter_is_promoted_under_load_and_answers_within_seconds(
    server: Server, forge: Forge
) -> None:
    adapter = open_store(forge.store).get("orders").key
    with traffic(server) as failures:
        began = time.monotonic()
        status, entry = server.admin("POST", adapter=adapter, name="shop")
        assert (status, entry["expert"]["state"], entry["expert"]["name"]) == (202, "loading", "shop")
        proposed = time.monotonic() - began
        wait_for(lambda: state(server, "shop") == "live", 60)
        live = time.monotonic() - began
        messages = [{"role": "user", "content": ORDER}]
        stream = server.client.chat.completions.create(
            model="shop", messages=messages, temperature=0, max_tokens=40, stream=True
        )
        next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
        seconds = time.monotonic() - began
        stream.close()
        reply = ask(server, "shop", ORDER)
    assert failures == []
    assert reply.headers["x-largeforge-expert"] == "shop"
    assert adapter.startswith(reply.headers["x-largeforge-artifact"])
    assert set(json.loads(reply.parse().choices[0].message.content)) == {"name", "count", "item", "city"}
    print(f"proposed after {proposed:.1f} s, live after {live:.1f} s, first token after {seconds:.1f} s")
    events = server.admin("GET")[1]["data"]
    steps = [(e["before"], e["to"]) for e in events if e["record"]["name"] == "shop"]
    assert steps == [(None, "loading"), ("loading", "shadow"), ("shadow", "canary"), ("canary", "live")]
    [probe] = events[-1]["evidence"]["loading"].values()
    assert probe["effect"] > 0.1
    assert probe["error"] < probe["effect"]
    assert probe["answer"]
    assert "shop" in [model.id for model in server.client.models.list()]


@pytest.mark.parametrize("title", ["ray::RegistryActor", "ray::ServeController"])
def test_answers_go_on_and_experts_stay_when_what_controls_them_is_killed(server: Server, title: str) -> None:
    before, engine = server.experts(), family(server, "VLLM::EngineCore").pid
    with traffic(server) as failures:
        family(server, title).kill()
        time.sleep(8)
    assert failures == []
    wait_for(lambda: server.admin("GET")[0] == 200, 30)
    assert {n: c["state"] for n, c in server.experts().items()} == {n: c["state"] for n, c in before.items()}
    assert family(server, "VLLM::EngineCore").pid == engine


def test_an_expert_is_removed_under_load(server: Server) -> None:
    with traffic(server) as failures:
        assert server.admin("DELETE", "/admin/experts/shop")[0] == 202
        wait_for(lambda: state(server, "shop") == "gone", 30)
    assert failures == []
    with pytest.raises(openai.NotFoundError, match="cascade, base, orders"):
        ask(server, "shop", ORDER)


def _truncate(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def _rank(folder: Path) -> None:
    _config(folder, r=64)


def _config(folder: Path, **more: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def _weights(folder: Path, change: Callable[[str, Any], tuple[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(dict(change(name, tensor) for name, tensor in load_file(path).items()), path)


def _prefix(folder: Path) -> None:
    _weights(
        folder, lambda name, tensor: (name.replace("model.layers", "transformer.h"), tensor.contiguous())
    )


def _nothing(folder: Path) -> None:
    _weights(folder, lambda name, tensor: (name, tensor * 0))


def _louder(folder: Path) -> None:
    _config(folder, lora_alpha=64)


def _missing(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_truncate, "has no readable weights"),
        (_missing, "has no readable weights"),
        (_rank, "has rank 64, outside 1..16"),
    ],
)
def test_what_no_engine_could_load_is_refused_at_once(
    server: Server, forge: Forge, tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    key = altered(forge, tmp_path, change.__name__, change)
    status, error = server.admin("POST", adapter=key)
    assert (status, error["error"]["code"]) == (400, "refused")
    assert why in error["error"]["message"]


def test_an_adapter_of_another_base_and_what_is_no_adapter_are_refused(
    server: Server, forge: Forge, tmp_path: Path
) -> None:
    store = open_store(forge.store)
    rows = store.get("rows").key
    key = altered(forge, tmp_path, "elsewhere", lambda folder: None, parents=[rows])
    assert "is a model served here" in server.admin("POST", adapter=key)[1]["error"]["message"]
    assert "is of kind dataset" in server.admin("POST", adapter=rows)[1]["error"]["message"]
    assert "no artifact" in server.admin("POST", adapter="nothing-like-it")[1]["error"]["message"]


@pytest.mark.parametrize(
    ("change", "why"),
    [(_nothing, "changes none of"), (_louder, "computes another adapter"), (_prefix, "")],
)
def test_what_loads_but_computes_something_else_fails_its_probe_and_nobody_notices(
    server: Server, forge: Forge, tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    key = altered(forge, tmp_path, change.__name__, change)
    with traffic(server, 1) as failures:
        assert server.admin("POST", adapter=key, name="bad")[0] == 202
        wait_for(lambda: state(server, "bad") == "failed", 60)
    assert failures == []
    reason = server.experts()["bad"]["reason"]
    assert "refuses it" in reason
    assert why in reason
    print(reason)
    server.admin("DELETE", "/admin/experts/bad")
    wait_for(lambda: state(server, "bad") == "gone", 30)
