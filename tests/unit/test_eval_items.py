"""Items: one hash for what is asked and judged alike, and the same values back from Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.data.rows import decode_row
from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.items import decode_item, item, read_items, write_items

CHOICE: dict[str, Any] = {
    "item_id": "t/0",
    "task": "t",
    "kind": "choice",
    "check": "choice",
    "context": "Q: 1 + 1?\nA:",
    "choices": [" 1", " 2"],
    "answer": 1,
    "rules": {"metric": "acc", "delimiter": " "},
}
WORDS: dict[str, Any] = {
    "item_id": "t/1",
    "task": "t",
    "kind": "generate",
    "check": "number",
    "messages": [{"role": "user", "content": "1 + 1?"}],
    "answer": 2,
    "stop": ["\n"],
    "max_tokens": 8,
}
CHANGES = {
    "task": "u",
    "check": "exact",
    "messages": [{"role": "user", "content": "1 + 2?"}],
    "answer": 3,
    "rules": {"metric": "x"},
    "stop": None,
    "max_tokens": 9,
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_decides_the_answer_decides_the_hash(field: str) -> None:
    assert item(**WORDS)["item_hash"] != item(**WORDS | {field: CHANGES[field]})["item_hash"]


def test_names_places_and_groups_do_not_decide_the_hash() -> None:
    one = item(**CHOICE)
    other = item(**CHOICE | {"item_id": "t/9", "slice": "s", "group": "g", "doc": {"a": 1}})
    assert one["item_hash"] == other["item_hash"] == one["origin"]
    here = item(**WORDS | {"rules": {"path": "/a/judge.py", "sha256": "f"}})
    there = item(**WORDS | {"rules": {"sha256": "f", "path": "/b/judge.py"}})
    changed = item(**WORDS | {"rules": {"path": "/a/judge.py", "sha256": "e"}})
    assert here["item_hash"] == there["item_hash"] != changed["item_hash"]


def test_a_variant_keeps_the_hash_of_what_it_was_made_from() -> None:
    first = item(**CHOICE)
    variant = item(**CHOICE | {"context": "q: 1 + 1?", "variant": "case", "origin": first["item_hash"]})
    assert variant["origin"] == first["item_hash"] != variant["item_hash"]


@settings(deadline=None)
@given(answer=JSON, doc=st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_items_come_back_from_parquet_as_they_were(tmp_path_factory: Any, answer: Any, doc: Any) -> None:
    folder = tmp_path_factory.mktemp("items")
    made = [
        item(**CHOICE),
        item(**WORDS | {"answer": answer, "doc": doc}),
        item(**CHOICE | {"answer": [0, 1]}),
    ]
    assert write_items(folder, made) == {"choice": 2, "generate": 1}
    back = [list(read_items(folder, kind)) for kind in ("choice", "generate")]
    assert back == [[made[0], made[2]], [made[1]]]


def test_the_farms_way_of_reading_gives_the_same_item(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    made = item(**CHOICE | {"doc": {"a": [1]}})
    write_items(tmp_path, [made])
    (row,) = pq.read_table(tmp_path / "choice.parquet").to_pylist()
    assert made.items() <= decode_item(decode_row(row)).items()


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (CHOICE, {"kind": "guess"}, "kind 'guess' is not known"),
        (CHOICE, {"check": "exact"}, "check 'exact' does not fit kind 'choice'"),
        (WORDS, {"check": "choice"}, "check 'choice' does not fit kind 'generate'"),
        (CHOICE, {"messages": WORDS["messages"]}, "messages and context"),
        (CHOICE, {"context": None}, "messages and context"),
        (CHOICE, {"context": ""}, "empty prompt"),
        (CHOICE, {"choices": [" 1"]}, "1 choices leave nothing to choose"),
        (CHOICE, {"choices": [" 1", " "]}, "empty choice"),
        (CHOICE, {"answer": 2}, "2 is no place among 2 choices; count from 0 to 1"),
        (CHOICE, {"answer": -1}, "-1 is no place"),
        (CHOICE, {"answer": []}, "no place"),
        (CHOICE, {"answer": True}, "no place"),
        (WORDS, {"choices": [" 1", " 2"]}, "answered in words and has choices"),
        (WORDS, {"max_tokens": 0}, "max_tokens 0 leaves no room"),
        (WORDS, {"answer": float("nan")}, "answer cannot be kept"),
        (WORDS, {"doc": {"a": {1}}}, "doc cannot be kept"),
        (WORDS, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages cannot be kept"),
        (WORDS, {"variant": "case"}, "give both or neither"),
    ],
)
def test_parts_that_do_not_fit_are_refused(base: Any, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        item(**base | change)
    assert base["item_id"] in str(caught.value)
