"""Documents of tasks: files of rows, and the published forms of benchmarks under lm-eval's field names."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from largeforge_ray.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
WORDS = {
    "train": {"train"},
    "validation": {"validation", "valid", "val", "dev"},
    "dev": {"dev"},
    "test": {"test"},
}
"""What a file's name says of the split it holds."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row with the place it stands at; every error names both and the field."""

    where: str
    fields: dict[str, Any]

    def bad(self, field: str, message: str) -> DataError:
        return DataError(f"{self.where}: field '{field}': {message}")

    def get(self, field: str) -> Any:
        if field not in self.fields:
            raise self.bad(field, f"is missing; the row has {', '.join(map(str, self.fields))}")
        return self.fields[field]

    def text(self, field: str, *, blank: bool = False) -> str:
        value = self.get(field)
        if not isinstance(value, str) or not (blank or value.strip()):
            raise self.bad(field, f"must be text that is not empty; found {value!r}"[:300])
        return value

    def texts(self, field: str, *, least: int = 2) -> list[str]:
        value = self.get(field)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.bad(field, f"must be a list of texts; found {value!r}"[:300])
        if len(value) < least:
            raise self.bad(field, f"has {len(value)} texts and needs at least {least}; add what is missing")
        return value

    def place(self, field: str, count: int) -> int:
        """A number from 0 to ``count`` - 1, also as text."""
        value = self.get(field)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if type(value) is not int or not 0 <= value < count:
            raise self.bad(field, f"{value!r} is no place among {count} choices; count from 0 to {count - 1}")
        return value


def read(file: Path) -> Iterator[Row]:
    """The rows of a file. Raises ``DataError`` for one that is malformed, and if there is none."""
    if not file.is_file():
        raise ConfigError(f"source '{file}' does not exist; paths are relative to the manifest")
    suffix = next((s for s in reversed(file.suffixes) if s != ".gz"), "")
    if suffix not in SUFFIXES:
        raise ConfigError(f"source '{file.name}' is '{suffix}'; tasks read {', '.join(SUFFIXES)}")
    empty = True
    for where, fields in _parquet(file) if suffix == ".parquet" else _text(file, suffix):
        if not isinstance(fields, dict):
            raise DataError(f"{where}: a row is an object of named fields; found {type(fields).__name__}")
        empty = False
        yield Row(where, fields)
    if empty:
        raise DataError(f"{file} has no rows; add at least one")


