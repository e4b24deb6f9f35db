"""What users bring becomes rows: a bad one is named by place and field, a good one keeps its part."""

from __future__ import annotations

import datetime
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.data import content_identity, count_rows, ingest, is_test, read_rows, row_hash, write_rows
from largeforge_ray.data.ingest import asks_for
from largeforge_ray.data.rows import write_split
from largeforge_ray.data.split import is_test_of_part
from largeforge_ray.errors import ConfigError, DataError, ForgeError

Row = dict[str, Any]
QUESTIONS: list[Row] = [{"prompt": f"question {number}", "answer": number} for number in range(40)]
USER = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "hi"}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def into(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def taken(source: Path, target: Path, share: float = 0.3) -> dict[str, list[Row]]:
    """The parts of a source, as a stage would read them."""
    counts = ingest(source, test_share=share, target=into(target))
    parts = {part: list(read_rows(target, part)) for part in ("train", "test")}
    assert {part: len(rows) for part, rows in parts.items()} == {p: counts[p] for p in parts}
    assert counts["rows"] == counts["train"] + counts["test"]
    assert {part: count_rows(target, part) for part in parts} == {p: counts[p] for p in parts}
    return parts


def everything(source: Path, target: Path) -> dict[str, Row]:
    return {row["item_id"]: row for part in taken(source, target).values() for row in part}


def test_prompts_and_chats_become_rows_of_one_form(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "brief"}, USER, REPLY, USER]
    special = [
        {"id": "plain", "prompt": "Ünïcode \u2028 \U0001f600"},
        {"id": 7, "messages": chat},
        {"id": "text", "prompt": "a", "answer": "A"},
        {"id": "value", "prompt": "b", "answer": {"x": [1, 2.5, None, "é"]}},
        {"id": "number", "prompt": "c", "answer": 2.5, "check": "number"},
        {"id": "part", "prompt": "d", "answer": "D", "check": "contains"},
        {"id": "tests", "prompt": "f", "answer": "assert f(2) == 4", "check": "code"},
        {"id": None, "prompt": "e"},
    ]
    rows = everything(jsonl(tmp_path / "a.jsonl", [*special, *QUESTIONS]), tmp_path / "out")
    assert rows["plain"]["messages"] == [{"role": "user", "content": "Ünïcode \u2028 \U0001f600"}]
    assert (rows["plain"]["answer"], rows["plain"]["check"]) == (None, None)
    assert rows["7"]["messages"] == chat
    assert (rows["text"]["answer"], rows["text"]["check"]) == ("A", "exact")
    assert (rows["value"]["answer"], rows["value"]["check"]) == ({"x": [1, 2.5, None, "é"]}, "json")
    assert (rows["number"]["answer"], rows["number"]["check"]) == (2.5, "number")
    assert (rows["part"]["answer"], rows["part"]["check"]) == ("D", "contains")
    assert (rows["tests"]["answer"], rows["tests"]["check"]) == ("assert f(2) == 4", "code")
    unnamed = [row for row in rows.values() if row["messages"][0]["content"] == "e"]
    assert [row["item_id"] for row in unnamed] == [row_hash(unnamed[0]["messages"])[:16]]


def test_the_same_rows_give_the_same_dataset_from_each_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}"} if n % 2 else {"messages": [USER, REPLY, {**USER, "content": f"q{n}"}]}
            for n in range(40)]  # fmt: skip
    lines = taken(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "lines")
    pq.write_table(pa.Table.from_pylist([{"prompt": None, "messages": None} | row for row in rows]),
                   tmp_path / "a.parquet")  # fmt: skip
    assert taken(tmp_path / "a.parquet", tmp_path / "table") == lines
    folder = into(tmp_path / "folder")
    jsonl(folder / "1.jsonl", rows[:10])
    pq.write_table(pa.Table.from_pylist([{"prompt": None, "messages": None} | row for row in rows[10:]]),
                   folder / "2.parquet")  # fmt: skip
    (folder / "README.txt").write_text("not data")
    assert taken(folder, tmp_path / "both") == lines


def test_blank_lines_windows_ends_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    plain = taken(jsonl(tmp_path / "a.jsonl", QUESTIONS), tmp_path / "plain")
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in QUESTIONS)
    (tmp_path / "b.jsonl").write_bytes(text.encode())
    assert taken(tmp_path / "b.jsonl", tmp_path / "odd") == plain


