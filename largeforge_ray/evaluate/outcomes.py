"""Outcome rows: what each expert answered to each item, and how good that was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from largeforge_ray.evaluate.items import decode_item
from largeforge_ray.evaluate.scoring import judge
from largeforge_ray.teach.work import Recipe, Work
from largeforge_ray.types import ChoiceRequest, GenerateRequest, Generation, Sampling

COPIED = ("item_id", "item_hash", "task", "slice", "group", "variant", "origin")
"""What an outcome says of its item."""


@dataclass(frozen=True)
class OutcomeRecipe(Recipe):
    """One expert answers every item once, greedily, or as often as its task is ``drawn``.

    ``key`` is the expert's artifact key, ``adapter`` a PEFT folder or None. ``drawn`` maps a task to its
    number of samples and their temperature. An outcome's key follows from the item's hash, the expert's key
    and the sampling: whoever asks, and however many do, an answer that is there is not asked for again.
    """

    expert: str
    key: str
    adapter: str | None
    seed: int
    drawn: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def work(self, item: dict[str, Any]) -> list[Work]:
        item = decode_item(item)
        asked = item | {"expert": self.expert, "expert_key": self.key}
        if item["kind"] == "choice":
            row_key = _key(item["item_hash"], self.key)
            request: Any = ChoiceRequest(
                row_key,
                choices=tuple(item["choices"]),
                context=item["context"],
                messages=tuple(item["messages"]) if item["messages"] else None,
                adapter=self.adapter,
            )
            return [Work(row_key, request, asked | {"sample": 0})]
        samples, temperature = self.drawn.get(item["task"], (1, 0.0))
        sampling = Sampling(temperature, max_tokens=item["max_tokens"], seed=self.seed)
        return [
            self._generation(item, asked, sample, replace(sampling, seed=self.seed + sample))
            for sample in range(samples)
        ]

    def _generation(
        self, item: dict[str, Any], asked: dict[str, Any], sample: int, sampling: Sampling
    ) -> Work:
        row_key = _key(item["item_hash"], self.key, asdict(sampling))
        request = GenerateRequest(
            row_key,
            tuple(item["messages"] or ()),
            sampling,
            self.adapter,
            topk=0,
            context=item["context"],
            stop=tuple(item["stop"] or ()),
        )
        return Work(row_key, request, asked | {"sample": sample})

    def row(self, work: Work, made: Sequence[Any]) -> dict[str, Any]:
        """Judge one answer; an error scores 0."""
        from largeforge_ray.evaluate.toxicity import toxicity

        (answer,), item = made, work.item
        judged = judge(item, answer)
        generated = isinstance(answer, Generation)
        scores = dict(judged.scores)
        if generated and item["check"] != "code":  # of a program's words it says nothing
            scores["toxicity"] = round(toxicity([judged.answer])[0], 4)
        return {
            "row_key": work.row_key,
            **{name: item[name] for name in COPIED},
            "expert": item["expert"],
            "expert_key": item["expert_key"],
            "sample": item["sample"],
            "answer": judged.answer,
            "quality": judged.quality,
            "metric": judged.metric,
            "scores": json.dumps(scores, sort_keys=True),
            "confidence": judged.confidence,
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens if generated else 0,
            "completion_tokens": answer.completion_tokens,
            "seconds": answer.seconds,
            "cost": answer.usd if generated else 0.0,
            "error": answer.error,
        }

    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "failed": row["error"] is not None,
            "kept": row["quality"] >= 0.5,
            "tokens": int(row["completion_tokens"]),
            "prompt": int(row["prompt_tokens"]),
            "cached": int(row["cached_tokens"]),
            "usd": float(row["cost"]),
        }


def _key(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _schema() -> Any:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    return pa.schema(
        [
            *((n, text) for n in (*COPIED, "expert", "expert_key")),
            ("sample", whole),
            ("answer", text),
            ("quality", number),
            ("metric", text),
            ("scores", text),
            ("confidence", number),
            ("prompt_tokens", whole),
            ("completion_tokens", whole),
            ("seconds", number),
            ("cost", number),
            ("contaminated", pa.bool_()),
            ("error", text),
        ]
    )


def write_outcomes(
    folder: Path, rows: Iterable[Mapping[str, Any]], items: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write ``outcomes.parquet`` and ``items.parquet``; returns the outcomes in their written order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _schema().names
    ordered = sorted(
        ({name: row.get(name) for name in names} for row in rows),
        key=lambda r: (r["item_hash"], r["expert"], r["sample"]),
    )
    pq.write_table(pa.Table.from_pylist(ordered, schema=_schema()), folder / "outcomes.parquet")
    shown = [
        {
            "item_id": item["item_id"],
            "item_hash": item["item_hash"],
            "prompt": prompt_of(item),
            "answer": json.dumps(item["answer"], ensure_ascii=False),
        }
        for item in items
    ]
    pq.write_table(pa.Table.from_pylist(shown), folder / "items.parquet")
    return ordered


def prompt_of(item: Mapping[str, Any]) -> str:
    """What is asked, as a router would see it: the last turn, or the whole text."""
    return str(item["messages"][-1]["content"] if item["messages"] else item["context"])


def read_outcomes(folder: Path) -> list[dict[str, Any]]:
    """The outcome rows of an artifact folder; a field that it was written without is None."""
    import pyarrow.parquet as pq

    names = _schema().names
    rows = pq.read_table(folder / "outcomes.parquet").to_pylist()
    return [{name: row.get(name) for name in names} for row in rows]


def key_of_endpoint(url: str, model: str) -> str:
    """What stands for an endpoint where others have an artifact's key."""
    return hashlib.sha256(f"{model} at {url}".encode()).hexdigest()
