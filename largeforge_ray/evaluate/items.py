"""Items: what every expert is asked and how the answer is judged, as plain rows and as Parquet.

A ``choice`` item has its continuations scored, a ``generate`` item is answered in words. ``item_hash`` is
over all that decides what is asked and how it is judged, so outcomes of one hash can be compared wherever
they were measured. ``origin`` is the hash of the item that a perturbed one was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.data.rows import decode_row
from largeforge_ray.errors import DataError
from largeforge_ray.types import Message

KINDS = ("choice", "generate")
CHECKS = {
    "choice": ("choice", "harness"),
    "generate": ("exact", "number", "contains", "json", "code", "function", "harness"),
}
HASHED = ("task", "kind", "messages", "context", "choices", "answer", "check", "rules", "stop", "max_tokens")
JSON_FIELDS = ("answer", "rules", "doc")
BATCH_ROWS = 1000


def item(
    *,
    item_id: str,
    task: str,
    kind: str,
    check: str,
    messages: Sequence[Message] | None = None,
    context: str | None = None,
    choices: Sequence[str] | None = None,
    answer: Any = None,
    rules: dict[str, Any] | None = None,
    stop: Sequence[str] | None = None,
    max_tokens: int | None = None,
    slice: str | None = None,
    group: str | None = None,
    variant: str | None = None,
    origin: str | None = None,
    doc: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An item with its hash. Raises ``DataError`` if its parts do not fit each other.

    ``choices`` are continuations exactly as they are scored; the answer to them is the place of the true
    one, or the places of all true ones. A ``path`` in ``rules`` says where something stands and is not
    hashed, the ``sha256`` beside it is.
    """
    made: dict[str, Any] = {
        "item_id": item_id,
        "task": task,
        "slice": slice,
        "group": group,
        "variant": variant,
        "kind": kind,
        "messages": None if messages is None else [dict(turn) for turn in messages],
        "context": context,
        "choices": None if choices is None else list(choices),
        "answer": answer,
        "check": check,
        "rules": rules,
        "stop": list(stop) if stop else None,
        "max_tokens": max_tokens,
        "doc": doc,
    }
    if problem := _problem(made) or _not_json(made):
        raise DataError(f"item '{item_id}': {problem}")
    digest = _hash(made)
    if (variant is None) != (origin is None):
        raise DataError(f"item '{item_id}': variant '{variant}' and origin '{origin}'; give both or neither")
    return made | {"item_hash": digest, "origin": origin or digest}


def _problem(item: dict[str, Any]) -> str | None:
    kind, check, choices = item["kind"], item["check"], item["choices"]
    if kind not in KINDS:
        return f"kind '{kind}' is not known. Supported: [{', '.join(KINDS)}]"
    if check not in CHECKS[kind]:
        return f"check '{check}' does not fit kind '{kind}'. Supported: [{', '.join(CHECKS[kind])}]"
    if (item["messages"] is None) == (item["context"] is None):
        return "has messages and context, or neither; a prompt is one of the two"
    if not (item["messages"] or item["context"]):
        return "has an empty prompt; write what is asked"
    if kind == "generate":
        tokens = item["max_tokens"]
        if choices is not None:
            return "is answered in words and has choices; leave them out or make it a choice"
        return (
            None if tokens and tokens > 0 else f"max_tokens {tokens} leaves no room to answer; give 1 or more"
        )
    if not choices or len(choices) < 2:
        return f"{len(choices or ())} choices leave nothing to choose; give two or more"
    if any(not isinstance(each, str) or not each.strip() for each in choices):
        return "has an empty choice; each is a text"
    return _not_a_place(item["answer"], len(choices))


def _not_a_place(answer: Any, count: int) -> str | None:
    places = answer if isinstance(answer, list) else [answer]
    if places and all(type(each) is int and 0 <= each < count for each in places):
        return None
    return f"answer {answer!r} is no place among {count} choices; count from 0 to {count - 1}"


def _not_json(item: dict[str, Any]) -> str | None:
    for field in ("messages", "context", "choices", *JSON_FIELDS):
        try:
            json.dumps(item[field], ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return f"{field} cannot be kept as UTF-8 JSON: {error}"
    return None


def _hash(item: dict[str, Any]) -> str:
    content = {field: item[field] for field in HASHED}
    if item["rules"] is not None:
        content["rules"] = {k: v for k, v in item["rules"].items() if k != "path"}
    return sha256_of(content)


def sha256_of(value: Any) -> str:
    """SHA-256 (64 hex) of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _schema() -> Any:
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    turn = pa.struct([("role", text), ("content", text)])
    return pa.schema(
        [
            *(
                (name, text)
                for name in ("item_id", "item_hash", "task", "slice", "group", "variant", "origin")
            ),
            ("kind", text),
            ("messages", pa.list_(turn)),
            ("context", text),
            ("choices", texts),
            ("answer", text),
            ("check", text),
            ("rules", text),
            ("stop", texts),
            ("max_tokens", pa.int32()),
            ("doc", text),
        ]
    )


def write_items(folder: Path, items: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Write ``choice.parquet`` and ``generate.parquet``, in order; returns the number of items of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, counts = _schema(), dict.fromkeys(KINDS, 0)
    writers = {kind: pq.ParquetWriter(items_path(folder, kind), schema, compression="zstd") for kind in KINDS}
    batches: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}

    def flush(kind: str) -> None:
        writers[kind].write_table(pa.Table.from_pylist(batches[kind], schema=schema))
        batches[kind].clear()

    for each in items:
        kind = each["kind"]
        counts[kind] += 1
        batches[kind].append(each | {field: _text(each[field]) for field in JSON_FIELDS})
        if len(batches[kind]) == BATCH_ROWS:
            flush(kind)
    for kind, writer in writers.items():
        flush(kind)
        writer.close()
    return counts


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def read_items(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Stream the items of one kind, equal to those that were written."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(items_path(folder, kind)).iter_batches(BATCH_ROWS):
        for row in batch.to_pylist():
            whole = decode_item(decode_row(row))
            yield {name: whole[name] for name in row}


def decode_item(row: dict[str, Any]) -> dict[str, Any]:
    """What ``data.rows.decode_row`` leaves as text, too: rules and document are values again."""
    return row | {f: json.loads(row[f]) if isinstance(row[f], str) else row[f] for f in ("rules", "doc")}


def items_path(folder: Path, kind: str) -> Path:
    """The file of the items of one kind."""
    return folder / f"{kind}.parquet"
