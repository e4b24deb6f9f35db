"""Outcome rows: what each expert answered to each item, and how good that was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.teach.verify import verify
from largeforge_ray.teach.work import Recipe, Work
from largeforge_ray.types import GenerateRequest, Generation, Sampling


@dataclass(frozen=True)
class OutcomeRecipe(Recipe):
    """Every expert answers every item once. ``experts`` maps a name to (artifact key, adapter folder or
    None)."""

    experts: dict[str, tuple[str, str | None]]
    task: str
    sampling: Sampling

    def work(self, item: dict[str, Any]) -> list[Work]:
        work = []
        for name, (key, adapter) in self.experts.items():
            content = [item["item_hash"], key, asdict(self.sampling)]
            row_key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            request = GenerateRequest(row_key, tuple(item["messages"]), self.sampling, adapter, topk=0)
            asked = item | {"expert": name, "expert_key": key, "task": self.task}
            work.append(Work(row_key, request, asked))
        return work

    def row(self, work: Work, made: Sequence[Generation]) -> dict[str, Any]:
        """Score one answer: quality 1 if the item's check accepts it, else 0; an error scores 0."""
        (generation,), item = made, work.item
        right = generation.error is None and verify(item["check"], generation.text, item["answer"]).kept
        mean = generation.mean_logprob
        return {
            "row_key": work.row_key,
            "item_id": item["item_id"],
            "item_hash": item["item_hash"],
            "task": item["task"],
            "expert": item["expert"],
            "expert_key": item["expert_key"],
            "sample": 0,
            "answer": generation.text,
            "quality": 1.0 if right else 0.0,
            "metric": item["check"],
            "confidence": None if mean is None else math.exp(mean),
            "prompt_tokens": generation.prompt_tokens,
            "cached_tokens": generation.cached_tokens,
            "completion_tokens": generation.completion_tokens,
            "seconds": generation.seconds,
            "cost": generation.usd,
            "error": generation.error,
        }

    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "failed": row["error"] is not None,
            "kept": row["quality"] == 1.0,
            "tokens": int(row["completion_tokens"]),
            "prompt": int(row["prompt_tokens"]),
            "cached": int(row["cached_tokens"]),
            "usd": float(row["cost"]),
        }


def _schema() -> Any:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    return pa.schema(
        [
            *((n, text) for n in ("item_id", "item_hash", "task", "expert", "expert_key")),
            ("sample", whole),
            ("answer", text),
            ("quality", number),
            ("metric", text),
            ("confidence", number),
            ("prompt_tokens", whole),
            ("completion_tokens", whole),
            ("seconds", number),
            ("cost", number),
            ("error", text),
        ]
    )


def write_outcomes(
    folder: Path, rows: Iterable[dict[str, Any]], items: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write ``outcomes.parquet`` and ``items.parquet``; returns the outcomes in their written order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(rows, key=lambda r: (r["item_hash"], r["expert"], r["sample"]))
    pq.write_table(pa.Table.from_pylist(ordered, schema=_schema()), folder / "outcomes.parquet")
    shown = [
        {
            "item_id": item["item_id"],
            "item_hash": item["item_hash"],
            "prompt": item["messages"][-1]["content"],
            "answer": json.dumps(item["answer"], ensure_ascii=False),
        }
        for item in items
    ]
    pq.write_table(pa.Table.from_pylist(shown), folder / "items.parquet")
    return ordered


def read_outcomes(folder: Path) -> list[dict[str, Any]]:
    """The outcome rows of an artifact folder."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "outcomes.parquet").to_pylist()
    return rows


def qualities(rows: Iterable[dict[str, Any]], expert: str) -> dict[str, float]:
    """Item hash -> quality of one expert."""
    return {r["item_hash"]: r["quality"] for r in rows if r["expert"] == expert}
