"""A user's file to a dataset: every row is checked, and a bad one is named by file, line and field."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge_ray.data.forms import prompt_turns, to_row
from largeforge_ray.data.rows import RowWriter
from largeforge_ray.data.split import is_test, row_hash
from largeforge_ray.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".json", ".parquet")
CHECKS = ("exact", "json", "number", "contains", "code")


def source_files(source: Path) -> list[Path]:
    """The data files of a source. Raises ``ConfigError`` if there are none or the format is not read."""
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise ConfigError(f"dataset folder '{source}' holds no {', '.join(SUFFIXES)} file; add one")
        return files
    if not source.is_file():
        raise ConfigError(f"dataset source '{source}' does not exist; paths are relative to the manifest")
    if source.suffix not in SUFFIXES:
        raise ConfigError(
            f"dataset source '{source.name}' is '{source.suffix}'; datasets are {', '.join(SUFFIXES)}"
        )
    return [source]


def content_identity(source: Path) -> str:
    """SHA-256 over the bytes of the source's files: what the dataset's key depends on."""
    total = hashlib.sha256()
    for file in source_files(source):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def ingest(source: Path, *, test_share: float, target: Path) -> dict[str, Any]:
    """Check and split the rows of ``source`` into ``target``; returns rows, train, test, duplicates, form.

    Raises ``DataError`` for the first malformed row, and for a source or part without any row.
    """
    seen: set[bytes] = set()
    parts = ("train", "test") if test_share else ("train",)
    writers = {part: RowWriter(target, part) for part in parts}
    duplicates, form, first = 0, None, ""
    for file in source_files(source):
        for where, raw in _read(file):
            row = _check(raw, where)
            form, first = (form, first) if form else (row["form"], where)
            if row["form"] != form:
                raise DataError(
                    f"{where}: a row of form '{row['form']}', but {first} began with '{form}'; "
                    "rows of one dataset have one form, make a dataset of each"
                )
            digest = bytes.fromhex(row["item_hash"])
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            # By what is asked: two answers to one prompt are never on both sides of the split.
            asked = row_hash(prompt_turns(row["messages"]), row["answer"])
            writers["test" if is_test(asked, test_share) else "train"].add(row)
    for writer in writers.values():
        writer.close()
    if not seen:
        raise DataError(f"dataset source '{source}' has no rows; add at least one prompt")
    for part, writer in writers.items():
        if writer.count == 0:
            raise DataError(
                f"the split with test: {test_share} leaves no {part} rows of {len(seen)}; "
                "add rows or change the share"
            )
    return {
        "rows": len(seen),
        "test": 0,
        **{p: w.count for p, w in writers.items()},
        "duplicates": duplicates,
        "form": form,
    }


def form_of(source: Path) -> str | None:
    """The form of a source's first row, None if it has no row. Raises ``DataError`` if that is malformed."""
    for file in source_files(source):
        for where, raw in _read(file):
            return str(_check(raw, where)["form"])
    return None


def asks_for(check: str, source: Path) -> bool:
    """Whether a row of ``source`` has ``check``: a search of the bytes, quick enough for plan time.

    It parses no JSON, so an object in an answer that looks the same counts too.
    """
    wanted = re.compile(rb'"check"\s*:\s*"%s"' % check.encode())
    for file in source_files(source):
        if file.suffix == ".parquet":
            if any(raw.get("check") == check for _, raw in _read(file, ["check"])):
                return True
            continue
        with file.open("rb") as stream:
            if any(wanted.search(line) for line in stream):
                return True
    return False


def _read(file: Path, columns: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(1000, columns=columns):
                for raw in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", {k: v for k, v in raw.items() if v is not None}
        except pa.ArrowInvalid as error:
            raise DataError(f"{file} is not a Parquet file: {error}; write it again") from None
        return
    if file.suffix == ".json":
        yield from _read_array(file)
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield where, json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
                ) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}; each line is one JSON object") from None


def _read_array(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}; a .json file is one list of rows") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: holds {type(rows).__name__}; a .json file is one list of rows")
    for number, raw in enumerate(rows, 1):
        yield f"{file}: row {number}", raw


def _check(raw: Any, where: str) -> dict[str, Any]:
    def bad(field: str, message: str) -> DataError:
        return DataError(f"{where}: field '{field}': {message}")

    if not isinstance(raw, dict):
        raise DataError(
            f"{where}: a row is a JSON object with 'prompt' or 'messages'; found {type(raw).__name__}"
        )
    for field, value in raw.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, UnicodeEncodeError, RecursionError) as error:
            raise bad(field, f"cannot be kept as UTF-8 JSON: {error}") from None
    row = to_row(raw, bad)
    check, answer = raw.get("check"), raw.get("answer")
    if check is not None and check not in CHECKS:
        raise bad("check", f"'{check}' is not known. Supported: [{', '.join(CHECKS)}]")
    if check is not None and answer is None:
        raise bad("answer", f"missing, but check '{check}' compares with it; add the expected answer")
    if check == "number" and not _is_finite(answer):
        raise bad("answer", f"check 'number' needs a finite number; found {answer!r}"[:300])
    if check == "code" and (problem := _not_tests(answer)):
        raise bad("answer", f"check 'code' runs it as Python tests, but {problem}; write asserts")
    if answer is not None and check is None:
        check = "exact" if isinstance(answer, str) else "json"
    expert = raw.get("expert")
    if expert is not None and (not isinstance(expert, str) or not expert):
        raise bad("expert", f"names who should answer; found {expert!r}"[:300])
    extra = [answer, row["chosen"], row["rejected"], row["label"]]
    digest = row_hash(row["messages"], answer if extra[1:] == [None] * 3 else extra)
    return row | {
        "item_id": str(digest[:16] if raw.get("id") is None else raw["id"]),
        "item_hash": digest,
        "answer": answer,
        "check": check,
        "expert": expert,
    }


def _is_finite(answer: Any) -> bool:
    return isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < 1e308


def _not_tests(answer: Any) -> str | None:
    if not isinstance(answer, str):
        return f"it is {type(answer).__name__}"
    try:
        empty = not ast.parse(answer).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it does not parse: {error}"
    return "it is empty" if empty else None
