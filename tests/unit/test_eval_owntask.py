"""The user's own tasks in ten lines, and every way to write one wrongly refused before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from largeforge_ray.config.tasks import LibraryTask, OwnTask, TaskEntry
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate.tasks import build
from tests.unit._eval_docs import jsonl

ENTRY: TypeAdapter[Any] = TypeAdapter(TaskEntry)
ROWS = [
    {"q": "2 + 2?", "options": ["3", "4"], "label": 1, "topic": "sums", "lang": "en", "note": "four"},
    {"q": "3 + 3?", "options": ["6", "7"], "label": "6", "topic": "sums", "lang": "de", "note": "six"},
]
OWN: dict[str, Any] = {
    "name": "sums",
    "source": "rows.jsonl",
    "prompt": "Add. {{ q }}",
    "choices": "options",
    "answer": "label",
    "slice": "topic",
    "group": "lang",
}


def own(tmp_path: Path, rows: list[Any] | None = None, **change: Any) -> list[dict[str, Any]]:
    jsonl(tmp_path / "rows.jsonl", ROWS if rows is None else rows)
    return build(
        ENTRY.validate_python({k: v for k, v in (OWN | change).items() if v is not None}), tmp_path
    ).items


def test_an_own_task_with_choices(tmp_path: Path) -> None:
    first, second = own(tmp_path)
    assert first["messages"] == [{"role": "user", "content": "Add. 2 + 2?"}]
    assert (first["choices"], first["answer"], second["answer"]) == (["3", "4"], 1, 0)
    assert (first["item_id"], first["slice"], second["group"]) == ("sums/0", "sums", "de")
    plain, _ = own(tmp_path, chat=False, choices=["{{ options[0] }}", "{{ note }}"])
    assert (plain["context"], plain["choices"]) == ("Add. 2 + 2?", [" 3", " four"])
    both, _ = own(tmp_path, rows=[ROWS[0] | {"label": [0, "4"]}, ROWS[1]])
    assert both["answer"] == [0, 1]


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_an_own_task_that_is_answered_in_words_from_any_format(tmp_path: Path, suffix: str) -> None:
    if suffix == "csv":
        (tmp_path / "rows.csv").write_text('q,note\n"2, and 2?",four\n', encoding="utf-8")
    elif suffix == "json":
        (tmp_path / "rows.json").write_text('[{"q": "2, and 2?", "note": "four"}]', encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([{"q": "2, and 2?", "note": "four"}]), tmp_path / "rows.parquet")
    entry = OwnTask(
        name="words",
        source=f"rows.{suffix}",
        prompt="q",
        answer="{{ note | upper }}",
        check="contains",
        system="You add.",
        max_tokens=8,
        stop=["\n"],
    )
    (made,) = build(entry, tmp_path).items
    assert made["messages"] == [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "2, and 2?"},
    ]
    assert (made["check"], made["answer"], made["max_tokens"], made["stop"]) == (
        "contains",
        "FOUR",
        8,
        ["\n"],
    )


FUNCTION = """
def item(row):
    return {"prompt": row["q"], "answer": row["note"]}

def score(answer_text, row):
    return 1.0 if row["note"] in answer_text else 0.25
