"""Outcome rows as arrays, and the matrix of what each expert made of each item.

R outcome rows, N items, E experts. Rows pass once and leave numbers only, so a million of them are some
hundred megabytes.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largeforge_ray.errors import DataError

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
TEXTS = ("origin", "task", "slice", "group", "variant", "expert", "metric")
NUMBERS = ("quality", "confidence", "prompt_tokens", "completion_tokens", "seconds", "cost")
CELLS = ("quality", "cost", "confidence", "seconds")


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Fields of R outcome rows: texts as places in their sorted ``names``, numbers with NaN for none."""

    names: dict[str, tuple[str | None, ...]]
    codes_R: dict[str, Whole]
    numbers_R: dict[str, Floats]
    failed_R: NDArray[np.bool_]

    def take(self, where_R: Any) -> Columns:
        """The rows of a mask; names keep their places."""
        return Columns(
            self.names,
            {field: codes[where_R] for field, codes in self.codes_R.items()},
            {field: numbers[where_R] for field, numbers in self.numbers_R.items()},
            self.failed_R[where_R],
        )

    def of(self, field: str, name: str | None) -> Any:
        """A mask of the rows that have ``name`` in ``field``."""
        names = self.names[field]
        return self.codes_R[field] == (names.index(name) if name in names else -1)

    def present(self, field: str) -> list[str]:
        """The names that some row has in ``field``; not None."""
        found = (self.names[field][code] for code in np.unique(self.codes_R[field]))
        return [name for name in found if name is not None]

    def by_item(self) -> tuple[Whole, Floats]:
        """Places of the origins there are, and the mean quality of each over its samples."""
        items_U, place_R = np.unique(self.codes_R["origin"], return_inverse=True)
        return items_U, np.bincount(place_R, self.numbers_R["quality"]) / np.bincount(place_R)


def read_columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Outcome rows in any order. A row without ``origin`` is its own, one without ``variant`` is none."""
    seen: dict[str, dict[str | None, int]] = {field: {} for field in TEXTS}
    codes = {field: array("q") for field in TEXTS}
    numbers = {field: array("d") for field in NUMBERS}
    failed = array("b")
    for row in rows:
        for field in TEXTS:
            name = row.get(field)
            if name is None and field == "origin":
                name = row["item_hash"]
            codes[field].append(seen[field].setdefault(name, len(seen[field])))
        for field in NUMBERS:
            value = row.get(field)
            numbers[field].append(math.nan if value is None else value)
        failed.append(row.get("error") is not None)
    names, codes_R = {}, {}
    for field in TEXTS:
        names[field] = tuple(sorted(seen[field], key=lambda name: (name is not None, name or "")))
        # By the alphabet, so that nothing after this depends on the order of the rows.
        places = {name: place for place, name in enumerate(names[field])}
        sorted_S = np.array([places[name] for name in seen[field]], np.int64)
        codes_R[field] = sorted_S[np.frombuffer(codes[field], np.int64)]
    numbers_R = {field: np.frombuffer(numbers[field], np.float64) for field in NUMBERS}
    return Columns(names, codes_R, numbers_R, np.frombuffer(failed, np.int8).astype(bool))


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """N items x E experts, means over samples, NaN where there is no answer or no such number.

    ``items`` are the hashes of the unperturbed items. ``cost`` and ``seconds`` are of one answer.
    """

    items: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    slices: tuple[str | None, ...]
    experts: tuple[str, ...]
    quality_NE: Floats
    cost_NE: Floats
    confidence_NE: Floats
    seconds_NE: Floats

    def take(self, where_N: Any) -> Matrix:
        """The items of a mask or of places."""
        places = np.arange(len(self.items))[where_N]
        taken: dict[str, Any] = {f"{f}_NE": getattr(self, f"{f}_NE")[places] for f in CELLS}
        for field in ("items", "prompts", "tasks", "slices"):
            texts = getattr(self, field)
            taken[field] = tuple(texts[place] for place in places)
        return replace(self, **taken)

    def columns(self, experts: Sequence[int]) -> Matrix:
        """Some of the experts, in this order."""
        cells = {f"{f}_NE": getattr(self, f"{f}_NE")[:, experts] for f in CELLS}
        return replace(self, experts=tuple(self.experts[e] for e in experts), **cells)

    def complete(self) -> Matrix:
        """The items that every expert answered."""
        return self.take(np.isfinite(self.quality_NE).all(axis=1))

    def priced(self, cost_E: Any) -> Matrix:
        """The same with one cost for every answer of an expert."""
        return replace(self, cost_NE=np.broadcast_to(np.asarray(cost_E, np.float64), self.quality_NE.shape))

    def expert(self, name: str) -> int:
        """The column of an expert. Raises ``DataError`` if there is none of this name."""
        if name not in self.experts:
            raise DataError(f"expert '{name}' has no outcomes; use one of: {', '.join(self.experts)}")
        return self.experts.index(name)


def build_matrix(columns: Columns, prompts: Mapping[str, str] | None = None) -> Matrix:
    """The matrix of the rows that are no variants. ``prompts`` maps an item's hash to its text."""
    plain, names = columns.take(columns.of("variant", None)), columns.names
    items_N, item_R = np.unique(plain.codes_R["origin"], return_inverse=True)
    shape = len(items_N), len(names["expert"])
    cell_R = item_R * shape[1] + plain.codes_R["expert"]

    def mean(values_R: Floats) -> Floats:
        known_R = np.isfinite(values_R)
        sums = np.bincount(cell_R[known_R], values_R[known_R], minlength=math.prod(shape))
        with np.errstate(invalid="ignore"):
            return (sums / np.bincount(cell_R[known_R], minlength=math.prod(shape))).reshape(shape)

    def label(field: str) -> list[str | None]:
        code_N = np.zeros(len(items_N), np.int64)
        code_N[item_R] = plain.codes_R[field]
        return [names[field][code] for code in code_N]

    hashes = [str(names["origin"][item]) for item in items_N]
    return Matrix(
        items=tuple(hashes),
        prompts=tuple((prompts or {}).get(item, "") for item in hashes),
        tasks=tuple(map(str, label("task"))),
        slices=tuple(label("slice")),
        experts=tuple(map(str, names["expert"])),
        **{f"{field}_NE": mean(plain.numbers_R[field]) for field in CELLS},
    )


