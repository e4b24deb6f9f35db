"""Which items two experts answered most differently, read from an outcomes artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge_ray.observe.data import Comparison, ItemPair

if TYPE_CHECKING:
    from largeforge_ray.store import Artifact, Store

MOST_ITEMS = 10
GROUPS = ("improved", "worse", "unsolved")
_BATCH_ROWS = 4096


@dataclass(slots=True)
class _Tally:
    base: float = 0.0
    base_n: int = 0
    expert: float = 0.0
    expert_n: int = 0

    @property
    def base_mean(self) -> float:
        return self.base / self.base_n

    @property
    def expert_mean(self) -> float:
        return self.expert / self.expert_n


def compare_items(store: Store, artifact: Artifact, stage: str, base: str, expert: str) -> Comparison:
    """The items that improved most, fell most, or stayed unsolved; MOST_ITEMS at most, groups in turn.

    Two passes over the outcomes: qualities first, then the answers of the chosen items only, so that
    four numbers per item are all that is held. An item is known by its ``item_hash``.

    Raises:
        StoreError: the artifact's files cannot be fetched, or differ from their record.
    """
    folder = store.fetch(artifact)
    tallies = _tallies(folder / "outcomes.parquet", base, expert)
    chosen = choose(tallies)
    answers = _answers(folder / "outcomes.parquet", base, expert, chosen)
    texts = _texts(folder / "items.parquet", chosen)
    pairs = [
        ItemPair(
            item_id=answers[item]["item_id"],
            task=answers[item]["task"],
            group=group,
            prompt=texts.get(item, (None, None))[0],
            expected=texts.get(item, (None, None))[1],
            base_answer=answers[item][f"answer of {base}"],
            expert_answer=answers[item][f"answer of {expert}"],
            base_quality=tallies[item].base_mean,
            expert_quality=tallies[item].expert_mean,
        )
        for item, group in chosen.items()
    ]
    return Comparison(stage, base, expert, tuple(pairs))


def choose(tallies: Mapping[str, _Tally]) -> dict[str, str]:
    """Item hash -> group, in the order of GROUPS, taken from the groups in turn until there are enough."""
    change = {item: tally.expert_mean - tally.base_mean for item, tally in tallies.items()}
    improved = sorted((item for item in change if change[item] > 0), key=lambda item: (-change[item], item))
    worse = sorted((item for item in change if change[item] < 0), key=lambda item: (change[item], item))
    unsolved = sorted(
        (item for item in change if change[item] == 0 and tallies[item].expert_mean < 1),
        key=lambda item: (tallies[item].expert_mean, item),
    )
    in_turn = [
        (item, group)
        for row in zip_longest(improved, worse, unsolved)
        for item, group in zip(row, GROUPS, strict=True)
        if item is not None
    ]
    return dict(sorted(in_turn[:MOST_ITEMS], key=lambda pair: GROUPS.index(pair[1])))


def _tallies(path: Path, base: str, expert: str) -> dict[str, _Tally]:
    """Sums of quality by item, for the items that both experts answered."""
    tallies: dict[str, _Tally] = {}
    for row in _rows(path, ("item_hash", "expert", "quality")):
        if row["quality"] is None:
            continue
        if row["expert"] == base:
            tally = tallies.setdefault(row["item_hash"], _Tally())
            tally.base += row["quality"]
            tally.base_n += 1
        elif row["expert"] == expert:
            tally = tallies.setdefault(row["item_hash"], _Tally())
            tally.expert += row["quality"]
            tally.expert_n += 1
    return {item: tally for item, tally in tallies.items() if tally.base_n and tally.expert_n}


def _answers(path: Path, base: str, expert: str, chosen: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Item hash -> its id, its task, and each expert's first answer (or the error in its place)."""
    answers: dict[str, dict[str, str]] = {item: {} for item in chosen}
    for row in _rows(path, ("item_id", "item_hash", "expert", "task", "answer", "quality", "error")):
        if row["item_hash"] in answers and row["expert"] in (base, expert) and row["quality"] is not None:
            found = answers[row["item_hash"]]
            found.setdefault("item_id", str(row["item_id"]))
            found.setdefault("task", row["task"] or "")
            answer = f"error: {row['error']}" if row["error"] else row["answer"] or ""
            found.setdefault(f"answer of {row['expert']}", answer)
    return answers


def _texts(path: Path, chosen: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Item hash -> its prompt and the expected answer; empty for outcomes without an items file."""
    if not path.exists():
        return {}
    return {
        row["item_hash"]: (row["prompt"] or "", _readable(row["answer"]))
        for row in _rows(path, ("item_hash", "prompt", "answer"))
        if row["item_hash"] in chosen
    }


def _readable(answer: str | None) -> str:
    """An expected answer is JSON text; a plain string reads better without its quotes."""
    if answer is None:
        return ""
    try:
        value = json.loads(answer)
    except ValueError:
        return answer
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
            yield from batch.to_pylist()