def _text(file: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    try:
        with gzip.open(file, "rt", **UTF8) if file.suffix == ".gz" else file.open(**UTF8) as stream:
            yield from {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[suffix](file, stream)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{file} is no whole gzip file: {error}; write it again") from None


UTF8: dict[str, Any] = {"encoding": "utf-8-sig", "newline": ""}


def _jsonl(file: Path, stream: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            where = f"{file}:{number}"
            yield where, _parsed(where, line, "each line is one JSON object")


def _json(file: Path, stream: IO[str]) -> Iterator[tuple[str, Any]]:
    rows = _parsed(str(file), stream.read(), "a .json file is one list of rows")
    if not isinstance(rows, list):
        raise DataError(f"{file}: holds {type(rows).__name__}; a .json file is one list of rows")
    for number, fields in enumerate(rows, 1):
        yield f"{file}: row {number}", fields


def _parsed(where: str, text: str, rule: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}; {rule}") from None


def _csv(file: Path, stream: IO[str]) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(stream, strict=True)
    line = 1
    try:
        for fields in reader:
            where = f"{file}:{line + 1}"
            line = reader.line_num
            if None in fields or None in fields.values():
                raise DataError(
                    f"{where}: has more or fewer values than the {len(reader.fieldnames or ())} columns of "
                    "the first line; quote values that hold commas or line ends"
                )
            yield where, fields
    except csv.Error as error:
        raise DataError(f"{file}:{line + 1}: not CSV: {error}; quote values that hold commas") from None


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(1000):
            for fields in batch.to_pylist():
                number += 1
                yield f"{file}: row {number}", fields
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a Parquet file: {error}; write it again") from None


def split_file(source: Path, split: str, *, evaluated: bool) -> Path | None:
    """The file of a split in a folder, by its name; None if there is none.

    What is evaluated may also be the only file, or ``source`` itself.
    """
    if not source.is_dir():
        return source if evaluated else None
    files = sorted(p for p in source.iterdir() if set(p.suffixes) & set(SUFFIXES))
    named = [f for f in files if WORDS.get(split, {split}) & set(re.split(r"[^a-z]+", f.name.lower()))]
    found = named or (files if evaluated and len(files) == 1 else [])
    if len(found) > 1:
        names = ", ".join(f.name for f in found)
        raise ConfigError(
            f"folder '{source}' has several files of split '{split}': {names}; keep one of them"
        )
    return found[0] if found else None


def as_it_is(row: Row) -> dict[str, Any]:
    """A document that has lm-eval's own fields already."""
    return row.fields


def mmlu(row: Row) -> dict[str, Any]:
    """Hendrycks et al. 2021 (arXiv:2009.03300)."""
    choices = row.texts("choices", least=4)
    return {
        "question": row.text("question"),
        "subject": row.text("subject"),
        "choices": choices,
        "answer": row.place("answer", len(choices)),
    }


def arc(row: Row) -> dict[str, Any]:
    """Clark et al. 2018 (arXiv:1803.05457): published, the hub's, or texts with the true one's place."""
    stem = row.fields.get("question")
    if isinstance(stem, dict):
        row = Row(row.where, row.fields | {"question": stem.get("stem"), "choices": stem.get("choices")})
    given = row.get("choices")
    try:
        if isinstance(given, dict):
            texts, labels = list(given["text"]), list(given["label"])
        elif given and isinstance(given, list) and isinstance(given[0], dict):
            texts, labels = [each["text"] for each in given], [each["label"] for each in given]
        else:
            texts = row.texts("choices")
            labels = [chr(ord("A") + place) for place in range(len(texts))]
    except (KeyError, TypeError):
        raise row.bad("choices", "must be texts, or texts each with a label") from None
    key = row.text("answerKey") if "answerKey" in row.fields else labels[row.place("answer", len(texts))]
    if key not in labels or len(texts) < 2:
        raise row.bad(
            "answerKey", f"'{key}' is none of the labels {', '.join(labels)}; it names the true choice"
        )
    return {"question": row.text("question"), "choices": {"text": texts, "label": labels}, "answerKey": key}


def hellaswag(row: Row) -> dict[str, Any]:
    """Zellers et al. 2019 (arXiv:1905.07830)."""
    endings = row.texts("endings", least=4)
    return {
        "activity_label": row.text("activity_label"),
        "ctx_a": row.text("ctx_a", blank=True),
        "ctx_b": row.text("ctx_b", blank=True),
        "endings": endings,
        "label": str(row.place("label", len(endings))),
    }


def truthfulqa(row: Row) -> dict[str, Any]:
    """Lin et al. 2022 (arXiv:2109.07958): the published CSV, or the hub's fields.

    The choices are made from the CSV as its authors do: the best answer or all correct ones, and after them
    the incorrect ones, each ended with a full stop.
    """
    if "Question" not in row.fields:
        return {"question": row.text("question")} | row.fields
    true, false = (_listed(row, f"{kind} Answers") for kind in ("Correct", "Incorrect"))
    best = row.text("Best Answer").strip()
    return {
        "question": row.text("Question"),
        "category": row.text("Category"),
        "best_answer": best,
        "correct_answers": true,
        "incorrect_answers": false,
        "mc1_targets": _targets([best], false),
        "mc2_targets": _targets(true, false),
    }


def _listed(row: Row, field: str) -> list[str]:
    return [each.strip() for each in row.text(field).split(";") if each.strip()]


def _targets(true: list[str], false: list[str]) -> dict[str, Any]:
    closed = [each if each.endswith(".") else f"{each}." for each in (*true, *false)]
    return {"choices": closed, "labels": [1] * len(true) + [0] * len(false)}


def gsm8k(row: Row) -> dict[str, Any]:
    """Cobbe et al. 2021 (arXiv:2110.14168)."""
    answer = row.text("answer")
    if "#### " not in answer:
        raise row.bad("answer", "does not end with '#### ' and the result; add it")
    return {"question": row.text("question"), "answer": answer}


def humaneval(row: Row) -> dict[str, Any]:
    """Chen et al. 2021 (arXiv:2107.03374)."""
    return {field: row.text(field) for field in ("task_id", "prompt", "entry_point", "test")}
