"""What packing, the cached reference and the shared base are worth in a training step, on the packaged model.

python -m benchmarks.train_ratios --store ./forge            # after a run: the store holds the model

Rows are random words of lognormal length; every pair of ways is checked to have the same loss first.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._pairs import in_turn, record, refuse_busy, seconds

COMMAND = "python -m benchmarks.train_ratios"
WORDS = [
    "order",
    "ship",
    "lantern",
    "stool",
    "city",
    "count",
    "Tallinn",
    "Vienna",
    "twelve",
    "nine",
    "to",
    "the",
]


class Case:
    """One algorithm and layout on the real model: a bench, its rows, and the time of a step."""

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


def make_rows(form: str, number: int, sigma: float) -> list[dict[str, Any]]:
    rng = random.Random(0)

    def text(median: float) -> str:  # of the logarithm of the number of words
        return " ".join(
            rng.choice(WORDS) for _ in range(max(4, min(200, int(rng.lognormvariate(median, sigma)))))
        )

    rows = []
    for i in range(number):
        prompt, answers = [{"role": "user", "content": text(2.0)}], [text(3.5), text(3.5)]
        turns = [[{"role": "assistant", "content": a}] for a in answers]
        row: dict[str, Any] = {"item_id": str(i), "messages": prompt, "label": None}
        rows.append(
            row | {"chosen": turns[0], "rejected": turns[1]}
            if form == "preference"
            else row | {"messages": prompt + turns[0]}
        )
    return rows


def same(a: Case, b: Case) -> bool:
    """Within bfloat16's rounding."""
    return abs(a.loss() - b.loss()) <= 0.01 * abs(b.loss())


def packed_and_padded(model: str, folder: Path, pairs: int) -> None:
    rows = make_rows("chat", 16, 1.1)
    padded = Case(model, folder, "sft", rows, batching="padded", tokens_per_pass=8192)
    for batching in ("packed", "bucketed"):
        other = Case(model, folder, "sft", rows, batching=batching, tokens_per_pass=1024)
        waste = len(padded.course.rows) * int(padded.course.lengths.max()) / padded.tokens
        found = record(
            "P1" if batching == "packed" else "P1-bucketed",
            f"useful tokens/s, {batching} / padded (padded rectangle {waste:.2f} times the tokens)",
            # Rates compare as the inverse of seconds over the same tokens.
            in_turn(padded.step, other.step, pairs),
            equal=same(padded, other),
            goal=">= 1.9; ratio / padding >= 0.75",
            command=COMMAND,
            padding=round(waste, 3),
        )
        print(f"    ratio / padding: {found['ratio'] / waste:.2f}")


def references(model: str, folder: Path, pairs: int) -> None:
    rows = make_rows("preference", 4, 0.5)
    cached = Case(model, folder, {"name": "dpo"}, rows)
    in_loop = Case(model, folder, {"name": "dpo", "reference": "in_loop"}, rows)
    record(
        "P2",
        "seconds of a DPO step, reference in the loop / cached",
        in_turn(in_loop.step, cached.step, pairs),
        equal=same(in_loop, cached),
        goal=">= 1.35",
        command=COMMAND,
    )
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in cached.bench.model.parameters()
    }
    ours = float(sum(storages.values()))
    base = float(cached.bench.parameters * 2)
    record(
        "P3",
        "bytes of parameters of DPO, adapter-off reference / two models",
        [[ours, ours + base]],
        equal=True,
        goal="<= 0.52",
        command=COMMAND,
    )
    orpo = Case(model, folder, "orpo", rows)
    record(
        "P4",
        "seconds of a step, ORPO / DPO with a cached reference",
        in_turn(orpo.step, cached.step, pairs),
        equal=orpo.tokens == cached.tokens,
        goal="<= 1.05",
        command=COMMAND,
    )


def beside_plain_torch(model: str, folder: Path, pairs: int) -> None:
    """The loop's step against the same step written down in torch: same batch, adapters and optimizer."""
    import torch

    from largeforge_ray.train.batch import score

    rows = make_rows("chat", 8, 0.5)
    ours, plain = (Case(model, folder, "sft", rows, tokens_per_pass=4096) for _ in range(2))
    network, lane = plain.bench.model, plain.course.lane
    parameters = list(lane.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, weight_decay=0.0, fused=True)
    packed = plain.bench.batch(plain.course.rows, range(len(rows)), (0,))
    losses: list[float] = []

    def step() -> None:
        loss = -score(network, packed).logps_N.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    found = in_turn(ours.step, seconds(step), pairs)
    record(
        "P5",
        "seconds of a step, the worker loop's / plain torch's",
        found,
        equal=abs(losses[0] - ours.progress.losses[0][1]) < 0.01 * losses[0],
        goal="<= 1.03",
        command=COMMAND,
    )


def main() -> None:
    from largeforge_ray.store import open_store

    parser = argparse.ArgumentParser(description="Ratios of training steps.")
    parser.add_argument("--store", default="./forge", help="a store that holds a base model")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    refuse_busy()
    store = open_store(options.store)
    model = str(store.fetch(store.get("base")))
    with tempfile.TemporaryDirectory() as folder:
        for measure in (packed_and_padded, references, beside_plain_torch):
            measure(model, Path(folder), options.pairs)


if __name__ == "__main__":
    main()
