"""Does a draft model, distilled from its target's own answers, make vLLM faster, and up to which load?

python -m benchmarks.draft                              # shipped prompts, some 20 minutes on two CPUs
python -m benchmarks.draft --data DIR                   # real ones: alpaca_en_demo.json of LLaMA-Factory

The packaged model of 30 layers is the target. It answers prompts greedily, and a student of ``--layers`` of
its layers learns these answers and their probabilities: one manifest. Then vLLM answers held-out prompts
without a draft, with this one, and with n-grams of prompt and answer (Saxena 2023), at 1, 4 and 16 requests
at once. Every engine has a process of its own, so the three take turns in rounds, and ratios are of a round.

Speculation keeps the target's greedy answers (Leviathan et al. 2023), but a batch of another shape rounds
bfloat16 otherwise, and where two tokens are as likely the answer may go the other way. Written down are the
share of answers that the engine without a draft gives when it is asked once more, that engine's own share
of them, and how much less likely than its token the furthest departure was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._engine import COUNTED, in_own_process, measure
from benchmarks._manifest import save_manifest
from benchmarks._pairs import record, refuse_busy
from largeforge_ray.types import Message

COMMAND = "python -m benchmarks.draft"
MANIFESTS = Path(__file__).parents[1] / "train_jobs" / "manifests"
SHIPPED = ("orders.jsonl", "sums.jsonl")
REAL_ROWS = 600
MAX_TOKENS = 96
LOADS = {1: 16, 4: 32, 16: 64}
"""Requests at once, and how many prompts are asked so."""
CLOSE = 0.5
"""Nats: two steps of bfloat16 between 32 and 64; the packaged model's logits reach 47."""
WAYS = ("none", "draft", "ngram")