def test_more_rows_than_one_batch_all_arrive_in_their_order(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"question {n}"} for n in range(2300)]
    parts = taken(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", share=0.05)
    for part in parts.values():
        ids = [int(row["item_id"]) for row in part]
        assert ids == sorted(ids)
    assert sorted(int(row["item_id"]) for part in parts.values() for row in part) == list(range(2300))
    # Written in pieces, so that a file larger than memory passes through.
    assert pq.read_metadata(tmp_path / "out/train.parquet").num_row_groups > 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("[1, 2]", "a row is a JSON object with 'prompt' or 'messages'; found list"),
        ('"text"', "found str"),
        ('{"promt": "x"}', "field 'promt': unknown; did you mean 'prompt'?"),
        ("{}", "field 'prompt': the row has none of prompt, messages, conversations, instruction"),
        ({"prompt": "x", "messages": [USER]}, "field 'messages': the row also has 'prompt'; give one"),
        ({"prompt": " \n"}, "field 'prompt': must be text that is not empty; found ' \\n'"),
        ({"prompt": 3}, "field 'prompt': must be text that is not empty; found 3"),
        ({"prompt": ["x"] * 1000}, "field 'prompt[0]': a turn has exactly 'role' and 'content'"),
        ({"messages": []}, "field 'messages': must be a list with at least one turn"),
        ({"messages": "hello"}, "field 'messages': must be a list"),
        ({"messages": [USER, "x"]}, "field 'messages[1]': a turn has exactly 'role' and 'content'"),
        ({"messages": [USER | {"name": "x"}]}, "field 'messages[0]': a turn has exactly"),
        ({"messages": [USER | {"role": "bot"}]}, "field 'messages[0].role': 'bot' is not a role."),
        ({"messages": [USER, REPLY | {"content": ""}]}, "field 'messages[1].content': must be text"),
        ({"messages": [REPLY]}, "field 'messages': the first turn, or the first after a system turn, must"),
        ({"messages": [USER | {"role": "system"}]}, "field 'messages': the first turn, or the first"),
        ({"prompt": "x", "check": "fuzzy", "answer": "y"}, "field 'check': 'fuzzy' is not known."),
        ({"prompt": "x", "check": ["exact"]}, "field 'check': '['exact']' is not known"),
        ({"prompt": "x", "check": "json"}, "field 'answer': missing, but check 'json' compares with it"),
        ({"prompt": "x", "check": "number", "answer": "7"}, "check 'number' needs a finite number; found"),
        ({"prompt": "x", "check": "number", "answer": True}, "needs a finite number; found True"),
        ({"prompt": "x", "check": "number", "answer": 10**400}, "needs a finite number; found 1000"),
        ({"prompt": "x", "check": "number", "answer": float("nan")}, "needs a finite number; found nan"),
        ({"prompt": "x", "check": "code", "answer": [1]}, "runs it as Python tests, but it is list"),
        ({"prompt": "x", "check": "code", "answer": "# none"}, "Python tests, but it is empty; write"),
        ({"prompt": "x", "check": "code", "answer": "assert ("}, "does not parse: '(' was never closed"),
        ('{"prompt": "x"', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        (b'{"prompt": "\xff"}', "not UTF-8 text (byte 12); save the file as UTF-8"),
        ('{"prompt": "\\ud800"}', "field 'prompt': cannot be kept as UTF-8 JSON: "),
        ('{"prompt": "x", "id": "\\udfff"}', "field 'id': cannot be kept as UTF-8 JSON: "),
        ('{"prompt": "x", "answer": ["\\ud83d"]}', "field 'answer': cannot be kept as UTF-8 JSON: "),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path: Path, bad: Any, said: str) -> None:
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row).encode() for row in QUESTIONS[:2]]
    path.write_bytes(b"\n".join([good[0], b"", line, good[1]]))
    with pytest.raises(DataError) as caught:
        ingest(path, test_share=0.5, target=into(tmp_path / "out"))
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")  # the blank line counts, as it does in an editor
    assert said in message
    assert len(message) < 500 + len(str(path))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_malformed_table_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", " "]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: row 3: field 'prompt': must be text"):
        ingest(path, test_share=0.5, target=into(tmp_path / "out"))
    pq.write_table(pa.table({"prompt": ["a"], "answer": [datetime.date(2024, 1, 1)]}), path)
    with pytest.raises(DataError, match=r"row 1: field 'answer': cannot be kept as UTF-8 JSON: .*date"):
        ingest(path, test_share=0.5, target=tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + b"x" * 90 + b"PAR1"])
