"""The teacher row: what one conversation with a teacher made, or the error in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from largeforge_ray.data.rows import SIGNALS
from largeforge_ray.teach.work import Work
from largeforge_ray.types import Generation

SHARD_ROWS = 20_000


def teacher_row(work: Work, made: Sequence[Generation]) -> dict[str, Any]:
    """The row before it is judged; ``messages`` are the item's own, without what only the teacher saw.

    Tokens, seconds and dollars are those of all turns, text and signals the last one's.
    """
    item, last = work.item, made[-1]
    return {
        "row_key": work.row_key,
        "prompt_id": item["item_id"],
        "item_hash": item["item_hash"],
        "messages": item["messages"],
        "teacher": item["teacher"],
        "sampling": asdict(work.request.sampling) | {"index": item["index"]},
        "text": last.text,
        "rationale": None,
        "turns": [generation.text for generation in made[:-1]],
        "score": None,
        "finish_reason": last.finish_reason,
        "prompt_tokens": sum(g.prompt_tokens for g in made),
        "cached_tokens": sum(g.cached_tokens for g in made),
        "completion_tokens": sum(g.completion_tokens for g in made),
        "seconds": sum(g.seconds for g in made),
        "usd": sum(g.usd for g in made),
        **_signals(last),
        "verdict": None,
        "filtered": None,
        "error": last.error,
    }


def _signals(made: Generation) -> dict[str, bytes | None]:
    """As bytes, which is what a journal holds."""
    import numpy as np

    if made.likeliest is None:
        return dict.fromkeys(SIGNALS)
    known = made.likeliest
    values = (np.array(made.token_ids, np.int32), known.ids_TK, known.logps_TK, known.tail_T)
    return {name: value.tobytes() for name, value in zip(SIGNALS, values, strict=True)}


def with_signals(row: dict[str, Any]) -> dict[str, Any]:
    """A journal's row with its signals as flat arrays: int32 ids, float16 log-probabilities."""
    import numpy as np

    types = dict.fromkeys(SIGNALS, np.float16) | {"token_ids": np.int32, "topk_ids": np.int32}
    return row | {n: None if row[n] is None else np.frombuffer(row[n], dtype=types[n]) for n in SIGNALS}


def _schema() -> Any:
    import pyarrow as pa

    text, whole, number = pa.string(), pa.int64(), pa.float64()
    turn = pa.struct([("role", text), ("content", text)])
    verdict = pa.struct([("kept", pa.bool_()), ("by", text), ("reason", text)])
    drawn = [
        *((n, number) for n in ("temperature", "top_p")),
        *((n, whole) for n in ("max_tokens", "seed", "index")),
    ]
    return pa.schema(
        [
            *((name, text) for name in ("row_key", "prompt_id", "item_hash")),
            ("messages", pa.list_(turn)),
            ("teacher", text),
            ("sampling", pa.struct(drawn)),
            ("text", text),
            ("rationale", text),
            ("turns", pa.list_(text)),
            ("score", number),
            ("finish_reason", text),
            ("prompt_tokens", whole),
            ("cached_tokens", whole),
            ("completion_tokens", whole),
            ("seconds", number),
            ("usd", number),
            ("verdict", verdict),
            ("filtered", verdict),
            ("error", text),
        ]
    )


class TeacherRowWriter:
    """Teacher rows as ``rows/00000.parquet`` and so on; signals go with what is made of the rows.

    Rows without an answer are also under ``dead/``: the dead letter.
    """

    def __init__(self, folder: Path) -> None:
        self._all, self._dead = _Shards(folder / "rows"), _Shards(folder / "dead")

    def add(self, row: dict[str, Any]) -> None:
        self._all.add(row)
        if row["error"] is not None:
            self._dead.add(row)

    def close(self) -> None:
        self._all.flush()
        self._dead.flush()


class _Shards:
    def __init__(self, folder: Path) -> None:
        self._folder, self._schema = folder, _schema()
        self._written, self._rows = 0, list[dict[str, Any]]()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append({name: row[name] for name in self._schema.names})
        if len(self._rows) == SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            self._folder.mkdir(exist_ok=True)
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            pq.write_table(table, self._folder / f"{self._written:05d}.parquet", compression="zstd")
            self._written, self._rows = self._written + 1, []


def read_teacher_rows(folder: Path, part: str = "rows") -> Iterator[dict[str, Any]]:
    """The teacher rows of an artifact's folder in their order: all, or those of its ``dead`` letter."""
    import pyarrow.parquet as pq

    for path in sorted((folder / part).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
