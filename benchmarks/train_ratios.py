"""What packing, the cached reference and the shared base are worth in a training step, on the packaged model.

python -m benchmarks.train_ratios --store ./forge            # after a run: the store holds the model

Rows are random words of lognormal length; every pair of ways is checked to have the same loss first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks._case import Case, make_rows
from benchmarks._pairs import in_turn, record, refuse_busy, seconds

COMMAND = "python -m benchmarks.train_ratios"
PADDED_PASS_TOKENS = 8 * 448
"""A micro-batch of eight rows, the longest among them or not."""


def same(a: Case, b: Case) -> bool:
    """Within bfloat16's rounding."""
    return abs(a.loss() - b.loss()) <= 0.01 * abs(b.loss())


def packed_and_padded(model: str, folder: Path, pairs: int) -> None:
    """Padded is what a trainer does by itself: rows as they were shuffled, eight to a rectangle."""
    rows = make_rows("chat", 16, sigma=1.0, words=60, longest=360)
    padded = Case(model, folder, "sft", rows, batching="padded", tokens_per_pass=PADDED_PASS_TOKENS)
    waste = padded.rectangles(pairs)
    print(f"P1  a step: {len(rows)} rows, {padded.tokens} tokens, padded {waste:.2f} times as many")
    for batching in ("packed", "bucketed"):
        other = Case(model, folder, "sft", rows, batching=batching)
        padded.progress.step = 0  # the same steps as the other takes, and those that were counted
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
    rows = make_rows("preference", 4, sigma=0.5)
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

    rows = make_rows("chat", 8, sigma=0.5)
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