def test_what_is_no_table_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file: .*; write it again"):
        ingest(tmp_path / "a.parquet", test_share=0.5, target=into(tmp_path / "out"))


def test_a_source_that_is_no_data_file_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b")
    empty, target = into(tmp_path / "empty"), into(tmp_path / "out")
    for source, said in [
        (tmp_path / "none.jsonl", r"none\.jsonl' does not exist; paths are relative to the manifest"),
        (tmp_path / "notes.csv", r"'notes\.csv' is '\.csv'; datasets are \.jsonl, \.json, \.parquet"),
        (empty, r"empty' holds no \.jsonl, \.json, \.parquet file; add one"),
    ]:
        with pytest.raises(ConfigError, match=said):
            content_identity(source)
        with pytest.raises(ConfigError, match=said):
            ingest(source, test_share=0.5, target=target)


def test_a_dataset_without_rows_or_with_an_empty_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    target = into(tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.jsonl' has no rows; add at least one prompt"):
        ingest(tmp_path / "a.jsonl", test_share=0.5, target=target)
    jsonl(tmp_path / "a.jsonl", [{"prompt": "only one"}])
    with pytest.raises(DataError, match=r"leaves no (train|test) rows of 1; add rows or change the share"):
        ingest(tmp_path / "a.jsonl", test_share=0.5, target=target)


def test_duplicates_are_counted_and_the_first_one_stays(tmp_path: Path) -> None:
    again = [row | {"id": f"again-{number}"} for number, row in enumerate(QUESTIONS)]
    other = [{"prompt": "question 0", "answer": "another answer"}]
    path = jsonl(tmp_path / "a.jsonl", [*QUESTIONS, *again, *other])
    counts = ingest(path, test_share=0.3, target=into(tmp_path / "out"))
    assert (counts["rows"], counts["duplicates"]) == (41, 40)
    ids = {row["item_id"] for part in ("train", "test") for row in read_rows(tmp_path / "out", part)}
    assert not any(each.startswith("again") for each in ids)


@given(st.permutations(QUESTIONS), st.integers(1, 39))
@settings(deadline=None, max_examples=15)
def test_a_row_keeps_its_part_whatever_its_place_and_its_neighbours(rows: list[Row], more: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixed = taken(jsonl(folder / "a.jsonl", QUESTIONS), folder / "1")
        added = [{"prompt": f"new {number}"} for number in range(more)]
        parts = taken(jsonl(folder / "b.jsonl", [*rows, *added]), folder / "2")
    for part in ("train", "test"):
        hashes = {row["item_hash"] for row in parts[part]}
        assert {row["item_hash"] for row in fixed[part]} <= hashes
    assert not {r["item_hash"] for r in parts["train"]} & {r["item_hash"] for r in parts["test"]}


TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=6)}),
    min_size=1,
    max_size=3,
)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=3)


@given(TURNS, VALUES, TURNS, VALUES)
@settings(deadline=None)
def test_a_row_is_known_by_what_it_asks_and_expects(
    turns: list[Row], answer: Any, others: list[Row], other_answer: Any
) -> None:
    assert len(row_hash(turns, answer)) == 64
    assert row_hash([dict(reversed(turn.items())) for turn in turns], answer) == row_hash(turns, answer)
    same = turns == others and json.dumps(answer) == json.dumps(other_answer)
    assert (row_hash(turns, answer) == row_hash(others, other_answer)) == same


def test_the_order_of_an_answers_fields_does_not_matter() -> None:
    assert row_hash([USER], {"a": 1, "b": 2}) == row_hash([USER], {"b": 2, "a": 1})
    assert row_hash([USER], {"a": 1}) != row_hash([USER], {"a": "1"})


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_the_held_out_share_is_about_what_was_asked_for(share: float) -> None:
    hashes = [row_hash([{"role": "user", "content": str(number)}]) for number in range(4000)]
    held_out = sum(is_test(digest, share) for digest in hashes)
    assert abs(held_out / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.floats(0.01, 0.98), st.floats(0.001, 0.01))