def read_matrix_jsonl(path: Path) -> Matrix:
    """A matrix measured elsewhere: a line an item, ``{id, task, prompt, correct, cost}``.

    ``correct`` maps an expert to true, false or a number from 0 to 1, ``cost`` (may be left out) to what its
    answer cost. Raises ``DataError`` naming the file, the line and the field.
    """
    prompts: dict[str, str] = {}
    columns = read_columns(_read_jsonl(path, prompts))
    if not prompts:
        raise DataError(f"{path}: has no items; give a line {{id, task, prompt, correct}} for each")
    return build_matrix(columns, prompts)


def _read_jsonl(path: Path, prompts: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows, while ``prompts`` fills."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            item = _item(where, line)
            if item["id"] in prompts:
                raise DataError(f"{where}: id: '{item['id']}' is that of an earlier line; make it unique")
            prompts[item["id"]] = item["prompt"]
            cost = item.get("cost") or {}
            for expert, right in item["correct"].items():
                row = {"origin": item["id"], "task": item["task"], "expert": expert, "quality": float(right)}
                yield row | {"cost": cost.get(expert)}


def _item(where: str, line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); write one object a line") from error
    if not isinstance(item, dict):
        raise DataError(f"{where}: is {type(item).__name__}; write one object a line")
    for field in ("id", "task", "prompt"):
        if not isinstance(item.get(field), str):
            raise DataError(f"{where}: {field}: {item.get(field)!r} is no text; give it as a string")
    _check_numbers(where, "correct", item.get("correct"), "true, false or 0 to 1", most=1.0)
    if not item["correct"]:
        raise DataError(f"{where}: correct: names no expert; give each expert's result")
    if item.get("cost") is not None:
        _check_numbers(where, "cost", item["cost"], "0 or more", most=sys.float_info.max)
        if strangers := sorted(item["cost"].keys() - item["correct"].keys()):
            raise DataError(f"{where}: cost: '{strangers[0]}' has no entry in correct; add it there")
    return item


def _check_numbers(where: str, field: str, value: Any, rule: str, *, most: float) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {field}: {value!r} is no object; map each expert to {rule}")
    for expert, number in value.items():
        if not isinstance(number, bool | int | float) or not 0 <= number <= most:
            raise DataError(f"{where}: {field}.{expert}: {number!r} is not {rule}; correct it")
