"""Items that stand in what a candidate was trained on: words in a row that both have.

As Brown et al. 2020 (arXiv:2005.14165), appendix C, one shared n-gram marks an item. What many items have in
common is the wording of their task and marks none. A paraphrase is not found, and neither is what the base
model itself has seen, because nobody here has its training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from largeforge_ray.data import read_rows
from largeforge_ray.errors import StoreError
from largeforge_ray.store import Artifact, Store
from largeforge_ray.store.keys import SHORT
from largeforge_ray.store.lineage import Lineage, lineage_tree
from largeforge_ray.teach.filters.contamination import hashed, is_in
from largeforge_ray.teach.filters.words import ngrams, tokens, words

COMMON = 10
"""An n-gram of more items than these belongs to the task, such as an instruction or a worked example."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """The first words of an item that were trained on, and the ``source`` where they stand."""

    words: str
    source: str


def contaminated(
    items: Iterable[Mapping[str, Any]], training_texts: Iterable[tuple[str, str]], n: int = 13
) -> dict[str, Overlap]:
    """Item hash -> overlap, of the items that share ``n`` words in a row with a (source, text) pair.

    Both pass once; 8 bytes are held for each n-gram of an item. Perturbed items are those of their origin and
    are left out. A text of fewer words is compared as a whole, signs included.
    """
    own = {
        str(each["item_hash"]): hashed(dict.fromkeys(g for text in _texts(each, n) for g in _grams(text, n)))
        for each in items
        if each.get("variant") is None
    }
    if not own:
        return {}
    grams, count = np.unique(np.concatenate(list(own.values())), return_counts=True)
    known = grams[count <= COMMON]
    found: dict[int, Overlap] = {}
    for source, text in training_texts:
        shown = _grams(text, n)
        hashes = hashed(shown)
        for place in np.flatnonzero(is_in(known, hashes)):
            found.setdefault(int(hashes[place]), Overlap(shown[place].replace("\x1f", " "), source))
    first = {key: next((g for g in hashes.tolist() if g in found), None) for key, hashes in own.items()}
    return {key: found[gram] for key, gram in first.items() if gram is not None}


def with_and_without(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> expert -> marked items, and mean quality with and without them (None if all are marked).

    Of outcome rows that are no variants, each item's mean over its samples. Experts whose training data is
    not known are left out.
    """
    items: dict[tuple[str, str], dict[str, tuple[bool, list[float]]]] = {}
    for row in rows:
        if row["contaminated"] is not None and row["variant"] is None:
            cell = items.setdefault((row["task"], row["expert"]), {})
            cell.setdefault(row["item_hash"], (row["contaminated"], []))[1].append(row["quality"])
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (task, expert), cell in sorted(items.items()):
        clean = [fmean(quality) for marked, quality in cell.values() if not marked]
        found.setdefault(task, {})[expert] = {
            "marked": len(cell) - len(clean),
            "accuracy_with": fmean(fmean(quality) for _, quality in cell.values()),
            "accuracy_without": fmean(clean) if clean else None,
        }
    return found


def training_texts(store: Store, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """(source, text) of every text in the datasets that ``artifact`` and its ancestors were trained on.

    Raises ``StoreError`` if something it was made of has been removed.
    """
    trained = {(found.key, part): found for found, part in _datasets(lineage_tree(store, artifact))}
    for (_, part), dataset in sorted(trained.items(), key=lambda each: each[0]):
        for row in read_rows(store.fetch(dataset), part):
            source = f"{dataset.name} {dataset.key[:SHORT]}.{part}, item {row['item_id']}"
            for text in _row_texts(row):
                yield source, text


def _datasets(tree: Lineage) -> Iterator[tuple[Artifact, str]]:
    """The datasets and parts that were trained on; a dataset's own parents are what it was drawn from."""
    if tree.artifact is None:
        raise StoreError(
            f"artifact {tree.key[:SHORT]} was removed from the store, so what was trained on is not known; "
            "make it again, or leave out contamination"
        )
    inputs = (str(value).partition(".") for value in tree.artifact.config.get("inputs", {}).values())
    parts: dict[str, set[str]] = {}
    for key, _, part in inputs:
        parts.setdefault(key, set()).add(part)
    for parent in tree.parents:
        if parent.artifact is not None and parent.artifact.kind == "dataset":
            for part in parts.get(parent.key[:SHORT], {"train"}) - {"test"}:
                yield parent.artifact, part
        else:
            yield from _datasets(parent)


def _row_texts(row: Mapping[str, Any]) -> Iterator[str]:
    for chat in ("messages", "chosen", "rejected"):
        yield from (turn["content"] for turn in row.get(chat) or ())
    yield from _strings(row.get("answer"))
    yield from _strings(row.get("rationale"))


def _texts(item: Mapping[str, Any], n: int) -> list[str]:
    """What is the item's own: its document, or its last turn where it has none, and its answers.

    The longest counts however short it is; of the others a single word is often the answer to many items.
    """
    own = [*_strings(item["doc"])] if item.get("doc") else []
    own = own or [item["messages"][-1]["content"] if item.get("messages") else item["context"]]
    longest = max(own, key=len)
    others = [*own, *_strings(item.get("choices")), *_strings(item.get("answer"))]
    return [longest, *(text for text in others if text != longest and len(words(text)) >= n / 2)]


def _strings(value: Any) -> Iterator[str]:
    """The texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _grams(text: str, n: int) -> list[str]:
    found = words(text)
    # 5 + 3 and 5 - 3 are the same words, which tell long texts apart and short ones not.
    return ngrams(found, n) if len(found) >= n else ngrams(tokens(text), n=len(text))
