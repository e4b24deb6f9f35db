"""What an evaluate stage asks: the items of its tasks with their variants, and those of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.config.tasks import LibraryTask, OwnTask
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate.items import item
from largeforge_ray.evaluate.perturb import perturb
from largeforge_ray.evaluate.tasks import build

Row = dict[str, Any]


def task_items(entries: Sequence[LibraryTask | OwnTask], folder: Path) -> Iterator[Row]:
    """Each task's items, each followed by its variants; paths are relative to ``folder``.

    Raises ``ConfigError`` or ``DataError`` for a task or a document that cannot be asked.
    """
    for entry in entries:
        yield from _with_variants(entry, build(entry, folder).items)


def _with_variants(entry: LibraryTask | OwnTask, items: Iterable[Row]) -> Iterator[Row]:
    for each in items:
        yield each
        yield from filter(None, (perturb(each, name) for name in entry.perturb))


def identity(
    entries: Sequence[LibraryTask | OwnTask], folder: Path, answers_in_words: str | None = None
) -> dict[str, Any]:
    """What decides the answers: a hash over all items, how many each task has, variants among them, and how
    many of its documents ask the same as an earlier one and are left out.

    Raises ``ConfigError`` if ``answers_in_words``, a candidate, would be asked how likely choices are.
    """
    total, counts, duplicates = hashlib.sha256(), {}, {}
    for entry in entries:
        built = build(entry, folder)
        made = [*_with_variants(entry, built.items)]
        if answers_in_words and any(each["kind"] == "choice" for each in made):
            raise ConfigError(
                f"task '{entry.name}' needs the log-likelihoods of its choices, which the endpoint of "
                f"candidate '{answers_in_words}' does not give; leave one of them out, or evaluate it in a "
                "stage of its own"
            )
        counts[entry.name], duplicates[entry.name] = len(made), built.duplicates
        for each in made:
            total.update(bytes.fromhex(each["item_hash"]))
    return {"items": total.hexdigest(), "counts": counts, "duplicates": duplicates}


def of_dataset(row: Row, task: str, max_tokens: int) -> Row:
    """A dataset's row as an item. Raises ``DataError`` if there is nothing to judge an answer by."""
    if row["check"] is None:
        raise DataError(f"item '{row['item_id']}' has no answer to compare with; add 'answer' to its row")
    return item(
        item_id=row["item_id"],
        task=task,
        kind="generate",
        messages=row["messages"],
        answer=row["answer"],
        check=row["check"],
        max_tokens=max_tokens,
    )
