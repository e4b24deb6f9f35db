"""The row journal: each key once, whatever was appended, retried or damaged."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.errors import DataError
from largeforge_ray.store import RowJournal, Store, open_store
from largeforge_ray.store import journal as journal_module

KEY = "ab" * 32

nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {"row_key": st.sampled_from("abcdef"), "error": st.sampled_from([None, None, "engine died"])},
    optional={"messages": nested, "text": st.none() | st.text(), "logprob": nested, "größe": nested},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def row(key: str, error: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"row_key": key, "error": error, **fields}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(rows, max_size=5), max_size=5))
def test_each_key_once_and_success_wins(appends: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = RowJournal(open_store(folder), KEY)
        for rows_ in appends:
            journal.append(rows_)
        for rows_ in appends[::-1]:
            journal.append(rows_)
        found = list(journal.rows())
        done, index = journal.done(), journal.index()
    written = [one for rows_ in appends for one in rows_]
    assert sorted(one["row_key"] for one in found) == sorted({one["row_key"] for one in written})
    assert done == {one["row_key"] for one in written if one["error"] is None}
    assert {one["row_key"] for one in found if one["error"] is None} == done
    assert len(index) == len(done)
    assert {key for key in "abcdef" if key in index} == done
    for one in found:
        given_fields = {name: value for name, value in one.items() if value is not None}
        assert any(
            given_fields == {name: value for name, value in other.items() if value is not None}
            for other in written
            if other["row_key"] == one["row_key"]
        )


def test_nested_and_missing_fields_read_back_as_they_were(store: Store) -> None:
    journal = RowJournal(store, KEY)
    full = row(
        "a",
        messages=[{"role": "user", "content": "hi"}],
        sampling={"temperature": 0.7, "seed": None},
        token_ids=[1, 2],
        topk_logprobs=[[-0.1, -math.inf]],
        verdict={"kept": True, "by": "filter", "reason": ""},
        text="\ud83d half a pair",
        seconds=0.5,
        big=2**70,
    )
    empty = row("b", messages=[], sampling={}, token_ids=None, topk_logprobs=[], verdict=None, text=None)
    journal.append([full, empty])
    assert list(journal.rows()) == [full, {**dict.fromkeys(full), **empty}]


def test_numpy_values_from_ray_data_are_kept_as_plain_ones(store: Store) -> None:
    journal = RowJournal(store, KEY)
    messages = np.empty(1, dtype=object)
    messages[0] = {"role": np.str_("user"), "ids": np.arange(2)}
    journal.append([row("a", n=np.int64(3), p=np.float32(0.5), ids=np.array([1, 2]), messages=messages)])
    assert list(journal.rows()) == [
        row("a", n=3, p=0.5, ids=[1, 2], messages=[{"role": "user", "ids": [0, 1]}])
    ]


def test_a_retried_append_leaves_one_shard(store: Store) -> None:
    journal = RowJournal(store, KEY)
    journal.append([row("a", seconds=1.0), row("b", seconds=1.0)])
    journal.append([row("b", seconds=2.0), row("a", seconds=2.0)])
    assert len(store.list(journal.folder)) == 1
    assert [one["seconds"] for one in journal.rows()] == [2.0, 2.0]


def test_a_late_failure_does_not_replace_a_success(store: Store) -> None:
    journal = RowJournal(store, KEY)
    journal.append([row("a", text="good")])
    journal.append([row("a", "time-out")])
    assert journal.done() == {"a"}
    assert [one["text"] for one in journal.rows()] == ["good"]


def test_shards_open_in_any_parquet_tool(store: Store) -> None:
    RowJournal(store, KEY).append([row("a", n=1, ids=[1])])
    (path,) = store.list(f"journal/{KEY[:16]}")
    table = pq.read_table(io.BytesIO(store.read_bytes(path)))
    assert table.to_pylist() == [{"row_key": "a", "error": None, "n": 1, "ids": "[1]"}]
    assert json.loads(table.schema.metadata[b"largeforge.json_columns"]) == ["ids"]


def test_any_damage_makes_a_shard_absent_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    journal = RowJournal(store, KEY)
    journal.append([row("a", text="x" * 40)])
    (rel,) = store.list(journal.folder)
    journal.append([row("b")])
    whole = store.read_bytes(rel)
    damaged = [whole[:size] for size in (0, 3, 8, 50, len(whole) // 2, len(whole) - 1)]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(0, len(whole) - 4, 7)
    ]
    for data in damaged:
        store.write_bytes(rel, data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert journal.done() == {"b"}
            assert [one["row_key"] for one in journal.rows()] == ["b"]
        assert rel in caplog.text
    journal.append([row("a", text="again")])
    assert journal.done() == {"a", "b"}


def test_rows_that_cannot_be_kept_are_refused_by_name(store: Store) -> None:
    journal = RowJournal(store, KEY)
    for bad, named in [
        ({"error": None}, "row_key None"),
        (row("a", error=3), "error 3 of row a"),  # type: ignore[arg-type]
        (row("a", blob={"x": b"x"}), "'blob'"),
        (row("a", counts={1: 2}), "'counts'.*key 1"),
    ]:
        with pytest.raises(DataError, match=named):
            journal.append([bad])
    assert not store.exists("journal")


def test_clear_forgets_and_journals_are_apart_and_picklable(store: Store) -> None:
    one, other = RowJournal(store, KEY), RowJournal(store, "cd" * 32)
    one.append([row("a")])
    other.append([row("b")])
    one.clear()
    one.clear()
    assert (one.done(), list(one.rows())) == (set(), [])
    assert pickle.loads(pickle.dumps(other)).done() == {"b"}


@pytest.mark.parametrize("in_memory", [3, 10_000])
def test_rows_come_in_order_however_many_fit_into_memory(
    in_memory: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "IN_MEMORY", in_memory)
    journal = RowJournal(store, KEY)
    made = [row(f"k{i}", group=hashlib.sha256(bytes([i // 3])).hexdigest(), n=str(i)) for i in range(40)]
    random.Random(0).shuffle(made)
    for i in range(0, 40, 7):
        journal.append(made[i : i + 7])
    journal.append([made[0], made[1]])
    journal.append([{**made[2], "error": "late"}, {**made[3], "error": "late"}])
    found = list(journal.in_order(lambda r: (r["group"], r["n"]), expected=40))
    assert found == sorted(made, key=lambda r: (r["group"], r["n"]))


def test_bytes_are_kept_as_they_are(store: Store) -> None:
    journal = RowJournal(store, KEY)
    journal.append([row("a", ids=b"\x00\xff"), row("b", ids=None)])
    assert [one["ids"] for one in journal.rows()] == [b"\x00\xff", None]
