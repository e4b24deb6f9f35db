"""Dataset artifacts on disk: ``train.parquet`` and ``test.parquet``, one schema, read as streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from largeforge_ray.errors import DataError

PARTS = ("train", "test")
BATCH_ROWS = 1000
SIGNALS = ("token_ids", "topk_ids", "topk_logprobs", "tail_logprob")
"""What is kept of a teacher beside an answer's text: the answer's n token ids; at each place the k likeliest
ids and their log-probabilities, likeliest first and end to end (n * k); the log of the others' mass (n)."""
HIDDEN = "hidden_states"
"""The teacher's states where it predicts the answer's tokens: n places, at each its chosen layers in their
order, each as wide as the model and scaled to a mean square of 1, end to end."""
NUMBERS = (*SIGNALS, HIDDEN)
BATCH_NUMBERS = 1 << 25
"""Numbers that are written at once, or read: states are some hundred kilobytes a row."""


def _schema() -> Any:
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("item_id", pa.string()),
            ("item_hash", pa.string()),
            ("messages", pa.list_(turn)),
            ("answer", pa.string()),
            ("check", pa.string()),
            ("chosen", pa.list_(turn)),
            ("rejected", pa.list_(turn)),
            ("label", pa.bool_()),
            ("rationale", pa.string()),
            ("expert", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("topk_ids", pa.list_(pa.int32())),
            ("topk_logprobs", pa.list_(pa.float16())),
            ("tail_logprob", pa.list_(pa.float16())),
            (HIDDEN, pa.list_(pa.float16())),
        ]
    )


def _storage() -> dict[str, Any]:
    """How Parquet writes: a dictionary pays for text and not for numbers, whose high bytes are much alike."""
    numbers = [f"{name}.list.element" for name in NUMBERS]
    chats = ("messages", "chosen", "rejected")
    text = [f"{chat}.list.element.{field}" for chat in chats for field in ("role", "content")]
    return {
        "compression": "zstd",
        "column_encoding": dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
        "use_dictionary": ["item_id", "item_hash", "answer", "check", "rationale", "expert", *text],
    }


class RowWriter:
    """Writes one part in batches, so that a file larger than memory passes through."""

    def __init__(self, folder: Path, part: str) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(folder / f"{part}.parquet", _schema(), **_storage())
        self._batch: list[dict[str, Any]] = []
        self._numbers = self.count = 0

    def add(self, row: dict[str, Any]) -> None:
        """Queue a row; ``answer`` is any JSON value, stored as its text; ``NUMBERS`` are arrays or lists."""
        answer = row.get("answer")
        kept = {k: v for k, v in row.items() if k != "form"}
        self._batch.append(
            kept | {"answer": None if answer is None else json.dumps(answer, ensure_ascii=False)}
        )
        self.count += 1
        self._numbers += sum(len(row[n]) for n in NUMBERS if row.get(n) is not None)
        if len(self._batch) >= BATCH_ROWS or self._numbers > BATCH_NUMBERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            self._writer.write_table(pa.Table.from_pylist(self._batch, schema=_schema()))
            self._batch, self._numbers = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


def write_rows(folder: Path, part: str, rows: Iterable[dict[str, Any]]) -> int:
    """Write one part of a dataset and return its number of rows."""
    writer = RowWriter(folder, part)
    for row in rows:
        writer.add(row)
    writer.close()
    return writer.count


def write_split(
    folder: Path, rows: Iterable[dict[str, Any]], held_out: Callable[[Any], bool]
) -> dict[str, int]:
    """Write the rows as ``train``, and those that are ``held_out`` as ``test`` if there are any; returns the
    number of rows of each."""
    writers = {"train": RowWriter(folder, "train")}
    for row in rows:
        part = "test" if held_out(row) else "train"
        if part not in writers:
            writers[part] = RowWriter(folder, part)
        writers[part].add(row)
    for writer in writers.values():
        writer.close()
    return {part: writers[part].count if part in writers else 0 for part in PARTS}


def part_path(folder: Path, part: str) -> Path:
    """The file of a part. Raises ``DataError`` if the dataset has no such part."""
    path = folder / f"{part}.parquet"
    if not path.is_file():
        has = ", ".join(p for p in PARTS if (folder / f"{p}.parquet").is_file())
        raise DataError(f"dataset {folder.name} has no part '{part}', only: {has}; name one of those")
    return path


def count_rows(folder: Path, part: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(part_path(folder, part)).num_rows)


def read_rows(folder: Path, part: str, *, numbers: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Stream a part's rows with ``answer`` decoded, and of ``NUMBERS`` those named, as arrays or None."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(part_path(folder, part))
    plain = [name for name in file.schema_arrow.names if name not in NUMBERS]
    kept = [name for name in file.schema_arrow.names if name in numbers]
    for batch in file.iter_batches(BATCH_ROWS if HIDDEN not in kept else 16, columns=plain + kept):
        for i, row in enumerate(batch.select(plain).to_pylist()):
            yield decode_row(row) | {name: _array(batch[name][i]) for name in kept}


def _array(cell: Any) -> Any:
    return cell.values.to_numpy() if cell.is_valid else None


def decode_row(row: dict[str, Any]) -> dict[str, Any]:
    """A stored row as its reader wants it: the answer is a value again, the turns are plain."""
    answer = row["answer"]
    chats = {f: _plain(row.get(f)) for f in ("messages", "chosen", "rejected")}
    return row | chats | {"answer": None if answer is None else json.loads(answer), "label": row.get("label")}


def _plain(turns: Any) -> list[dict[str, str]] | None:
    return None if turns is None else [{"role": str(t["role"]), "content": str(t["content"])} for t in turns]