"""


def by_function(tmp_path: Path, text: str, **change: Any) -> list[dict[str, Any]]:
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    plain = dict.fromkeys(("prompt", "choices", "answer"))
    return own(tmp_path, **plain | {"function": "own.py"} | change)


def test_an_own_function_makes_items_and_its_bytes_are_in_their_hash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = by_function(tmp_path / "a", FUNCTION)
    assert (first[0]["check"], first[0]["messages"][0]["content"]) == ("function", "2 + 2?")
    changed = by_function(tmp_path / "b", FUNCTION.replace("0.25", "0.5"))
    assert first[0]["item_hash"] != changed[0]["item_hash"]
    (tmp_path / "c").mkdir()
    assert by_function(tmp_path / "c", FUNCTION)[0]["item_hash"] == first[0]["item_hash"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mmul", "'mmul' is no task of the library; did you mean 'mmlu'"),
        ({"name": "winogrande"}, "harness:<any of lm-eval>, or your own with prompt or function"),
        ({"name": "mmlu", "limits": 3}, "Extra inputs"),
        ({"name": "mmlu", "limit": 0}, "greater than or equal to 1"),
        ({"name": "mmlu", "perturb": ["noise"]}, "'typos', 'case', 'options' or 'paraphrase'"),
        (OWN | {"name": "mmlu"}, "'mmlu' is a task of the library; give yours another name"),
        (OWN | {"function": "a.py"}, "needs prompt or function, and not both"),
        ({"name": "a", "source": "b", "answer": "c"}, "needs prompt or function"),
        (OWN | {"check": "number"}, "check 'number' judges words, and there are choices"),
        (OWN | {"choices": None}, r"no choices, so a check judges its answers; Supported: \[exact"),
        (OWN | {"answer": None}, "has no answer to compare with"),
        (OWN | {"system": "x", "chat": False}, "system is a turn of a chat"),
        ({"name": "a", "source": "b", "function": "c.py", "answer": "d"}, "gives answer and choices"),
    ],
)
def test_entries_that_make_no_sense_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ENTRY.validate_python(entry)


def test_a_name_alone_is_an_entry() -> None:
    assert ENTRY.validate_python("gsm8k") == LibraryTask(name="gsm8k")
    assert ENTRY.validate_python(ENTRY.dump_python(LibraryTask(name="gsm8k"), mode="json")) == LibraryTask(
        name="gsm8k"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ('{"q": "a"}\n{"q": \n', r"rows\.jsonl:2: not JSON"),
        ("[1]\n", "an object of named fields; found list"),
        ('{"q": "\xff"}\n', "not UTF-8"),
    ],
)
def test_files_that_are_malformed_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        build(OwnTask(name="a", source="rows.jsonl", prompt="q", answer="q", check="exact"), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('q,note\n"a\nb",c\nd\n', r"rows\.csv:4: has more or fewer values than the 2 columns"),
        ("q,note\na,b,c\n", r"rows\.csv:2: has more or fewer values"),
        ('q,note\n"a"b,c\n', r"rows\.csv:2: not CSV"),
    ],
)
def test_wrong_lines_of_a_csv_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        build(OwnTask(name="a", source="rows.csv", prompt="q", answer="note", check="exact"), tmp_path)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (
            {},
            {"prompt": "{{ question }}"},
            "'prompt': the template fails: 'question' is undefined; the row has q",
        ),
        ({}, {"prompt": "question"}, "field 'question': is missing"),
        ({"q": ""}, {"prompt": "q"}, "'prompt': must be text that is not empty"),
        ({"q": 3}, {"prompt": "q"}, "'prompt': must be text that is not empty; found 3"),
        ({}, {"prompt": "{{ q.__class__.__mro__ }}"}, "is unsafe"),
        ({"label": 2}, {}, "'answer': 2 is no place among 2 choices; count from 0 to 1"),
        ({"label": "five"}, {}, r"'answer': 'five' is none of the choices \['3', '4'\]"),
        ({"label": None}, {}, "'answer': None is no place"),
        ({"options": ["3"]}, {}, "'choices': has 1 texts and needs at least 2"),
        ({"options": ["3", "3"]}, {}, "'choices': '3' is given twice"),
        ({"options": ["3", ""]}, {}, "'choices': number 1 is empty"),
        ({"options": ["3", 4]}, {}, "'choices': must be a list of texts"),
        ({"options": "3 4"}, {}, "'choices': '3 4' is no list"),
        ({}, {"slice": "theme"}, "field 'theme': is missing"),
        ({"label": ""}, {"choices": None, "check": "exact"}, "'answer': is empty"),
        ({"label": "a few"}, {"choices": None, "check": "number"}, "does not fit check 'number'"),
        ({"label": "{"}, {"choices": None, "check": "json"}, "does not fit check 'json'"),
        ({"label": "assert ("}, {"choices": None, "check": "code"}, "does not fit check 'code'"),
    ],
)
def test_rows_of_an_own_task_that_do_not_fit_are_named(
    tmp_path: Path, row: Any, change: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        own(tmp_path, rows=[ROWS[1], ROWS[0] | row], **change)
    if change.get("prompt") is None and not change:
        assert "rows.jsonl:2" in str(caught.value)


def test_a_wrong_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt is no template"):
        own(tmp_path, prompt="{{ q ")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", ConfigError, r"own\.py' defines no item\(row\)"),
        ("def item(row", DataError, r"own\.py' fails: SyntaxError"),
        ("def item(row): return row['z']", DataError, r"rows\.jsonl:1: item of own\.py fails: KeyError"),
        ("def item(row): return row['q']", DataError, "returns a dict with prompt"),
        ("def item(row): return {'prompt': 'a', 'anser': 'b'}", DataError, "returns a dict with prompt"),
        ("def item(row): return {'prompt': 'a', 'answer': 'b'}", ConfigError, "no check and own.py no score"),
        (
            "def item(row): return {'prompt': 'a', 'choices': ['b', 'c'], 'answer': 'd'}",
            DataError,
            "'d' is none of the choices",
        ),
    ],
)
def test_functions_that_do_not_fit_are_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        by_function(tmp_path, text)


def test_the_same_choices_as_a_json_list_in_a_csv(tmp_path: Path) -> None:
    options = json.dumps(["3", "4"]).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'q,options,label\n2 + 2?,"{options}",1\n', encoding="utf-8")
    (made,) = build(OwnTask(**OWN | {"source": "rows.csv", "slice": None, "group": None}), tmp_path).items
    assert (made["choices"], made["answer"]) == (["3", "4"], 1)
