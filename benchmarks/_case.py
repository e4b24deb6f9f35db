"""One algorithm and layout on a real model: made-up rows, a worker's bench, and the time of a step."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._pairs import seconds

WORDS = (
    *("order", "ship", "lantern", "stool", "city", "count"),
    *("Tallinn", "Vienna", "twelve", "nine", "to", "the"),
)


class Case:
    """``rows`` are one step's; ``step`` takes one and returns its seconds."""

    def __init__(
        self, model: str, folder: Path, algorithm: Any, rows: list[dict[str, Any]], **settings: Any
    ) -> None:
        import pyarrow as pa

        from largeforge_ray.config.training import TrainStage
        from largeforge_ray.train.bench import Bench
        from largeforge_ray.train.checkpoint import Progress
        from largeforge_ray.train.loop import Course
        from largeforge_ray.train.tokens import TokenSpec, encode_rows

        given = {
            "name": "case",
            "kind": "train",
            "data": "rows",
            "algorithm": algorithm,
            "batch_size": len(rows),
        }
        self.stage = TrainStage.model_validate(given | {"learning_rate": 1e-9, "epochs": 1000.0} | settings)
        batch, _ = encode_rows(rows, 0, TokenSpec(model, self.stage.algorithm, self.stage.max_tokens))
        folder = Path(tempfile.mkdtemp(dir=folder))
        with (
            pa.OSFile(str(folder / "train.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as file,
        ):
            file.write_batch(batch)
        self.bench = Bench(self.stage, model)
        self.course, self.progress = Course(self.bench, self.bench.add_lane(self.stage), folder), Progress()
        self.course.prepare(self.progress, None, lambda done: None)
        self.tokens = int(self.course.lengths.sum())
        self.step = seconds(lambda: self.course.take_step(self.progress))

    def loss(self) -> float:
        rows = range(len(self.course.rows))
        made = self.bench.accumulate(
            self.course.lane, self.course.rows, rows, self.progress.reference, learn=False
        )
        return made["loss"]

    def rectangles(self, steps: int) -> float:
        """Positions that the first ``steps`` steps after the first compute padded, over their tokens."""
        from largeforge_ray.train.order import lay_out

        lengths, limit = self.course.lengths, self.stage.tokens_per_pass
        positions = 0
        for step in range(1, steps + 1):
            rows = self.course.order.step_rows(step)
            (passes,) = lay_out(rows, lengths, batching="padded", tokens_per_pass=limit, workers=1)
            positions += sum(len(p) * max(lengths[p]) for p in passes)
        return float(positions / steps / self.tokens)


def make_rows(
    form: str, number: int, *, sigma: float, words: float = 33, longest: int = 200
) -> list[dict[str, Any]]:
    """Rows whose answers have lognormal lengths: ``words`` at the median, ``longest`` at most."""
    rng = random.Random(0)

    def text(median: float, most: int) -> list[dict[str, str]]:
        drawn = int(median * rng.lognormvariate(0, sigma))
        content = " ".join(rng.choice(WORDS) for _ in range(max(4, min(most, drawn))))
        return [{"role": "assistant", "content": content}]

    rows = []
    for i in range(number):
        prompt = [{"role": "user", "content": text(7, 200)[0]["content"]}]
        chosen, rejected = text(words, longest), text(words, longest)
        row: dict[str, Any] = {"item_id": str(i), "messages": prompt, "label": None}
        if form == "preference":
            row |= {"chosen": chosen, "rejected": rejected}
        else:
            row |= {"messages": prompt + chosen}
        rows.append(row)
    return rows
