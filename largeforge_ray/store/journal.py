"""The row journal: what a teacher farm has generated so far, safe against kills and retries.

A shard is one Parquet file with one append's rows. Columns whose values are all of one scalar type are
native, so any tool can query them; the others (messages, token ids, verdicts) hold JSON text, so a shard
of empty or missing nested fields has no schema of its own. A SHA-256 of the whole shard lies between its
data and its footer, where Parquet readers do not look: a shard that is not exactly what was written is
treated as absent, and its rows are generated again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.store.keys import SHORT
from largeforge_ray.store.outofcore import KeyIndex, split_by_hash
from largeforge_ray.store.store import Store

_log = logging.getLogger(__name__)

IN_MEMORY = 20_000
"""Rows that are sorted at once; each may carry some 100 KiB of log-probabilities."""
_TAIL_BYTES = 8  # Parquet ends with the footer's length (4 bytes, little endian) and "PAR1"
_DIGEST_BYTES = 32
_JSON_COLUMNS = b"largeforge.json_columns"

Row = dict[str, Any]


class RowJournal:
    """Rows of one stage below ``journal/<key>/``, or of what else has a key, below another ``root``. Any
    number of processes may append at once.

    A row has a ``row_key`` (text), an ``error`` (text, or None if it succeeded) and any other fields of
    JSON values or bytes. A field that only some rows of an append have reads as None in the others.
    """

    def __init__(self, store: Store, key: str, root: str = "journal") -> None:
        self.store = store
        self.folder = f"{root}/{key[:SHORT]}"

    def append(self, rows: Sequence[Row]) -> None:
        """Keep the rows; they are on the disk when this returns.

        Appending the same keys again replaces the earlier shard, so a retried task leaves no second one.
        Only what failed before and succeeds now (or the reverse) goes beside it.

        Raises:
            DataError: a row has no ``row_key``, or a value is neither JSON nor a numpy value.
            StoreError: the store refuses the shard.
        """
        if rows:
            self.store.write_bytes(f"{self.folder}/{_shard_name(rows)}", _seal(_to_parquet(rows)))

    def done(self) -> set[str]:
        """Keys of the rows without an error."""
        keys: set[str] = set()
        for _, data in self._shards():
            keys.update(row["row_key"] for row in _from_parquet(data, ["row_key", "error"]) if _is_good(row))
        return keys

    def rows(self) -> Iterator[Row]:
        """Each key's row once: one that succeeded if there is one, else one that failed.

        One shard is in memory at a time, besides the keys. Rows that only ever failed come last.
        """
        seen: set[str] = set()
        failed: dict[str, str] = {}
        for path, data in self._shards():
            for row in _from_parquet(data):
                key = row["row_key"]
                if key in seen:
                    continue
                if _is_good(row):
                    seen.add(key)
                    yield row
                else:
                    failed.setdefault(key, path)
        left = {path for key, path in failed.items() if key not in seen}
        for path, data in self._shards(sorted(left)):
            for row in _from_parquet(data):
                key = row["row_key"]
                if key not in seen and failed.get(key) == path:
                    seen.add(key)
                    yield row

    def index(self) -> KeyIndex:
        """The keys of the rows without an error, as ``done``, in 32 bytes a row."""
        keys = (_from_parquet(data, ["row_key", "error"]) for _, data in self._shards())
        return KeyIndex(row["row_key"] for rows in keys for row in rows if _is_good(row))

    def in_order(self, by: Callable[[Row], tuple[str, ...]], expected: int) -> Iterator[Row]:
        """As ``rows``, sorted by texts, the first of which is hexadecimal and the same in a key's every row.

        Of more than ``IN_MEMORY`` rows, which ``expected`` says, the rest are on the disk meanwhile.
        """
        every = (row for _, data in self._shards() for row in _from_parquet(data))
        for part in split_by_hash(every, lambda row: by(row)[0], -(-expected // IN_MEMORY)):
            best: dict[str, Row] = {}
            for row in part:
                known = best.get(row["row_key"])
                if known is None or (_is_good(row) and not _is_good(known)):
                    best[row["row_key"]] = row
            yield from sorted(best.values(), key=by)

    def clear(self) -> None:
        """Forget every row."""
        self.store.remove(self.folder)

    def _shards(self, paths: Sequence[str] | None = None) -> Iterator[tuple[str, bytes]]:
        for path in self.store.list(self.folder) if paths is None else paths:
            if not path.endswith(".parquet"):
                continue
            data = self.store.read_bytes(path)
            if _is_sealed(data):
                yield path, data
            else:
                _log.warning(
                    "journal shard %s of %s is half written or corrupt (%d bytes); its rows count as not "
                    "there and are generated again",
                    path,
                    self.store.url,
                    len(data),
                )


def _is_good(row: Row) -> bool:
    return row["error"] is None


def _shard_name(rows: Sequence[Row]) -> str:
    marks = []
    for row in rows:
        key, error = row.get("row_key"), row.get("error")
        if not isinstance(key, str) or not key:
            raise DataError(f"row_key {key!r} is not text; give each row of a journal its key")
        if not isinstance(error, str | None):
            raise DataError(f"error {error!r} of row {key} is not text; pass a message, or None for success")
        # Without the outcome in the name, a late failure would replace the success it repeats.
        marks.append([key, error is None])
    text = json.dumps(sorted(marks), separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"


# Rows as Parquet --------------------------------------------------------------------------------


def _to_parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {}
    as_json: list[str] = []
    for name in dict.fromkeys(("row_key", "error", *(name for row in rows for name in row))):
        values = [_unwrapped(name, row.get(name)) for row in rows]
        native = _native(values)
        if native is None:
            as_json.append(name)
            values = [None if value is None else _json_text(name, value) for value in values]
        columns[name] = pa.array(values, type=native or pa.string())
    table = pa.table(columns).replace_schema_metadata({_JSON_COLUMNS: json.dumps(as_json)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _from_parquet(data: bytes, columns: list[str] | None = None) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data), columns=columns)
    rows: list[Row] = table.to_pylist()
    for name in json.loads(table.schema.metadata[_JSON_COLUMNS]):
        for row in rows:
            if row.get(name) is not None:
                row[name] = json.loads(row[name])
    return rows


def _native(values: Sequence[Any]) -> Any:
    """The Arrow type that holds all the values exactly, or None if only JSON does."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str} and all(value is None or _is_utf8(value) for value in values):
        return pa.string()
    if kinds == {bytes}:
        return pa.binary()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {float}:
        return pa.float64()
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pa.int64()
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True


