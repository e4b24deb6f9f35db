"""A farm that holds what serving waits for gives it back, and soaks it up again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from largeforge_ray.config.teaching import Teacher
from largeforge_ray.data import row_hash, write_rows
from largeforge_ray.models.room import Room, who_waits
from largeforge_ray.store import RowJournal, Store, open_store
from largeforge_ray.teach import AnswerRecipe, run_farm
from largeforge_ray.types import Generation, Sampling

ROWS = 1200


class SlowEngine:
    """Takes up to two seconds for a row, each its own time: those of a batch end one after the other."""

    async def slots(self) -> int:
        return 8

    async def generate(self, requests: Sequence[Any]) -> list[Generation]:
        await asyncio.sleep(int(requests[0].request_id[:4], 16) / 2**15)
        return [Generation(r.request_id, "a few words", "stop", 12, 3, 0.001) for r in requests]


@pytest.fixture
def three_cpus() -> Iterator[Any]:
    import ray
    from ray import serve

    ray.init("local", num_cpus=3, include_dashboard=True, log_to_driver=False)
    try:
        # No proxy: it would hold a CPU's worth of memory and a port for nothing.
        serve.start(proxy_location="Disabled")
        yield ray
    finally:
        serve.shutdown()
        ray.shutdown()


def write_items(folder: Path) -> str:
    rows = []
    for i in range(ROWS):
        messages = [{"role": "user", "content": f"Tell me about item {i}."}]
        rows.append({"item_id": str(i), "item_hash": row_hash(messages), "messages": messages})
    write_rows(folder, "train", rows)
    return str(folder / "train.parquet")


def written(store: Store) -> Counter[str]:
    """How often each row was journalled, shard by shard."""
    found: Counter[str] = Counter()
    for path in (file for folder in store.list("journal") for file in store.list(folder)):
        if path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(store.read_bytes(path)), columns=["row_key"])
            found.update(table["row_key"].to_pylist())
    return found


class Expert:
    def __call__(self) -> str:
        return "here"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_engine_leaves_for_a_replica_that_waits_and_comes_back(three_cpus: Any, tmp_path: Path) -> None:
    """Three CPUs: two engines and one replica hold them when serving wants a second replica."""
    from ray import serve

    ray, store, said = three_cpus, open_store(tmp_path / "forge"), []
    journal = RowJournal(store, "ab" * 32)

    def start() -> Any:
        options = {"num_cpus": 1, "max_restarts": 4, "max_task_retries": 4, "max_concurrency": 64}
        return ray.remote(SlowEngine).options(**options).remote()

    engines = [start() for _ in range(2)]
    began = threading.Event()
    times: dict[str, float] = {}

    def serving() -> None:
        began.wait(60)
        expert = serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1})(Expert).bind()
        asked = time.monotonic()
        serve.run(expert, name="experts", route_prefix=None)
        times["served"] = time.monotonic() - asked
        time.sleep(4)
        times["left"] = time.monotonic()
        serve.delete("experts")

    def on_crew(up: int, all_: int) -> None:
        said.append((up, all_))
        times.setdefault(f"{up} up", time.monotonic())

    def on_batch(rows: list[dict[str, Any]]) -> None:
        nonlocal told
        told += len(rows)
        began.set()

    told = 0
    other = threading.Thread(target=serving)
    other.start()
    up = run_farm(
        write_items(tmp_path),
        AnswerRecipe(Teacher(), "stub", Sampling(temperature=1.0, seed=0), samples=1),
        engines=engines,
        journal=journal,
        total=ROWS,
        on_batch=on_batch,
        room=Room(partial(who_waits, {"CPU": 1.0})),
        start=start,
        on_crew=on_crew,
    )
    other.join()
    print(f"\nserved {times['served']:.1f} s after it was asked for; an engine left, and came back")
    print(f"{times['2 up'] - times['left']:.1f} s after serving did; {ROWS} rows, each once")
    assert said == [(1, 2), (2, 2)]
    assert len(up) == 2
    assert engines[0] in up
    assert engines[1] not in up
    assert times["2 up"] > times["left"]
    assert told == ROWS
    assert times["served"] < 30
    assert set(written(store).values()) == {1}
    assert len(written(store)) == ROWS