def write_manifest(folder: Path, data: Path | None, layers: int) -> Path:
    if data is None:
        source = folder / "prompts.jsonl"
        source.write_text("".join((MANIFESTS / name).read_text(encoding="utf-8") for name in SHIPPED))
    else:
        source = folder / "prompts.json"
        taken = json.loads((data / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:REAL_ROWS]
        source.write_text(json.dumps(taken), encoding="utf-8")
    teacher = {"temperature": 0.0, "max_tokens": MAX_TOKENS}
    taught = {
        "kind": "teach",
        "prompts": "asked",
        "samples": 1,
        "keep": "all",
        "topk": 32,
        "teacher": teacher,
    }
    trained: dict[str, Any] = {"kind": "train", "model": "small", "data": "answers", "lora": None}
    trained |= {"algorithm": {"name": "distill", "alpha": 0.3}, "learning_rate": 0.001, "epochs": 4}
    stages = [
        {"name": "asked", "kind": "dataset", "source": source.name, "split": {"test": 0.2}},
        taught | {"name": "answers"},
        {"name": "small", "kind": "student", "layers": layers},
        trained | {"name": "draft"},
    ]
    return save_manifest(folder, "draft", stages)


def distil(manifest: Path, url: str) -> tuple[Path, Path, list[list[Message]]]:
    """Folders of the target and of its draft, and the held-out prompts."""
    from largeforge_ray.data import read_rows
    from largeforge_ray.data.forms import prompt_turns
    from largeforge_ray.store import open_store
    from train_jobs.commands import run_manifest

    made = run_manifest(manifest, url).artifacts
    store = open_store(url)
    target, draft, asked = (store.fetch(made[name]) for name in ("base", "draft", "asked"))
    return target, draft, [prompt_turns(row["messages"]) for row in read_rows(asked, "test")]


def speculation(way: str, draft: Path, k: int) -> dict[str, Any] | None:
    """vLLM's ``speculative_config`` for a way; ``k`` tokens are proposed a step."""
    if way == "none":
        return None
    if way == "draft":
        return {"method": "draft_model", "model": str(draft), "num_speculative_tokens": k}
    return {
        "method": "ngram",
        "num_speculative_tokens": k,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }


def departure(answer: list[int], reference: list[Any]) -> float | None:
    """By how many nats the engine without a draft preferred its own token where the answer first has another.

    None if the answer is the same. If the other token is not among the likeliest there, it is further than
    the last of them, which is what counts then.
    """
    meant, likeliest = reference
    if answer == meant:
        return None
    i = next(i for i, (a, b) in enumerate(zip(answer, meant, strict=False)) if a != b)
    place: dict[str, float] = likeliest[i]
    return place[str(meant[i])] - place.get(str(answer[i]), min(place.values()))


def departures(way: str, load: int, rounds: list[dict[str, Any]]) -> list[float | None]:
    """Of every answer of a way at one load, from what its round's engine without a draft said once more."""
    pairs = ((one[way][str(load)]["answers"], one["none"]["reference"]) for one in rounds)
    return [
        departure(answer, reference)
        for answers, references in pairs
        for answer, reference in zip(answers, references[: len(answers)], strict=True)
    ]


def rate(one: dict[str, Any]) -> float:
    """Tokens of answers a second, prompts' prefill included."""
    return sum(map(len, one["answers"])) / float(one["seconds"])


def compare(way: str, load: int, rounds: list[dict[str, Any]], **more: Any) -> None:
    """Record one way beside none at one load, over all rounds."""
    fast, plain = ([one[w][str(load)] for one in rounds] for w in (way, "none"))
    away, plain_away = (departures(w, load, rounds) for w in (way, "none"))
    same, plain_same = (round(gaps.count(None) / len(gaps), 3) for gaps in (away, plain_away))
    furthest = max((gap for gap in away if gap is not None), default=0.0)
    drafts, drafted, accepted = (sum(one[name] for one in fast) for name in COUNTED)
    record(
        f"{way.capitalize()}-{load}{'-preload' if more['preload'] else ''}",
        f"tokens/s at {load} at once, {way} / none; {same:.0%} of the answers are the same ({plain_same:.0%} "
        "of none's own)",
        [[rate(a), rate(b)] for a, b in zip(fast, plain, strict=True)],
        equal=furthest <= CLOSE,
        goal="> 1.3" if (way, load) == ("draft", 1) else "tells where it stops paying",
        command=COMMAND,
        acceptance=round(accepted / max(1, drafted), 3),
        accepted_length=round(1 + accepted / max(1, drafts), 3),
        prompts=LOADS[load],
        same_answers=same,
        none_again=plain_same,
        furthest_departure=round(furthest, 3),
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A distilled draft model beside none and beside n-grams.")
    parser.add_argument("--data", type=Path, help="folder of alpaca_en_demo.json; shipped prompts without")
    parser.add_argument("--store", default="./forge", help="what is there already is not distilled again")
    parser.add_argument("--layers", type=int, default=4, choices=range(2, 8), help="of the draft")
    parser.add_argument("--tokens", type=int, default=3, help="proposed a step")
    parser.add_argument("--rounds", type=int, default=3, help="of three engines, some minutes each")
    parser.add_argument("--preload", type=Path, nargs="+", default=[], help="LD_PRELOAD of all engines")
    parser.add_argument("--child", nargs=2, type=Path, metavar=("JOB", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job, out = options.child
        found = asyncio.run(measure(json.loads(job.read_text(encoding="utf-8"))))
        out.write_text(json.dumps(found), encoding="utf-8")
        return
    # The loader only warns of a library that is not there.
    preload = [library.resolve(strict=True) for library in options.preload]
    refuse_busy()
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name), options.data, options.layers)
        target, draft, prompts = distil(manifest, options.store)
        job = {"model": str(target), "prompts": prompts[: max(LOADS.values())], "max_tokens": MAX_TOKENS}
        jobs = {
            way: job
            | {"loads": LOADS, "reference": way == "none"}
            | {"speculation": speculation(way, draft, options.tokens)}
            for way in WAYS
        }
        rounds = [
            {way: in_own_process("benchmarks.draft", jobs[way], Path(name), preload) for way in WAYS}
            for _ in range(options.rounds)
        ]
    names = [library.name for library in preload]
    data = "alpaca_en_demo.json" if options.data else list(SHIPPED)
    for way in WAYS[1:]:
        for load in LOADS:
            compare(way, load, rounds, k=options.tokens, layers=options.layers, data=data, preload=names)


if __name__ == "__main__":
    main()