def _unwrapped(name: str, value: Any) -> Any:
    # Rows from Ray Data carry numpy scalars and arrays, also inside dicts and lists.
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):  # JSON would turn it into text without a word
                raise DataError(f"field {name!r} of a journal row has the key {key!r}; use text keys")
        return {key: _unwrapped(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unwrapped(name, item) for item in value]
    return _unwrapped(name, value.tolist()) if hasattr(value, "tolist") else value


def _json_text(name: str, value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"field {name!r} of a journal row is not JSON ({error}); keep text and numbers"
        ) from error


# The seal ---------------------------------------------------------------------------------------


def _seal(parquet: bytes) -> bytes:
    start = _footer_start(parquet)
    return parquet[:start] + hashlib.sha256(parquet).digest() + parquet[start:]


def _is_sealed(data: bytes) -> bool:
    start = _footer_start(data)
    if start < _DIGEST_BYTES:
        return False
    body = memoryview(data)
    digest = hashlib.sha256(body[: start - _DIGEST_BYTES])
    digest.update(body[start:])
    return digest.digest() == data[start - _DIGEST_BYTES : start]


def _footer_start(data: bytes) -> int:
    return len(data) - _TAIL_BYTES - int.from_bytes(data[-_TAIL_BYTES:-4], "little")