@settings(deadline=None)
def test_a_larger_share_keeps_what_was_held_out(digest: str, share: float, more: float) -> None:
    if is_test(digest, share):
        assert is_test(digest, share + more)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_check_is_found_in_a_source_of_any_format_before_its_rows_are_read(
    tmp_path: Path, suffix: str
) -> None:
    tested = {"prompt": "write f", "answer": "assert f(2) == 4", "check": "code"}
    talked_of = {"prompt": 'what does "check": "code" mean?', "answer": '"check": "code"', "check": "exact"}
    for rows, wanted in (([talked_of, tested], True), ([talked_of], False)):
        path = tmp_path / f"{len(rows)}.{suffix}"
        if suffix == "jsonl":
            jsonl(path, rows)
        elif suffix == "json":
            path.write_text(json.dumps(rows, indent=2))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        assert asks_for("code", path) == wanted
        pq.write_table(pa.table({"prompt": ["no such column"]}), tmp_path / "bare.parquet")
    assert not asks_for("code", tmp_path / "bare.parquet")
    assert asks_for("code", tmp_path)  # a folder, by any of its files
    assert not asks_for("contains", tmp_path)


def test_content_identity_follows_the_bytes_and_not_the_path(tmp_path: Path) -> None:
    path = jsonl(into(tmp_path / "here") / "a.jsonl", QUESTIONS)
    identity = content_identity(path)
    assert len(identity) == 64
    moved = into(tmp_path / "there") / "renamed.jsonl"
    shutil.copy(path, moved)
    assert content_identity(moved) == identity
    jsonl(moved, QUESTIONS[:-1])
    assert content_identity(moved) != identity
    assert content_identity(path.parent) == identity  # a folder of one file is that file
    jsonl(path.parent / "b.jsonl", QUESTIONS)
    both = content_identity(path.parent)
    assert both != identity
    shutil.copytree(path.parent, tmp_path / "elsewhere")
    assert content_identity(tmp_path / "elsewhere") == both


def test_a_part_that_a_dataset_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    row = {"item_id": "1", "item_hash": "f" * 64, "messages": [USER, REPLY], "answer": None, "check": None}
    row |= dict.fromkeys(("chosen", "rejected", "label", "rationale", "expert"))
    assert write_rows(tmp_path, "train", [row]) == 1
    assert list(read_rows(tmp_path, "train")) == [row]
    with pytest.raises(DataError, match=r"has no part 'test', only: train; name one of those"):
        count_rows(tmp_path, "test")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=6),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["id", "prompt", "messages", "answer", "check", "role"])


@given(JSON | st.dictionaries(FIELDS, JSON | st.sampled_from(["json", "number", [USER]])))
@settings(deadline=None, max_examples=80)
def test_any_row_is_read_or_refused_with_its_place(row: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = jsonl(Path(name) / "a.jsonl", [*QUESTIONS, row])
        place = f"{path}:41: "
        message = place
        try:
            ingest(path, test_share=0.5, target=Path(name))
        except ForgeError as error:
            message = str(error)
        assert message.startswith(place)


def test_what_was_split_before_is_split_again(tmp_path: Path) -> None:
    asked = [[{"role": "user", "content": f"question {i}"}] for i in range(400)]
    part = [turns for turns in asked if not is_test(row_hash(turns), 0.5)]
    assert 0.2 < sum(is_test_of_part(turns, 0.3) for turns in part) / len(part) < 0.4
    rows = [
        {"item_id": str(i), "item_hash": row_hash(turns), "messages": [*turns, said]}
        for i, turns in enumerate(part)
        for said in ({"role": "assistant", "content": text} for text in ("yes", "no"))
    ]
    counts = write_split(tmp_path, rows, lambda row: is_test_of_part(row["messages"][:1], 0.3))
    found = {p: [row["item_id"] for row in read_rows(tmp_path, p)] for p in ("train", "test")}
    assert counts == {p: len(ids) for p, ids in found.items()}
    assert not set(found["train"]) & set(found["test"])
    assert sum(counts.values()) == len(rows)


def test_nothing_held_out_is_no_part(tmp_path: Path) -> None:
    rows = [{"item_id": "1", "item_hash": "x", "messages": [{"role": "user", "content": "hello"}]}]
    assert write_split(tmp_path, rows, lambda row: False) == {"train": 1, "test": 0}
    assert not (tmp_path / "test.parquet").exists()
