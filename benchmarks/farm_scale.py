"""A million prompts through the farm with an engine that answers at once: what is left is the farm itself.

python -m benchmarks.farm_scale                         # --rows 1000000, some minutes and 3 GB of disk

It tells the driver's own resident memory after every tenth of the rows, without the object store's pages that
it has read and everybody shares. Besides, microseconds a row of the farm, of reading the journal's keys, of
bringing its rows into order, and of one append alone.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks._pairs import write_down

COMMAND = "python -m benchmarks.farm_scale"


class StubEngine:
    """Answers whatever it is asked with a few words."""

    async def slots(self) -> int:
        return 32

    async def generate(self, requests: Sequence[Any]) -> list[Any]:
        from largeforge_ray.types import Generation

        return [Generation(r.request_id, "a few words", "stop", 12, 3, 0.001) for r in requests]


def write_prompts(folder: Path, number: int) -> Path:
    """A dataset part of distinct prompts."""
    from largeforge_ray.data import row_hash, write_rows

    def rows() -> Any:
        for i in range(number):
            messages = [{"role": "user", "content": f"Tell me about item {i}."}]
            yield {"item_id": str(i), "item_hash": row_hash(messages), "messages": messages}

    write_rows(folder, "train", rows())
    return folder / "train.parquet"


def run(folder: Path, number: int) -> dict[str, Any]:
    import ray

    from actors import ray_session
    from largeforge_ray.config.teaching import Teacher
    from largeforge_ray.store import RowJournal, open_store
    from largeforge_ray.teach import AnswerRecipe, products, run_farm
    from largeforge_ray.teach.rows import TeacherRowWriter
    from largeforge_ray.types import Sampling

    items = write_prompts(folder, number)
    journal = RowJournal(open_store(folder / "forge"), "ab" * 32)
    recipe = AnswerRecipe(Teacher(), "stub", Sampling(temperature=1.0, seed=0), samples=1)
    me, memory, done = psutil.Process(), [], 0

    def on_batch(rows: list[dict[str, Any]]) -> None:
        nonlocal done
        done += len(rows)
        if done * 10 // number > len(memory):
            held = me.memory_info()
            memory.append(held.rss - held.shared)
            print(
                f"  {done:>9} rows  {done / (time.perf_counter() - started):7.0f} rows/s"
                f"  driver {memory[-1] / 2**20:.0f} MiB",
                flush=True,
            )

    with ray_session(lambda text: None) as session:
        session.connect()
        engine = ray.remote(StubEngine).options(num_cpus=0, max_concurrency=1024).remote()
        started = time.perf_counter()
        run_farm(str(items), recipe, engines=[engine], journal=journal, total=number, on_batch=on_batch)
        farming = time.perf_counter() - started
    started = time.perf_counter()
    assert len(journal.index()) == number
    indexing = time.perf_counter() - started
    started = time.perf_counter()
    out, rows = folder / "out", 0
    out.mkdir()
    writer = TeacherRowWriter(out)
    for row in journal.in_order(products.in_place, number):
        writer.add(row)
        rows += 1
    writer.close()
    assert rows == number
    return {
        "memory": memory,
        "farming": farming,
        "indexing": indexing,
        "ordering": time.perf_counter() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "appending": append_seconds(folder),
    }


def append_seconds(folder: Path) -> float:
    """Seconds a row of appending alone, in batches as large as a million rows have."""
    from largeforge_ray.store import RowJournal, open_store
    from largeforge_ray.teach.pipeline import batch_rows

    store, size = open_store(folder / "forge"), batch_rows(10**6)
    sample = next(iter(RowJournal(store, "ab" * 32).rows()))
    alone = RowJournal(store, "cd" * 32)
    started = time.perf_counter()
    for batch in range(100):
        alone.append([sample | {"row_key": f"{batch}-{i}"} for i in range(size)])
    return (time.perf_counter() - started) / (100 * size)


def main() -> None:
    parser = argparse.ArgumentParser(description="The farm at scale, without a model.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made = run(Path(name), options.rows)
    first, last = made["memory"][0], made["memory"][-1]
    per_row = {k: made[k] / options.rows * 1e6 for k in ("farming", "indexing", "ordering")}
    rounded = {k: round(v, 1) for k, v in per_row.items()}
    written = {
        "id": "farm-scale",
        "what": f"{options.rows} rows through the farm with an engine that answers at once",
        "driver_mib": [round(m / 2**20) for m in made["memory"]],
        "growth": round(last / first, 3),
        "peak_mib": round(made["peak"] / 2**20),
        "us_a_row": rounded | {"appending": round(made["appending"] * 1e6, 1)},
    }
    print(write_down("farm-scale", written, command=COMMAND))


if __name__ == "__main__":
    main()
